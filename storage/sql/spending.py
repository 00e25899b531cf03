"""What background calls have cost, by project and day."""

from __future__ import annotations

import asyncio

from storage.sql.statements import load_queries
from storage.sqlite.reader import Reader
from storage.sqlite.writer import Writer

__all__ = ["Spending"]

_Q = load_queries("jobs.sql")


class Spending:
    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def spent(self, project: str, day: int) -> int:
        """Tokens. day: days since the epoch, UTC."""
        row = self._reader.run(lambda c: c.execute(_Q["spent"], (project, day)).fetchone())
        return 0 if row is None else int(row[0])

    async def spend(self, project: str, day: int, tokens: int) -> None:
        """Counted even if the caller goes away."""
        await asyncio.shield(
            self._writer.submit_bulk(lambda c: c.execute(_Q["spend"], (project, day, tokens)) and None)
        )
