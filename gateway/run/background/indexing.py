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
from storage.errors import Unavailable
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
        """Indexes nothing yet: `task` does. clock: returns seconds that never go back."""
        self._store = store
        self._clock = clock
        # Memories with a long backlog, in the order in which they are indexed: a dict, since a set has no order.
        self._urgent: dict[int, None] = {}
        # The other memories that are to be indexed -> when each grew last, the oldest first.
        self._grown: dict[int, float] = {}
        # The agents with a memory that has grown since their backlog was looked up.
        self._unchecked: set[int] = set()
        self.task = PeriodicTask("indexing", self.step)

    def add(self, agent_row: int, backlog: int | None) -> None:
        """Notes a memory that is to be indexed. backlog: the messages that its index lacks; None: many."""
        self._grown.pop(agent_row, None)
        if backlog is None or backlog >= LONG_BACKLOG:
            self._urgent[agent_row] = None
        elif agent_row not in self._urgent:
            self._grown[agent_row] = self._clock()
        if self._urgent or self.task.sleeps_until_woken:
            self.task.wake()

    def add_unchecked(self, agent_row: int) -> None:
        """Notes a memory that has grown: it is to be indexed if its index lacks `INDEX_EVERY` messages or more."""
        self._unchecked.add(agent_row)
        if self.task.sleeps_until_woken:
            self.task.wake()

    async def recover(self) -> None:
        """Schedules the memories that earlier processes left without an up-to-date index."""
        for agent_row in await self._store.search_index.find_lagging_agents(
            INDEX_EVERY, _MAX_RECOVERED_MEMORIES
        ):
            self.add(agent_row, INDEX_EVERY)

    async def step(self) -> float | None:
        """Indexes one memory that is due, if there is one. Returns the seconds until the next step.

        Returns None if no memory has grown.
        """
        await self._look_up_backlogs()
        started_at = self._clock()
        if not self._urgent:
            if not self._grown:
                return None
            due_at = next(iter(self._grown.values())) + _QUIET_S
            if due_at > started_at:
                return due_at - started_at
        agent_row = next(iter(self._urgent or self._grown))
        self._urgent.pop(agent_row, None)
        self._grown.pop(agent_row, None)
        try:
            while await self._store.search_index.advance(agent_row):
                pass
        except Unavailable:
            # The memory is indexed when the store works again.
            self._urgent[agent_row] = None
            raise
        except Exception:
            _log.exception(
                "The search index of memory %d could not be updated, by a fault in the gateway.", agent_row
            )
        return 0.0 if self._urgent else (self._clock() - started_at) * _PAUSE_RATIO

    async def _look_up_backlogs(self) -> None:
        """Schedules those of the unchecked memories whose index lacks enough messages."""
        while self._unchecked:
            agent_row = self._unchecked.pop()
            try:
                backlog = await self._store.search_index.count_backlog(agent_row)
            except Unavailable:
                self._unchecked.add(agent_row)
                raise
            if backlog >= INDEX_EVERY:
                self.add(agent_row, backlog)
