"""Merges the hits of several searches into one list."""

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
        # The ranks that all remaining searches have are merged at once.
        rank_count = min(map(len, ranked))
        for same_rank_hits in zip(*(hits[:rank_count] for hits in ranked), strict=True):
            merged += same_rank_hits
        ranked = [hits[rank_count:] for hits in ranked]
    return merged
