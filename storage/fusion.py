"""Several searches' hits as one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T", bound=object)


def in_turn(ranked: Sequence[Sequence[T]]) -> list[T]:
    """Returns the best hit of each search, then the second best of each, and so on.

    What scores are worth differs from memory to memory, so ranks are all that searches have in common.
    """
    found: list[T] = []
    # As long as all have more, in one go for each search.
    while ranked := [each for each in ranked if each]:
        searches, places = len(ranked), min(map(len, ranked))
        part = [*ranked[0][:places]] * searches
        for number, each in enumerate(ranked):
            part[number::searches] = each[:places]
        found += part
        ranked = [each[places:] for each in ranked]
    return found
