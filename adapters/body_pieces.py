"""Bodies that are sent piece by piece: uploads as they arrive, and large bodies in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Final

from adapters.timeouts import Timeouts

# The bytes of a large body that are handed to the connection at a time.
PIECE_BYTES: Final = 256 * 1024


class Upload:
    """A body that arrives one piece at a time: the next piece is read when the upstream has taken the last.

    An exception of `pieces` breaks the request off. `send` then raises an error of its own, so the maker of the pieces
    has to store the exception.
    """

    __slots__ = ("_is_begun", "_pieces", "is_over", "size_bytes")

    def __init__(self, pieces: AsyncIterator[bytes], size_bytes: int | None) -> None:
        self._pieces = pieces
        # The bytes of the body; None: the size is not known.
        self.size_bytes = size_bytes
        self._is_begun = False
        # True if all pieces were taken.
        self.is_over = False

    def begin(self, timer: asyncio.Timeout, timeouts: Timeouts) -> AsyncGenerator[bytes]:
        """Returns the pieces. Each piece that the upstream takes gives the response more time.

        Raises: ConnectionError: the pieces were returned before.
        """
        if self._is_begun:
            raise ConnectionError("an upload is not sent again")
        self._is_begun = True
        return self._yield_pieces(timer, timeouts)

    async def _yield_pieces(self, timer: asyncio.Timeout, timeouts: Timeouts) -> AsyncGenerator[bytes]:
        _extend_deadline(timer, timeouts.between_chunks_s)
        async for piece in self._pieces:
            yield piece
            _extend_deadline(timer, timeouts.between_chunks_s)
        self.is_over = True
        _extend_deadline(timer, timeouts.first_byte_s)


class LargeBody:
    """A body in memory that is sent in pieces, so that it neither blocks the loop nor is copied."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.size_bytes = len(body)

    async def begin(self, timer: asyncio.Timeout, timeouts: Timeouts) -> AsyncGenerator[bytes]:
        """Yields the pieces, which take none of the response's time: the body is there."""
        for start in range(0, self.size_bytes, PIECE_BYTES):
            yield self._body[start : start + PIECE_BYTES]


def _extend_deadline(timer: asyncio.Timeout, seconds: float) -> None:
    """Gives the head of a response some seconds from now on, unless the head has arrived or is late."""
    with suppress(RuntimeError):
        timer.reschedule(asyncio.get_running_loop().time() + seconds)
