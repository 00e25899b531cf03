"""Summaries. What is forgotten takes them along by triggers (storage/sqlite/migrations/0003_summaries.sql)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.database import Connection, Database, Effect, Row
from storage.records import Exchange, Summary
from storage.sql import exchanges
from storage.sql.statements import load

SQL = load("summaries.sql")


class Summaries:
    """Summaries of what was said on a path up to an exchange."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, agent: int, conversation: int, limit: int = 16) -> list[Summary]:
        """Returns those of a conversation on any branch, the ones that cover most first."""
        return [_summary(row) for row in await self._read("of", (agent, conversation, limit))]

    async def at(self, agent: int, exchange: int) -> Summary | None:
        """Returns the one that covers the path up to this exchange."""
        rows = await self._read("at", (agent, exchange))
        return _summary(rows[0]) if rows else None

    async def tip(self, agent: int, name: str | None) -> tuple[int, int] | None:
        """Returns (last standing exchange, conversation). name: its public one or the client's; None: the newest."""
        rows = await self._read("tip", (agent, name))
        return (rows[0][0], rows[0][1]) if rows else None

    async def project(self, agent: int) -> str | None:
        """Returns the project of a memory."""
        rows = await self._read("project", (agent,))
        return str(rows[0][0]) if rows else None

    async def path(self, agent: int, exchange: int, limit: int = 2000) -> list[Exchange]:
        """Returns the path to an exchange with content, oldest first, from the last that has a summary or its root."""
        rows = await self._database.long_read(
            lambda connection: connection.rows(SQL["path"], (agent, exchange, limit))
        )
        return exchanges.with_content(reversed(rows))

    def adding(
        self, agent: int, exchange: Exchange, text: str, *, tokens: int, at: float, model: str
    ) -> Effect:
        """Returns the effect that adds a summary, for the job that made it. One that is there already stays."""
        values = (agent, exchange.id, at, tokens, model, text)

        async def add(connection: Connection) -> None:
            await connection.run(SQL["insert"], values)

        return add

    async def _read(self, name: str, values: Sequence[object]) -> list[Any]:
        return await self._database.read(lambda connection: connection.rows(SQL[name], values))


def _summary(row: Row) -> Summary:
    (exchange,) = exchanges.exchanges([row[5:]])
    return Summary(row[0], exchange, row[1], row[2], row[3], row[4])
