"""Questions about the order of events: "In which order did I plan the wedding, find the band and choose the rings?"

The answer is spread over many messages, and none of them has the words that ask for an order. A message about what came
next does not even have the event that the question names. A table of regular expressions, in some of the languages of
the memory's word table, finds these words (gateway/data/order_words.txt).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import NamedTuple

# The table of the words that ask for an order.
_TABLE = Path(__file__).parents[2] / "data/order_words.txt"
# A longer text is no question.
_MAX_CHARS = 500


class OrderQuestion(Enum):
    """The events for which a question about their order asks."""

    # All events, in their order.
    ORDER = auto()
    # The event after the one that is named.
    NEXT = auto()
    # The event before the one that is named.
    PREVIOUS = auto()


class _Language(NamedTuple):
    """The signs and expressions of one language."""

    # Small letters, some of which stand in each text that asks for an order.
    signs: Sequence[str]
    # Pairs of a kind of question and the expression that finds such questions, tried in this order.
    expressions: Sequence[tuple[OrderQuestion, re.Pattern[str]]]


class _Table(NamedTuple):
    """The content of the file of order words."""

    # The languages, in the order of the file.
    languages: Sequence[_Language]
    # Finds the words of a question that name no event, in any of the languages.
    frame: re.Pattern[str]


def find_order_question(text: str) -> OrderQuestion | None:
    """Returns the kind of a question about the order of events; None: the text does not ask about an order."""
    if len(text) > _MAX_CHARS:
        return None
    lowered = text.lower()
    for language in _read_table().languages:
        if any(sign in lowered for sign in language.signs):
            for question, expression in language.expressions:
                if expression.search(text):
                    return question
    return None


def without_order_words(text: str) -> str:
    """Returns the events in a question about their order: its text without the words that ask, if any text is left."""
    return " ".join(_read_table().frame.sub(" ", text).split()).strip(" ?.,:") or text


@cache
def _read_table() -> _Table:
    """Reads the file: each line has a language, a kind (sign, frame, order, next, previous), and words or a pattern."""
    signs: dict[str, Sequence[str]] = {}
    expressions: dict[str, list[tuple[OrderQuestion, re.Pattern[str]]]] = {}
    frame: list[str] = []
    for line in _TABLE.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            language, kind, pattern = line.split(maxsplit=2)
            if kind == "sign":
                signs[language] = pattern.split()
                continue
            frame.append(pattern)
            if kind != "frame":
                question = OrderQuestion[kind.upper()]
                expression = re.compile(pattern, re.IGNORECASE)
                expressions.setdefault(language, []).append((question, expression))
    languages = [_Language(signs[language], patterns) for language, patterns in expressions.items()]
    return _Table(languages, re.compile("|".join(frame), re.IGNORECASE))
