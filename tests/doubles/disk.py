"""A disk under the writing connection of a store, on which a file may not grow or may not be written."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from storage.sqlite.connection import DatabaseFile
from storage.sqlite.database import connect_current


class Disk:
    """A place where the writing connection is opened, and what is wrong with it. The file has a table `probe`."""

    full = False
    read_only = False

    def connect(self, target: DatabaseFile) -> sqlite3.Connection:
        if self.read_only:
            return sqlite3.connect(
                f"file:{target.path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
        connection = connect_current(target)
        if self.full:
            fill(connection)
        return connection


def fill(connection: sqlite3.Connection) -> None:
    """Leaves no page for another write, neither in the file nor on the disk. It begins no transaction."""
    may_not_grow(connection)
    with suppress(sqlite3.OperationalError):
        while True:
            use_page(connection)


def may_not_grow(connection: sqlite3.Connection) -> None:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")


def use_page(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO probe (filler) VALUES (zeroblob(3000))")
