"""Tokens that background calls used, by project and day."""

from __future__ import annotations

import asyncio

from storage.database import Connection
from storage.sql.group import Group, reads
from storage.sql.statements import load

SQL = load("jobs.sql")


class Spending(Group):
    """Tokens that background calls used. day: days since the epoch, UTC."""

    @reads
    async def spent(self, connection: Connection, project: str, day: int) -> int:
        """Returns the tokens that a project used on a day."""
        return int(await connection.value(SQL["spent"], (project, day)) or 0)

    async def spend(self, project: str, day: int, tokens: int) -> None:
        """Counts one call more, and its tokens."""
        # Shielded: tokens count even if the caller goes away.
        await asyncio.shield(self._database.bulk(lambda c: c.run(SQL["spend"], (project, day, tokens))))
