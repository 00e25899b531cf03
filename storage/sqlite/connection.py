"""Connections to the database file, and how they are opened. This module knows pragmas, and no tables.

Never `open()` the database or its -wal and -shm files in the process that serves them: closing any descriptor of a
file drops all POSIX locks the process has on it, SQLite's own included. `os.stat` is safe.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from storage.errors import StatementFailed, StoreCorrupt, StoreFailed
from storage.sqlite.result_codes import map_sqlite_errors

# RETURNING came with 3.35, STRICT tables with 3.37.
OLDEST_SQLITE = (3, 37, 0)

# Enough for all statements of the store. To parse one again costs 10 to 40 us.
CACHED_STATEMENTS = 512

# The page cache of a reader. The search index of 10,000 long messages is 5 MB; with SQLite's own 2 MB every search
# fetches it from the file again (measured: 2.5 ms of processor time against 1.2).
_READ_CACHE_KIB = 8 * 1024

# The size of a trial write: four pages, which a full disk has no room for.
_TRIAL_BYTES = 16384

# sqlite3 looks for a method that adapts each value other than a plain number or text, and raises and catches an
# exception if there is none: two dozen times in a turn. A registered adapter spares that. These are C functions, for
# speed.
sqlite3.register_adapter(type(None), {None: None}.get)
sqlite3.register_adapter(bytes, bytes.__bytes__)
sqlite3.register_adapter(bool, int)


class DatabaseFile(Struct, frozen=True):
    """A database file and how it is opened."""

    # The path of the file.
    path: str
    # With NORMAL a commit survives a crash of the process, with FULL also a crash of the machine.
    synchronous: str = "NORMAL"
    # The time that the writer waits for another process that holds the file.
    busy_timeout_ms: int = 200
    # The class of connections; tests that count statements pass another class.
    factory: type[sqlite3.Connection] = sqlite3.Connection


def check_version() -> None:
    """Refuses a SQLite that lacks a feature that the store needs. Raises: StatementFailed."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StatementFailed(f"SQLite {oldest} or newer is needed; this Python has {sqlite3.sqlite_version}")


def open_writer(target: DatabaseFile) -> sqlite3.Connection:
    """Opens the one connection that writes.

    Raises: StatementFailed, StoreUnavailable; ValueError: `synchronous` is neither NORMAL nor FULL.
    """
    if target.synchronous not in ("NORMAL", "FULL"):
        raise ValueError(f"synchronous must be NORMAL or FULL, not {target.synchronous}")
    check_version()
    with map_sqlite_errors(target.path), _closing_on_error(_connect(target)) as connection:
        connection.execute(f"PRAGMA busy_timeout = {target.busy_timeout_ms:d}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreFailed(
                f"{target.path}: write-ahead logging is not possible here (journal mode {mode})"
            )
        connection.execute(f"PRAGMA synchronous = {target.synchronous}")
        connection.execute("PRAGMA secure_delete = ON")  # forgotten content is overwritten
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer chooses the moment
        _set_pragmas(connection)
        return connection


def open_reader(target: DatabaseFile, *, busy_timeout_ms: int) -> sqlite3.Connection:
    """Opens a connection that cannot write. Raises: StoreUnavailable."""
    with map_sqlite_errors(target.path), _closing_on_error(_connect(target)) as connection:
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms:d}")
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{_READ_CACHE_KIB}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        _set_pragmas(connection)
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # a damaged file is noticed here
        return connection


def try_writing(connection: sqlite3.Connection, *, looks_for_damage: bool) -> None:
    """Makes a trial write, after it has looked for damage. Raises: sqlite3.Error; StoreCorrupt."""
    if looks_for_damage:
        (report,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if report != "ok":
            raise StoreCorrupt(f"the database is damaged: {report}")
    connection.execute("INSERT OR REPLACE INTO probe (id, filler) VALUES (1, zeroblob(?))", (_TRIAL_BYTES,))
    connection.execute("DELETE FROM probe")


def read_schema_version(connection: sqlite3.Connection) -> int:
    """Returns a number that changes with the schema, and when a copy is restored into the open file."""
    (version,) = connection.execute("PRAGMA schema_version").fetchone()
    return int(version)


def _connect(target: DatabaseFile) -> sqlite3.Connection:
    file_id = _find_file_id(target.path)
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
    if file_id not in (None, _find_file_id(target.path)):
        connection.close()
        raise StoreFailed(f"{target.path} was replaced while it was opened")
    return connection


def _find_file_id(path: str) -> tuple[int, int, int] | None:
    """Returns the device, inode and type of the file or link at a path; None: there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    # The type distinguishes a link from a file: the link may have got the inode of a file that was removed.
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


def _set_pragmas(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA mmap_size = 0")  # with mmap an I/O error is a signal, not a result
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA foreign_keys = OFF")  # the schema has none


@contextmanager
def _closing_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
