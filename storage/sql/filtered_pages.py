"""Pages of lists from which some rows are left out once they are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from storage.listing import FIRST_PAGE, Page, PageEnd

T = TypeVar("T")
EndT = TypeVar("EndT")

# Before and after every row, in any order of a list.
BEFORE_ALL: PageEnd = (-1.0, -1)
AFTER_ALL = FIRST_PAGE
# The fewest rows that are read at once. Not measured: with fewer, a page costs more statements where many rows are left
# out.
_MIN_ROWS = 20


async def fill_page(
    page: Page[Any],
    low: EndT,
    high: EndT,
    read: Callable[[EndT, EndT, int], Awaitable[tuple[Iterable[T], EndT | None]]],
    *,
    min_rows: int = _MIN_ROWS,
) -> list[T]:
    """Returns a page of a list. Rows are read until the page is full.

    low, high: the ends of the page.
    read: a function that reads a number of rows between two ends, in the page's order. It returns the entries that the
        filter takes, and the end after the last row; None: fewer rows were read, so that no more follow.
    min_rows: the fewest rows that are read at once.
    """
    entries: list[T] = []
    while len(entries) < page.limit:
        added, end = await read(low, high, max(page.limit - len(entries), min_rows))
        entries += added
        if end is None:
            break
        low, high = (low, end) if page.newest_first else (end, high)
    return entries[: page.limit]
