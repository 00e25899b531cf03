"""A stream of events that says now and then that it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from types import TracebackType

from gateway.run.sink import ClientGone, Sink

EVENTS = ("content-type", "text/event-stream; charset=utf-8")


@dataclass(slots=True)
class PingingSink:
    """A stream that says something while nothing else is said, once it has begun. every_s: 0: never.

    ping: the event; empty until the run has a name.
    """

    inner: Sink
    every_s: float
    ping: bytes = b""
    _wrote: bool = False
    _task: asyncio.Task[None] | None = field(default=None)

    @property
    def started(self) -> bool:
        return self.inner.started

    def __enter__(self) -> PingingSink:
        if self.every_s:
            self._task = asyncio.create_task(self._beat())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.inner.start(status, headers)

    async def write(self, data: bytes) -> None:
        self._wrote = True
        await self.inner.write(data)

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self.inner.end()

    async def whole(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        await self.inner.whole(status, headers, body)

    def while_here(self) -> AbstractContextManager[None]:
        return self.inner.while_here()

    async def _beat(self) -> None:
        # A client that leaves is noticed by whoever writes the reply.
        with suppress(ClientGone):
            while True:
                self._wrote = False
                await asyncio.sleep(self.every_s)
                if self.started and self.ping and not self._wrote:
                    await self.inner.write(self.ping)
