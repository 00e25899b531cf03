"""Recall: searches the packed index of one agent, and the messages that it lacks.

Cost and order depend on this agent's rows alone. What the messages of an exchange are, and who may know them,
the rules decide (`Rules.messages_of`); superseded and forgotten turns are left out here, by the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.commands import Rules
from storage.database import Connection, Database, Operation
from storage.errors import Corrupt, TooSlow
from storage.listing import LAST_NUMBER, PassageFilter, WordHits
from storage.records import MUTED, Agent, AgentNumbers, Message, Near, Passage, Vector
from storage.search import blob, rank
from storage.search.containing import (
    around_words,
    find_containing,
    has_terms,
    terms_of_query,
    written_words,
)
from storage.search.segment import NO_POSTINGS, Postings, postings_of
from storage.search.tail import Tail
from storage.search.whole import asks_for_whole
from storage.search_trace import SearchTrace
from storage.sql import exchanges
from storage.sql.agents import load_numbers
from storage.sql.group import Group, reads
from storage.sql.memory_cache import CachedMemory, MemoryCache
from storage.sql.passages import load_passages, load_passages_and_facts
from storage.sql.search_index import SearchIndex
from storage.sql.terms import load_buckets
from storage.sql.vectors import find_near, load_joined

P = ParamSpec("P")
T = TypeVar("T")

# A memory of more messages is read in the reader's thread, the first time (10,000 messages take 15 ms).
_LONG_MEMORY = 2_000
# Vectors of more bytes are compared in that thread, or read and compared: a hop to it takes less time.
_MANY_BYTES, _MANY_UNREAD_BYTES = 20 << 20, 2 << 20
# The part of its time that a search waits for vectors: then the words have to do.
_VECTORS_PART = 0.5
_READ_MS = 5_000.0
# A search reads a memory at most so often, if segments of its index are dropped meanwhile.
_ATTEMPTS = 3
_MAX_CANDIDATES = 5000  # hits among which a search for passages, or for messages of one kind, looks for them
_UNINDEXED_PASSAGES = 1000  # passages and facts not indexed yet that a search reads at most
# Messages that are read and checked for words: more than a page has, since the index also names those of which only the
# date or the speaker has them.
_MAX_CHECKED = 5 * rank.MAX_HITS


def _reports_damage(
    search: Callable[Concatenate[Recall, Agent, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Recall, Agent, P], Coroutine[Any, Any, T]]:
    """Has a search raise Corrupt where the memory is damaged. A damaged index is made again for the next search."""

    async def reporting(self: Recall, agent: Agent, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await search(self, agent, *args, **kwargs)
        except blob.CorruptIndex as error:
            await self._index.mend(agent.id)
            raise Corrupt(f"the search index of memory {agent.id} is made again: {error}") from error
        except ValueError as error:
            raise Corrupt(f"a row of memory {agent.id} cannot be read: {error}") from error

    return reporting


@asynccontextmanager
async def _search_timeout(deadline_ms: float) -> AsyncIterator[None]:
    """Raises: TooSlow past the deadline."""
    try:
        async with asyncio.timeout(deadline_ms / 1000):
            yield
    except TimeoutError:
        raise TooSlow("the search did not end in time") from None


class Recall(Group):
    """The search of a memory."""

    def __init__(self, database: Database, memories: MemoryCache, rules: Rules, index: SearchIndex) -> None:
        super().__init__(database)
        self._rules = rules
        self._memories = memories
        self._index = index
        # The long reads for which queries wait, by what is read.
        self._reading: dict[tuple[object, ...], asyncio.Task[Any]] = {}

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
        deadline_ms: float = 150.0,
        vector: Vector | Near | None = None,
        trace: SearchTrace | None = None,
    ) -> list[Message]:
        """Returns messages, passages and facts of this agent that answer the query, best first.

        numbers: the agent's, as they were just read; None: they are read.
        skip: numbers that the request shows already.
        room: tokens that are to be filled; of short messages that takes more than `limit`.
        takes: selects the wanted messages; the others are passed over.
        vector: the query's, which is compared with those of the same model; or what `compare` returned for it.
        trace: is filled.

        Raises: TooSlow, Unavailable; Corrupt: something of this memory is damaged.
        """
        loaded = await self._load_postings(agent, query, numbers, skip, deadline_ms, only_strong=only_strong)
        if loaded is None:
            return []
        memory, postings = loaded
        assert memory.numbers is not None
        near = (
            await self.compare(agent, vector, numbers=memory.numbers, deadline_ms=deadline_ms)
            if isinstance(vector, Vector)
            else vector
        )
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
            near=near,
            trace=trace,
            postings=postings,
        )  # fmt: skip
        if takes is None:
            return await self._load_messages(agent.id, memory, hits, deadline_ms, trace)
        return await self._load_wanted(agent.id, memory, hits, takes, limit, deadline_ms)

    @_reports_damage
    async def most_telling(
        self,
        agent: Agent,
        query: str,
        *,
        opens: bool,
        numbers: AgentNumbers | None = None,
        skip: range = range(0),
        limit: int = 16,
        deadline_ms: float = 150.0,
    ) -> list[Message]:
        """Returns the messages that show most of a memory as a whole, for a query that asks for that; else none.

        opens: as for `asks_for_whole`.
        numbers, skip: as for `search`.

        Raises: TooSlow, Unavailable, Corrupt.
        """
        if not asks_for_whole(query, opens=opens):
            return []
        memory = await self._load_memory(agent, numbers, skip, deadline_ms)
        if memory is None:
            return []
        hits = rank.most_telling(memory.index, tail=memory.extend_tail(skip), skip=skip, limit=limit)
        return await self._load_messages(agent.id, memory, hits, deadline_ms)

    @_reports_damage
    async def around(
        self,
        agent: Agent,
        seq: int,
        *,
        before: bool,
        numbers: AgentNumbers | None = None,
        skip: range = range(0),
        limit: int = 10,
        deadline_ms: float = 150.0,
    ) -> list[Message]:
        """Returns what this agent's user stated after a message, or before it, as `rank.around` does.

        numbers, skip: as for `search`.

        Raises: TooSlow, Unavailable, Corrupt.
        """
        memory = await self._load_memory(agent, numbers, skip, deadline_ms)
        if memory is None:
            return []
        hits = rank.around(
            memory.index, seq, before=before, tail=memory.extend_tail(skip), skip=skip, limit=limit
        )
        return await self._load_messages(agent.id, memory, hits, deadline_ms)

    @_reports_damage
    async def containing(
        self,
        agent: Agent,
        query: str,
        *,
        before: int = LAST_NUMBER,
        limit: int = 50,
        deadline_ms: float = 1000.0,
    ) -> WordHits:
        """Returns what has all words of a query, in any of their forms; of a query without words nothing.

        before: all numbers are below this one: `next` of the hits before these.

        Raises: TooSlow, Unavailable, Corrupt.
        """
        terms = terms_of_query(query)
        if not terms:
            return WordHits()
        # Read here, since a memory that is full stays at the numbers of its last reading.
        numbers = await self._database.read(
            lambda connection: load_numbers(connection, agent.id), deadline_ms=deadline_ms
        )
        loaded = await self._load_postings(agent, query, numbers, range(0), deadline_ms)
        if loaded is None or numbers is None:
            return WordHits()
        memory, postings = loaded
        is_incomplete = memory.unread_from < numbers.next_seq
        seqs = find_containing(
            memory.index,
            terms,
            agent.secret,
            tail=memory.extend_tail(range(0)),
            before=before,
            limit=_MAX_CHECKED + 1,
            postings=postings,
        )
        found: list[Message] = []
        for start in range(0, min(len(seqs), _MAX_CHECKED), rank.MAX_HITS):
            some = seqs[start : min(start + rank.MAX_HITS, _MAX_CHECKED)]
            read = await self._load_visible(agent.id, memory, some, deadline_ms)
            found += await asyncio.to_thread(_with_terms, read, terms)
            if len(found) > limit:
                return WordHits(found[:limit], found[limit - 1].seq, is_incomplete)
        return WordHits(found, seqs[_MAX_CHECKED - 1] if len(seqs) > _MAX_CHECKED else None, is_incomplete)

    @staticmethod
    def words_of(query: str, *, without: str = "") -> list[str]:
        """Returns the words that `containing` looks for, as they are written. without: as of `written_words`."""
        return written_words(query, without)

    @staticmethod
    def has_words(text: str, query: str) -> bool:
        """Returns whether a text has all words of a query, as `containing` finds it."""
        return has_terms(text, terms_of_query(query))

    @staticmethod
    def around_words(text: str, query: str, chars: int) -> str:
        """Returns the part of a text around the first word that a query has, as `containing.around_words` does."""
        return around_words(text, terms_of_query(query), chars)

    @_reports_damage
    async def compare(
        self, agent: Agent, vector: Vector, *, numbers: AgentNumbers, deadline_ms: float = 150.0
    ) -> Near | None:
        """Returns how near to a vector the messages, passages and facts of this agent are.

        None: none has one of the same model, or theirs are not read in time.
        numbers: the agent's, as they were just read.

        Raises: Unavailable, Corrupt.
        """
        cache = self._memories.vectors
        find = partial(find_near, cache=cache, agent=agent.id, query=vector)
        size = numbers.next_seq * len(vector.data)
        is_unread = cache.get(agent.id, vector.model) is None
        if size <= (_MANY_UNREAD_BYTES if is_unread else _MANY_BYTES):
            try:
                return await self._database.read(find, deadline_ms=deadline_ms)
            except TooSlow:
                return None
        load = partial(load_joined, cache=cache, agent=agent.id, model=vector.model)
        try:
            async with asyncio.timeout(deadline_ms / 1000 * _VECTORS_PART):
                await self._read_once(("vectors", agent.id, vector.model), load)
                return await self._database.long_read(find, deadline_ms=deadline_ms)
        except TimeoutError:
            return None

    def all_cached_messages(self, agent: Agent, numbers: AgentNumbers, skip: range) -> list[Message] | None:
        """Returns all that a search can find, of a memory that is not indexed yet; None: it has to be read.

        numbers, skip: as for `search`.
        """
        memory = self._memories.get(agent.id)
        return None if memory is None else memory.all_messages(numbers, skip)

    async def _load_messages(
        self,
        agent: int,
        memory: CachedMemory,
        hits: Sequence[int],
        deadline_ms: float,
        trace: SearchTrace | None = None,
    ) -> list[Message]:
        """Returns the messages with these numbers, in this order; muted facts are left out.

        Raises: TooSlow, Unavailable.
        """
        found = await self._load_visible(agent, memory, hits, deadline_ms)
        muted = [m.seq for m in found if m.source == MUTED]
        if muted:
            found = [m for m in found if m.source != MUTED]
            if trace is not None:
                trace.muted_seqs = muted
        return found

    async def _load_visible(
        self, agent: int, memory: CachedMemory, hits: Sequence[int], deadline_ms: float
    ) -> list[Message]:
        """Returns the messages with these numbers, in this order. Raises: TooSlow, Unavailable."""
        found, unread = memory.find_messages(hits)
        if unread:
            before = memory.numbers
            read = await self._database.read(
                lambda connection: _read_messages(connection, agent, unread, self._rules),
                deadline_ms=deadline_ms,
            )
            known = {m.seq: m for m in found} | read
            found = [known[seq] for seq in hits if seq in known]
            # Else another search has taken in a write meanwhile, and this may be from before it.
            if memory.numbers is before:
                memory.cache_messages({seq: read.get(seq) for seq in unread})
        if memory.has_grown:
            self._memories.update_size(memory)
        return found

    async def _load_wanted(
        self,
        agent: int,
        memory: CachedMemory,
        hits: Sequence[int],
        takes: Callable[[Message], bool],
        limit: int,
        deadline_ms: float,
    ) -> list[Message]:
        """Returns the first messages among these numbers that are wanted, page by page.

        Raises: TooSlow, Unavailable.
        """
        found: list[Message] = []
        for start in range(0, len(hits), rank.MAX_HITS):
            some = hits[start : start + rank.MAX_HITS]
            found += filter(takes, await self._load_messages(agent, memory, some, deadline_ms))
            if len(found) >= limit:
                break
            # Over SQLite a page is read in the loop itself, and others wait.
            await asyncio.sleep(0)
        return found[:limit]

    async def _load_memory(
        self, agent: Agent, numbers: AgentNumbers | None, skip: range, deadline_ms: float
    ) -> CachedMemory | None:
        """Returns the memory as it is now; None where it is gone. Raises: TooSlow, Unavailable."""
        while True:
            drop_count = self._memories.drop_count
            now = numbers
            if now is None:
                now = await self._database.read(
                    lambda connection: load_numbers(connection, agent.id), deadline_ms=deadline_ms
                )
            if now is None:
                return None
            memory = self._memories.get(agent.id)
            if memory is None or memory.numbers is None or memory.numbers.epoch != now.epoch:
                memory = await self._read_memory(agent.id, now, deadline_ms)
            elif memory.is_current(now, skip):
                return memory
            else:
                reading = partial(memory.read_changes, now=now, rules=self._rules)
                changes = await self._database.read(reading, deadline_ms=deadline_ms)
                if memory.is_outdated_by(changes):
                    memory = await self._read_memory(agent.id, now, deadline_ms)
                elif not memory.apply(changes):
                    continue  # another search has brought it further meanwhile
            # Something was forgotten while it was read, and may be in it.
            if drop_count == self._memories.drop_count:
                self._memories.put(memory)
            # Else it is of a reading that another search had begun, and lacks what came since.
            if memory.numbers is not None and memory.numbers.next_seq >= now.next_seq:
                return memory

    async def _read_memory(self, agent: int, now: AgentNumbers, deadline_ms: float) -> CachedMemory:
        """Returns a memory that was not cached. Raises: TooSlow, Unavailable."""

        async def read(connection: Connection) -> CachedMemory:
            memory = CachedMemory(agent)
            memory.apply(await memory.read_changes(connection, now, self._rules))
            return memory

        if now.next_seq <= _LONG_MEMORY:
            return await self._database.read(read, deadline_ms=deadline_ms)
        # No query after a forgetting may get what was read before it.
        key = ("memory", agent, now.epoch, self._memories.drop_count)
        async with _search_timeout(deadline_ms):
            return await self._read_once(key, read)

    async def _read_once(self, key: tuple[object, ...], read: Operation[T]) -> T:
        """Returns the result of a long read, which is one for all who wait for it. key: names what is read.

        It goes on where a query does not wait for its end, or the next one would be too slow as well.
        """
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.create_task(self._database.long_read(read, deadline_ms=_READ_MS))
            self._reading[key] = reading
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        result: T = await asyncio.shield(reading)
        return result

    async def _load_postings(
        self,
        agent: Agent,
        query: str,
        numbers: AgentNumbers | None,
        skip: range,
        deadline_ms: float,
        *,
        only_strong: bool = False,
    ) -> tuple[CachedMemory, Postings] | None:
        """Returns the memory as it is now, and what its segments have of a query's terms; None where it is gone.

        Raises: TooSlow, Unavailable.
        """
        for _ in range(_ATTEMPTS):
            memory = await self._load_memory(agent, numbers, skip, deadline_ms)
            if memory is None:
                return None
            segments = memory.index.segments
            hashes = rank.hashes_of(query, agent.secret, only_strong=only_strong) if segments else []
            if not hashes:
                return memory, NO_POSTINGS
            reading = partial(load_buckets, agent=agent.id, hashes=hashes)
            found = await self._database.read(reading, deadline_ms=deadline_ms)
            # Of a segment that was made since, the memory has the chunks.
            known = [
                (bucket, number, data)
                for bucket, number, stamp, data in found.rows
                if segments.get(number) == stamp
            ]
            if known and len(known) == len(segments) * len({bucket for bucket, _, _ in known}):
                return memory, postings_of(known, found.sizes, hashes)
            # A segment was dropped, or made again, after the numbers of the memory were read.
            self._memories.drop(agent.id)
            numbers = None
        raise TooSlow("the search index has changed meanwhile")

    @_reports_damage
    async def passages(
        self,
        agent: Agent,
        query: str,
        wanted: PassageFilter,
        *,
        limit: int,
        deadline_ms: float = 1000.0,
        vector: Vector | None = None,
    ) -> list[Passage]:
        """Returns passages that answer the query, best first.

        Raises: TooSlow, Unavailable, Corrupt.
        """
        loaded = await self._load_postings(agent, query, None, range(0), deadline_ms)
        if loaded is None:
            return []
        memory, postings = loaded
        assert memory.numbers is not None
        values = (agent.id, memory.numbers.indexed_seq + 1, _UNINDEXED_PASSAGES)
        near = None
        if vector is not None:
            near = await self.compare(agent, vector, numbers=memory.numbers, deadline_ms=deadline_ms)
        fresh = await self._database.long_read(
            lambda connection: load_passages_and_facts(
                connection, exchanges.SQL["passages_and_facts_since"], values
            ),
            deadline_ms=deadline_ms,
        )
        # All of the memory is ranked, since the weights of words are the memory's; messages are passed over.
        hits = rank.rank(
            memory.index,
            query,
            agent.secret,
            tail=Tail(fresh),
            limit=_MAX_CANDIDATES,
            near=near,
            postings=postings,
        )
        found: list[Passage] = []
        for start in range(0, len(hits), rank.MAX_HITS):
            some = hits[start : start + rank.MAX_HITS]
            read = await self._database.read(
                partial(load_passages, agent=agent.id, seqs=some), deadline_ms=deadline_ms
            )
            found += [read[seq] for seq in some if seq in read and wanted.matches(read[seq])]
            if len(found) >= limit:
                break
        return found[:limit]

    @reads
    async def load(self, connection: Connection, agent: int, seqs: Sequence[int]) -> dict[int, Message]:
        """Returns the messages, passages and facts with some numbers, as far as they may be shown."""
        found: dict[int, Message] = {}
        for start in range(0, len(seqs), rank.MAX_HITS):
            found |= await _read_messages(connection, agent, seqs[start : start + rank.MAX_HITS], self._rules)
        return found

    @reads
    async def recent(self, connection: Connection, agent: Agent, limit: int) -> list[Message]:
        """Returns the standing messages of the last exchanges, oldest first."""
        rows = await connection.rows(exchanges.SQL["recent"], (agent.id, limit))
        found = exchanges.make_shown_exchanges(reversed(rows))
        return [m for e, is_shared, _ in found for m in self._rules.messages_of(e, is_shared, None, None)]


def _with_terms(messages: Sequence[Message], terms: Sequence[str]) -> list[Message]:
    return [each for each in messages if has_terms(each.text, terms)]


async def _read_messages(
    connection: Connection, agent: int, seqs: Sequence[int], rules: Rules
) -> dict[int, Message]:
    wanted = frozenset(seqs)
    rows = await connection.rows(exchanges.SQL["shown_at"], (agent, seqs))
    found = {
        m.seq: m
        for e, is_shared, _ in exchanges.make_shown_exchanges(rows)
        for m in rules.messages_of(e, is_shared, None, wanted)
    }
    if any(seq not in found for seq in seqs):
        more = await load_passages_and_facts(
            connection, exchanges.SQL["passages_and_facts_at"], (agent, seqs)
        )
        found.update({m.seq: m for m in more})
    return found
