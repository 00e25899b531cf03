"""The bytes that values take in a row of SQLite (sqlite.org/fileformat2.html, section 2.1).

What replaces a value with people's words takes as many bytes: a shorter row would move its neighbours, and leave copies
of them in the file.
"""

from __future__ import annotations

from bisect import bisect_right

# The lengths of texts and bytes from which their type code takes one byte more.
LONGER_LENGTHS = (58, 8186, 1048570)


def count_text_bytes(text: bytes) -> int:
    """Returns the bytes that a text takes, without the first byte of its type code."""
    return len(text) + bisect_right(LONGER_LENGTHS, len(text))


def count_number_bytes(number: int) -> int:
    """Returns the bytes that a number above 1 takes, without its type code."""
    return next(size for size in (1, 2, 3, 4, 6, 8) if number < 1 << (8 * size - 1))
