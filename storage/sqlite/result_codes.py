"""SQLite's errors as the store's own, by their result codes (sqlite.org/rescode.html)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import (
    StatementFailed,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreTimeout,
    WriteConflict,
)

# A disk with less room than this is full: a page more of the file does not fit, or hardly.
_MIN_ROOM_BYTES = 16384
# The errors by the primary result code, the lowest byte.
_ERRORS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_FULL: StoreFull,
    sqlite3.SQLITE_READONLY: StoreReadOnly,
    sqlite3.SQLITE_PERM: StoreReadOnly,
    sqlite3.SQLITE_BUSY: StoreLocked,
    sqlite3.SQLITE_LOCKED: StoreLocked,
    sqlite3.SQLITE_CORRUPT: StoreCorrupt,
    sqlite3.SQLITE_NOTADB: StoreCorrupt,
    sqlite3.SQLITE_IOERR: StoreFailed,
    sqlite3.SQLITE_CANTOPEN: StoreFailed,
    sqlite3.SQLITE_NOMEM: StoreFailed,
    sqlite3.SQLITE_PROTOCOL: StoreFailed,
    sqlite3.SQLITE_NOLFS: StoreFailed,
    sqlite3.SQLITE_INTERRUPT: StoreTimeout,
    sqlite3.SQLITE_CONSTRAINT: WriteConflict,
}

# The messages of errors that the machine or another program causes, as an operator reads them.
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


def translate_error(error: sqlite3.Error, path: str = "the database") -> StoreError:
    """Returns the store's own error for an error of SQLite, which becomes its cause."""
    code = getattr(error, "sqlite_errorcode", None)
    # Without a code the sqlite3 module itself has raised it: for a closed connection, a wrong number of parameters.
    if code is None:
        error_type: type[StoreError] = StoreClosed if "closed" in str(error) else StatementFailed
    else:
        error_type = _ERRORS.get(code & 0xFF, StatementFailed)
    # SQLite does not report why a file cannot grow.
    if error_type is StoreFailed and os.path.isabs(path) and _is_full(path):
        error_type = StoreFull
        code = sqlite3.SQLITE_FULL
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    text = _TEXTS.get((code or 0) & 0xFF, "{path}: {error}")
    translated = error_type(f"{text.format(path=path, error=error)} ({name})")
    translated.__cause__ = error
    return translated


def _is_full(path: str) -> bool:
    """Returns whether the disk of a file has no room for another page of it."""
    try:
        disk = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _MIN_ROOM_BYTES


@contextmanager
def map_sqlite_errors(path: str = "the database") -> Iterator[None]:
    """Turns SQLite's errors into the store's."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate_error(error, path) from error
