"""Connections to the database file: how they are opened, what their errors mean, and the thread one may live in.

It knows pragmas and SQLite's result codes; it does not know what is stored.

Never `open()` the database or its -wal and -shm files in the process that serves them: closing any descriptor of a
file drops all POSIX locks the process has on it, SQLite's own included. `os.stat` is safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Self, TypeVar

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL, set_exception, set_result
from msgspec import Struct

from storage.errors import (
    Broken,
    Closed,
    Corrupt,
    Full,
    Locked,
    ReadOnly,
    StatementFailed,
    StoreError,
    TooSlow,
    WriteConflict,
)
from storage.sqlite.processor import Placement

T = TypeVar("T")

# RETURNING came with 3.35, STRICT tables with 3.37.
OLDEST_SQLITE = (3, 37, 0)

# All statements of the store fit; the default of 128 would do today, and parsing one again costs 10-40 us.
CACHED_STATEMENTS = 512

# Pages that a reader keeps. The search index of 10,000 long messages is 5 MB; with SQLite's own 2 MB every search
# fetches it from the file again (measured: 2.5 ms of processor time against 1.2).
READ_CACHE_KIB = 8 * 1024

_TRIAL_BYTES = 16384  # four pages, so that a full disk shows itself

# sqlite3 looks in each value that is no plain number or text for a method that adapts it, and raises and catches an
# exception where there is none: two dozen times in a turn. Types with an adapter are spared that. These adapters are
# functions in C, for speed.
sqlite3.register_adapter(type(None), {None: None}.get)
sqlite3.register_adapter(bytes, bytes.__bytes__)
sqlite3.register_adapter(bool, int)

# By SQLite's primary result code (sqlite.org/rescode.html).
_ERRORS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_FULL: Full,
    sqlite3.SQLITE_READONLY: ReadOnly,
    sqlite3.SQLITE_PERM: ReadOnly,
    sqlite3.SQLITE_BUSY: Locked,
    sqlite3.SQLITE_LOCKED: Locked,
    sqlite3.SQLITE_CORRUPT: Corrupt,
    sqlite3.SQLITE_NOTADB: Corrupt,
    sqlite3.SQLITE_IOERR: Broken,
    sqlite3.SQLITE_CANTOPEN: Broken,
    sqlite3.SQLITE_NOMEM: Broken,
    sqlite3.SQLITE_PROTOCOL: Broken,
    sqlite3.SQLITE_NOLFS: Broken,
    sqlite3.SQLITE_INTERRUPT: TooSlow,
    sqlite3.SQLITE_CONSTRAINT: WriteConflict,
}


# What an operator reads of those that the machine or another program causes.
_TEXTS = {
    sqlite3.SQLITE_FULL: "The disk is full: {path} cannot be written. Make room on it.",
    sqlite3.SQLITE_READONLY: "{path} cannot be written: {error}. Check its mode and its owner.",
    sqlite3.SQLITE_PERM: "{path} cannot be opened: {error}. Check its mode and its owner.",
    sqlite3.SQLITE_BUSY: "{path} is locked by another program. End that one, or wait for it.",
    sqlite3.SQLITE_LOCKED: "{path} is locked by another program. End that one, or wait for it.",
    sqlite3.SQLITE_CORRUPT: "{path} is damaged: {error}. Bring a backup back, or name another file with --db.",
    sqlite3.SQLITE_NOTADB: "{path} is not a database. Name another file with --db; one that is not there is made.",
    sqlite3.SQLITE_IOERR: "The disk failed while {path} was used: {error}. The system's log may say why.",
    sqlite3.SQLITE_CANTOPEN: "{path} cannot be opened. Check the mode and the owner of it, its -wal and its -shm.",
}


class DatabaseFile(Struct, frozen=True):
    """A database file and how it is opened."""

    path: str
    # With NORMAL a commit survives a crash of the process, with FULL also a crash of the machine.
    synchronous: str = "NORMAL"
    # How long the writer waits for another process that holds the file.
    busy_timeout_ms: int = 200
    # The class of connections; tests that count statements bring their own.
    factory: type[sqlite3.Connection] = sqlite3.Connection


def translate(error: sqlite3.Error, path: str = "the database") -> StoreError:
    """Returns the store's own error for one of SQLite's; its cause is set."""
    code = getattr(error, "sqlite_errorcode", None)
    # Without a code the sqlite3 module itself has raised it: for a closed connection, a wrong number of parameters.
    if code is None:
        kind: type[StoreError] = Closed if "closed" in str(error) else StatementFailed
    else:
        kind = _ERRORS.get(code & 0xFF, StatementFailed)
    # SQLite does not report why a file cannot grow.
    if kind is Broken and os.path.isabs(path) and _is_full(path):
        kind, code = Full, sqlite3.SQLITE_FULL
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    text = _TEXTS.get((code or 0) & 0xFF, "{path}: {error}")
    translated = kind(f"{text.format(path=path, error=error)} ({name})")
    translated.__cause__ = error
    return translated


def _is_full(path: str) -> bool:
    """Returns whether the disk of a file has no room for another page of it."""
    try:
        disk = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _TRIAL_BYTES


@contextmanager
def map_sqlite_errors(path: str = "the database") -> Iterator[None]:
    """Turns SQLite's errors into the store's."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


