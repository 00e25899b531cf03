"""Padding, which keeps a row of `exchanges` from moving its neighbours when it grows.

SQLite erases in place what is overwritten (`secure_delete`). But a row that no longer fits its page makes SQLite
distribute the rows of several pages again, and bytes of rows that moved may stay between the others: forgotten text
would be left in the file. So the part of a row that lies in its page never grows. Each row stores its room there and is
padded to it. A row that needs more goes to overflow pages, which belong to it alone and are erased when it gives them
up. Its room is then what is left of it in its page, since other rows may take the rest.

Sizes are those of SQLite's record format (sqlite.org/fileformat2.html, sections 1.6 and 2.1), for pages of 4096 bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

_PAGE_BYTES = 4096
_LONGEST_IN_PAGE = _PAGE_BYTES - 35  # the longest record without overflow pages
_MIN_IN_PAGE = (_PAGE_BYTES - 12) * 32 // 255 - 23  # what a longer record has in its page at least
_OVERFLOW_PAGE_BYTES = _PAGE_BYTES - 4  # what an overflow page holds
# The columns that are not counted here, since they never change: id, agent, seq, run, room.
_UNCOUNTED_BYTES = 45
# A whole number takes `_INTEGER_BYTES[i]` bytes besides its type code, where i is the number of bounds up to it.
_INTEGER_BOUNDS = (
    -(1 << 47), -(1 << 31), -(1 << 23), -(1 << 15), -128, 0, 2, 128, 1 << 15, 1 << 23, 1 << 31, 1 << 47
)  # fmt: skip
_INTEGER_BYTES = (8, 6, 4, 3, 2, 1, 0, 1, 2, 3, 4, 6, 8)
# The lengths of bytes and texts at which their type code takes one byte more.
_LONGER_TYPE_CODES = (58, 8186, 1048570)
MIN_ROOM = 540  # enough for what a row that overflows has in its page
# The room of a row that overflows from the beginning: it may have so little in its page.
_SPILLED_ROOM = _MIN_IN_PAGE + 4 - _UNCOUNTED_BYTES - 8

# A record of this length plus any number of overflow pages has _MIN_IN_PAGE bytes in its page, also where it is a
# hundred bytes longer or shorter.
_SPILL_BYTES = _MIN_IN_PAGE - 100


def size_of(values: Sequence[Any]) -> int:
    """Returns the bytes in a record, type codes included. Booleans are numbers, as SQLite has them."""
    size = len(values)
    # Of empty values, None and 0 there is nothing but the type code. Each turn has three dozen values.
    for value in filter(None, values):
        kind = type(value)
        if kind is str:
            value, kind = value.encode(), bytes
        if kind is bytes:
            n = len(value)
            size += n if n < 58 else n + bisect_right(_LONGER_TYPE_CODES, n)
        elif kind is float and not value.is_integer():
            size += 8
        else:  # a whole number is stored as one
            size += _INTEGER_BYTES[bisect_right(_INTEGER_BOUNDS, value)]
    return size


def room_for(size: int) -> int:
    """Returns the room of a new row, given its size without padding."""
    if size + 1 + _UNCOUNTED_BYTES > _LONGEST_IN_PAGE:
        return _SPILLED_ROOM
    return max(MIN_ROOM, size + 1)


def pad_bytes(size: int, room: int) -> int:
    """Returns how many zeros bring a row to its room, or beyond it to overflow pages, like `exchange_update`."""
    if size < room:
        left = room - size
        return left - 1 if left <= 58 else max(57, left - 2)
    pages = max(
        1, (size + _UNCOUNTED_BYTES - _SPILL_BYTES + _OVERFLOW_PAGE_BYTES - 1) // _OVERFLOW_PAGE_BYTES
    )
    return _SPILL_BYTES + _OVERFLOW_PAGE_BYTES * pages - _UNCOUNTED_BYTES - size


def padding_of(values: Sequence[object]) -> tuple[int, bytes | None]:
    """Returns room and padding of a new row with these values."""
    size = size_of(values)
    room = room_for(size)
    return room, bytes(pad_bytes(size, room)) if size < room else None
