"""Several searches' hits as one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T", bound=object)


def interleave(ranked: Sequence[Sequence[T]]) -> list[T]:
    """Returns the best hit of each search, then the second best of each, and so on.

    Scores of different memories cannot be compared, but ranks can.
    """
    merged: list[T] = []
    while ranked := [hits for hits in ranked if hits]:
        # At once as many ranks as each of the remaining searches has.
        searches, ranks = len(ranked), min(map(len, ranked))
        part = [*ranked[0][:ranks]] * searches
        for number, hits in enumerate(ranked):
            part[number::searches] = hits[:ranks]
        merged += part
        ranked = [hits[ranks:] for hits in ranked]
    return merged
