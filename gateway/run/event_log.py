"""The events of a run in the background, numbered, so that a reader can continue after its last event.

Events are stored in batches, and the newest ones stay in memory. After the death of a process the numbers continue at a
later multiple of 10,000. So a reader who has got events that were never stored misses no event that follows.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from gateway.run.sink import Presence
from storage.errors import StoreError
from storage.job_records import Job
from storage.run_records import Run, RunTextKind
from storage.sql.store import Store

# More events than a process has unwritten when it dies. Each attempt begins with a later multiple.
_NUMBER_STEP = 10_000
# The age and the size at which events are written together. Not measured: a longer time loses more events with a dying
# process, a shorter one makes a write of each few words.
BATCH_S = 0.1
BATCH_BYTES = 64 * 1024
# The stored texts that are read at once; each is a batch of events. Not measured: any few dozen behave alike.
_PAGE_TEXTS = 50
_log = logging.getLogger("mnemogate")


class EventDialect(Protocol):
    """The dialect of a log's events, which are server-sent events in all dialects."""

    def number_events(self, data: bytes, first: int) -> list[bytes]:
        """Returns the events of a piece of a stream, each with its number. first: the number of the first event."""


class NumberedEvent(NamedTuple):
    """An event of a run."""

    # The number of the event in its run, from 1.
    number: int
    # The event as it is streamed.
    data: bytes


