"""The seam between a turn and the connection on which it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol


class ClientGone(Exception):
    """The client left, or stopped reading, before its reply was complete."""


class Sink(Protocol):
    """One response on its way to the client.

    started: whether anything was sent; until then an error is still a status.
    gone: set when the client left before the end.
    """

    @property
    def gone(self) -> asyncio.Event: ...

    @property
    def started(self) -> bool: ...

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Sets status and headers; they leave with the first bytes written."""

    async def write(self, data: bytes) -> None:
        """Sends bytes of the body. Raises: ClientGone."""

    async def end(self) -> None:
        """Ends the body. Raises: ClientGone."""

    async def whole(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Starts, writes and ends at once, with a content-length. Raises: ClientGone."""

    def while_here(self) -> AbstractContextManager[None]:
        """Cancels what is awaited inside when the client leaves; it then raises ClientGone at the end of the block.

        A cancellation from elsewhere (shutdown) stays a CancelledError.
        """


@dataclass(slots=True)
class HeldSink:
    """A response that is held back: its route makes one body of what it tells. outer: whose client is waiting.

    status, headers, body: of an error that is still a status, or of the stream that was held.
    """

    outer: Sink
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytearray = field(default_factory=bytearray)

    @property
    def gone(self) -> asyncio.Event:
        return self.outer.gone

    @property
    def started(self) -> bool:
        return False

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status, self.headers = status, tuple(headers)

    async def write(self, data: bytes) -> None:
        self.body += data

    async def end(self) -> None:
        pass

    async def whole(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.start(status, headers)
        self.body += body

    def while_here(self) -> AbstractContextManager[None]:
        return self.outer.while_here()
