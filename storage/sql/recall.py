"""Recall: searches the packed index of one agent, and the messages that it lacks.

Cost and order depend on this agent's rows alone. The rules decide which messages an exchange has and who may know them
(`Rules.list_messages`). Superseded and forgotten turns are left out here, by their rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.database import Connection, Database
from storage.errors import StoreCorrupt, StoreTimeout
from storage.listing import LAST_NUMBER, PassageFilter
from storage.operator_records import WordHits
from storage.records import MUTED, Agent, AgentNumbers, Message, Passage, Vector, VectorSimilarities
from storage.search import blob, rank
from storage.search.containing import find_containing
from storage.search.tail import Tail
from storage.search.text_words import has_terms, list_query_terms
from storage.search.whole import asks_for_whole
from storage.search_trace import SearchTrace
from storage.sql.agents import find_numbers_by_uid
from storage.sql.group import StoreGroup, reads
from storage.sql.memory_cache import CachedMemory, MemoryCache
from storage.sql.memory_loader import MemoryLoader, read_messages, search_timeout
from storage.sql.passages import load_passages, load_passages_and_facts_since
from storage.sql.search_index import SearchIndex
from storage.sql.shown_exchanges import load_recent_exchanges
from storage.sql.vector_cache import find_joined_vectors, find_similarities
from storage.store_rules import Rules

P = ParamSpec("P")
T = TypeVar("T")

# The most bytes of vectors that a plain read compares. More are compared in the reader's thread, since a hop to it
# takes less time than comparing them.
_MANY_BYTES = 20 << 20
# The same for vectors that are not cached, and are read first.
_MANY_UNREAD_BYTES = 2 << 20
# The part of its deadline that a search waits for vectors. After that it goes by words alone.
_VECTORS_PART = 0.5
# The most hits that a search for passages, or for messages of one kind, selects from.
_MAX_CANDIDATES = 5000
# The most unindexed passages and facts that a search for passages reads.
_UNINDEXED_PASSAGES = 1000
# Messages that are read and checked for words: more than a page has, since the index also finds messages that have the
# words in their date or speaker alone.
_MAX_CHECKED_HITS = 5 * rank.MAX_HITS


def _reports_damage(
    search: Callable[Concatenate[Recall, Agent, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Recall, Agent, P], Coroutine[Any, Any, T]]:
    """Makes a search raise StoreCorrupt if the memory is damaged. A damaged index is made again for the next search."""

    async def reporting(self: Recall, agent: Agent, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await search(self, agent, *args, **kwargs)
        except blob.CorruptIndex as error:
            await self._index.empty_damaged_chunks(agent.id)
            raise StoreCorrupt(f"the search index of memory {agent.id} is made again: {error}") from error
        except ValueError as error:
            raise StoreCorrupt(f"a row of memory {agent.id} cannot be read: {error}") from error

    return reporting


class Recall(StoreGroup):
    """The search of a memory.

    deadline_ms: the milliseconds that each read of a method may take; None: the deadline of `Database.read`.
    """

    def __init__(self, database: Database, memories: MemoryCache, rules: Rules, index: SearchIndex) -> None:
        super().__init__(database)
        self._rules = rules
        self._memories = memories
        self._index = index
        self._loader = MemoryLoader(database, memories, rules)

    @_reports_damage
    async def search(
        self,
        agent: Agent,
        query: str,
        *,
        numbers: AgentNumbers | None = None,
        skip: range = range(0),
        limit: int = 40,
        room: int = 0,
        only_strong: bool = False,
        takes: Callable[[Message], bool] | None = None,
        deadline_ms: float | None = None,
        vector: Vector | VectorSimilarities | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Message]:
        """Returns messages, passages and facts of this agent that answer the query, best first.

        numbers: the agent's numbers, if the caller has just read them; None: they are read here.
        skip: the numbers of messages that the request shows already.
        room: the tokens that the messages are to fill. If the messages are short, more than `limit` are returned.
        only_strong: True for a search that no caller asked for, as in `rank.rank`.
        takes: a function that returns whether the search may return a message; None: it may return all.
        vector: the query's vector, or the result of `compare` for it; None: the search goes by words alone.
        trace: the trace that is filled; None: no trace is made.

        Raises: StoreTimeout, StoreUnavailable; StoreCorrupt: the index or a row of this memory is damaged.
        """
        loaded = await self._loader.find_searchable(
            agent, query, numbers, skip, deadline_ms, only_strong=only_strong
        )
        if loaded is None:
            return []
        memory, buckets = loaded
        assert memory.numbers is not None, "a loaded memory was read"
        if isinstance(vector, Vector):
            vector = await self.compare(agent, vector, numbers=memory.numbers, deadline_ms=deadline_ms)
        limit = min(limit, rank.MAX_HITS)
        hits = rank.rank(
            memory.index,
            query,
            agent.secret,
            tail=memory.extend_tail(skip),
            skip=skip,
            limit=limit if takes is None else _MAX_CANDIDATES,
            room=room,
            only_strong=only_strong,
            similarities=vector,
            trace=trace,
            postings=buckets.read_all(),
        )  # fmt: skip
        if takes is None:
            return await self._load_unmuted(agent.id, memory, hits, deadline_ms, trace)
        return await self._load_first(
            agent.id, memory, hits, takes=takes, limit=limit, deadline_ms=deadline_ms
        )

    @_reports_damage
    async def select_messages(
        self,
        agent: Agent,
        query: str,
        *,
        is_opening: bool,
        numbers: AgentNumbers | None = None,
        skip: range = range(0),
        limit: int = 16,
        deadline_ms: float | None = None,
    ) -> list[Message]:
        """Returns the messages that show most of a memory as a whole, if the query asks for the whole; else none.

        is_opening: True if no message of the person comes before the query.
        numbers: the agent's numbers, if the caller has just read them; None: they are read here.
        skip: the numbers of messages that the request shows already.

        Raises: StoreTimeout, StoreUnavailable, StoreCorrupt.
        """
        if not asks_for_whole(query, is_opening=is_opening):
            return []
        memory = await self._loader.load(agent, numbers, skip, deadline_ms)
        if memory is None:
            return []
        hits = rank.select_messages(memory.index, tail=memory.extend_tail(skip), skip=skip, limit=limit)
        return await self._load_unmuted(agent.id, memory, hits, deadline_ms)

    @_reports_damage
    async def find_around(
        self,
        agent: Agent,
        seq: int,
        *,
        looks_back: bool,
        numbers: AgentNumbers | None = None,
        skip: range = range(0),
        limit: int = 10,
        deadline_ms: float | None = None,
    ) -> list[Message]:
        """Returns the statements of the agent's user around a message, as `rank.find_around`.

        looks_back: True for statements before the message; False for those after it.
        numbers: the agent's numbers, if the caller has just read them; None: they are read here.
        skip: the numbers of messages that the request shows already.

        Raises: StoreTimeout, StoreUnavailable, StoreCorrupt.
        """
        memory = await self._loader.load(agent, numbers, skip, deadline_ms)
        if memory is None:
            return []
        hits = rank.find_around(
            memory.index, seq, looks_back=looks_back, tail=memory.extend_tail(skip), skip=skip, limit=limit
        )
        return await self._load_unmuted(agent.id, memory, hits, deadline_ms)

    @_reports_damage
    async def find_containing(
        self,
        agent: Agent,
        query: str,
        *,
        before: int = LAST_NUMBER,
        limit: int = 50,
        deadline_ms: float | None = None,
    ) -> WordHits:
        """Returns the messages that have all words of a query, in any form, the newest first.

        A query without words finds nothing.

        before: the number below which messages are looked for. For the next page it is `next` of the page before.

        Raises: StoreTimeout, StoreUnavailable, StoreCorrupt.
        """
        terms = list_query_terms(query)
        if not terms:
            return WordHits()
        # Read here to know whether the cached memory lacks messages, since a full one is not read on.
        numbers = await self._database.read(
            lambda connection: find_numbers_by_uid(connection, agent), deadline_ms=deadline_ms
        )
        loaded = await self._loader.find_searchable(agent, query, numbers, range(0), deadline_ms)
        if loaded is None or numbers is None:
            return WordHits()
        memory, buckets = loaded
        is_incomplete = memory.unread_from < numbers.next_seq
        seqs = find_containing(
            memory.index,
            terms,
            agent.secret,
            tail=memory.extend_tail(range(0)),
            before=before,
            limit=_MAX_CHECKED_HITS + 1,
            postings=buckets.read_newest_first(),
        )
        hits: list[Message] = []
        # Nearly all messages that the index finds have the words, so the first page mostly suffices. Facts may have
        # them only before a user's sentence.
        for page in _split_into_pages(seqs[:_MAX_CHECKED_HITS], min(limit + 1, rank.MAX_HITS)):
            messages = await self._loader.load_messages(agent.id, memory, page, deadline_ms)
            # In a thread, since long texts take some milliseconds.
            hits += await asyncio.to_thread(self._choose_with_terms, messages, terms)
            if len(hits) > limit:
                return WordHits(hits[:limit], hits[limit - 1].seq, is_incomplete)
        return WordHits(
            hits, seqs[_MAX_CHECKED_HITS - 1] if len(seqs) > _MAX_CHECKED_HITS else None, is_incomplete
        )

    def _choose_with_terms(self, messages: Sequence[Message], terms: Sequence[str]) -> list[Message]:
        return [
            message
            for message in messages
            if has_terms(self._rules.get_own_text(message.text, message.kind), terms)
        ]

    @_reports_damage
    async def compare(
        self, agent: Agent, vector: Vector, *, numbers: AgentNumbers, deadline_ms: float | None = None
    ) -> VectorSimilarities | None:
        """Returns the similarities of this agent's messages, passages and facts to a vector.

        Returns None if none of these texts has a vector of the same model, or if their vectors are not read in time.

        numbers: the agent's numbers, which the caller has just read.

        Raises: StoreUnavailable, StoreCorrupt.
        """
        cache = self._memories.vectors
        find = partial(find_similarities, cache=cache, agent_row=agent.id, query=vector)
        size_bytes = numbers.next_seq * len(vector.data)
        is_unread = cache.get(agent.id, vector.model) is None
        try:
            if size_bytes <= (_MANY_UNREAD_BYTES if is_unread else _MANY_BYTES):
                return await self._database.read(find, deadline_ms=deadline_ms)
            load = partial(find_joined_vectors, cache=cache, agent_row=agent.id, model=vector.model)
            async with search_timeout(None if deadline_ms is None else deadline_ms * _VECTORS_PART):
                await self._loader.read_once(("vectors", agent.id, vector.model), load)
                return await self._database.long_read(find, deadline_ms=deadline_ms)
        except StoreTimeout:
            return None

    def find_cached_messages(self, agent: Agent, numbers: AgentNumbers, skip: range) -> list[Message] | None:
        """Returns all messages that a search can find; None: the cache lacks some of them.

        The cache can have all messages only of a memory that is not indexed yet.

        numbers: the agent's numbers, which the caller has just read.
        skip: the numbers of messages that the request shows already.
        """
        memory = self._memories.get(agent.id)
        return None if memory is None else memory.list_all_messages(numbers, skip)

    async def _load_unmuted(
        self,
        agent_row: int,
        memory: CachedMemory,
        hits: Sequence[int],
        deadline_ms: float | None,
        trace: SearchTrace | None = None,
    ) -> list[Message]:
        """Returns the messages with these numbers, in this order; muted facts are left out.

        Raises: StoreTimeout, StoreUnavailable.
        """
        messages = await self._loader.load_messages(agent_row, memory, hits, deadline_ms)
        muted_seqs = [message.seq for message in messages if message.kind == MUTED]
        if muted_seqs:
            messages = [message for message in messages if message.kind != MUTED]
            if trace is not None:
                trace.muted_seqs = muted_seqs
        return messages

    async def _load_first(
        self,
        agent_row: int,
        memory: CachedMemory,
        hits: Sequence[int],
        takes: Callable[[Message], bool],
        limit: int,
        deadline_ms: float | None,
    ) -> list[Message]:
        """Returns the first of these messages for which `takes` is true. They are read page by page.

        Raises: StoreTimeout, StoreUnavailable.
        """
        messages: list[Message] = []
        for page in _split_into_pages(hits):
            messages += filter(takes, await self._load_unmuted(agent_row, memory, page, deadline_ms))
            if len(messages) >= limit:
                break
            # Over SQLite a page is read in the event loop: other requests get their turn between two pages.
            await asyncio.sleep(0)
        return messages[:limit]

    @_reports_damage
    async def search_passages(
        self,
        agent: Agent,
        query: str,
        passage_filter: PassageFilter,
        *,
        limit: int,
        deadline_ms: float | None = None,
        vector: Vector | None = None,
    ) -> list[Passage]:
        """Returns passages that answer the query, best first.

        Raises: StoreTimeout, StoreUnavailable, StoreCorrupt.
        """
        loaded = await self._loader.find_searchable(agent, query, None, range(0), deadline_ms)
        if loaded is None:
            return []
        memory, buckets = loaded
        assert memory.numbers is not None, "a loaded memory was read"
        similarities = None
        if vector is not None:
            similarities = await self.compare(agent, vector, numbers=memory.numbers, deadline_ms=deadline_ms)
        unindexed = await self._database.long_read(
            partial(
                load_passages_and_facts_since,
                agent_row=agent.id,
                first_seq=memory.numbers.indexed_seq + 1,
                limit=_UNINDEXED_PASSAGES,
            ),
            deadline_ms=deadline_ms,
        )
        # Messages are ranked, too, and then passed over, so that words have the weights of the whole memory.
        hits = rank.rank(
            memory.index,
            query,
            agent.secret,
            tail=Tail(unindexed),
            limit=_MAX_CANDIDATES,
            similarities=similarities,
            postings=buckets.read_all(),
        )
        return await self._load_first_passages(
            agent.id, hits, passage_filter, limit=limit, deadline_ms=deadline_ms
        )

    async def _load_first_passages(
        self,
        agent_row: int,
        hits: Sequence[int],
        passage_filter: PassageFilter,
        *,
        limit: int,
        deadline_ms: float | None,
    ) -> list[Passage]:
        """Returns the first passages among these hits that match a filter. They are read page by page.

        Raises: StoreTimeout, StoreUnavailable.
        """
        passages: list[Passage] = []
        for page in _split_into_pages(hits):
            by_seq = await self._database.read(
                partial(load_passages, agent_row=agent_row, seqs=page), deadline_ms=deadline_ms
            )
            passages += [by_seq[seq] for seq in page if seq in by_seq and passage_filter.matches(by_seq[seq])]
            if len(passages) >= limit:
                break
        return passages[:limit]

    @reads
    async def load(self, connection: Connection, agent_row: int, seqs: Sequence[int]) -> dict[int, Message]:
        """Returns the messages, passages and facts with these numbers, as far as they may be shown, by number."""
        messages: dict[int, Message] = {}
        for page in _split_into_pages(seqs):
            messages |= await read_messages(connection, agent_row, page, self._rules)
        return messages

    @reads
    async def load_recent(self, connection: Connection, agent: Agent, limit: int) -> list[Message]:
        """Returns the messages of the last exchanges, oldest first, as far as they may be shown."""
        return [
            message
            for exchange, is_shared, _ in await load_recent_exchanges(connection, agent.id, limit)
            for message in self._rules.list_messages(exchange, is_shared, None, None)
        ]


def _split_into_pages(seqs: Sequence[int], first_length: int = 0) -> Iterator[Sequence[int]]:
    """Yields the numbers in pages of `rank.MAX_HITS`.

    first_length: the length of an additional first page; 0: there is none.
    """
    if first_length:
        yield seqs[:first_length]
    for start in range(first_length, len(seqs), rank.MAX_HITS):
        yield seqs[start : start + rank.MAX_HITS]
