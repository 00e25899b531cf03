"""The vectors of a request's queries, and the standing facts that are nearest to one of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from math import inf

from msgspec import Struct, field

from gateway.core.memory.standing_block import fit_into_block
from storage.commands import MemorySnapshot
from storage.records import Agent, AgentNumbers, StandingFact, Vector, VectorSimilarities
from storage.sql.store import Store

# Returns the vector of a text for the search of some agents (by row), or None after a number of milliseconds.
EmbedQuery = Callable[[Sequence[int], str, float], Awaitable[Vector | None]]


class QueryVectors(Struct):
    """The vectors of one request's queries. Each vector is made and compared once."""

    # Returns the vector of a query; None: memory is searched by words alone.
    embed_query: EmbedQuery | None
    # The seconds that the choice of standing facts by vectors took, a part of the time for recall.
    choosing_s: float = 0.0
    # The vectors of queries, or the results of comparing these, by query; None: no vector came in time.
    _vectors: dict[str, Vector | VectorSimilarities | None] = field(default_factory=dict)

    async def find_vector(
        self, agent: Agent, query: str, wait_ms: float
    ) -> Vector | VectorSimilarities | None:
        """Returns the vector of a query, or the result of comparing it, or None if no vector came in time."""
        if self.embed_query is None:
            return None
        if query not in self._vectors:
            self._vectors[query] = await self.embed_query([agent.id], query, wait_ms)
        return self._vectors[query]

    async def compare(
        self, store: Store, agent: Agent, numbers: AgentNumbers, query: str, deadline_ms: float
    ) -> VectorSimilarities | None:
        """Returns how near an agent's records are to a query; None: nothing was compared in time.

        deadline_ms: the time for the query's vector and the comparison together.

        Raises: StoreError.
        """
        started_at = time.perf_counter()
        vector = await self.find_vector(agent, query, deadline_ms)
        if not isinstance(vector, Vector):
            return vector
        remaining_ms = max(1.0, deadline_ms - (time.perf_counter() - started_at) * 1000)
        similarities = await store.recall.compare(agent, vector, numbers=numbers, deadline_ms=remaining_ms)
        if similarities is not None:
            self._vectors[query] = similarities
        return similarities


async def sort_nearest_facts(
    store: Store,
    agent: Agent,
    snapshot: MemorySnapshot,
    vectors: QueryVectors,
    query: str,
    deadline_ms: float,
) -> list[StandingFact]:
    """Returns the standing facts of a memory in the order in which its section takes them for a query.

    If the section has no room for all, facts without a vector come first, then the nearest to the query. Without a
    vector of the query the newest come first.

    deadline_ms: the time for the query's vector and the comparison together.

    Raises: StoreError.
    """
    facts = snapshot.standing
    if fit_into_block(facts):
        return facts
    comparison = await vectors.compare(store, agent, snapshot.numbers, query, deadline_ms)
    if comparison is None:
        return facts
    similarities = comparison.list_similarities([fact.seq for fact in facts])
    return sorted(facts, key=lambda fact: -similarities.get(fact.seq, inf))
