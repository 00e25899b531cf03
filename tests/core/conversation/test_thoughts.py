"""Thoughts within the text of a reply, which memory leaves out."""

from __future__ import annotations

import pytest

from gateway.core.conversation.fillers import without_thoughts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>\nHm.\n</think>\n\nTea.", "Tea."),
        ("\n<think></think>Tea.", "Tea."),
        ("<think>a</think> <think>b</think>\nTea.", "Tea."),  # two rounds of one reply
        ("<think>Hm, the us", ""),  # cut in the middle
        ("Hm,\nso\n</think>\n\nTea.", "Tea."),  # the template has opened it
        ("Hm.\n</think>", ""),
        ("Tea.", "Tea."),
        ("I think> so.", "I think> so."),
        ("Write <think>so</think> before it.", "Write <think>so</think> before it."),
        ("The tag </think> ends it.\nSo", "The tag </think> ends it.\nSo"),
        ("```\n<think>\nHm.\n</think>\n```", "```\n<think>\nHm.\n</think>\n```"),
    ],
)
def test_what_a_reply_says_without_its_thoughts(text: str, said: str) -> None:
    reply = {"role": "assistant", "content": text, "x": 1}
    assert without_thoughts(reply) == {**reply, "content": said}


@pytest.mark.parametrize("content", [None, 7, [{"type": "text", "text": "<think>Hm.</think>Tea."}]])
def test_other_content_stays(content: object) -> None:
    reply = {"role": "assistant", "content": content}
    assert without_thoughts(reply) is reply
