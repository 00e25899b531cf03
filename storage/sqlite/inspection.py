"""A look at a database file that another process may own: it makes nothing, changes nothing and waits for nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from storage.database import ANY_KEY
from storage.sidecar import check_place, resolve_path
from storage.sqlite.connection import check_version
from storage.sqlite.migration import find_version, latest, load_migrations
from storage.sqlite.result_codes import map_sqlite_errors


class Inspected(Struct, frozen=True):
    """The file as it is."""

    # There are gateway keys in it.
    is_keyed: bool = False
    # Other accounts may read it.
    is_open: bool = False
    # The file's schema version and the one that a start brings it to; None: there is nothing to do.
    upgrade: tuple[int, int] | None = None


def inspect(path: str) -> Inspected:
    """Reads what there is at the path, if this account could have a database there.

    Raises: TooNew, TooOld, Foreign, StatementFailed, Unavailable.
    """
    check_version()
    real = resolve_path(path)
    check_place(real)
    if not os.path.exists(real) or not os.path.getsize(real):
        return Inspected()
    with map_sqlite_errors(real), closing(_open(real)) as connection:
        version = find_version(connection, real)
        is_keyed = version > 0 and bool(connection.execute(ANY_KEY).fetchone()[0])
    newest = latest(load_migrations())
    upgrade = (version, newest) if 0 < version < newest else None
    return Inspected(is_keyed, bool(os.stat(real).st_mode & stat.S_IRWXO), upgrade)


def _open(path: str) -> sqlite3.Connection:
    # An open file has to be read with its log. Where it is not open, SQLite would make a log even for a
    # reader, unless the file is declared immutable.
    is_in_use = all(os.path.exists(f"{path}{side}") for side in ("-wal", "-shm"))
    mode = "mode=ro" if is_in_use else "mode=ro&immutable=1"
    return sqlite3.connect(f"{Path(path).as_uri()}?{mode}", uri=True, timeout=0.2)
