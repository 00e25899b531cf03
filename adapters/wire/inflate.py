"""The undoing of `Content-Encoding: gzip` and `deflate`, a bounded piece at a time."""

from __future__ import annotations

import zlib
from typing import Any, Final

MOST_BYTES: Final = 512 * 1024


class Inflater:
    """The decoder of one body.

    room: how much more `feed` may return in all. has_more: it would return more of what it was fed already.
    """

    __slots__ = ("_coding", "_rest", "_stream", "has_more", "room")

    def __init__(self, coding: str) -> None:
        """coding: gzip or deflate."""
        self._coding = coding
        self._stream: Any = None
        self._rest = bytearray()
        self.room = MOST_BYTES
        self.has_more = False

    @property
    def is_whole(self) -> bool:
        """Says whether the body may end here."""
        return not self.has_more and (self._stream is None or self._stream.eof)

    def feed(self, data: bytes) -> bytes:
        """Returns what is inflated next, often nothing. Raises: zlib.error."""
        self._rest += data
        if not self.room:
            self.has_more = True
            return b""
        data = bytes(self._rest)
        found: list[bytes] = []
        while self.room and (data or self.has_more):
            if self._stream is None or self._stream.eof:  # a body of gzip may have several members
                self._stream = self._begin(data)
            part = self._stream.decompress(data, self.room)
            found.append(part)
            self.room -= len(part)
            data = self._stream.unconsumed_tail or self._stream.unused_data
            self.has_more = bool(data) or not (self.room or self._stream.eof)
        self._rest[:] = data
        return b"".join(found)

    def _begin(self, data: bytes) -> Any:
        if self._coding == "gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        # Some servers mean by "deflate" the bare stream, without zlib's own head (RFC 1950 2.2).
        is_bare = data[0] & 0xF != zlib.DEFLATED
        return zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS)