@dataclass(eq=False)
class EventLog:
    """The events of one run. Implements `Sink`, which documents the methods, for its turns."""

    # The store of the events.
    store: Store
    # The run with the events.
    run: Run
    # The agent's epoch when the attempt began.
    epoch: int
    # Renders and numbers the events.
    dialect: EventDialect
    # The attempt that makes the events; None: its run is not performed yet.
    job: Job | None = None
    # The number of the next event.
    next_number: int = 1
    # True: no event follows.
    is_over: bool = field(default=False, init=False)
    # The newest events, with all that are not on disk yet. After a gap no event is dropped, since the store lacks some:
    # then the rest of the run bounds them.
    _newest: deque[NumberedEvent] = field(default_factory=deque, init=False)
    # The bytes of `_newest`.
    _newest_bytes: int = field(default=0, init=False)
    # The number of the last event up to which all events are on disk.
    _stored_number: int = field(default=0, init=False)
    # True: some events after `_stored_number` are not on disk, and never will be.
    _has_gap: bool = field(default=False, init=False)
    # The events that no write has taken yet.
    _unwritten: list[bytes] = field(default_factory=list, init=False)
    # The bytes of `_unwritten`.
    _unwritten_bytes: int = field(default=0, init=False)
    # The timer that begins the next write; None: no event waits for a write.
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    # The writes that are under way.
    _writes: set[Future[bool]] = field(default_factory=set, init=False)
    # Is set, and replaced by a new one, at each change that readers wait for.
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    # Ends the waits of the turn if the run is stopped.
    _presence: Presence = field(default_factory=Presence, init=False)

    # -- writing

    def add(self, data: bytes) -> None:
        """Adds events, as the dialect has rendered them."""
        events = self._append(data)
        if not events:
            return
        self._unwritten += events
        self._unwritten_bytes += sum(map(len, events))
        if self._unwritten_bytes >= BATCH_BYTES:
            self._write()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._write)

    def _append(self, data: bytes) -> list[bytes]:
        """Numbers events and shows them to readers. Returns them."""
        events = self.dialect.number_events(data, self.next_number)
        for event in events:
            self._newest.append(NumberedEvent(self.next_number, event))
            self.next_number += 1
            self._newest_bytes += len(event)
        if events:
            self._wake()
        return events

    def add_stored(self, data: bytes) -> None:
        """Adds the last events, which are on disk already."""
        self._append(data)

    async def resume(self, epoch: int, attempt: int) -> list[bytes]:
        """Continues the log of an interrupted attempt. Returns all events that are on disk.

        Events that are not on disk are dropped: they may quote forgotten texts.

        attempt: the number of the attempt that continues.
        """
        self._pop_unwritten()
        await self.flush()
        self.epoch = epoch
        numbered = [each async for each in load_events(self.store, self.run, 0)]
        last_number = max(self.next_number - 1, numbered[-1].number if numbered else 0)
        self._newest.clear()
        self._newest_bytes = 0
        self._stored_number = last_number
        self._has_gap = False
        # A forgetting may have erased stored events of an earlier attempt since.
        self.next_number = max(last_number // _NUMBER_STEP + 1, attempt - 1) * _NUMBER_STEP
        return [event.data for event in numbered]

    async def flush(self) -> None:
        """Waits until all events are on disk, or could not be written."""
        self._write()
        if self._writes:
            await asyncio.wait([*self._writes])

    async def close(self) -> None:
        """Ends the log once its events are on disk, or could not be written."""
        await self.flush()
        self.abandon()

    def abandon(self) -> None:
        """Ends the log without a write: another attempt continues the run."""
        self.is_over = True
        self._wake()

    def close_unwritten(self, data: bytes) -> None:
        """Adds the last events and ends the log, without a write: its run was deleted."""
        self._pop_unwritten()
        self._append(data)
        self.abandon()

    def cancel_turn(self) -> None:
        """Cancels the turn that writes to this log, as if a client had left."""
        self._presence.leave()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _pop_unwritten(self) -> bytes:
        """Returns the events that no write has taken yet, and takes them out."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = b"".join(self._unwritten)
        self._unwritten = []
        self._unwritten_bytes = 0
        return data

    def _write(self) -> None:
        """Begins the write of the events that are not written yet."""
        data = self._pop_unwritten()
        if not data:
            return
        last_number = self.next_number - 1  # a batch has the number of its last event
        try:
            write = self.store.run_texts.add_events(
                self.run.agent_row, self.run.id, last_number, data, epoch=self.epoch, job=self.job
            )
        except StoreError as error:
            self._has_gap = True
            _warn_unwritten(error)
            return
        self._writes.add(write)
        write.add_done_callback(lambda write: self._on_write_ended(write, last_number))

    def _on_write_ended(self, write: Future[bool], last_number: int) -> None:
        """Notes whether the events up to a number are stored."""
        self._writes.discard(write)
        if write.cancelled():
            return
        if (error := write.exception()) is not None:
            _warn_unwritten(error)
        if error is not None or not write.result():
            self._has_gap = True
        if not self._has_gap:
            self._stored_number = max(self._stored_number, last_number)
        self._drop_stored()

    def _drop_stored(self) -> None:
        """Drops the oldest events that are stored, until the rest takes no more than a batch."""
        while (
            self._newest_bytes > BATCH_BYTES
            and self._newest
            and self._newest[0].number <= self._stored_number
        ):
            self._newest_bytes -= len(self._newest.popleft().data)

    # -- reading

    async def read_after(self, number: int) -> AsyncIterator[bytes]:
        """Yields the events after a number, until the end of the log."""
        while True:
            changed_event = self._changed
            first_number = self._newest[0].number if self._newest else self.next_number
            if number + 1 < first_number:
                is_found = False
                async for event_number, event in load_events(self.store, self.run, number):
                    if event_number >= first_number:
                        break  # the events from `first_number` on are in memory
                    is_found = True
                    number = event_number
                    yield event
                # Events in memory may have been dropped meanwhile, since they are on disk.
                if is_found or (self._newest and self._newest[0].number != first_number):
                    continue
            for event_number, event in [*self._newest]:
                if event_number > number:
                    number = event_number
                    yield event
            if changed_event is self._changed:
                if self.is_over:
                    return
                await changed_event.wait()

    # -- a sink

    @property
    def has_started(self) -> bool:
        return True

    @property
    def is_gone(self) -> bool:
        return self._presence.is_gone

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Does nothing: the status was sent when the run was accepted."""

    async def write(self, data: bytes) -> None:
        self.add(data)

    async def end(self) -> None:
        """Does nothing: the log ends with its run."""

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.add(body)

    def cancel_on_leave(self) -> AbstractContextManager[None]:
        return self._presence


def _warn_unwritten(error: BaseException) -> None:
    # Present readers get these events from memory. Later readers get the steps that the run has stored.
    _log.warning(
        "Events of a background run could not be stored; a stream that is opened later lacks them: %s", error
    )


async def load_events(store: Store, run: Run, after: int) -> AsyncIterator[NumberedEvent]:
    """Yields the stored events after a number. Raises: StoreError."""
    while True:
        rows = await store.run_texts.load_texts(
            run.agent_row, run.id, RunTextKind.EVENT, after=after, limit=_PAGE_TEXTS
        )
        for row in rows:
            events = [each + b"\n\n" for each in row.data.split(b"\n\n") if each]
            for number, event in enumerate(events, row.seq - len(events) + 1):
                if number > after:
                    yield NumberedEvent(number, event)
            after = row.seq
        if len(rows) < _PAGE_TEXTS:
            return
