"""The SQLite store: who owns the file, which connections there are, and what is kept where.

store = await SqliteStore.open("mnemogate.db", address="127.0.0.1:8080")
agent = store.agents.find(scope)
await store.writer.submit(lambda connection: ...)
await store.close()
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from storage.base import StoreHealth
from storage.errors import Corrupt
from storage.sql.agents import Agents
from storage.sql.blocks import Blocks
from storage.sql.facts import Facts
from storage.sql.forget import Forgetting
from storage.sql.jobs import Jobs
from storage.sql.keys import Keys
from storage.sql.passages import Passages
from storage.sql.recall import Recall
from storage.sql.spending import Spending
from storage.sql.summaries import Summaries
from storage.sql.transfer import Transfer
from storage.sql.turns import Turns
from storage.sql.vectors import VectorCache, Vectors
from storage.sqlite.connection import DatabaseFile, open_writer
from storage.sqlite.lock import Lock
from storage.sqlite.migration import migrate
from storage.sqlite.reader import Reader, ThreadReader
from storage.sqlite.writer import Writer, WriterLimits

__all__ = ["SqliteStore", "connect_current"]


class SqliteStore:
    """Made by `open`. writer, reader and long_reader are for the parts of the store; others use the groups."""

    def __init__(
        self,
        target: DatabaseFile,
        lock: Lock,
        limits: WriterLimits | None,
        now: Callable[[], float],
        tick: Callable[[], float],
        connect: Callable[[DatabaseFile], sqlite3.Connection],
    ) -> None:
        self._lock = lock
        self.path = target.path
        self.reader = Reader(target, self._damaged)
        self.long_reader = ThreadReader(target, self._damaged)
        self.writer = Writer(target.path, lambda: connect(target), limits=limits, recovered=self._recovered)
        self.agents = Agents(self.reader, now)
        self.keys = Keys(self.reader, self.writer, now, target.path)
        self.blocks = Blocks(self.reader, self.writer)
        self.passages = Passages(self.reader, self.writer)
        self.turns = Turns(self.reader, self.writer, self.agents)
        cache = VectorCache()
        self.recall = Recall(self.reader, self.long_reader, self.writer, cache)
        self.vectors = Vectors(self.reader, self.long_reader)
        self.jobs = Jobs(self.reader, self.writer, now, tick)
        self.forgetting = Forgetting(
            self.reader, self.long_reader, self.writer, self.agents, now, cache, self.jobs.wake
        )
        self.carry = Transfer(self.reader, self.long_reader, self.writer, self.agents, self.forgetting)
        self.facts = Facts(self.reader, self.long_reader)
        self.spending = Spending(self.reader, self.writer)
        self.summaries = Summaries(self.reader, self.long_reader)

    @classmethod
    async def open(
        cls,
        path: str | Path,
        *,
        address: str | None = None,
        synchronous: str = "NORMAL",
        limits: WriterLimits | None = None,
        busy_timeout_ms: int = 200,
        now: Callable[[], float] = time.time,
        tick: Callable[[], float] = time.monotonic,
        on_statement: Callable[[str], None] | None = None,
        connect: Callable[[DatabaseFile], sqlite3.Connection] | None = None,
    ) -> SqliteStore:
        """Takes the file, brings it to the present schema, and opens it.

        A database that cannot be used for now (full, locked, read-only, damaged) does not stop the start: `health`
        says so, everything raises the named error, and it comes back by itself. address: where this process serves,
        for whoever is refused the file. on_statement: told of each statement, for tests that count them.
        connect: how the writing connection is made, `connect_current` unless a test puts a fault there.
        tick: a clock that never jumps, for leases.

        Raises: Owned, TooNew, Foreign; ReadOnly or Broken when not even the lock file can be made.
        """
        target = DatabaseFile(_real(path), synchronous, busy_timeout_ms, on_statement)
        lock = Lock.acquire(target.path, address)
        _make_private(target.path)
        try:
            store = cls(target, lock, limits, now, tick, connect or connect_current)
            await store.writer.start()
            store.reader.open()
        except BaseException:
            lock.release()
            raise
        return store

    @property
    def health(self) -> StoreHealth:
        return self.writer.health

    async def drain(self, timeout_s: float) -> bool:
        """Waits until everything given to the store is on disk; False when that took too long."""
        return await self.writer.drain(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Idempotent. What is still waiting after the time fails with Closed."""
        await self.writer.finish(timeout_s)
        self.reader.close()
        await self.long_reader.close()
        await self.writer.close(timeout_s)
        self._lock.release()

    def _damaged(self, fault: Corrupt) -> None:
        self.writer.report(fault)

    def _recovered(self) -> None:
        # What lies at the path may be another file now, restored by an operator.
        self.reader.reset()
        self.reader.open()
        self.long_reader.reset()
        self.agents.clear()
        self.jobs.wake()  # what was due meanwhile waits


def _real(path: str | Path) -> str:
    # Two names of one file must not be two databases, nor have two locks.
    return os.path.realpath(path)


def _make_private(path: str) -> None:
    """A new file is for the account that runs this alone; SQLite gives its log the same mode."""
    with contextlib.suppress(OSError):  # it is there, or what is wrong will be told by `health`
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def connect_current(target: DatabaseFile) -> sqlite3.Connection:
    """A writing connection to a file of the present schema. Raises: TooNew, Foreign, Unavailable."""
    connection = open_writer(target)
    try:
        migrate(connection, target.path)
    except BaseException:
        connection.close()
        raise
    return connection
