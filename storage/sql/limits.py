"""The limits that operators set. Every process is notified of a change."""

from __future__ import annotations

from collections.abc import Callable

from storage.database import LIMITS, Connection, Database
from storage.errors import NotFound
from storage.sql.group import StoreGroup, reads
from storage.sql.statements import load
from storage.usage_records import UsageLimit

SQL = load("usage.sql")


class UsageLimits(StoreGroup):
    """Reads and changes limits."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        # The functions that are called when limits may have changed.
        self._listeners: list[Callable[[], None]] = []
        database.add_listener(LIMITS, lambda _: self._call_listeners())

    @reads
    async def list(self, connection: Connection) -> tuple[UsageLimit, ...]:
        """Returns all limits, the oldest first."""
        return tuple(UsageLimit(*row) for row in await connection.fetch_rows(SQL["limits"]))

    async def add(self, limit: UsageLimit) -> UsageLimit:
        """Adds a limit. Returns it with its row. The id of `limit` is ignored."""
        values = (limit.project, limit.key_id, limit.user, limit.unit, limit.per, limit.most, limit.then)
        adding = self._database.write_one(SQL["limit_add"], values)
        ((limit_id,),) = await self._await_write(adding, self._report_change)
        return UsageLimit(limit_id, *values)

    async def change(self, limit_id: int, most: float | None, then: str | None) -> None:
        """Changes a limit.

        most: the new amount; None: the amount stays.
        then: the new consequence; None: the consequence stays.

        Raises: NotFound.
        """
        changing = self._database.write(
            lambda connection: connection.run(SQL["limit_change"], (limit_id, most, then))
        )
        if not await self._await_write(changing, self._report_change):
            raise NotFound(f"there is no limit {limit_id}")

    async def remove(self, limit_id: int) -> None:
        """Removes a limit. Raises: NotFound."""
        removing = self._database.write(lambda connection: connection.run(SQL["limit_remove"], (limit_id,)))
        if not await self._await_write(removing, self._report_change):
            raise NotFound(f"there is no limit {limit_id}")

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Has a function called when limits may have changed, by this process or another."""
        self._listeners.append(listener)

    def _report_change(self) -> None:
        """Calls the listeners of this process, and notifies the other processes."""
        self._call_listeners()
        self._database.notify(LIMITS)

    def _call_listeners(self) -> None:
        for listener in self._listeners:
            listener()
