"""A stream of events with pings in its pauses, even before its first event.

A local model may read a long prompt for minutes, and clients close a connection on which nothing comes (`letta-client`
after 60 s). The first ping sends the status 200, so an error after it is an event of the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from types import TracebackType

from adapters.types import EVENT_STREAM_HEADER
from gateway.agents.wire.faults import make_refused_event
from gateway.run.sink import ClientGone, Sink


@dataclass(slots=True)
class PingingSink:
    """A Sink that sends pings while nothing is written to it, from `__enter__` to the end of the stream."""

    # The sink of the reply, to which pings are written as well.
    sink: Sink
    # The seconds between two pings; 0: no pings are sent.
    interval_s: float
    # The ping as an event; until the run has an id, a comment of the stream.
    ping: bytes = b":\n\n"
    # The headers of a reply that begins with a ping.
    headers: Sequence[tuple[str, str]] = (EVENT_STREAM_HEADER,)
    # True: bytes of the reply itself were sent; pings do not count.
    has_started: bool = False
    # True: status and headers were set, by the reply or by a ping.
    _has_head: bool = field(default=False, init=False)
    # True: bytes of the reply were sent since the last ping was due.
    _has_written: bool = field(default=False, init=False)
    # The task that sends pings; None: no pings are sent.
    _ping_task: asyncio.Task[None] | None = field(default=None, init=False)

    def __enter__(self) -> PingingSink:
        if self.interval_s:
            self._ping_task = asyncio.create_task(self._send_pings())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_pings()

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Begins the reply. After a ping, which has sent a status and headers, these are dropped."""
        if not self._has_head:
            self._has_head = True
            self.sink.start(status, headers)

    async def write(self, data: bytes) -> None:
        if data:
            self.has_started = True
            self._has_written = True
        await self.sink.write(data)

    async def end(self) -> None:
        self._stop_pings()
        await self.sink.end()

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Sends an error, the only answer to a request for a stream that has a body. After a ping it is an event."""
        self._stop_pings()
        if self._has_head:
            await self.sink.write(make_refused_event(body))
            await self.sink.end()
        else:
            await self.sink.send_body(status, headers, body)

    @property
    def is_gone(self) -> bool:
        return self.sink.is_gone

    def cancel_on_leave(self) -> AbstractContextManager[None]:
        return self.sink.cancel_on_leave()

    def _stop_pings(self) -> None:
        if self._ping_task is not None:
            self._ping_task.cancel()

    async def _send_pings(self) -> None:
        """Sends a ping after each interval in which nothing was written."""
        # The task that writes the reply notices a client that leaves.
        with suppress(ClientGone):
            while True:
                self._has_written = False
                await asyncio.sleep(self.interval_s)
                if not self._has_written:
                    self.start(200, self.headers)
                    await self.sink.write(self.ping)
