"""Indexing after turns: the search index follows when a memory rests, so that no turn waits for it.

Queries read what the index does not know yet. So a memory that has grown is indexed a little later, with what its next
turns bring, one memory at a time and with pauses; only one that lags far is indexed at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from gateway.run.background.loop import PeriodicTask
from gateway.run.memory.keeper import INDEX_EVERY
from storage.errors import Unavailable
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# A memory that lags so many messages is indexed at once: queries read at most 64 exchanges that are not indexed.
FAR = 64
# A memory rests when it has not grown for so long.
_REST_S = 2.0
# After a memory the indexing rests so many times as long as that took: turns on a busy gateway have the processor.
_PAUSES = 9


class Indexing:
    """Brings the search indexes up. One task does it for the process. clock: seconds that never go back."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._far: dict[int, None] = {}
        self._grown: dict[int, float] = {}  # when it grew last, oldest first
        self._task = PeriodicTask("indexing", self.step, self.look)

    def lags(self, agent: int, messages: int | None) -> None:
        """Takes note of a memory with an index that lacks so many messages; None: many."""
        self._grown.pop(agent, None)
        if messages is None or messages >= FAR:
            self._far[agent] = None
        elif agent not in self._far:
            self._grown[agent] = self._clock()
        if self._far or self._task.is_open_ended:
            self._task.wake()

    async def run(self) -> None:
        """Indexes what lags, until it is cancelled."""
        await self._task.run()

    async def look(self) -> None:
        """Finds what lags in the database, as processes have left it that ended."""
        for agent in await self._store.recall.outdated(INDEX_EVERY, 10_000):
            self.lags(agent, INDEX_EVERY)

    async def step(self) -> float | None:
        """Indexes the memory that is due, if one is. Returns the seconds until another is; None: none has grown."""
        begun = self._clock()
        if not self._far:
            if not self._grown:
                return None
            rests_at = next(iter(self._grown.values())) + _REST_S
            if rests_at > begun:
                return rests_at - begun
        agent = next(iter(self._far or self._grown))
        self._far.pop(agent, None)
        self._grown.pop(agent, None)
        try:
            while await self._store.recall.index(agent):
                pass
        except Unavailable:
            # The memory is indexed when the store works again.
            self._far[agent] = None
            raise
        except Exception:
            _log.exception(
                "The search index of memory %d could not be updated, by a fault in the gateway.", agent
            )
        return 0.0 if self._far else (self._clock() - begun) * _PAUSES
