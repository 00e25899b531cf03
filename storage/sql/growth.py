"""Reports that a memory has grown, or that its search index must be made again, to the listeners of the store.

The groups of the store report the writes that add passages and facts. `TurnEvents` in gateway.run.memory.keeper reports
turns, and the job that learns reports the learned facts. An import of conversations reports nothing: it indexes the
texts that it writes.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import TypeVar

from storage.database import Database
from storage.sql.group import StoreGroup

T = TypeVar("T")
# Gets the memory's row, and the number of messages, passages and facts that were added.
GrowthListener = Callable[[int, int], None]


class Growth:
    """The listeners of one store, which are called in the event loop after the commit."""

    def __init__(self) -> None:
        self._listeners: list[GrowthListener] = []

    def add_listener(self, listener: GrowthListener) -> None:
        """Registers a function that is called with each report."""
        self._listeners.append(listener)

    def report(self, agent_row: int, added_count: int) -> None:
        """Calls all listeners.

        added_count: the number of new messages, passages and facts; 0: the search index must be made again.
        """
        for listener in self._listeners:
            listener(agent_row, added_count)


class GrowingGroup(StoreGroup):
    """A group with writes by which memories grow."""

    def __init__(self, database: Database, growth: Growth) -> None:
        super().__init__(database)
        self._growth = growth

    async def _grow(self, agent_row: int, added_count: int, write: Future[T]) -> T:
        """Returns the result of a write by which a memory grows, and reports the write, even if it has failed.

        added_count: the number of messages, passages and facts that the write adds.
        """
        return await self._await_write(write, lambda: self._growth.report(agent_row, added_count))
