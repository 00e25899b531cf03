"""The difference of two texts, word by word, as a person reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from msgspec import Struct

# Thai, Lao, Burmese, Khmer, Chinese and Japanese are written without spaces, so each character counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003ffff"
)
# A word with the spaces after it, so that whole words change; each line's end is one of its own.
_WORD = re.compile(rf"\n|[^\S\n]+|(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)[^\S\n]*")
# Above so many pairs of words the lines are compared instead, and above so many pairs of lines nothing is: the time
# grows with their number.
_PAIRS = 1_000_000
# The most steps of a comparison: after each match all pairs of equal words may be looked through once more. So many
# take some 50 ms at worst. Where words repeat so much that it would be more, the most frequent ones begin no match.
_STEPS = 1_000_000


class DiffPart(Struct, frozen=True):
    """A part of a text that was changed: it stays, was put in, or was taken out."""

    op: Literal["same", "ins", "del"]
    text: str


def diff_words(old: str, new: str) -> tuple[DiffPart, ...]:
    """Returns the parts of both texts in their order; without those of `ins` they are the old text."""
    for split in (_WORD.findall, _lines):
        before, after = split(old), split(new)
        start = _common(before, after)
        end = _common(before[start:][::-1], after[start:][::-1])
        middle = before[start : len(before) - end], after[start : len(after) - end]
        if len(middle[0]) * len(middle[1]) <= _PAIRS:
            parts = _compared(*middle)
            return _joined(
                [("same", before[:start]), *parts, ("same", before[len(before) - end :] if end else [])]
            )
    return _joined([("del", [old]), ("ins", [new])])


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _common(before: Sequence[str], after: Sequence[str]) -> int:
    """Returns how many words two lists have in common at their beginnings."""
    count = 0
    for one, other in zip(before, after, strict=False):
        if one != other:
            break
        count += 1
    return count


def _compared(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    found: list[tuple[str, Sequence[str]]] = []
    matcher = SequenceMatcher(_too_frequent(before, after).__contains__, before, after, autojunk=False)
    for tag, start, end, start_after, end_after in matcher.get_opcodes():
        if tag == "equal":
            found.append(("same", before[start:end]))
            continue
        found += [("del", before[start:end]), ("ins", after[start_after:end_after])]
    return found


def _too_frequent(before: Sequence[str], after: Sequence[str]) -> frozenset[str]:
    """Returns the words with so many equal pairs that a comparison would take more than `_STEPS`."""
    counts, others = Counter(before), Counter(after)
    pairs = sorted((count * others[word], word) for word, count in counts.items() if word in others)
    left = _STEPS // max(1, min(len(before), len(after)))
    for number, (count, _) in enumerate(pairs):
        left -= count
        if left < 0:
            return frozenset(word for _, word in pairs[number:])
    return frozenset()


def _joined(parts: Sequence[tuple[str, Sequence[str]]]) -> tuple[DiffPart, ...]:
    """Returns the parts without empty ones; successive parts of a kind are one."""
    found: list[tuple[str, str]] = []
    for op, words in parts:
        text = "".join(words)
        if not text:
            continue
        if found and found[-1][0] == op:
            found[-1] = op, found[-1][1] + text
        else:
            found.append((op, text))
    return tuple(DiffPart(op, text) for op, text in found)  # type: ignore[arg-type]
