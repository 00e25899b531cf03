"""The words in the bytes of a database, those of deflated notes too, for tests that look for what was forgotten."""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import Any

HEAD = zlib.compress(b"")[:2]
_STEP = 64


def with_inflated(data: bytes) -> bytes:
    """Returns bytes, followed by all that is deflated in them: also where its end is cut off or overwritten."""
    found, at = [data], data.find(HEAD)
    while at >= 0:
        inflating, piece = zlib.decompressobj(), at
        with suppress(zlib.error):
            while piece < len(data) and not inflating.eof:
                found.append(inflating.decompress(data[piece : piece + _STEP]))
                piece += _STEP
        found.append(b"\n")
        at = data.find(HEAD, at + 1)
    return b"".join(found)


def inflated(value: Any) -> Any:
    """Returns a value of a row, inflated if it is deflated."""
    return zlib.decompress(value) if isinstance(value, bytes) and value.startswith(HEAD) else value
