"""The search of a memory for texts, for a client of MCP."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf

from msgspec import Struct

from gateway.run.memory.query_vectors import EmbedQuery
from storage.errors import TooSlow
from storage.records import Agent, Message
from storage.sql.store import Store

# How long an MCP client's search may take: as long as a search by a model's tool call (gateway/run/tools/memory.py).
SEARCH_MS = 1000.0


class TextSearch(Struct, frozen=True):
    """A search for texts."""

    query: str
    limit: int
    # Values of `Message.source`.
    kinds: Collection[str]
    # Seconds since the epoch; `until` is exclusive.
    since: float = -inf
    until: float = inf

    def matches(self, hit: Message) -> bool:
        """Returns whether a hit is of the kinds and the time that are asked for."""
        return hit.source in self.kinds and self.since <= hit.at < self.until


class FoundTexts(Struct, frozen=True):
    """The hits of a search, best first."""

    hits: Sequence[Message] = ()
    # The public ids of the hits' conversations, by the rows of exchanges.
    conversations: Mapping[int, str] = {}
    # The search took too long, so there are no hits.
    has_timed_out: bool = False


class TextSearchOperation(Struct, frozen=True):
    """Searches memories. Nothing is written."""

    store: Store
    # Makes the vector of a query; None: texts are searched by words alone.
    embed_query: EmbedQuery | None = None

    async def search(self, agent: Agent, search: TextSearch) -> FoundTexts:
        """Returns the texts of a memory that match a query. Raises: StoreError."""
        embed_query = self.embed_query
        try:
            vector = None if embed_query is None else await embed_query([agent.id], search.query, SEARCH_MS)
            hits = await self.store.recall.search(
                agent,
                search.query,
                limit=search.limit,
                takes=search.matches,
                deadline_ms=SEARCH_MS,
                vector=vector,
            )
        except TooSlow:
            return FoundTexts(has_timed_out=True)
        exchange_ids = sorted({message.exchange_row for message in hits if message.source == "message"})
        refs = await self.store.memory_pages.load_exchange_refs(agent.id, exchange_ids)
        return FoundTexts(hits, {id: ref.conversation_uid for id, ref in refs.items()})
