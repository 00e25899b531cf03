"""The writes that wait for the writer: turns, and bulk work that gives way to them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from storage.sqlite.batch import WriteOutcome

T = TypeVar("T")


@dataclass(slots=True)
class Write(Generic[T]):
    """A write that waits."""

    # The function that performs the write, in the writer's thread.
    function: Callable[[sqlite3.Connection], T]
    # The future of its result, which the caller awaits.
    future: asyncio.Future[T]
    # The estimated bytes that the write holds.
    size_bytes: int
    # True if the function begins a transaction itself: the writer begins none for it if it comes alone.
    begins_own_transaction: bool

    def settle(self, outcome: WriteOutcome) -> None:
        """Gives the outcome to the caller, if it still waits."""
        if self.future.done():
            return
        if outcome.error is None:
            self.future.set_result(outcome.result)
        else:
            self.future.set_exception(outcome.error)
            # This marks the error as retrieved: the loop must not log a write that nothing awaits. Health reports it.
            self.future.exception()


@dataclass(slots=True)
class WriteQueue:
    """Writes of one kind, in order."""

    # The writes, in the order in which they are performed.
    writes: deque[Write[Any]] = field(default_factory=deque)
    # The estimated bytes that its writes hold.
    size_bytes: int = 0

    def add(self, write: Write[Any]) -> None:
        """Puts a write at the end of the queue."""
        self.writes.append(write)
        self.size_bytes += write.size_bytes

    def take(self, max_count: int) -> list[Write[Any]]:
        """Removes the first writes from the queue, and returns them."""
        if len(self.writes) <= max_count:  # the usual case: all of them, and no sum over their sizes
            writes = [*self.writes]
            self.writes.clear()
            self.size_bytes = 0
        else:
            writes = [self.writes.popleft() for _ in range(max_count)]
            self.size_bytes -= sum(write.size_bytes for write in writes)
        return writes


class WriteBatch(NamedTuple):
    """The writes that go to the database together."""

    # Turns, or one bulk write; empty: nothing waits.
    writes: list[Write[Any]]
    # True if the batch is a bulk write.
    is_bulk: bool


class WriteQueues:
    """The queues of one writer."""

    def __init__(self, max_batch_turns: int, max_turn_batches: int) -> None:
        """Makes empty queues.

        max_batch_turns: the most turns of a batch.
        max_turn_batches: the batches of turns in a row after which one bulk write goes first.
        """
        self._max_batch_turns = max_batch_turns
        self._max_turn_batches = max_turn_batches
        self.turns = WriteQueue()
        self.bulk = WriteQueue()
        # The batches of turns in a row, since the last bulk write.
        self._turn_batches = 0

    def __len__(self) -> int:
        return len(self.turns.writes) + len(self.bulk.writes)

    @property
    def size_bytes(self) -> int:
        """The estimated bytes that all waiting writes hold."""
        return self.turns.size_bytes + self.bulk.size_bytes

    def take_batch(self) -> WriteBatch:
        """Removes the writes of the next batch from their queue, and returns them."""
        turn_writes = self.turns.writes
        if self.bulk.writes and (not turn_writes or self._turn_batches >= self._max_turn_batches):
            self._turn_batches = 0
            return WriteBatch(self.bulk.take(1), is_bulk=True)
        self._turn_batches = self._turn_batches + 1 if turn_writes else 0
        return WriteBatch(self.turns.take(self._max_batch_turns), is_bulk=False)

    def take_all(self) -> list[Write[Any]]:
        """Removes all writes from the queues, and returns them."""
        return [write for queue in (self.turns, self.bulk) for write in queue.take(len(queue.writes))]
