"""The searches of a memory for the note of one request: without the messages that its prompt shows, and in time."""

from __future__ import annotations

import time
from collections.abc import Collection

from msgspec import Struct

from gateway.core.prompt.note_text import has_selection
from gateway.run.memory.find_messages import choose_hit_limit, choose_selection_limit
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.query_vectors import QueryVectors
from gateway.run.memory.visible import VisibleContent
from storage.records import Message
from storage.search_trace import SearchTrace
from storage.sql.store import Store

# The most hits that are read if a part of a client's list has left the window. Many hits are visible in the window, and
# are left out only when they are read.
_MAX_HITS = 40
# Short messages are read for this many times the budget, since some of them repeat others.
SPARE_BUDGETS = 2
# The search by words has a third of the time for recall to itself.
WORDS_TIME_DIVISOR = 3


class RecallTime(Struct, frozen=True):
    """The time that recall may take for one request."""

    # The most milliseconds.
    limit_ms: float
    # The time at which the recall started, by `time.perf_counter`.
    started_at: float

    def measure_remaining_ms(self) -> float:
        """Returns the milliseconds that are left, at least 1, so that a search ends as too slow."""
        return max(1.0, self.limit_ms - (time.perf_counter() - self.started_at) * 1000)


class RequestSearch(Struct, frozen=True):
    """Searches a memory for one request. Implements `MemorySearch`, which documents the methods."""

    # The store of the memories.
    store: Store
    # The memory of the request.
    context: MemoryContext
    # The prompt without the note.
    prompt: Prompt
    # The content that the prompt shows already.
    visible: VisibleContent
    # The vectors of queries, each made once.
    vectors: QueryVectors
    # The tokens that recalled messages may take in the note.
    budget_tokens: int
    # The time that the searches may take.
    recall_time: RecallTime
    # Gets the ranking of the last search by words; None: no ranking is recorded.
    trace: SearchTrace | None

    @property
    def standing_seqs(self) -> Collection[int]:
        """The numbers of the facts that the memory section shows."""
        section = self.prompt.section.sent
        return () if section is None else section.known.get("standing", ())

    async def search(self, query: str) -> list[Message]:
        context, visible = self.context, self.visible
        # A vector that does not come in time leaves time for a search by words.
        limit_ms = self.recall_time.limit_ms
        wait_ms = self.recall_time.measure_remaining_ms() - limit_ms / WORDS_TIME_DIVISOR
        vector = await self.vectors.find_vector(context.agent, query, wait_ms)
        has_evicted = self.prompt.window.evicted_tokens > 0 and not visible.verbatim_seqs
        return await self.store.recall.search(
            context.agent,
            query,
            numbers=context.snapshot.numbers,
            skip=visible.verbatim_seqs,
            limit=_MAX_HITS if has_evicted else choose_hit_limit(self.budget_tokens),
            room=SPARE_BUDGETS * self.budget_tokens,
            only_strong=True,
            deadline_ms=self.recall_time.measure_remaining_ms(),
            vector=vector,
            trace=self.trace,
        )

    async def select(self, query: str) -> list[Message]:
        context, visible = self.context, self.visible
        if has_selection(visible.notes):
            return []  # a note of the conversation has the selection
        return await self.store.recall.select_messages(
            context.agent,
            query,
            is_opening=_opens_conversation(context),
            numbers=context.snapshot.numbers,
            skip=visible.verbatim_seqs,
            limit=choose_selection_limit(len(self.standing_seqs)),
            deadline_ms=self.recall_time.measure_remaining_ms(),
        )

    async def find_neighbours(self, message: Message, *, before: bool) -> list[Message]:
        context = self.context
        return await self.store.recall.find_around(
            context.agent,
            message.seq,
            looks_back=before,
            numbers=context.snapshot.numbers,
            skip=self.visible.verbatim_seqs,
            limit=choose_hit_limit(self.budget_tokens),
            deadline_ms=self.recall_time.measure_remaining_ms(),
        )


def _opens_conversation(context: MemoryContext) -> bool:
    """Returns whether this is the user's first message in the conversation."""
    user_message_count = sum(message.get("role") == "user" for message in context.plan.messages)
    return context.plan.match.match_point is None and user_message_count == 1
