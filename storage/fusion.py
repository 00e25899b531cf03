"""Several searches' hits as one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T", bound=object)


def interleave(ranked: Sequence[Sequence[T]]) -> list[T]:
    """Returns the best hit of each search, then the second best of each, and so on.

    What scores are worth differs from memory to memory, so ranks are all that searches have in common.
    """
    merged: list[T] = []
    while ranked := [each for each in ranked if each]:
        # As many ranks as all of the remaining searches have, at once.
        searches, ranks = len(ranked), min(map(len, ranked))
        part = [*ranked[0][:ranks]] * searches
        for number, each in enumerate(ranked):
            part[number::searches] = each[:ranks]
        merged += part
        ranked = [each[ranks:] for each in ranked]
    return merged
