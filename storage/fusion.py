"""Several searches' hits as one list."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T", bound=object)


def in_turn(ranked: Sequence[Sequence[T]]) -> list[T]:
    """Returns the best hit of each search, then the second best of each, and so on.

    What scores are worth differs from memory to memory, so ranks are all that searches have in common.
    """
    return [hit for place in zip_longest(*ranked) for hit in place if hit is not None]
