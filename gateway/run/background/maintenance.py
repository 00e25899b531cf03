"""Maintenance after turns, for which nobody waits: the search index follows, and idle time confirms memory edits.

One task does it for the process. It sleeps until a conversation's idle time is over or a memory has grown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from gateway.core.conversation import settle
from gateway.core.conversation.tree import Tree
from gateway.run.background.loop import AFTER_FAULT_S, PeriodicTask
from gateway.run.memory.keeper import INDEX_EVERY
from storage.commands import Change, Pool
from storage.errors import StoreError, Unavailable
from storage.sql.store import Store

T = TypeVar("T")
_log = logging.getLogger("mnemogate")

# Where several processes share the work, that of others is looked for so often.
_LOOK_S = 600.0
# One step settles so many conversations.
_BATCH = 64
# The least pause between two steps, so that conversations that fall due one after the other are settled together.
_LEAST_S = 1.0


class Maintenance:
    """Indexes what grew and settles what stood for the idle time. now: seconds since the epoch, as turns are dated."""

    def __init__(self, store: Store, idle_s: float, now: Callable[[], float]) -> None:
        self._store = store
        self._idle_s = idle_s
        self._now = now
        self._grown: set[int] = set()
        self._failed = 0
        self._task = PeriodicTask("maintenance", self._start, self.step)

    def index_lags(self, agent: int) -> None:
        """Takes note of a memory that has more messages than its search index."""
        self._grown.add(agent)
        self._task.wake()

    def edits_wait(self) -> None:
        """Takes note of a turn with memory edits: they are confirmed when they have stood for the idle time."""
        if self._task.is_open_ended:
            self._task.wake()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        await self._task.run()

    async def look_again(self) -> None:
        """Finds from time to time what processes that died have left, until it is cancelled."""
        while self._store.database.is_shared:
            await asyncio.sleep(_LOOK_S)
            with suppress(StoreError):
                await self._start()
                await self._store.lines.drop()
            self._task.wake()

    async def _start(self) -> None:
        self._grown.update(await self._store.recall.behind(INDEX_EVERY, 10_000))

    async def step(self) -> float | None:
        """Does all that is due now. Returns the seconds until more will be; None: not before something happens."""
        while self._grown:
            agent = self._grown.pop()
            try:
                is_more = await self._alone(partial(self._store.recall.index, agent), "indexing a memory")
            except Unavailable:
                # The memory is indexed when the store works again.
                self._grown.add(agent)
                raise
            if is_more:
                self._grown.add(agent)
        now = self._now()
        due = await self._store.turns.due(now - self._idle_s, now + self._idle_s, _BATCH)
        failed = self._failed
        for conversation, agent, is_named, last_at in due:
            decide = partial(_confirm, now=now, idle_s=self._idle_s, named=is_named)
            work = partial(self._store.turns.settle, conversation, agent, last_at, now, decide)
            await self._alone(work, "settling a conversation")
        if self._failed > failed:
            return AFTER_FAULT_S
        if len(due) == _BATCH:
            return _LEAST_S
        at = await self._store.turns.next_due()
        return None if at is None else max(_LEAST_S, at + self._idle_s - self._now() + 0.01)

    async def _alone(self, work: Callable[[], Awaitable[T]], what: str) -> T | None:
        """Does one piece of work. Its error is logged, so that the others go on, unless the store is down."""
        try:
            return await work()
        except Unavailable:
            raise
        except Exception:
            self._failed += 1
            _log.exception("maintenance: %s failed", what)
            return None


def _confirm(pool: Pool, *, now: float, idle_s: float, named: bool) -> Change:
    """Confirms the memory edits of turns that stood unchallenged for the idle time: they enter the blocks."""
    tree = Tree(pool.exchanges, pool.contents)
    merging = settle.mergeable(tree, now, idle_s, named=named)
    for x, why in merging:
        tree.change(x.id, merged=why)
    return Change(None, [tree.by_id[i] for i in tree.changed], merge=[x.id for x, _ in merging])
