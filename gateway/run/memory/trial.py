"""A trial of recall: the hits in the note for a sentence that would open a conversation now. Nothing is written.

A trial finds and chooses messages as a turn does (`find_messages`, `note_choice.choose_hits`). The prompt of such a
turn shows nothing of the memory but its standing facts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import Struct

from gateway.core.memory.standing_block import make_standing_block
from gateway.core.prompt import note_choice, note_query, note_text
from gateway.core.tags import make_mark
from gateway.run.memory.find_messages import (
    FoundMessages,
    SearchOutcome,
    choose_hit_limit,
    choose_selection_limit,
    find_messages,
    make_search_record,
)
from gateway.run.memory.query_vectors import EmbedQuery, QueryVectors, sort_nearest_facts
from gateway.run.memory.recall_result import SearchRecord
from gateway.run.memory.request_search import SPARE_BUDGETS
from storage.records import Agent, Message, StandingFact
from storage.search_trace import SearchTrace
from storage.sql.store import Store

# The time for recall in a trial. It is longer than a turn's, since only a person waits.
_DEADLINE_MS = 5_000.0


class TrialResult(Struct, frozen=True):
    """The outcome of a trial."""

    # The text of the note; "": nothing would be recalled.
    note: str
    # All hits of the search, each with the reason if it stayed out of the note.
    record: SearchRecord


class TrialRunner(Struct, frozen=True):
    """Tries what recall would find for a sentence."""

    # The store of the memories.
    store: Store
    # The tokens that the note may take.
    recall_tokens: int
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Embeds queries as for replies; None: memory is searched by words alone.
    embed_query: EmbedQuery | None = None

    async def try_sentence(self, agent: Agent, text: str, max_left_out: int) -> TrialResult:
        """Returns what would be recalled.

        max_left_out: the most hits outside of the note that are recorded.

        Raises: StoreError.
        """
        snapshot = await self.store.turns.find_snapshot(agent, None, None)
        query = note_query.make_query(text)
        vectors = QueryVectors(self.embed_query)
        facts: list[StandingFact] = []
        shown_seqs = tuple[int, ...]()
        if snapshot is not None:
            facts = await sort_nearest_facts(
                self.store, agent, snapshot, vectors, query, deadline_ms=_DEADLINE_MS
            )
            shown_seqs = make_standing_block(facts, snapshot.blocks, None).shown_seqs
        search = _TrialSearch(self, agent, vectors, standing_count=len(shown_seqs), trace=SearchTrace())
        found_messages = await find_messages(text, query, search)
        # A search of a large memory takes tens of milliseconds of the event loop, so turns go on before the rest.
        await asyncio.sleep(0)
        found_messages = found_messages.without_statements([fact for fact in facts if fact.seq in shown_seqs])
        choice = self._choose(found_messages)
        note = note_text.render_note(
            choice.hits,
            (),
            self.now(),
            mark=make_mark(agent.secret),
            is_selection=found_messages.is_selection,
        )
        record = make_search_record(SearchOutcome(found_messages, choice, ""), search.trace, max_left_out)
        return TrialResult(note, record)

    def _choose(self, found_messages: FoundMessages) -> note_choice.Choice:
        """Returns the messages for which the note has room."""
        budget_tokens = self.recall_tokens
        if found_messages.is_selection:
            budget_tokens = note_choice.limit_selection(budget_tokens)
        return found_messages.choose(budget_tokens, found_messages.choose_line_chars(budget_tokens))


class _TrialSearch(Struct, frozen=True):
    """The search for a trial. Implements `MemorySearch`, which documents the methods."""

    # Has the store and the tokens of the note.
    runner: TrialRunner
    # The memory that is searched.
    agent: Agent
    # The vectors of queries, each made once.
    vectors: QueryVectors
    # The number of the standing facts that the memory section shows.
    standing_count: int
    # Gets the ranking of the search by words.
    trace: SearchTrace

    async def search(self, query: str) -> list[Message]:
        """Searches the whole memory, with as much time as a trial has."""
        vector = await self.vectors.find_vector(self.agent, query, _DEADLINE_MS)
        recall_tokens = self.runner.recall_tokens
        return await self.runner.store.recall.search(
            self.agent,
            query,
            limit=choose_hit_limit(recall_tokens),
            room=SPARE_BUDGETS * recall_tokens,
            only_strong=True,
            deadline_ms=_DEADLINE_MS,
            vector=vector,
            trace=self.trace,
        )

    async def select(self, query: str) -> list[Message]:
        return await self.runner.store.recall.select_messages(
            self.agent,
            query,
            is_opening=True,
            limit=choose_selection_limit(self.standing_count),
            deadline_ms=_DEADLINE_MS,
        )

    async def find_neighbours(self, message: Message, *, before: bool) -> list[Message]:
        return await self.runner.store.recall.find_around(
            self.agent,
            message.seq,
            looks_back=before,
            limit=choose_hit_limit(self.runner.recall_tokens),
            deadline_ms=_DEADLINE_MS,
        )
