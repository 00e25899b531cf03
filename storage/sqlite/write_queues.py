"""The writes that wait for the writer: turns, and bulk work that gives way to them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from storage.sqlite.batch import WriteResult

T = TypeVar("T")


@dataclass(slots=True)
class Write(Generic[T]):
    """A write that waits."""

    function: Callable[[sqlite3.Connection], T]
    future: asyncio.Future[T]
    # The estimated bytes that the write holds.
    size: int
    # As in `Writer.submit`.
    begins_own_transaction: bool

    def settle(self, result: WriteResult) -> None:
        """Gives the result to the caller, if it still waits."""
        if self.future.done():
            return
        done, value = result
        if done:
            self.future.set_result(value)
        else:
            self.future.set_exception(value)
            # This marks the error as seen, so that the loop does not log it if nothing waits for the write: health
            # reports it.
            self.future.exception()


@dataclass(slots=True)
class WriteQueue:
    """Writes of one kind, in order."""

    writes: deque[Write[Any]] = field(default_factory=deque)
    bytes: int = 0

    def add(self, write: Write[Any]) -> None:
        self.writes.append(write)
        self.bytes += write.size

    def take(self, max_count: int) -> list[Write[Any]]:
        """Takes the first writes out of the queue. Returns them."""
        if len(self.writes) <= max_count:
            writes, self.bytes = [*self.writes], 0
            self.writes.clear()
        else:
            writes = [self.writes.popleft() for _ in range(max_count)]
            self.bytes -= sum(write.size for write in writes)
        return writes


class WriteQueues:
    """The queues of one writer.

    batch_items: the most turns of a batch.
    fair_batches: the batches of turns in a row after which one bulk write goes first.
    """

    def __init__(self, batch_items: int, fair_batches: int) -> None:
        self._batch_items = batch_items
        self._fair_batches = fair_batches
        self.turns = WriteQueue()
        self.bulk = WriteQueue()
        self._turn_batches = 0  # since the last bulk write

    def __len__(self) -> int:
        return len(self.turns.writes) + len(self.bulk.writes)

    @property
    def bytes(self) -> int:
        return self.turns.bytes + self.bulk.bytes

    def take_batch(self) -> tuple[list[Write[Any]], bool]:
        """Takes the writes of the next batch out of their queue. Returns them, and whether they are bulk work."""
        turns, bulk = self.turns.writes, self.bulk.writes
        is_bulk = bool(bulk) and (not turns or self._turn_batches >= self._fair_batches)
        self._turn_batches = 0 if is_bulk or not turns else self._turn_batches + 1
        return (self.bulk.take(1) if is_bulk else self.turns.take(self._batch_items)), is_bulk

    def take_all(self) -> list[Write[Any]]:
        """Takes all writes out of the queues. Returns them."""
        return [write for queue in (self.turns, self.bulk) for write in queue.take(len(queue.writes))]
