"""The seam between a turn and the connection on which its reply is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol


class ClientGone(Exception):
    """The client left, or stopped reading, before its reply was complete."""


class Sink(Protocol):
    """One response on its way to the client."""

    @property
    def has_started(self) -> bool:
        """True: bytes were sent. Until then an error can still have a status of its own."""

    @property
    def is_gone(self) -> bool:
        """True: the client has left."""

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Sets status and headers; they are sent with the first bytes written."""

    async def write(self, data: bytes) -> None:
        """Sends bytes of the body. Raises: ClientGone."""

    async def end(self) -> None:
        """Ends the body. Raises: ClientGone."""

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Starts, writes and ends at once, with a content-length. Raises: ClientGone."""

    def cancel_on_leave(self) -> AbstractContextManager[None]:
        """Returns a context that cancels its task when the client leaves, and then raises ClientGone at its end.

        A cancellation from elsewhere (shutdown) stays a CancelledError.
        """


@dataclass(slots=True)
class HeldSink:
    """A response that is held until its end, since the route makes one body of it. `Sink` documents the methods."""

    # The sink of the waiting client.
    outer: Sink
    # The status of the held reply; 0: no head came yet.
    status: int = field(default=0, init=False)
    # The headers of the held reply.
    headers: tuple[tuple[str, str], ...] = field(default=(), init=False)
    # The held bytes of the body.
    body: bytearray = field(default_factory=bytearray, init=False)

    @property
    def has_started(self) -> bool:
        return False

    @property
    def is_gone(self) -> bool:
        return self.outer.is_gone

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status = status
        self.headers = tuple(headers)

    async def write(self, data: bytes) -> None:
        self.body += data

    async def end(self) -> None:
        pass

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.start(status, headers)
        self.body += body

    def cancel_on_leave(self) -> AbstractContextManager[None]:
        return self.outer.cancel_on_leave()


class Presence:
    """The presence of a reader, until it leaves.

    As a context manager, like asyncio.Timeout, it does the work of `cancel_on_leave`.
    """

    is_gone = False
    # The task inside the block.
    _task: asyncio.Task[Any] | None = None
    # The number of cancellations that the task had when it entered the block.
    _cancelling = 0
    # True: the task was cancelled because the reader left.
    _is_cancelled = False

    def leave(self) -> None:
        """Cancels the task inside. Idempotent."""
        self.is_gone = True
        if self._task is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()

    def __enter__(self) -> None:
        if self.is_gone:
            raise ClientGone
        task = asyncio.current_task()
        assert task is not None  # a request runs in a task
        assert self._task is None, "one block at a time"
        self._task = task
        self._cancelling = task.cancelling()

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is None or not self._is_cancelled:
            return
        # If more cancellations remain than there were at the start, another party (the shutdown) cancelled as well, and
        # its CancelledError has to go on, as does an error that the block raised itself.
        if task.uncancel() <= self._cancelling and (
            error_type is None or error_type is asyncio.CancelledError
        ):
            raise ClientGone from error


@dataclass(slots=True)
class UnseenSink:
    """A response without a reader, for a turn that leaves its result in the store. `Sink` documents the methods."""

    # The presence of the missing reader; `leave` ends the turn.
    presence: Presence = field(default_factory=Presence, init=False)

    @property
    def has_started(self) -> bool:
        return False

    @property
    def is_gone(self) -> bool:
        return self.presence.is_gone

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        pass

    async def write(self, data: bytes) -> None:
        pass

    async def end(self) -> None:
        pass

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        pass

    def cancel_on_leave(self) -> AbstractContextManager[None]:
        return self.presence
