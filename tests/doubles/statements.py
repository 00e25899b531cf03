"""Connections that note the statements that they execute, for tests that count statements.

SQLite's own trace would report a statement again for each trigger. In PostgreSQL each statement is a round trip.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from functools import cache
from typing import Any

import asyncpg

from storage.postgres.database import _HEALTH_QUERY


def counting(note: Callable[[str], None]) -> type[sqlite3.Connection]:
    """Returns a class of SQLite connections that call `note` with each statement except pragmas.

    The class has `note` as an attribute.
    """

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


# Tables whose rows belong to an agent. A transaction locks the agent's row before it writes them.
OF_AN_AGENT = (
    "attached", "block_ops", "conversations", "embedded", "exchanges", "facts", "facts_ended", "forks", "marks",
    "passages", "run_steps", "run_texts", "runs", "sections", "segments", "summaries", "tags", "terms", "vectors",
)  # fmt: skip
# Two of them need no lock: an unused memory section is harmless, and what several agents share is detached row by row.
_LOCKED = "|".join(table for table in OF_AN_AGENT if table not in ("attached", "sections"))
_WRITES = re.compile(rf"\b(?:INSERT INTO|UPDATE|DELETE FROM) (?:{_LOCKED})\b")
_LOCKS = re.compile(
    r"\bFROM agents\b.*\bFOR NO KEY UPDATE\b|\b(?:INSERT INTO|UPDATE|DELETE FROM) agents\b", re.DOTALL
)


# Cached, since a test runs the same statements a thousand times, and a search takes as long as the statement itself.
@cache
def _locks(query: str) -> bool:
    return _LOCKS.search(query) is not None


@cache
def _writes(query: str) -> bool:
    return _WRITES.search(query) is not None


def noting(
    note: Callable[[str], None] = lambda text: None, is_checked: Callable[[str], bool] = lambda text: False
) -> type[Any]:
    """Returns a class of PostgreSQL connections that call `note` with each statement except the check of health.

    That one comes every few seconds by itself, so it would count as a statement of any request.

    is_checked: selects the statements that fail if they write an agent's rows before an agent is locked.
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
            if query != _HEALTH_QUERY:
                note(query)
            if query.startswith("BEGIN"):
                self.has_locked = False
            elif _locks(query):
                self.has_locked = True
            elif is_checked(query) and _writes(query):
                assert self.has_locked, f"no agent is locked before: {query}"

    return Connection
