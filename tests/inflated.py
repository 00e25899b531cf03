"""Inflates deflated texts in the bytes of a database, for tests that search the bytes for forgotten words."""

from __future__ import annotations

import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

# The first bytes of each deflated text.
HEAD = zlib.compress(b"")[:2]
# The bytes that are inflated at a time: before a damaged place, whole steps are still inflated.
_STEP = 64


def with_inflated(data: bytes) -> bytes:
    """Returns bytes, followed by the texts that are deflated in them, even those with a damaged or missing end."""
    parts = [data]
    start = data.find(HEAD)
    while start >= 0:
        decompressor, offset = zlib.decompressobj(), start
        with suppress(zlib.error):
            while offset < len(data) and not decompressor.eof:
                parts.append(decompressor.decompress(data[offset : offset + _STEP]))
                offset += _STEP
        parts.append(b"\n")
        start = data.find(HEAD, start + 1)
    return b"".join(parts)


def find_files_with(folder: Path, text: str) -> list[str]:
    """Returns the names of the files of `memory.db` that have a text, with old copies and the write-ahead log."""
    return [
        file.name
        for file in folder.iterdir()
        if file.name.startswith("memory.db") and text.encode() in with_inflated(file.read_bytes())
    ]


def inflated(value: Any) -> Any:
    """Returns a value of a row, inflated if it is deflated."""
    return zlib.decompress(value) if isinstance(value, bytes) and value.startswith(HEAD) else value
