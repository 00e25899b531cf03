"""What follows turns without anybody waiting for it: the search index, and what idle time confirms.

One task for the process. It sleeps until a conversation's idle time is over or a memory has grown; it never polls.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from gateway.core.conversation import settle
from gateway.core.conversation.tree import Tree
from gateway.core.memory import edits
from gateway.core.memory.visibility import messages_of
from gateway.run.background.loop import AFTER_FAULT_S, PeriodicTask
from gateway.run.memory.turn_memory import INDEX_EVERY
from storage.base import Store
from storage.commands import Change, Pool
from storage.errors import Unavailable

__all__ = ["Maintenance"]

T = TypeVar("T")
_log = logging.getLogger("mnemogate")

_BATCH = 64  # conversations settled before it looks again
_LEAST_S = 1.0  # between two rounds: many conversations that fall due one after the other are taken together


class Maintenance:
    """now: seconds since the epoch, as conversations are dated."""

    def __init__(self, store: Store, idle_s: float, now: Callable[[], float]) -> None:
        self._store = store
        self._idle_s = idle_s
        self._now = now
        self._grown: set[int] = set()
        self._failed = 0
        self._rounds = PeriodicTask("upkeep", self._start, self.step)

    def grown(self, agent: int) -> None:
        """A memory has more messages than its index knows."""
        self._grown.add(agent)
        self._rounds.wake()

    def moved(self) -> None:
        """A conversation moved with memory edits: some time from now they will have stood long enough."""
        if self._rounds.is_open_ended:
            self._rounds.wake()

    async def run(self) -> None:
        """Until cancelled."""
        await self._rounds.run()

    async def _start(self) -> None:
        self._grown.update(await self._store.recall.behind(INDEX_EVERY, 10_000))

    async def step(self) -> float | None:
        """All that is due now. Returns the seconds until there will be more; None: not before something happens."""
        while self._grown:
            agent = self._grown.pop()
            try:
                is_more = await self._alone(
                    partial(self._store.recall.index, agent, messages_of), "indexing a memory"
                )
            except Unavailable:
                self._grown.add(agent)
                raise
            if is_more:
                self._grown.add(agent)
        now = self._now()
        due = await self._store.turns.due(now - self._idle_s, now + self._idle_s, _BATCH)
        failed = self._failed
        for conversation, agent, is_named, last_at in due:
            decide = partial(_confirm, now=now, idle_s=self._idle_s, named=is_named)
            work = partial(self._store.turns.settle, conversation, agent, last_at, now, decide, edits.merge)
            await self._alone(work, "settling a conversation")
        if self._failed > failed:
            return AFTER_FAULT_S
        if len(due) == _BATCH:
            return _LEAST_S
        at = await self._store.turns.next_due()
        return None if at is None else max(_LEAST_S, at + self._idle_s - self._now() + 0.01)

    async def _alone(self, work: Callable[[], Awaitable[T]], what: str) -> T | None:
        """What is wrong with one conversation must not keep the others waiting; a store that is down does."""
        try:
            return await work()
        except Unavailable:
            raise
        except Exception:
            self._failed += 1
            _log.exception("upkeep: %s failed", what)
            return None


def _confirm(pool: Pool, *, now: float, idle_s: float, named: bool) -> Change:
    """Memory edits of turns that stood unchallenged for the idle time enter the blocks."""
    tree = Tree(pool.exchanges, pool.contents)
    merging = settle.mergeable(tree, now, idle_s, named=named)
    for x, why in merging:
        tree.change(x.id, merged=why)
    return Change(None, [tree.by_id[i] for i in tree.changed], merge=[x.id for x, _ in merging])
