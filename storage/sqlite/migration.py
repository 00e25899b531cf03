"""Migration of a database file to the schema that this program knows; each step is a transaction of its own.

The version is `PRAGMA user_version`. A file of the folder `migrations` is a step between two versions. It never
changes (a test pins its bytes, comments included), so that a database opens if its version is where a step begins.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from storage.errors import ForeignDatabase, SchemaTooNew, SchemaTooOld
from storage.sqlite.result_codes import map_sqlite_errors

_log = logging.getLogger("mnemogate")

# "Mnem" in ASCII: distinguishes the gateway's files from other SQLite databases.
_APPLICATION_ID = 0x4D6E656D


class Migration(NamedTuple):
    """A step from one schema version to a later one."""

    # The version from which the step begins; 0: a new file.
    from_version: int
    # The version of the schema after the step.
    to_version: int
    # The SQL of the step.
    script: str


def load_migrations() -> tuple[Migration, ...]:
    """Returns the steps in order. The name of a file has the versions before and after its step.

    A new database begins with a step of its own, which makes the same tables as the steps from older versions.
    """
    migrations = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})-(\d{4})_\w+\.sql", file.name):
            migrations.append(Migration(int(match[1]), int(match[2]), file.read_text(encoding="utf-8")))
    return tuple(sorted(migrations))


def get_latest_version(migrations: Iterable[Migration]) -> int:
    """Returns the version to which the steps lead."""
    return max(step.to_version for step in migrations)


def migrate(connection: sqlite3.Connection, path: str, migrations: Sequence[Migration] | None = None) -> int:
    """Applies the missing steps and returns the version.

    Raises: SchemaTooNew, SchemaTooOld, ForeignDatabase, StoreUnavailable.
    """
    steps = load_migrations() if migrations is None else migrations
    latest_version = get_latest_version(steps)
    with map_sqlite_errors(path):
        initial_version = read_version(connection, path, steps)
        version = initial_version
        while version != latest_version:
            step = next(step for step in steps if step.from_version == version)
            try:
                connection.executescript(
                    f"BEGIN IMMEDIATE;\n{step.script}\n"
                    f"PRAGMA user_version = {step.to_version:d}; PRAGMA application_id = {_APPLICATION_ID:d};\nCOMMIT;"
                )
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            version = step.to_version
    if 0 < initial_version < latest_version:
        _log.warning("%s was upgraded from schema version %d to %d.", path, initial_version, latest_version)
    return latest_version


def read_version(
    connection: sqlite3.Connection, path: str, migrations: Sequence[Migration] | None = None
) -> int:
    """Returns the schema version of a file; 0: the file is new.

    If the steps lead from a new file to this version, the file must have all tables, columns, indexes and triggers of
    the version.

    Raises: SchemaTooNew, SchemaTooOld, ForeignDatabase, sqlite3.Error.
    """
    steps = load_migrations() if migrations is None else migrations
    latest_version = get_latest_version(steps)
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (table_count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id != _APPLICATION_ID and (table_count or application_id or version):
        raise ForeignDatabase(f"{path} is a database, but not one of Mnemogate. Name another file with --db.")
    if version > latest_version:
        raise SchemaTooNew(path, version, latest_version)
    if version not in (latest_version, *(step.from_version for step in steps)):
        raise SchemaTooOld(path, version)
    if missing := _list_names_at(version, tuple(steps)) - _load_names(connection):
        raise ForeignDatabase(
            f"{path} has no {min(missing)}, though its schema version is {version}: it was made by a Mnemogate between "
            "two releases. Export its memories with that one and import them into a new file."
        )
    return version


@lru_cache(maxsize=4)
def _list_names_at(version: int, steps: tuple[Migration, ...]) -> frozenset[str]:
    """Returns the names that a file of a version must have; none if the steps do not lead from a new file to it."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        reached_version = 0
        while reached_version < version:
            step = next(
                (
                    step
                    for step in steps
                    if step.from_version == reached_version and step.to_version <= version
                ),
                None,
            )
            if step is None:
                return frozenset()
            connection.executescript(step.script)
            reached_version = step.to_version
        return _load_names(connection)


def _load_names(connection: sqlite3.Connection) -> frozenset[str]:
    """Returns the names of tables with each of their columns, of indexes and of triggers."""
    return frozenset(
        f"{kind} {name}" if column is None else f"{kind} {name}, column {column}"
        for kind, name, column in connection.execute(
            "SELECT m.type, m.name, c.name FROM sqlite_master m"
            " LEFT JOIN pragma_table_xinfo(m.name) c ON m.type = 'table'"
        )
    )
