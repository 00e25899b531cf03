"""Thoughts within the text of a reply, which memory leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.conversation.fillers import without_fillers_and_thoughts
from gateway.core.thoughts import without_thoughts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>\nHm.\n</think>\n\nTea.", "Tea."),
        ("\n<think></think>Tea.", "Tea."),
        ("<think>a</think> <think>b</think>\nTea.", "Tea."),  # two rounds of one reply
        ("<think>Hm, the us", ""),  # cut in the middle
        ("<thought>Hm, </think>.</thought>Tea.", "Tea."),  # Gemini, EXAONE
        ("<thinking>\nHm.\n</thinking>\n\nTea.", "Tea."),  # Nova
        ("<seed:think>Hm.</seed:think>Tea.", "Tea."),
        ("[THINK]Hm.[/THINK]Tea.", "Tea."),  # Magistral
        ("[THINK]Hm, the us", ""),
        ("Hm,\nso\n</think>\n\nTea.", "Tea."),  # the template has opened it
        ("Hm.\n</think>", ""),
        ("</think>\r\n\r\nTea.", "Tea."),
        ("A line ends in </think>\n </think> \nTea.", "Tea."),
        ("Tea.", "Tea."),
        ("I think> so.", "I think> so."),
        ("Write <think>so</think> before it.", "Write <think>so</think> before it."),
        ("The tag </think> ends it.\nSo", "The tag </think> ends it.\nSo"),
        ("```\n<think>\nHm.\n</think>\n```", "```\n<think>\nHm.\n</think>\n```"),
    ],
)
def test_a_reply_without_its_thoughts(text: str, said: str) -> None:
    assert without_thoughts(text) == said


def test_a_reply_is_spoken_without_its_thoughts() -> None:
    reply = {"role": "assistant", "content": "<think>Hm.</think>Tea.", "x": 1}
    assert without_fillers_and_thoughts(reply) == {**reply, "content": "Tea."}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": 7},
        {"role": "assistant", "content": [{"type": "text", "text": "<think>Hm.</think>Tea."}]},
        {"role": "user", "content": "<think>Hm.</think>What does this say?"},
    ],
)
def test_other_messages_stay(message: dict[str, Any]) -> None:
    assert without_fillers_and_thoughts(message) is message
