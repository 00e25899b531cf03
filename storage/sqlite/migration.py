"""Migration of a database file to the schema this program knows; each step is a transaction of its own.

The version is `PRAGMA user_version`, the number of the last file applied. Files are append-only, and a test pins what
is in each, so that a database of every older version opens.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
from functools import lru_cache
from importlib import resources

from storage.errors import Foreign, TooNew
from storage.sqlite.connection import translated

_log = logging.getLogger("mnemogate")

# "Mnem" in ASCII: distinguishes the gateway's files from other SQLite databases.
APPLICATION_ID = 0x4D6E656D


def load_migrations() -> tuple[tuple[int, str], ...]:
    """Returns (number, script) in order. Raises: ValueError when a number is missing."""
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name):
            found.append((int(match[1]), file.read_text(encoding="utf-8")))
    found.sort()
    if [number for number, _ in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations must be numbered from 1 without gaps: {[n for n, _ in found]}")
    return tuple(found)


def migrate(
    connection: sqlite3.Connection, path: str, migrations: tuple[tuple[int, str], ...] | None = None
) -> int:
    """Applies what is missing and returns the version. Raises: TooNew, Foreign, Unavailable."""
    steps = load_migrations() if migrations is None else migrations
    with translated(path):
        found = find_version(connection, path, steps)
        for number, script in steps[found:]:
            try:
                connection.executescript(
                    f"BEGIN IMMEDIATE;\n{script}\n"
                    f"PRAGMA user_version = {number:d}; PRAGMA application_id = {APPLICATION_ID:d};\nCOMMIT;"
                )
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
    known = steps[-1][0]
    if 0 < found < known:
        _log.warning("%s was upgraded from schema version %d to %d.", path, found, known)
    return known


def find_version(
    connection: sqlite3.Connection, path: str, migrations: tuple[tuple[int, str], ...] | None = None
) -> int:
    """Returns the schema version that a file has; 0: it is new. Raises: TooNew, Foreign, sqlite3.Error.

    A file is believed its version only if it has what those steps make: one from before the first release may not.
    """
    steps = load_migrations() if migrations is None else migrations
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (tables or owner or found):
        raise Foreign(f"{path} is a database, but not one of Mnemogate. Name another file with --db.")
    if found > steps[-1][0]:
        raise TooNew(path, found, steps[-1][0])
    if missing := _made_by(steps[:found]) - _names(connection):
        raise Foreign(
            f"{path} has no {min(missing)}, though it says that it has schema version {found}: it was made by a "
            "Mnemogate between two releases. Export what it knows with that one and import it into a new file."
        )
    return found


@lru_cache(maxsize=4)
def _made_by(steps: tuple[tuple[int, str], ...]) -> frozenset[str]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for _, script in steps:
            connection.executescript(script)
        return _names(connection)


def _names(connection: sqlite3.Connection) -> frozenset[str]:
    """Returns the names of tables with each of their columns, of indexes and of triggers."""
    return frozenset(
        f"{kind} {name}" if column is None else f"{kind} {name}, column {column}"
        for kind, name, column in connection.execute(
            "SELECT m.type, m.name, c.name FROM sqlite_master m"
            " LEFT JOIN pragma_table_xinfo(m.name) c ON m.type = 'table'"
        )
    )
