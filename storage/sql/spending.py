"""Tokens that background calls used, by project and day."""

from __future__ import annotations

import asyncio

from storage.database import Database
from storage.sql.statements import load

SQL = load("jobs.sql")


class Spending:
    """Tokens that background calls used. day: days since the epoch, UTC."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spent(self, project: str, day: int) -> int:
        tokens = await self._database.read(lambda c: c.value(SQL["spent"], (project, day)))
        return int(tokens or 0)

    async def spend(self, project: str, day: int, tokens: int) -> None:
        # Shielded: tokens count even if the caller goes away.
        await asyncio.shield(self._database.bulk(lambda c: c.run(SQL["spend"], (project, day, tokens))))
