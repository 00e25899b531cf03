"""Connections that note the statements they execute, for tests that count them.

SQLite's own trace would report a statement again for each trigger. In PostgreSQL each statement is a round trip.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import asyncpg

__all__ = ["counting", "noting"]


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


def noting(note: Callable[[str], None]) -> type[asyncpg.Connection]:
    """A class of PostgreSQL connections that call `note` with each statement."""

    class Connection(asyncpg.Connection):  # type: ignore[misc]
        async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
            note(query)
            return await super().fetch(query, *args, **options)

        async def execute(self, query: str, *args: Any, **options: Any) -> Any:
            note(query)
            return await super().execute(query, *args, **options)

    return Connection