def check_version() -> None:
    """Refuses a SQLite that lacks what the store needs. Raises: StatementFailed."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        raise StatementFailed(f"SQLite {needed} or newer is needed; this Python has {sqlite3.sqlite_version}")


def open_writer(target: DatabaseFile) -> sqlite3.Connection:
    """Opens the one connection that writes. Raises: StatementFailed, Unavailable."""
    check_version()
    with map_sqlite_errors(target.path), _closing_on_error(_connect(target)) as connection:
        connection.execute(f"PRAGMA busy_timeout = {target.busy_timeout_ms:d}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise Broken(f"{target.path}: write-ahead logging is not possible here (journal mode {mode})")
        if target.synchronous not in ("NORMAL", "FULL"):
            raise ValueError(f"synchronous must be NORMAL or FULL, not {target.synchronous}")
        connection.execute(f"PRAGMA synchronous = {target.synchronous}")
        connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer chooses the moment
        _set_pragmas(connection)
        return connection


def open_reader(target: DatabaseFile, *, busy_timeout_ms: int) -> sqlite3.Connection:
    """Opens a connection that cannot write. Raises: Unavailable."""
    with map_sqlite_errors(target.path), _closing_on_error(_connect(target)) as connection:
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms:d}")
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{READ_CACHE_KIB}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        _set_pragmas(connection)
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # a damaged file is noticed here
        return connection


def try_writing(connection: sqlite3.Connection, check: bool) -> None:
    """Makes a trial write. check: look for damage first. Raises: sqlite3.Error; Corrupt."""
    if check:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise Corrupt(f"the database is damaged: {found}")
    connection.execute("INSERT OR REPLACE INTO probe (id, filler) VALUES (1, zeroblob(?))", (_TRIAL_BYTES,))
    connection.execute("DELETE FROM probe")


def _connect(target: DatabaseFile) -> sqlite3.Connection:
    before = _file_id(target.path)
    # Transactions are begun by hand. A connection is used by one thread at a time, though not always by the one
    # that made it (shutdown closes them all).
    connection = sqlite3.connect(
        target.path,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=CACHED_STATEMENTS,
        factory=target.factory,
    )
    # SQLite follows links, so a link that took the place of the file meanwhile has led it elsewhere.
    if before not in (None, _file_id(target.path)):
        connection.close()
        raise Broken(f"{target.path} was replaced while it was opened")
    return connection


def _file_id(path: str) -> tuple[int, int, int] | None:
    """Returns device, inode and type of the file at a path, a link not followed; None: there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    # The inode of a removed file is used again, so a link may get that of a file.
    return found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode)


def _set_pragmas(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA mmap_size = 0")  # with mmap an I/O error is a signal, not a result
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA foreign_keys = OFF")  # see the schema


@contextmanager
def _closing_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


class Driver(aiosqlite.Connection):
    """A connection in a thread of its own that is handed whole functions: one hop for a batch, not one a statement.

    aiosqlite gives the thread and its queue. It reports to the event loop even when nothing waits any more, which fails
    in the thread once the loop is closed; what is here does not.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], name: str) -> None:
        super().__init__(connect, iter_chunk_size=64)
        self._thread.name = name
        self._placement: Placement | None = None
        # A disk that never answers must not keep a process that has to stop.
        self._thread.daemon = True

    async def open(self) -> Self:
        """Starts the thread and opens the connection in it. Raises: what `connect` raises."""
        self._thread.start()
        self._placement = Placement(self._thread.native_id or 0)
        try:
            await self._run(self._open_in_thread)
        except BaseException:
            self.abandon()
            raise
        return self

    def post(self, function: Callable[[sqlite3.Connection], None], *, is_near: bool = False) -> None:
        """Runs a function in the thread, and reports neither its end nor an error: it must not raise.

        is_near: on the caller's processor. That is faster for short work, in which the interpreter's lock changes hands
            often.
        """
        if self._placement is not None:
            self._placement.come_near() if is_near else self._placement.go_free()
        self._tx.put_nowait((None, partial(function, self._conn)))

    def call(self, function: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Runs it in the thread. Cancelling the future does not stop it."""
        return self._run(partial(function, self._conn))

    def abandon(self) -> None:
        """Closes as soon as the thread is free, without waiting for it."""
        self._running = False
        self._tx.put_nowait((None, self._close_in_thread))
        self._tx.put_nowait((None, lambda: _STOP_RUNNING_SENTINEL))

    def _run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def perform() -> None:
            try:
                report = partial(set_result, future, function())
            except BaseException as error:
                report = partial(set_exception, future, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
                loop.call_soon_threadsafe(report)

        self._tx.put_nowait((None, perform))
        return future

    def _open_in_thread(self) -> None:
        self._connection = self._connector()

    def _close_in_thread(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
