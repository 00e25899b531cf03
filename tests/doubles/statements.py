"""Connections that note the statements they execute, for tests that count them.

SQLite's own trace would report a statement again for each trigger. In PostgreSQL each statement is a round trip.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from functools import cache
from typing import Any

import asyncpg


def counting(note: Callable[[str], None]) -> type[sqlite3.Connection]:
    """A class of connections that call `note` with each statement but pragmas. It says itself which: its `note`."""

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

    Connection.note = note  # type: ignore[attr-defined]
    return Connection


# Tables whose rows are an agent's: who writes them has the agent's row locked by then.
OF_AN_AGENT = (
    "attached", "block_ops", "conversations", "embedded", "exchanges", "facts", "facts_ended", "forks", "marks",
    "passages", "run_steps", "run_texts", "runs", "sections", "segments", "summaries", "tags", "terms", "vectors",
)  # fmt: skip
# (A memory section that nobody names is harmless; what is taken from all who have it is taken row by row.)
_LOCKED = "|".join(each for each in OF_AN_AGENT if each not in ("attached", "sections"))
_WRITES = re.compile(rf"\b(?:INSERT INTO|UPDATE|DELETE FROM) (?:{_LOCKED})\b")
_LOCKS = re.compile(
    r"\bFROM agents\b.*\bFOR NO KEY UPDATE\b|\b(?:INSERT INTO|UPDATE|DELETE FROM) agents\b", re.DOTALL
)


# A test runs the same statements a thousand times, and to look through one takes as long as to run it.
@cache
def _locks(query: str) -> bool:
    return _LOCKS.search(query) is not None


@cache
def _writes(query: str) -> bool:
    return _WRITES.search(query) is not None


def noting(
    note: Callable[[str], None] = lambda text: None, is_checked: Callable[[str], bool] = lambda text: False
) -> type[Any]:
    """A class of PostgreSQL connections that call `note` with each statement.

    is_checked: such a statement fails if it writes an agent's rows before an agent is locked.
    """

    class Connection(asyncpg.Connection):  # type: ignore[misc]
        __slots__ = ("has_locked",)

        async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
            self._check(query)
            return await super().fetch(query, *args, **options)

        async def execute(self, query: str, *args: Any, **options: Any) -> Any:
            self._check(query)
            return await super().execute(query, *args, **options)

        def _check(self, query: str) -> None:
            note(query)
            if query.startswith("BEGIN"):
                self.has_locked = False
            elif _locks(query):
                self.has_locked = True
            elif is_checked(query) and _writes(query):
                assert self.has_locked, f"no agent is locked before: {query}"

    return Connection
