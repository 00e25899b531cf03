"""Locks on conversations, shared by the processes over one database. One process holds a lock, under a lease.

    if await locks.acquire("a", 15.0): ...  # held here for 15 s, unless it is renewed
    remaining_s = await locks.request_handover("a")  # held by another process, which hands it over when it releases it
    await locks.release("a", 15.0)

A process that releases a lock notifies the others of the lock's name. The lock of a process that died is taken over
when its lease has ended, but not right after an outage, during which no lease could be renewed
(`Database.is_settled`). Correctness does not depend on a lease: writes check the revision that they were planned on.
"""

from __future__ import annotations

import uuid
from asyncio import Future
from collections.abc import Callable, Collection

from storage.database import LOCKS, Connection, Database
from storage.errors import StoreTimeout
from storage.sql.group import StoreGroup
from storage.sql.statements import load, load_rows

SQL = load("conversation_locks.sql")


class ConversationLocks(StoreGroup):
    """The locks of conversations in one process."""

    def __init__(self, database: Database, now: Callable[[], float | None]) -> None:
        """Makes the locks.

        now: the function that returns the seconds since the epoch, or None if the database's clock counts.
        """
        super().__init__(database)
        self._now = now
        self._holder = uuid.uuid4().hex  # the name of this process

    @property
    def is_needed(self) -> bool:
        """True if other processes use the database, so that a queue in memory is not enough."""
        return self._database.is_shared

    def add_release_listener(self, callback: Callable[[str | None], None]) -> None:
        """Registers a function that is called with the name of each released lock, or with None if any may be free."""
        self._database.add_listener(LOCKS, callback)

    def add_recovery_listener(self, callback: Callable[[], None]) -> None:
        """Registers a function that is called each time that the database works again."""
        self._database.add_recovery_listener(callback)

    async def acquire(self, name: str, lease_s: float) -> bool:
        """Acquires a lock, or renews the lease of a lock that is held here. Returns False if another process holds it.

        lease_s: the seconds until the lease ends.
        """
        values = (name, self._holder, self._now(), lease_s)
        return bool(await self._database.write_one(SQL["acquire"], values)) or await self._take_over(*values)

    async def _take_over(self, name: str, holder: str, now: float | None, lease_s: float) -> bool:
        """Acquires a lock of another process if its lease has ended.

        The lock is read first, with a short deadline. A write that the server performs late, after a pause of its own,
        would find that leases have ended which could not be renewed during the pause.
        """
        try:
            lease_end = await self._database.read(
                lambda connection: connection.fetch_value(SQL["find_ended_lease"], (name, now))
            )
        except StoreTimeout:
            return False  # the request that waits for the lock asks again
        if lease_end is None or not self._database.is_settled:
            return False
        return bool(await self._database.write_one(SQL["take_over"], (name, holder, now, lease_s, lease_end)))

    async def request_handover(self, name: str) -> float | None:
        """Asks the holder of a lock to hand it over to this process, unless another process has asked for it before.

        Returns the seconds until its lease ends; None if no process holds it any more.
        """
        rows = await self._database.write_one(SQL["request_handover"], (name, self._holder, self._now()))
        return max(0.0, rows[0][0]) if rows else None

    def renew(self, names: Collection[str], lease_s: float) -> Future[set[str]]:
        """Renews the leases of those locks that are still held here. Returns their names."""

        async def write(connection: Connection) -> set[str]:
            values = (self._holder, self._now(), lease_s)
            return {row[0] for row in await load_rows(connection, SQL["renew"], [*names], *values)}

        return self._database.write(write)

    def release(self, name: str, lease_s: float) -> Future[None]:
        """Releases a lock, or withdraws the request for it if this process does not hold it.

        lease_s: the lease of the process that gets the lock, if one has requested it.
        """

        async def write(connection: Connection) -> None:
            if await connection.fetch_row(SQL["release"], (name, self._holder)) is not None:
                return
            values = (name, self._holder, self._now(), lease_s)
            if await connection.fetch_row(SQL["hand_over"], values) is None:
                await connection.run(SQL["withdraw"], (name, self._holder))

        releasing = self._database.write(write)
        releasing.add_done_callback(lambda _: self._database.notify(LOCKS, name))
        return releasing

    async def load_held(self, names: Collection[str]) -> set[str]:
        """Returns the locks among these that a process holds and others may not take over."""

        async def read(connection: Connection) -> set[str]:
            rows = await load_rows(connection, SQL["load_held"], [*names], self._now())
            return {name for name, is_leased in rows if is_leased or not self._database.is_settled}

        return await self._database.read(read)

    async def delete_expired(self) -> None:
        """Deletes the locks with leases that ended more than an hour ago: the processes that held them have died."""
        await self._database.bulk_write(
            lambda connection: connection.run(SQL["delete_expired"], (self._now(),))
        )
