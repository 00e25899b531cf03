"""The events of a run in the background, numbered, so that a reader can come back to where it was.

They are stored in batches, and the newest stay in memory. After the death of a process the numbers continue at the next
multiple of 10,000, so that a reader of events that were never stored misses none of those that follow.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from gateway.run.sink import Presence
from storage.records import Run
from storage.sql.store import Store

EVENT = "event"  # the kind of these texts
JUMP = 10_000
BATCH_S = 0.1
BATCH_BYTES = 64 * 1024
_PAGE = 50
_log = logging.getLogger("mnemogate")


class NumbersEvents(Protocol):
    """A dialect, as its events are written down. Events are bytes."""

    def numbered(self, data: bytes, first: int) -> list[bytes]:
        """Returns events one by one, each with its number."""


@dataclass(eq=False)
class EventLog:
    """The events of one run, as a `Sink` of its turns."""

    store: Store
    run: Run
    # The agent's epoch when the attempt began.
    epoch: int
    shows: NumbersEvents
    # No event follows.
    is_over: bool = False
    # An earlier attempt has left events.
    has_events: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _next: int = 1  # the number of the next event
    _newest: deque[tuple[int, bytes]] = field(default_factory=deque)  # with all that is not written yet
    _bytes: int = 0
    _kept: int = 0  # the number up to which they are on disk
    _unwritten: list[bytes] = field(default_factory=list)
    _unwritten_bytes: int = 0
    _timer: asyncio.TimerHandle | None = None
    _writes: set[Future[bool]] = field(default_factory=set)
    _presence: Presence = field(default_factory=Presence)

    # -- writing

    def add(self, data: bytes) -> None:
        """Takes events as the dialect has written them."""
        events = self.shows.numbered(data, self._next)
        for event in events:
            self._newest.append((self._next, event))
            self._next += 1
            self._bytes += len(event)
            self._unwritten.append(event)
            self._unwritten_bytes += len(event)
        if not events:
            return
        self._wake()
        if self._unwritten_bytes >= BATCH_BYTES:
            self._write()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._write)

    async def go_on(self, epoch: int) -> list[bytes]:
        """Goes on with the log of an attempt that was broken off. Returns all events that are written down.

        Those that are not are dropped: they may quote what was forgotten.
        """
        self._unwritten, self._unwritten_bytes = [], 0
        await self.flush()
        self.epoch = epoch
        numbered = [each async for each in stored_events(self.store, self.run, 0)]
        last = max(self._next - 1, numbered[-1][0] if numbered else 0)
        self._newest.clear()
        self._bytes = 0
        self._kept = last
        self._next = (last // JUMP + 1) * JUMP
        return [event for _, event in numbered]

    async def flush(self) -> None:
        """Waits until all is written down, or could not be."""
        self._write()
        if self._writes:
            await asyncio.wait([*self._writes])

    async def close(self) -> None:
        await self.flush()
        self.is_over = True
        self._wake()

    def drop(self, data: bytes) -> None:
        """Ends with these events, of which nothing is written down."""
        self._unwritten, self._unwritten_bytes = [], 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for event in self.shows.numbered(data, self._next):
            self._newest.append((self._next, event))
            self._next += 1
        self.is_over = True
        self._wake()

    @property
    def next_number(self) -> int:
        """The number of the next event."""
        return self._next

    def leave(self) -> None:
        """Breaks off the turn that writes here, as a client does that leaves."""
        self._presence.leave()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._unwritten:
            return
        # A batch has the number of its last event.
        last, data = self._next - 1, b"".join(self._unwritten)
        self._unwritten, self._unwritten_bytes = [], 0
        write = self.store.runs.log(self.run.agent, self.run.id, EVENT, last, data, self.epoch)
        self._writes.add(write)
        write.add_done_callback(lambda done: self._written(done, last))

    def _written(self, done: Future[bool], last: int) -> None:
        self._writes.discard(done)
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            # Present readers have them from memory; later ones read the stored steps.
            _log.warning(
                "Events of a background run could not be stored; a stream that is opened later lacks them: %s",
                error,
            )
            return
        self._kept = max(self._kept, last)
        while self._bytes > BATCH_BYTES and self._newest and self._newest[0][0] <= self._kept:
            self._bytes -= len(self._newest.popleft()[1])

    # -- reading

    async def after(self, number: int) -> AsyncIterator[bytes]:
        """Yields the events after a number, and those that follow, until the end."""
        while True:
            changed = self.changed
            first = self._newest[0][0] if self._newest else self._next
            if number + 1 < first:
                is_found = False
                async for at, event in stored_events(self.store, self.run, number):
                    is_found, number = True, at
                    yield event
                # What was in memory may have gone meanwhile, since it is written down.
                if is_found or (self._newest and self._newest[0][0] != first):
                    continue
            for at, event in [*self._newest]:
                if at > number:
                    number = at
                    yield event
            if changed is self.changed:
                if self.is_over:
                    return
                await changed.wait()

    # -- a sink

    @property
    def started(self) -> bool:
        return True

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Learns nothing: the status was sent when the run was accepted."""

    async def write(self, data: bytes) -> None:
        self.add(data)

    async def end(self) -> None:
        """Learns nothing: the log ends with its run."""

    async def whole(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.add(body)

    def while_here(self) -> AbstractContextManager[None]:
        return self._presence


async def stored_events(store: Store, run: Run, after: int) -> AsyncIterator[tuple[int, bytes]]:
    """Yields the events that are written down after a number, each with its own. Raises: StoreError."""
    while True:
        rows = await store.runs.texts(run.agent, run.id, EVENT, after=after, limit=_PAGE)
        for row in rows:
            events = [each + b"\n\n" for each in row.data.split(b"\n\n") if each]
            for number, event in enumerate(events, row.seq - len(events) + 1):
                if number > after:
                    yield number, event
            after = row.seq
        if len(rows) < _PAGE:
            return
