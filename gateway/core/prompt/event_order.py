"""Questions about the order of events: "In which order did I plan the wedding, find the band and choose the rings?"

Their answer stands in many messages, and the words that ask for an order stand in none of them; of what came next not
even the event does that is named. The words are in a table of regular expressions (gateway/data/order_words.txt), of
some languages of the memory's word table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import NamedTuple

_TABLE = Path(__file__).parents[2] / "data/order_words.txt"
# A longer text is no question.
_MAX_CHARS = 500


class Asked(Enum):
    """Names what a question about the order of events asks for: all of it, or the event next to one."""

    ORDER = auto()
    NEXT = auto()
    PREVIOUS = auto()


class _Language(NamedTuple):
    # Small letters, some of which stand in each text that asks for an order.
    signs: Sequence[str]
    # What a question asks for, and the expression that finds such questions.
    expressions: Sequence[tuple[Asked, re.Pattern[str]]]


class _Table(NamedTuple):
    languages: Sequence[_Language]
    # Finds the words of such a question, in any language, that name no event.
    frame: re.Pattern[str]


def find_asked_order(text: str) -> Asked | None:
    """Returns what a text asks about the order of events; None: the text does not ask about an order."""
    if len(text) > _MAX_CHARS:
        return None
    lowered = text.lower()
    for language in _load().languages:
        if any(sign in lowered for sign in language.signs):
            for asked, expression in language.expressions:
                if expression.search(text):
                    return asked
    return None


def events_of(text: str) -> str:
    """Returns the events that such a text asks about, without the words that ask; the text where none are left."""
    return " ".join(_load().frame.sub(" ", text).split()).strip(" ?.,:") or text


@cache
def _load() -> _Table:
    """Reads the table of expressions."""
    signs: dict[str, Sequence[str]] = {}
    expressions: dict[str, list[tuple[Asked, re.Pattern[str]]]] = {}
    frame = list[str]()
    for line in _TABLE.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            language, kind, pattern = line.split(maxsplit=2)
            if kind == "sign":
                signs[language] = pattern.split()
                continue
            frame.append(pattern)
            if kind != "frame":
                asks = Asked[kind.upper()], re.compile(pattern, re.IGNORECASE)
                expressions.setdefault(language, []).append(asks)
    languages = [_Language(signs[language], patterns) for language, patterns in expressions.items()]
    return _Table(languages, re.compile("|".join(frame), re.IGNORECASE))
