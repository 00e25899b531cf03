"""A stream of events with pings in its pauses, also before its first event.

A local model may read a long prompt for minutes, and clients close a connection on which nothing comes (`letta-client`
after 60 s). The first ping sends the status 200. An error after it is an event of the stream; another endpoint can
still be asked, since nothing of a reply was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from types import TracebackType

from gateway.agents.wire.faults import refused_event
from gateway.run.sink import ClientGone, Sink

# The header of a stream of events.
EVENTS = ("content-type", "text/event-stream; charset=utf-8")


@dataclass(slots=True)
class PingingSink:
    """A Sink that sends pings while nothing is written to it. It begins as it is entered, and ends with the stream."""

    inner: Sink
    # Seconds between two pings; 0: none are sent.
    every_s: float
    # The event that is sent; a comment of the stream until the run has an id.
    ping: bytes = b":\n\n"
    # The headers of a reply that begins with a ping.
    headers: Sequence[tuple[str, str]] = (EVENTS,)
    # Bytes of the reply itself were sent; pings do not count.
    started: bool = False
    _has_head: bool = False
    _wrote: bool = False  # since the last ping was due
    _task: asyncio.Task[None] | None = field(default=None)

    def __enter__(self) -> PingingSink:
        if self.every_s:
            self._task = asyncio.create_task(self._beat())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_beat()

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        if not self._has_head:
            self._has_head = True
            self.inner.start(status, headers)

    async def write(self, data: bytes) -> None:
        if data:
            self.started = self._wrote = True
        await self.inner.write(data)

    async def end(self) -> None:
        self._end_beat()
        await self.inner.end()

    async def whole(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Sends an error, the only whole answer to who asked for events; after a ping it is sent as an event."""
        self._end_beat()
        if self._has_head:
            await self.inner.write(refused_event(body))
            await self.inner.end()
        else:
            await self.inner.whole(status, headers, body)

    def while_here(self) -> AbstractContextManager[None]:
        return self.inner.while_here()

    def _end_beat(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _beat(self) -> None:
        # A client that leaves is noticed by whoever writes the reply.
        with suppress(ClientGone):
            while True:
                self._wrote = False
                await asyncio.sleep(self.every_s)
                if not self._wrote:
                    self.start(200, self.headers)
                    await self.inner.write(self.ping)
