"""Lines: queues in which the processes that share a database stand, each held by one of them at a time under a lease.

    if await locks.take("a", 15.0): ...      # held here for so long, unless it is prolonged
    left = await locks.want("a")             # held elsewhere: its holder passes it on
    await locks.give("a")

A process that releases a lock notifies the others of its name. Locks of a dead process stay until their leases end.
What must be right does not rest on a lease: writes check the revision that they were planned on.
"""

from __future__ import annotations

import uuid
from asyncio import Future
from collections.abc import Callable, Collection

from storage.database import LINES, Connection, Database
from storage.sql.group import Group
from storage.sql.statements import load, rows_of

SQL = load("conversation_locks.sql")


class ConversationLocks(Group):
    """The locks as one process sees them. now: seconds since the epoch; None: by the database's own clock."""

    def __init__(self, database: Database, now: Callable[[], float | None]) -> None:
        super().__init__(database)
        self._now = now
        self._me = uuid.uuid4().hex

    @property
    def is_needed(self) -> bool:
        """There are other processes, so that a queue in memory is not enough."""
        return self._database.is_shared

    def heard(self, function: Callable[[str | None], None]) -> None:
        """Has a function called with the names of locks that others have given back; None: it may be any."""
        self._database.hear(LINES, function)

    def recovered(self, function: Callable[[], None]) -> None:
        """Has a function called when the database works again."""
        self._database.when_recovered(function)

    async def take(self, name: str, seconds: float) -> bool:
        """Takes a lock, or prolongs the lease of one that is held here. False: another process has it."""
        values = (name, self._me, self._now(), seconds)
        return bool(await self._database.write_one(SQL["take"], values))

    async def want(self, name: str) -> float | None:
        """Asks to be handed a lock. Returns the seconds after which its lease runs out; None: it is free by now."""
        found = await self._database.write_one(SQL["want"], (name, self._me, self._now()))
        return max(0.0, found[0][0]) if found else None

    def prolong(self, names: Collection[str], seconds: float) -> Future[None]:
        """Prolongs the leases of locks that are still held here."""

        async def write(connection: Connection) -> None:
            await rows_of(connection, SQL["prolong"], [*names], self._me, self._now(), seconds)

        return self._database.write(write)

    def give(self, name: str, seconds: float) -> Future[None]:
        """Gives a lock back: to who wants it, for so long. Whoever only wanted it wants it no more."""

        async def write(connection: Connection) -> None:
            if await connection.row(SQL["give"], (name, self._me)) is not None:
                return
            values = (name, self._me, self._now(), seconds)
            if await connection.row(SQL["hand_over"], values) is None:
                await connection.run(SQL["withdraw"], (name, self._me))

        giving = self._database.write(write)
        giving.add_done_callback(lambda _: self._database.notify(LINES, name))
        return giving

    async def held(self, names: Collection[str]) -> set[str]:
        """Returns those of some locks that are held."""

        async def read(connection: Connection) -> set[str]:
            return {row[0] for row in await rows_of(connection, SQL["held"], [*names], self._now())}

        return await self._database.read(read)

    async def drop(self) -> None:
        """Deletes the locks that those who died have left."""
        await self._database.bulk(lambda connection: connection.run(SQL["drop"], (self._now(),)))
