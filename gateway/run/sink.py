"""The seam between a turn and the connection on which it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol


class ClientGone(Exception):
    """The client left, or stopped reading, before its reply was complete."""


class Sink(Protocol):
    """One response on its way to the client.

    started: whether anything was sent; until then an error is still a status.
    gone: set when the client left before the end.
    """

    gone: asyncio.Event

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
