"""Checks the answer of a model that was asked for a summary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.core.finish_reasons import BROKE
from gateway.core.thoughts import without_thoughts

# A text has hardly ever more characters for a token, so this bounds the length of an answer. Chosen: English prose has
# four to five.
_MAX_CHARS_PER_TOKEN = 6


class UnusableSummary(Exception):
    """The answer is no summary. message: the reason, without a word of the conversation."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


# A refusal in English, and the beginning of an apology in German, French and Spanish; in other languages it is stored.
_REFUSAL = re.compile(
    r"\s*(?:(?:i['’]?m|i am)\s+(?:very\s+|really\s+)?(?:sorry|afraid|unable|not able)\b|sorry,|i (?:can(?:no|['’])t"
    r"|won['’]t|must decline)\b|as an ai\b|unfortunately,? i\b|es tut mir leid|je suis désolé|lo siento)",
    re.I,
)
# The most characters of a refusal. In a longer answer an apology is part of the content.
_REFUSAL_CHARS = 600
# The fewest characters of a summary of a long text. A shorter one has nothing of the text.
_MIN_CHARS = 24
# A text with more characters is a long one.
_LONG_SOURCE_CHARS = 1_000
# The least share of distinct words in a summary. With a smaller share the summary repeats itself.
_MIN_DISTINCT_SHARE = 1 / 8
# The fewest words of a summary that is checked for repetitions.
_REPETITION_WORDS = 60
# The least share of letters and digits in the characters of a summary.
_MIN_LETTER_SHARE = 1 / 3


def extract_summary(
    answer: str,
    source_lines: Sequence[str],
    earlier_summary: str,
    *,
    max_tokens: int,
    finish_reason: str,
    is_manual: bool,
) -> str:
    """Returns the summary of an answer, as it is stored. Raises: UnusableSummary: the answer is no summary.

    source_lines: the lines for which the summary stands.
    earlier_summary: the summary of the messages before these lines, for which the new summary stands, too.
    max_tokens: the most tokens of the summary.
    is_manual: True if a person asked for the summary, so it may be longer than the few words that it replaces.
    """
    text = unwrap_summary(answer)
    length = len(earlier_summary) + sum(map(len, source_lines))
    if finish_reason == "content_filter":
        raise UnusableSummary("the background model's filter cut the summary off")
    if finish_reason == BROKE:
        raise UnusableSummary("the background model broke off in the summary")
    if finish_reason == "length" or len(text) > max_tokens * _MAX_CHARS_PER_TOKEN:
        text = without_broken_line(text[: max_tokens * _MAX_CHARS_PER_TOKEN])
    if not text:
        raise UnusableSummary("the summary is empty")
    if len(text) < _REFUSAL_CHARS and _REFUSAL.match(text):
        raise UnusableSummary("the background model refused to summarise")
    if len(text) >= length and not is_manual:
        raise UnusableSummary("the summary is not shorter than what it summarises")
    if length > _LONG_SOURCE_CHARS and len(text) < _MIN_CHARS:
        raise UnusableSummary("the summary says nothing")
    words = text.lower().split()
    if len(words) >= _REPETITION_WORDS and len(set(words)) < len(words) * _MIN_DISTINCT_SHARE:
        raise UnusableSummary("the summary repeats itself")
    if sum(map(str.isalnum, text)) < len(text) * _MIN_LETTER_SHARE:
        raise UnusableSummary("the summary is no text")
    return text


def spent_tokens_on_thoughts(answer: str, *, max_tokens: int, finish_reason: str) -> bool:
    """Returns whether an answer was cut off with less than one character of text for each token that it might have.

    Then its model has spent the tokens on thoughts.
    """
    return finish_reason == "length" and len(unwrap_summary(answer)) < max_tokens


def unwrap_summary(answer: str) -> str:
    """Returns the summary of an answer, without its tags (`<notes>`) and the model's thoughts."""
    text = without_thoughts(answer).strip()
    notes = re.fullmatch(r"<notes>(.*?)(?:</notes>)?", text, re.S)
    return (notes[1] if notes else text).strip()


def without_broken_line(text: str) -> str:
    """Returns a text without the line, or the sentence, that was cut off."""
    for end in ("\n", ". "):
        offset = text.rfind(end)
        if offset > len(text) // 2:
            return text[: offset + 1].strip()
    return text.strip()
