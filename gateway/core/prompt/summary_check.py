"""Checks what a model answers when it is asked for a summary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.core.finish_reasons import BROKE
from gateway.core.thoughts import without_thoughts

# No text has more characters for a token, so this bounds the length of an answer.
CHARS_PER_TOKEN = 6


class UnusableSummary(Exception):
    """The answer is no summary. message: the reason, without a word of the conversation."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


_REFUSAL = re.compile(
    r"\s*(?:(?:i['’]?m|i am)\s+(?:very\s+|really\s+)?(?:sorry|afraid|unable|not able)\b|sorry,|i (?:can(?:no|['’])t"
    r"|won['’]t|must decline)\b|as an ai\b|unfortunately,? i\b|es tut mir leid|je suis désolé|lo siento)",
    re.I,
)
# Characters: in a longer answer an apology is part of the content.
_REFUSAL_CHARS = 600
# A shorter summary of a long text says nothing.
_MIN_CHARS = 24
# Words from which on a repetition shows.
_REPETITION_WORDS = 60


def check_summary(
    answer: str,
    source: Sequence[str],
    earlier: str,
    *,
    size: int,
    finish_reason: str,
    by_hand: bool = False,
) -> str:
    """Returns the summary as it is stored. Raises: UnusableSummary: the answer is no summary, and nothing changes.

    by_hand: it was asked for, so it may be longer than the few words that it stands for.
    """
    text = unwrap_notes(answer)
    length = len(earlier) + sum(map(len, source))
    if finish_reason == "content_filter":
        raise UnusableSummary("the background model's filter cut the summary off")
    if finish_reason == BROKE:
        raise UnusableSummary("the background model broke off in the summary")
    if finish_reason == "length" or len(text) > size * CHARS_PER_TOKEN:
        text = whole_lines(text[: size * CHARS_PER_TOKEN])
    if not text:
        raise UnusableSummary("the summary is empty")
    if len(text) < _REFUSAL_CHARS and _REFUSAL.match(text):
        raise UnusableSummary("the background model refused to summarise")
    if len(text) >= length and not by_hand:
        raise UnusableSummary("the summary is not shorter than what it summarises")
    if length > 1_000 and len(text) < _MIN_CHARS:
        raise UnusableSummary("the summary says nothing")
    words = text.lower().split()
    if len(words) >= _REPETITION_WORDS and len(set(words)) * 8 < len(words):
        raise UnusableSummary("the summary repeats itself")
    if sum(map(str.isalnum, text)) * 3 < len(text):
        raise UnusableSummary("the summary is no text")
    return text


def lacked_room(answer: str, *, size: int, finish_reason: str) -> bool:
    """Returns whether an answer was cut before it had much text: its model has spent the room on thoughts.

    Much: a character for each of the `size` tokens.
    """
    return finish_reason == "length" and len(unwrap_notes(answer)) < size


def unwrap_notes(answer: str) -> str:
    """Returns the notes of an answer, without their frame and the model's thoughts."""
    text = without_thoughts(answer).strip()
    found = re.fullmatch(r"<notes>(.*?)(?:</notes>)?", text, re.S)
    return (found[1] if found else text).strip()


def whole_lines(text: str) -> str:
    """Returns a text without the line, or the sentence, that was cut off."""
    for end in ("\n", ". "):
        at = text.rfind(end)
        if at > len(text) // 2:
            return text[: at + 1].strip()
    return text.strip()
