"""A SQLite connection that notes the statements it executes, for tests that count them.

SQLite's own trace would report a statement again for each trigger.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

__all__ = ["counting"]


def counting(note: Callable[[str], None]) -> type[sqlite3.Connection]:
    """A class of connections that call `note` with each statement but pragmas."""

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = (), /) -> Any:
            if not sql.startswith("PRAGMA"):
                note(sql)
            return super().execute(sql, parameters)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = None) -> Any:
            return super().cursor(Cursor)

        def execute(self, sql: str, parameters: Any = (), /) -> Any:
            return self.cursor().execute(sql, parameters)

    return Connection
