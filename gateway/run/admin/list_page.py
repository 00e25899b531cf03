"""A page of a list, and the cursor with which a client asks for the next page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from gateway.core.dates import parse_moment
from gateway.errors import BadRequest
from storage.listing import FIRST_PAGE, PageEnd

_Item = TypeVar("_Item")
_First = TypeVar("_First", int, None)

# The items of a page where the client names no limit.
PAGE_LIMIT = 50
# The highest limit.
MAX_PAGE_LIMIT = 200
# The lines of a page of the command line, which asks for one page after the other.
PAGE_LINES = 200


class ListPage(Struct, Generic[_Item], frozen=True):
    """A page of a list."""

    items: tuple[_Item, ...]
    # `after` of the next page; None: this is the last one.
    next: str | None


def make_next_cursor(items: Sequence[_Item], limit: int, cursor_of: Callable[[_Item], str]) -> str | None:
    """Returns the cursor of the next page, or None if this is the last page.

    items: the items of the page, and one more if the list goes on.
    cursor_of: returns the cursor of the page after an item.
    """
    return cursor_of(items[limit - 1]) if len(items) > limit else None


def format_page_end(end: PageEnd) -> str:
    """Returns the cursor of the page after one with this end, in a list by the time of the last turn."""
    return f"{end[0]!r}_{end[1]}"


def parse_page_end(cursor: str | None) -> PageEnd:
    """Returns the end of the previous page. cursor: None for the first page. Raises: BadRequest."""
    if cursor is None:
        return FIRST_PAGE
    at, _, row = cursor.partition("_")
    number = parse_record_number(row)
    try:
        seconds = float(at)
    except ValueError:
        seconds = math.nan
    if number is None or not math.isfinite(seconds):
        raise make_cursor_error()
    return seconds, number


def parse_cursor(after: str | None, first: _First, param: str = "after") -> int | _First:
    """Returns the number of the record after which a page begins.

    after: the `next` of the previous page; None for the first page.
    first: returned for the first page.
    param: the parameter that an error names.

    Raises: BadRequest: `after` is no number of a record.
    """
    if after is None:
        return first
    number = parse_record_number(after)
    if number is None:
        raise make_cursor_error(param)
    return number


def make_cursor_error(param: str = "after") -> BadRequest:
    """Returns the error of a cursor that is not the `next` of a page."""
    return BadRequest(f"{param} must be the `next` of the page before.", param=param)


def parse_record_number(text: str) -> int | None:
    """Returns the number of a record; None: the text is no number, or has more than 18 digits (64 bits may not do)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def parse_time_bound(name: str, text: str, *, is_end: bool = False) -> float:
    """Returns the time of a field, in seconds since the epoch.

    name: the name of the field.
    is_end: True: a day means its end.

    Raises: BadRequest.
    """
    try:
        return parse_moment(text, is_end=is_end)
    except ValueError as error:
        raise BadRequest(
            f"{name} is a day like 2026-11-24, or a time like 2026-11-24T18:00.", param=name
        ) from error
