"""Questions about the order of events: "In which order did I plan the wedding, find the band and choose the rings?"

Their answer stands in many messages, and the words that ask for an order stand in none of them. The words are in a
table of regular expressions (gateway/data/order_words.txt), of some languages of the memory's word table.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

_TABLE = Path(__file__).parents[2] / "data/order_words.txt"
# A longer text is no question.
_CHARS = 500


class _Table(NamedTuple):
    # Small letters, some of which stand in each text that asks for an order.
    signs: tuple[str, ...]
    # What asks for an order, in any language.
    order: re.Pattern[str]
    # That, and the words around it that name no event.
    frame: re.Pattern[str]


def asks_for_order(text: str) -> bool:
    """Returns whether a text asks for the order of events."""
    if len(text) > _CHARS:
        return False
    table = _load()
    return any(map(text.lower().__contains__, table.signs)) and table.order.search(text) is not None


def events_of(text: str) -> str:
    """Returns the events that such a text asks about, without the words that ask; the text where none are left."""
    return " ".join(_load().frame.sub(" ", text).split()).strip(" ?.,:") or text


@cache
def _load() -> _Table:
    signs, order, frame = list[str](), list[str](), list[str]()
    for line in _TABLE.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            _, kind, pattern = line.split(maxsplit=2)
            if kind == "sign":
                signs += pattern.split()
            else:
                (order if kind == "order" else frame).append(pattern)
    expressions = (re.compile("|".join(each), re.IGNORECASE) for each in (order, order + frame))
    return _Table(tuple(dict.fromkeys(signs)), *expressions)
