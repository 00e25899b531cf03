"""Indexing after turns: a memory's search index is updated when the memory has not grown for a while.

No turn waits for it, since a query also reads the messages that are not indexed yet. Memories are indexed one at a
time, with pauses between them; a memory with a long backlog is indexed without a pause.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from gateway.run.background.tasks import PeriodicTask
from gateway.run.memory.turn_writer import INDEX_EVERY
from storage.errors import StoreUnavailable
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# A memory with this many messages to index is indexed at once. Queries read at most 64 exchanges that are not indexed
# (`_MAX_UNINDEXED_ROWS` in storage/sql/memory_cache.py), and most exchanges have two messages.
LONG_BACKLOG = 64
# A memory is indexed when it has not grown for this long.
_QUIET_S = 2.0
# The pause after a memory, as a multiple of the time that it took: a tenth of the processor's time at most goes to
# indexing, since the turns of a busy gateway need it.
_PAUSE_RATIO = 9
# The most memories that one recovery schedules. The next one finds the others. Not measured: it bounds the memory that
# the list takes.
_MAX_RECOVERED_MEMORIES = 10_000


class IndexingService:
    """Updates the search indexes, in one task for the process."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        """Makes the service; `task` indexes. clock: returns the seconds of a clock that never goes back."""
        self._store = store
        self._clock = clock
        # The rows of the memories with a long backlog, in the order in which they are indexed: a dict, since a set has
        # no order.
        self._urgent_rows: dict[int, None] = {}
        # The rows of the other memories that are to be indexed, each with the time at which it grew last, oldest first.
        self._grown_at: dict[int, float] = {}
        # The rows of the memories that have grown since their backlog was looked up.
        self._unchecked_rows: set[int] = set()
        # The task that indexes.
        self.task = PeriodicTask("indexing", self.perform_due)

    def add(self, agent_row: int, backlog: int | None) -> None:
        """Notes a memory that is to be indexed. backlog: the messages that its index lacks; None: many."""
        self._grown_at.pop(agent_row, None)
        if backlog is None or backlog >= LONG_BACKLOG:
            self._urgent_rows[agent_row] = None
        elif agent_row not in self._urgent_rows:
            self._grown_at[agent_row] = self._clock()
        if self._urgent_rows or self.task.sleeps_until_woken:
            self.task.wake()

    def add_unchecked(self, agent_row: int) -> None:
        """Notes a memory that has grown: it is to be indexed if its index lacks `INDEX_EVERY` messages or more."""
        self._unchecked_rows.add(agent_row)
        if self.task.sleeps_until_woken:
            self.task.wake()

    async def recover(self) -> None:
        """Schedules the memories that earlier processes left without an up-to-date index."""
        for agent_row in await self._store.search_index.find_lagging_agents(
            INDEX_EVERY, _MAX_RECOVERED_MEMORIES
        ):
            self.add(agent_row, INDEX_EVERY)

    async def perform_due(self) -> float | None:
        """Indexes one memory that is due, if there is one. Returns the seconds until the next step.

        Returns None if no memory has grown.
        """
        await self._look_up_backlogs()
        started_at = self._clock()
        if not self._urgent_rows:
            if not self._grown_at:
                return None
            due_at = next(iter(self._grown_at.values())) + _QUIET_S
            if due_at > started_at:
                return due_at - started_at
        agent_row = next(iter(self._urgent_rows or self._grown_at))
        self._urgent_rows.pop(agent_row, None)
        self._grown_at.pop(agent_row, None)
        try:
            while await self._store.search_index.advance(agent_row):
                pass
        except StoreUnavailable:
            # The memory is indexed when the store works again.
            self._urgent_rows[agent_row] = None
            raise
        except Exception:
            _log.exception(
                "The search index of memory %d could not be updated, by a fault in the gateway.", agent_row
            )
        return 0.0 if self._urgent_rows else (self._clock() - started_at) * _PAUSE_RATIO

    async def _look_up_backlogs(self) -> None:
        """Schedules the unchecked memories with an index that lacks enough messages."""
        while self._unchecked_rows:
            agent_row = self._unchecked_rows.pop()
            try:
                backlog = await self._store.search_index.count_backlog(agent_row)
            except StoreUnavailable:
                self._unchecked_rows.add(agent_row)
                raise
            if backlog >= INDEX_EVERY:
                self.add(agent_row, backlog)
