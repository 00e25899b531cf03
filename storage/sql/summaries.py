"""Summaries in SQLite. What is forgotten takes them along by triggers (migrations/0003_summaries.sql)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from storage.base import Effect
from storage.records import Exchange, Summary
from storage.sql import exchanges
from storage.sql.statements import load_queries
from storage.sqlite.reader import Reader, ThreadReader

__all__ = ["Summaries"]

_Q = {name: exchanges.prepare(sql) for name, sql in load_queries("summaries.sql").items()}


class Summaries:
    def __init__(self, reader: Reader, long_reader: ThreadReader) -> None:
        self._reader = reader
        self._long_reader = long_reader

    def of(self, agent: int, conversation: int, limit: int = 16) -> list[Summary]:
        return [_summary(row) for row in self._read("of", (agent, conversation, limit))]

    def at(self, agent: int, exchange: int) -> Summary | None:
        return next((_summary(row) for row in self._read("at", (agent, exchange))), None)

    def tip(self, agent: int, name: str | None) -> tuple[int, int] | None:
        return next(((row[0], row[1]) for row in self._read("tip", (agent, name))), None)

    def project(self, agent: int) -> str | None:
        return next((str(row[0]) for row in self._read("project", (agent,))), None)

    async def path(self, agent: int, exchange: int, limit: int = 2000) -> list[Exchange]:
        rows = await self._long_reader.run(
            lambda connection: connection.execute(_Q["path"], (agent, exchange, limit)).fetchall()
        )
        return exchanges.with_content(reversed(rows))

    def adding(
        self, agent: int, exchange: Exchange, text: str, *, tokens: int, at: float, model: str
    ) -> Effect:
        values = (agent, exchange.id, at, tokens, model, text)

        def add(connection: sqlite3.Connection) -> None:
            connection.execute(_Q["insert"], values)

        return add

    def _read(self, name: str, values: Sequence[object]) -> list[Any]:
        return self._reader.run(lambda connection: connection.execute(_Q[name], values).fetchall())


def _summary(row: Sequence[Any]) -> Summary:
    (exchange,) = exchanges.exchanges([row[5:]])
    return Summary(row[0], exchange, row[1], row[2], row[3], row[4])
