"""The difference of two texts, word by word."""

from __future__ import annotations

import pytest

from gateway.core.memory.word_diff import diff_words

CASES = [
    ("", "", []),
    ("Same.", "Same.", [("same", "Same.")]),
    ("", "New.", [("ins", "New.")]),
    ("Old.", "", [("del", "Old.")]),
    # Whole words change, with the space after them.
    ("a cat here", "a dog here", [("same", "a "), ("del", "cat "), ("ins", "dog "), ("same", "here")]),
    # Of a script without spaces whole characters change.
    ("我住在巴黎。", "我住在里昂。", [("same", "我住在"), ("del", "巴黎"), ("ins", "里昂"), ("same", "。")]),
    ("one\ntwo\n", "one\n2\n", [("same", "one\n"), ("del", "two"), ("ins", "2"), ("same", "\n")]),
]


@pytest.mark.parametrize(("old", "new", "parts"), CASES)
def test_words_that_stay_come_and_go(old: str, new: str, parts: list[tuple[str, str]]) -> None:
    assert [(part.op, part.text) for part in diff_words(old, new)] == parts


@pytest.mark.parametrize("count", [10, 2_000, 40_000])
def test_both_texts_are_in_their_difference_however_long_they_are(count: int) -> None:
    old, new = " ".join(f"a{n}" for n in range(count)), " ".join(f"b{n}" for n in range(count, 0, -1))
    parts = diff_words(f"first {old}\nlast", f"first {new}\nlast")
    assert "".join(part.text for part in parts if part.op != "ins") == f"first {old}\nlast"
    assert "".join(part.text for part in parts if part.op != "del") == f"first {new}\nlast"


def test_words_that_repeat_without_end_are_not_compared_for_minutes() -> None:
    parts = diff_words("a " * 1_000, "a b " * 500)
    assert [part.op for part in parts] == ["same", "del", "ins"]


@pytest.mark.parametrize("gap", ["", "\n"])
def test_a_long_text_without_spaces_shows_the_characters_that_have_changed(gap: str) -> None:
    """Of 4,000 characters at both ends, in one line and in many."""
    sentences = [f"第{number}天她在巴黎的公寓里写信。{gap}" for number in range(250)]
    old, new = (
        "".join(sentences),
        "".join(sentences).replace("第1天她", "第1天我").replace("第248天她", "第248天我"),
    )
    changed = [(part.op, part.text) for part in diff_words(old, new) if part.op != "same"]
    assert changed == [("del", "她"), ("ins", "我")] * 2
