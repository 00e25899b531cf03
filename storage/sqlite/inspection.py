"""The inspection of a database file that another process may own. It makes, changes and awaits nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from storage.database import ANY_KEY
from storage.database_path import check_location, resolve_path
from storage.sqlite.connection import check_version
from storage.sqlite.migration import get_latest_version, load_migrations, read_version
from storage.sqlite.result_codes import map_sqlite_errors


class SchemaUpgrade(NamedTuple):
    """The upgrade of a file's schema at the next start."""

    # The version of the file's schema.
    version: int
    # The version after the upgrade.
    latest_version: int


class FileFindings(Struct, frozen=True):
    """The findings of an inspection of a file."""

    # True if the database has gateway keys.
    is_keyed: bool = False
    # True if accounts that are neither the file's owner nor in its group may read, write or execute the file.
    is_shared_with_others: bool = False
    # The upgrade that a start makes; None: a start leaves the schema as it is.
    upgrade: SchemaUpgrade | None = None


def inspect(path: str) -> FileFindings:
    """Inspects a database file. Returns its findings; those of a missing or empty file are the defaults.

    Raises: SchemaTooNew, SchemaTooOld, ForeignDatabase, StatementFailed, StoreUnavailable.
    """
    check_version()
    real_path = resolve_path(path)
    check_location(real_path)
    if not os.path.exists(real_path) or not os.path.getsize(real_path):
        return FileFindings()
    with map_sqlite_errors(real_path), closing(_open_file(real_path)) as connection:
        version = read_version(connection, real_path)
        is_keyed = version > 0 and bool(connection.execute(ANY_KEY).fetchone()[0])
    latest_version = get_latest_version(load_migrations())
    upgrade = SchemaUpgrade(version, latest_version) if 0 < version < latest_version else None
    return FileFindings(is_keyed, bool(os.stat(real_path).st_mode & stat.S_IRWXO), upgrade)


def _open_file(path: str) -> sqlite3.Connection:
    # A file that another process has open has to be read with its log. If none has, SQLite would make a log even for a
    # reader, unless the file is declared immutable.
    is_in_use = all(os.path.exists(f"{path}{side}") for side in ("-wal", "-shm"))
    mode = "mode=ro" if is_in_use else "mode=ro&immutable=1"
    return sqlite3.connect(f"{Path(path).as_uri()}?{mode}", uri=True, timeout=0.2)
