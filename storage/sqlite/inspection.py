"""A look at a database file that another process may own: it makes nothing, changes nothing and waits for nobody."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from storage.errors import Broken, ReadOnly
from storage.sqlite.connection import check_version, translated
from storage.sqlite.lock import lock_path
from storage.sqlite.migration import find_version, load_migrations


@dataclass(frozen=True, slots=True)
class Inspected:
    """The file as it is. is_keyed: there are gateway keys in it. is_open: other accounts may read it.

    upgrade: its schema version and the one that a start brings it to; None: there is nothing to do.
    """

    is_keyed: bool = False
    is_open: bool = False
    upgrade: tuple[int, int] | None = None


def check_place(path: str) -> None:
    """Says whether this account could own a database at the path. Raises: ReadOnly, Broken: why not."""
    real, lock = os.path.realpath(path), lock_path(path)
    folder = os.path.dirname(real)
    if not os.path.isdir(folder):
        raise Broken(f"{folder} is not there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReadOnly(f"{folder} may not be written by this account")
    for each in (real, lock):
        if os.path.exists(each) and not os.path.isfile(each):
            raise Broken(f"{each} is no file")
        if os.path.exists(each) and not os.access(each, os.R_OK | os.W_OK):
            raise ReadOnly(f"{each} may not be read and written by this account")


def inspect(path: str) -> Inspected:
    """Reads what there is at the path. Raises: TooNew, Foreign, StatementFailed, Unavailable."""
    check_version()
    real = os.path.realpath(path)
    if not os.path.exists(real) or not os.path.getsize(real):
        return Inspected()
    with translated(real), closing(_open(real)) as connection:
        found = find_version(connection, real)
        is_keyed = found > 0 and bool(connection.execute("SELECT EXISTS (SELECT 1 FROM keys)").fetchone()[0])
    known = len(load_migrations())
    upgrade = (found, known) if 0 < found < known else None
    return Inspected(is_keyed, bool(os.stat(real).st_mode & stat.S_IRWXO), upgrade)


def _open(path: str) -> sqlite3.Connection:
    # The log of who has the file open has to be read with it. Where nobody has, SQLite would make a log even for a
    # reader, unless it is told that the file does not change.
    is_in_use = all(os.path.exists(f"{path}{side}") for side in ("-wal", "-shm"))
    mode = "mode=ro" if is_in_use else "mode=ro&immutable=1"
    return sqlite3.connect(f"{Path(path).as_uri()}?{mode}", uri=True, timeout=0.2)
