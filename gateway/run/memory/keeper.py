"""The keeper of memory, one for the process: it reads what a turn needs, and writes what became of the turn.

A turn has three values of it: `Known` (what was read), `Prompt` (what goes in) and `TurnRecord` (what is written).
Whoever runs the turn owns them; the keeper has nothing of a turn but the queues of append mode.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from gateway.core.prompt.summary import Overfull
from gateway.core.turn.commands import TurnOutcome
from gateway.run.memory.composer import Composer
from gateway.run.memory.known import Known, MemoryRequest, read
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.recall import EmbedQuery, Recaller
from gateway.run.memory.record import BlockEdits, TurnRecord, record_open, record_turn
from gateway.settings import MemorySettings
from storage.commands import Committed
from storage.errors import TooSlow
from storage.sql.store import Store

# A memory is indexed when it has so many new messages,
INDEX_EVERY = 16
# or when a turn has so many characters: every query reads them until they are indexed.
INDEX_CHARS = 32_000
# Chosen: append mode needs the disk, and counts one that is slower than this as down.
OPEN_WAIT_S = 5.0


class TurnEvents(Protocol):
    """The events that the keeper reports to whoever works in the background. Every method returns at once.

    makes_summaries: whether somebody answers to `window_fills`.
    """

    @property
    def makes_summaries(self) -> bool: ...

    def index_lags(self, agent: int) -> None:
        """The search index of a memory should follow what was said."""

    def edits_wait(self) -> None:
        """A turn with memory edits was written: they enter the blocks when it is confirmed, or by idle time."""

    def turn_kept(self, agent: int, messages: int) -> None:
        """The memory of a person has so many messages more."""

    def window_fills(self, turn: Committed, overfull: Overfull) -> None:
        """A conversation wants a summary."""


class NoEvents:
    """Nobody works in the background."""

    makes_summaries = False

    def index_lags(self, agent: int) -> None: ...
    def edits_wait(self) -> None: ...
    def turn_kept(self, agent: int, messages: int) -> None: ...
    def window_fills(self, turn: Committed, overfull: Overfull) -> None: ...


class MemoryKeeper:
    """now: seconds since the epoch. embed_query: None: memory is searched by words alone."""

    def __init__(
        self,
        store: Store,
        settings: MemorySettings,
        now: Callable[[], float] = time.time,
        events: TurnEvents | None = None,
        embed_query: EmbedQuery | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.now = now
        self.embed_query = embed_query
        self.open_wait_s = OPEN_WAIT_S
        self._events = events or NoEvents()
        recaller = Recaller(store, settings, embed_query)
        self.composer = Composer(store, recaller, settings.cache_s, self._events.makes_summaries)
        self._queues: dict[tuple[str, str], asyncio.Lock] = {}

    # -- when it begins

    async def begin(self, asked: MemoryRequest) -> Known:
        """Returns what there is to know. Sends of one conversation in append mode queue: each goes on from the one
        before, until that calls `Known.leave`.

        Raises: StoreError when memory cannot be had.
        """
        if not asked.identity.append:
            return await read(self.store, asked, self.settings.idle_s)
        leave = await self._queue(asked)
        try:
            # What was waited for has been written since the request came.
            found = await read(self.store, replace(asked, now=self.now()), self.settings.idle_s)
        except BaseException:
            leave()
            raise
        return replace(found, leave=leave)

    async def _queue(self, asked: MemoryRequest) -> Callable[[], None]:
        """Waits for the sends before this one. Returns what lets the next one begin."""
        scope, key = asked.identity.scope, asked.identity.conversation
        assert scope is not None
        assert key is not None
        agent = await self.store.agents.find(scope) or self.store.agents.draft(scope)
        name = (agent.uid, key)
        lock = self._queues.setdefault(name, asyncio.Lock())
        await lock.acquire()
        has_left = False

        def leave() -> None:
            nonlocal has_left
            if has_left:
                return
            has_left = True
            lock.release()
            # The last one out takes the queue with it, so that the table does not grow with every conversation.
            if not lock.locked() and not getattr(lock, "_waiters", None):
                self._queues.pop(name, None)

        return leave

    async def open(self, known: Known, prompt: Prompt) -> Known:
        """Writes the user's message before the model is asked, in append mode. Raises: StoreError."""
        record = record_open(known, prompt, self.now())
        try:
            async with asyncio.timeout(self.open_wait_s):
                committed = await asyncio.shield(self.store.turns.commit(record.write))
        except TimeoutError:
            raise TooSlow("the disk did not take the message in time") from None
        self.store.turns.remember(committed)
        plan = replace(known.plan, conversation=committed.conversation)
        return replace(known, row=committed.exchange, agent=committed.agent, plan=plan)

    # -- when it ends

    async def write(
        self, known: Known, prompt: Prompt, changes: BlockEdits, outcome: TurnOutcome
    ) -> Committed | None:
        """Writes what became of a turn; None: nothing of it is worth writing. Raises: StoreError.

        The next send of its conversation waits for this and no longer for the request, which may well be over before.
        """
        try:
            record = record_turn(known, prompt, changes, outcome, self.now())
            if record is None:
                return None
            committed = await asyncio.shield(self.store.turns.commit(record.write))
        finally:
            known.leave()
        self.store.turns.remember(committed)
        self._tell(record, committed)
        return committed

    def _tell(self, record: TurnRecord, committed: Committed) -> None:
        known, events, agent = record.known, self._events, committed.agent
        # The counts are as they were read at the beginning, which is near enough for work that is only put off.
        waiting = known.look.next_seq - known.look.indexed_seq
        if waiting >= INDEX_EVERY or record.chars > INDEX_CHARS:
            events.index_lags(agent.id)
        if record.write.ops:
            events.edits_wait()
        if not known.plan.off and agent.scope.is_person:
            events.turn_kept(agent.id, len(known.plan.messages) + 1)
        if record.overfull is not None and self._events.makes_summaries:
            events.window_fills(committed, record.overfull)
