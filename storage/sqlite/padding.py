"""Padding, which keeps a row from moving its neighbours when it grows.

SQLite erases in place what is overwritten (`secure_delete`), but a row that no longer fits its page makes it deal the
rows of several pages out anew, and then bytes of rows that moved may stay behind between the new ones: forgotten text
would be left in the file. So the part of an exchange that lies in its page never grows. Each row remembers its room
there and is padded to it; what needs more goes to overflow pages, which belong to it alone and are erased when it
gives them up. Its room is then what is left of it in its page, since other rows may take the rest.

Sizes are those of SQLite's record format (sqlite.org/fileformat2.html, sections 1.6 and 2.1), for pages of 4096 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

_USABLE = 4096
_LOCAL = _USABLE - 35  # the longest record without overflow pages
_LEAST = (_USABLE - 12) * 32 // 255 - 23  # what a longer record has in its page at least
_STEP = _USABLE - 4  # what an overflow page holds
_OTHERS = 45  # the columns that are not counted here, since they never change: id, agent, seq, run, room
# Bytes of an integer, by how many it needs.
_WIDTHS = (1, 1, 2, 3, 4, 6, 6, 8, 8)
FLOOR = 540  # a row's room is enough for the head of one that overflows
_SPILLED = (
    _LEAST + 4 - _OTHERS - 8
)  # of one that overflows from the beginning: its head may be as short as that

# A record of this length modulo _STEP leaves no more than _LEAST bytes in its page, give or take a hundred.
_SPILL = _LEAST - 100


def size_of(values: Iterable[object]) -> int:
    """Returns the bytes in a record, type codes included. Booleans are numbers, as SQLite has them."""
    size = 0
    # Counted in place, since each turn has three dozen values.
    for value in values:
        if not value or value is True:  # all of it is in its type code, or it is empty
            size += 1
        elif isinstance(value, int):
            bits = (~value if value < 0 else value).bit_length() + 1
            size += 1 if value == 1 else 1 + _WIDTHS[(bits + 7) // 8]
        elif isinstance(value, float):  # a whole number is stored as one
            whole = value.is_integer() and abs(value) < 1 << 47
            size += size_of((int(value),)) if whole else 9
        else:
            n = len(value.encode()) if isinstance(value, str) else len(value)  # type: ignore[arg-type]
            size += n + (1 if n < 58 else 2 if n < 8186 else 3 if n < 1048570 else 4)
    return size


def room_for(size: int) -> int:
    """Returns the room of a new row, given its size without padding."""
    if size + 1 + _OTHERS > _LOCAL:
        return _SPILLED
    return max(FLOOR, size + 1)


def pad_bytes(size: int, room: int) -> int:
    """Returns how many zeros bring a row to its room, or beyond it to overflow pages: as `exchange_update` has it."""
    if size < room:
        left = room - size
        return left - 1 if left <= 58 else max(57, left - 2)
    pages = max(1, (size + _OTHERS - _SPILL + _STEP - 1) // _STEP)
    return _SPILL + _STEP * pages - _OTHERS - size


def padding_of(values: Iterable[object]) -> tuple[int, bytes | None]:
    """Returns room and padding of a new row with these values."""
    size = size_of(values)
    room = room_for(size)
    return room, bytes(pad_bytes(size, room)) if size < room else None
