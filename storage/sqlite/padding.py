"""Padding, which keeps a row of `exchanges` from moving its neighbours when it grows.

SQLite erases overwritten content in place (`secure_delete`). But a row that no longer fits its page makes SQLite
distribute the rows of several pages again, and bytes of rows that moved may stay between the others: forgotten text
would be left in the file. So the part of a row that lies in its page never grows. Each row stores its room there and is
padded to it. A row that needs more goes to overflow pages, which belong to it alone and are erased when it gives them
up. From then on its room is the part that is left in its page, since other rows may take the rest.

The piece `set_exchange` in storage/sql/pieces.sql does for a stored row in SQL what `count_padding` does for a new one,
with these constants as numbers: both must agree.

Sizes are those of SQLite's record format (sqlite.org/fileformat2.html, sections 1.6 and 2.1), for pages of 4096 bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from storage.row_bytes import LONGER_LENGTHS

# The bytes of a page.
_PAGE_BYTES = 4096
# The longest record without overflow pages.
_MAX_IN_PAGE_BYTES = _PAGE_BYTES - 35
# The smallest part of a longer record that lies in its page: 489 bytes.
_MIN_IN_PAGE = (_PAGE_BYTES - 12) * 32 // 255 - 23
# The bytes of a record in an overflow page, besides the number of the next one.
_OVERFLOW_PAGE_BYTES = _PAGE_BYTES - 4
# The most bytes of the columns that `measure_record` is not given, since they never change: id, agent, seq, run, room.
_UNCOUNTED_BYTES = 45
# A whole number takes `_INTEGER_BYTES[i]` bytes besides its type code, where i is the number of bounds up to it.
_INTEGER_BOUNDS = (
    -(1 << 47), -(1 << 31), -(1 << 23), -(1 << 15), -128, 0, 2, 128, 1 << 15, 1 << 23, 1 << 31, 1 << 47
)  # fmt: skip
_INTEGER_BYTES = (8, 6, 4, 3, 2, 1, 0, 1, 2, 3, 4, 6, 8)
# The least length of a text whose type code takes two bytes.
_TWO_BYTE_CODE = LONGER_LENGTHS[0]
# The least room of a row: more than the `_MIN_IN_PAGE` bytes of a row that overflows.
_MIN_ROOM = 540
# The bytes of the number of its first overflow page, which follows a record's part in its page.
_PAGE_NUMBER_BYTES = 4
# The bytes by which a room is smaller than computed. Chosen, not measured: a room that is too small is safe, a room
# that is too large is not.
_SPARE_BYTES = 8
# The room of a row that overflows from the beginning, of which no more may lie in its page: 440 bytes.
_SPILLED_ROOM = _MIN_IN_PAGE + _PAGE_NUMBER_BYTES - _UNCOUNTED_BYTES - _SPARE_BYTES

# A row is padded to this length plus a number of full overflow pages; then _MIN_IN_PAGE bytes lie in its page. This is
# a hundred bytes less than _MIN_IN_PAGE, since `_UNCOUNTED_BYTES` is an estimate, and values that change may be shorter
# or longer.
_SPILL_BYTES = _MIN_IN_PAGE - 100


def measure_record(values: Sequence[Any]) -> int:
    """Returns the bytes in a record, type codes included. Booleans are numbers, as SQLite has them."""
    size = len(values)
    # Empty values, None and 0 have nothing but a type code. Skipped here for speed: a turn has three dozen values.
    for value in filter(None, values):
        value_type = type(value)
        if value_type is str:
            value = value.encode()
            value_type = bytes
        if value_type is bytes:
            length = len(value)
            size += length if length < _TWO_BYTE_CODE else length + bisect_right(LONGER_LENGTHS, length)
        elif value_type is float and not value.is_integer():
            size += 8
        else:  # a whole number is stored as one
            size += _INTEGER_BYTES[bisect_right(_INTEGER_BOUNDS, value)]
    return size


def compute_room(size: int) -> int:
    """Returns the room of a new row, given its size without padding."""
    size_with_padding = size + 1  # without zeros it is a type code
    if size_with_padding + _UNCOUNTED_BYTES > _MAX_IN_PAGE_BYTES:
        return _SPILLED_ROOM
    return max(_MIN_ROOM, size_with_padding)


def count_padding(size: int, room: int) -> int:
    """Returns how many zeros fill a row's room, or make a row that is too long for its room overflow.

    size: the bytes of the row without padding and its uncounted columns.

    A row of 600 bytes in a room of 700 gets 98 zeros; their type code takes the other 2 bytes. A row of 900 bytes gets
    3536 there, so that its record has about 389 + 4092 bytes, of which 489 stay in its page.
    """
    if size < room:
        free_bytes = room - size
        if free_bytes <= _TWO_BYTE_CODE:
            return free_bytes - 1
        # No zeros take one byte more than `_TWO_BYTE_CODE` with their type code: the row is one byte shorter then.
        return max(_TWO_BYTE_CODE - 1, free_bytes - 2)
    record_bytes = size + _UNCOUNTED_BYTES
    pages = max(1, -((_SPILL_BYTES - record_bytes) // _OVERFLOW_PAGE_BYTES))  # rounded up
    return _SPILL_BYTES + _OVERFLOW_PAGE_BYTES * pages - record_bytes


def make_padding(values: Sequence[object]) -> tuple[int, bytes | None]:
    """Returns room and padding of a new row with these values."""
    size = measure_record(values)
    room = compute_room(size)
    return room, bytes(count_padding(size, room)) if size < room else None
