"""A SQLite file as the store's `Database`, read by two readers and written by one writer.

Short reads run in the event loop's own thread, long ones in the reader's thread, writes in the writer's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

from storage.database import (
    Changes,
    Connection,
    Operation,
    Row,
    StoreHealth,
    choose_deadline_ms,
    is_outdated_work,
    work_generation,
)
from storage.database_path import LOGS, check_location, resolve_path
from storage.errors import StaleWrite, StoreFailed, StoreUnavailable
from storage.health_check import CHECK_S, HealthCheck
from storage.sidecar import make_sidecar, restrict
from storage.sqlite import mount
from storage.sqlite.checkpoint import Checkpointer
from storage.sqlite.connection import DatabaseFile, open_writer, read_schema_version, try_writing
from storage.sqlite.lock import Lock
from storage.sqlite.migration import migrate
from storage.sqlite.operations import run_read, run_write
from storage.sqlite.reader import Reader, ThreadReader
from storage.sqlite.result_codes import map_sqlite_errors
from storage.sqlite.watch import Watch
from storage.sqlite.writer import Writer, WriterLimits

T = TypeVar("T")


class _ReadResult(NamedTuple, Generic[T]):
    """The result of a read."""

    # The value that the read returns.
    value: T
    # The version of the schema after the read.
    schema_version: int


class SqliteDatabase:
    """A database in a file, made by `open`. Implements `Database`, which documents the methods.

    writer, reader, long_reader: the connections, for features that only SQLite has, such as backups.
    """

    is_shared = False
    clock_ahead_s = 0.0
    is_settled = True

    def __init__(
        self,
        target: DatabaseFile,
        lock: Lock,
        *,
        limits: WriterLimits | None,
        connect: Callable[[DatabaseFile], sqlite3.Connection],
        check_s: float,
        is_disk_doubtful: Callable[[str], bool],
    ) -> None:
        self._target = target
        self._lock = lock
        self._is_disk_doubtful = is_disk_doubtful
        # Becomes true once the file was opened and has the present schema.
        self._is_current = False
        self._recovery_listeners: list[Callable[[], None]] = []
        self._failure_listeners: list[Callable[[StoreUnavailable], None]] = []
        self._change_listeners: list[Callable[[Changes], None]] = []
        self.path = target.path
        self._watch = watch = Watch()
        self.writer = Writer(
            target.path,
            lambda: watch.attach(self._open_writer(connect)),
            watch,
            limits=limits,
            checkpointer=Checkpointer(lambda: open_writer(target), lambda: self.writer.check_in_place()),
            on_change=self._report_changes,
            on_failure=self._report_failure,
            on_recovery=self._report_recovery,
        )
        self.reader = Reader(target, self.writer.report_fault, self.writer.check_in_place)
        self.long_reader = ThreadReader(target, self.writer.report_fault, self.writer.check_in_place)
        self._health_check = HealthCheck(self._check_disk, check_s)

    @classmethod
    async def open(
        cls,
        path: str | Path,
        *,
        address: str | None = None,
        synchronous: str = "NORMAL",
        limits: WriterLimits | None = None,
        busy_timeout_ms: int = 200,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
        connect: Callable[[DatabaseFile], sqlite3.Connection] | None = None,
        check_s: float = CHECK_S,
        is_disk_doubtful: Callable[[str], bool] = mount.is_disk_doubtful,
    ) -> Self:
        """Locks the file, migrates it to the present schema, and opens it.

        A database that cannot be used for now (full, locked, read-only, damaged, in a directory that is not there) does
        not stop the start: `health` reports it, every operation raises that error, and it comes back by itself.

        path: the file of the database.
        address: the address at which this process serves, shown to a process that is refused the file.
        synchronous: the value of SQLite's pragma, NORMAL or FULL, as `DatabaseFile.synchronous`.
        limits: the bounds and pauses of the writer; None: the defaults.
        busy_timeout_ms: the time that the writer waits for another process that holds the file.
        factory: the class of connections, for tests that count statements.
        connect: a function that opens the writing connection, for tests with a fault there; None: `connect_current`.
        check_s: the seconds between two checks of the database's health.
        is_disk_doubtful: a function that returns whether the disk of a path may be full or read-only.

        Raises: FileOwned, SchemaTooNew, ForeignDatabase.
        """
        target = DatabaseFile(resolve_path(path), synchronous, busy_timeout_ms, factory)
        lock = Lock(target.path, address)
        try:
            database = cls(
                target,
                lock,
                limits=limits,
                connect=connect or connect_current,
                check_s=check_s,
                is_disk_doubtful=is_disk_doubtful,
            )
            await database.writer.start()
            if database._is_current:
                database.reader.open()
        except BaseException:
            lock.release()
            raise
        return database

    async def read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        began_generation = self._begin_read()
        result = self.reader.run(
            partial(_read_with_version, operation), deadline_ms=choose_deadline_ms(deadline_ms)
        )
        return self._end_read(result, began_generation)

    async def long_read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        began_generation = self._begin_read()
        result = await self.long_reader.run(
            partial(_read_with_version, operation), deadline_ms=choose_deadline_ms(deadline_ms)
        )
        return self._end_read(result, began_generation)

    def write(
        self, operation: Operation[T], *, size_bytes: int = 0, is_repeatable: bool = False
    ) -> asyncio.Future[T]:
        # `is_repeatable` is ignored: no network can lose the answer to a commit, so no write is repeated.
        run = partial(run_write, self._refuse_outdated(operation), self._watch)
        return self.writer.submit(run, size_bytes=size_bytes, begins_own_transaction=True)

    def write_one(self, statement: str, values: Sequence[object]) -> asyncio.Future[list[Row]]:
        return self.write(lambda connection: connection.fetch_rows(statement, values))

    def bulk_write(self, operation: Operation[T], *, size_bytes: int = 0) -> asyncio.Future[T]:
        run = partial(run_write, self._refuse_outdated(operation), self._watch)
        return self.writer.submit(run, size_bytes=size_bytes, is_bulk=True)

    async def sweep(self, wait_ms: int) -> bool:
        """Empties the write-ahead log. Returns False if a reader still needs it."""
        return await self.writer.checkpoint(wait_ms=wait_ms)

    def start(self) -> None:
        self._health_check.start()

    # One process owns the file, so there is no other to notify, nor one that notifies.

    def add_listener(self, channel: str, callback: Callable[[str | None], None]) -> None:
        pass

    def notify(self, channel: str, payload: str = "") -> None:
        pass

    def add_change_listener(self, callback: Callable[[Changes], None]) -> None:
        self._change_listeners.append(callback)

    def add_failure_listener(self, callback: Callable[[StoreUnavailable], None]) -> None:
        self._failure_listeners.append(callback)

    def add_recovery_listener(self, callback: Callable[[], None]) -> None:
        self._recovery_listeners.append(callback)

    @property
    def is_owned(self) -> bool:
        return self._lock.is_held

    @property
    def generation(self) -> int:
        return self.writer.file.generation

    @property
    def health(self) -> StoreHealth:
        return self.writer.health

    async def drain(self, timeout_s: float) -> bool:
        return await self.writer.drain(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self._health_check.close()
        await self.writer.finish(timeout_s)
        # The readers close before the writer: the last connection to close writes the log back, and it should be the
        # one that may write.
        self.reader.close()
        await self.long_reader.close()
        await self.writer.close(timeout_s)
        self._lock.release()

    def _open_writer(self, connect: Callable[[DatabaseFile], sqlite3.Connection]) -> sqlite3.Connection:
        """Opens a writing connection to a file that this process owns from then on.

        Raises: FileOwned, and the errors of `connect`.
        """
        check_location(self.path)
        self._lock.acquire()
        _make_private(self.path)
        connection = connect(self._target)
        self._is_current = True
        return connection

    def _refuse_outdated(self, operation: Operation[T]) -> Operation[T]:
        """Returns a write that raises StaleWrite if the work of this task began in another file."""
        began_generation = work_generation.get()
        if began_generation is None:
            return operation

        def write(connection: Connection) -> Coroutine[Any, Any, T]:
            # Checked when the write runs: the file may be opened again while the write waits.
            if began_generation != self.generation:
                raise StaleWrite("the database was restored or replaced meanwhile")
            return operation(connection)

        return write

    def _begin_read(self) -> int:
        """Returns the generation in which a read begins.

        Raises: StoreUnavailable: the file may belong to another process, or lacks tables; StoreFailed: the work of this
            task began in another file.
        """
        if not (self._is_current and self._lock.is_held):
            raise self.writer.fault
        if is_outdated_work(self):
            raise self.writer.file.make_overwritten_error().copy()
        return self.generation

    def _end_read(self, result: _ReadResult[T], began_generation: int) -> T:
        """Returns the value of a read. Raises: StoreFailed: another program has restored a copy into the file.

        The read's parameters have ids of the earlier database, which may belong to other users in the copy.

        began_generation: the generation in which the read began. A long read may end in a later one.
        """
        if began_generation != self.generation:
            raise self.writer.file.make_overwritten_error().copy()
        if self.writer.file.schema_version not in (0, result.schema_version):
            fault = self.writer.file.make_overwritten_error()
            is_new = self.writer.report_fault(fault)
            fault.is_known = not is_new
            raise fault
        return result.value

    def _report_changes(self, changes: Changes) -> None:
        for function in self._change_listeners:
            function(changes)

    async def _check_disk(self) -> None:
        """Makes a test write if the disk may be full or read-only; otherwise an idle gateway writes nothing.

        The writer checks for each write whether the file is at its path.
        """

        def test_write(connection: sqlite3.Connection) -> None:
            if self._is_disk_doubtful(self.path):
                try_writing(connection, looks_for_damage=False)

        if not self.writer.health.waiting:  # a write that waits shows whether the disk can be written
            await self.writer.submit(test_write, is_bulk=True, begins_own_transaction=True)

    def _report_failure(self, fault: StoreUnavailable) -> None:
        for function in self._failure_listeners:
            function(fault)

    def _report_recovery(self) -> None:
        # The file at the path may be another one now, which an operator has restored.
        self.reader.reset()
        self.reader.open()
        self.long_reader.reset()
        for function in self._recovery_listeners:
            function()


def connect_current(target: DatabaseFile) -> sqlite3.Connection:
    """Opens a writing connection to a file of the present schema.

    Raises: SchemaTooNew, ForeignDatabase, StoreUnavailable.
    """
    connection = open_writer(target)
    try:
        with map_sqlite_errors(target.path):
            (before,) = connection.execute("PRAGMA user_version").fetchone()
        after = migrate(connection, target.path)
        if after > before > 0:
            _remove_public_access(target.path)
    except BaseException:
        connection.close()
        raise
    return connection


def _read_with_version(operation: Operation[T], raw: sqlite3.Connection) -> _ReadResult[T]:
    return _ReadResult(run_read(operation, raw), read_schema_version(raw))


def _remove_public_access(path: str) -> None:
    """Makes a file private that an older version left open to every account.

    Access of the group alone is the operator's choice, and stays.
    """
    with contextlib.suppress(OSError, StoreFailed):
        if os.lstat(path).st_mode & 0o007:
            for suffix in ("", *LOGS):
                restrict(f"{path}{suffix}")


def _make_private(path: str) -> None:
    """Gives a new file to the account that runs this alone; SQLite gives its log the same mode."""
    with contextlib.suppress(FileExistsError):
        os.close(make_sidecar(path, ""))
