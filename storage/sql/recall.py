"""Recall: searches the packed index of one agent and the messages that it lacks, and updates the index.

Cost and order depend on this agent's rows alone. What the messages of an exchange are, and who may know them,
the rules decide (`Rules.messages_of`); superseded and forgotten turns are left out here, by the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.commands import Rules
from storage.database import Connection, Database, Operation
from storage.errors import Corrupt, TooSlow
from storage.listing import PassageFilter
from storage.records import MUTED, Agent, AgentNumbers, Message, Near, Passage, Vector
from storage.search import blob, rank
from storage.search.blob import Counted, count_terms, with_names
from storage.search.segment import NO_POSTINGS, Postings, Segment, chunks_of, make_segment, postings_of
from storage.search.tail import Tail
from storage.search.whole import asks_for_whole
from storage.search_trace import SearchTrace
from storage.sql import exchanges, vectors
from storage.sql.agents import load_agent, load_numbers, set_indexed
from storage.sql.group import bulk_writes, long_reads, reads
from storage.sql.growth import GrowingGroup, Growth
from storage.sql.memory_cache import CachedMemory, MemoryCache, make_document
from storage.sql.passages import load_passages, load_passages_and_facts
from storage.sql.terms import (
    add_segment,
    find_unsegmented,
    get_terms,
    load_buckets,
    mend_terms,
    replace_terms,
    terms_between,
)
from storage.sql.vectors import find_near, forget_indexed, load_joined

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
# Exchanges indexed in one write. SQLite's writer takes 1 ms for them and the loop 0.3 ms to read them; for 64 it is 2.7
# and 1 ms, and all of an index takes a tenth less.
_BATCH = 16
# A round of the loop that takes longer shows that the loop is busy. So many messages are counted in a round then, in
# 0.7 ms: with one each the index would lag.
_BUSY_S, _BUSY_MESSAGES = 0.005, 16
_BATCH_PASSAGES = 1000  # passages and facts not indexed yet that a search reads at most
_STEP_PASSAGES = 64  # of them one step indexes: a part of a file has 2,000 characters, which take 0.4 ms


def _reports_damage(
    search: Callable[Concatenate[Recall, Agent, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Recall, Agent, P], Coroutine[Any, Any, T]]:
    """Has a search raise Corrupt where the memory is damaged. A damaged index is made again for the next search."""

    async def reporting(self: Recall, agent: Agent, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await search(self, agent, *args, **kwargs)
        except blob.CorruptIndex as error:
            await self.mend(agent.id)
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


class Recall(GrowingGroup):
    """The search of a memory, and the upkeep of its index."""

    def __init__(self, database: Database, growth: Growth, memories: MemoryCache, rules: Rules) -> None:
        super().__init__(database, growth)
        self._rules = rules
        self._memories = memories
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
        muted = [m.seq for m in found if m.source == MUTED]
        if muted:
            found = [m for m in found if m.source != MUTED]
            if trace is not None:
                trace.muted_seqs = muted
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
        values = (agent.id, memory.numbers.indexed_seq + 1, _BATCH_PASSAGES)
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

    @reads
    async def backlog(self, connection: Connection, agent: int) -> int:
        """Returns how many messages, passages and facts the search index of an agent lacks; of one that is gone 0."""
        numbers = await load_numbers(connection, agent)
        return 0 if numbers is None else numbers.next_seq - 1 - numbers.indexed_seq

    @long_reads
    async def agents_to_index(self, connection: Connection, at_least: int, limit: int) -> list[int]:
        """Returns agents with an index that lacks at least so many messages."""
        return [id for (id,) in await connection.rows(exchanges.SQL["unindexed_agents"], (at_least, limit))]

    async def index(self, agent: int, give_way: Callable[[], Awaitable[None]] | None = None) -> bool:
        """Brings the search index a step further. Returns True while there is more. Raises: Unavailable.

        Counting words takes most of the time. Messages that queries have counted are not counted again. The others are
        counted here, one after the other: within the transaction turns would wait for all of them.

        give_way: awaited between two messages, to leave the loop to turns; None: a round of the loop passes.
        """
        memory = self._memories.get(agent)
        known, counted = dict[blob.Document, Counted](), dict[blob.Document, Counted]()
        if memory is not None:
            known = dict(
                zip(map(make_document, memory.tail.documents), memory.tail.counted_documents(), strict=True)
            )
        loop = asyncio.get_running_loop()
        is_busy = False
        found = await self._read_unindexed(agent)
        if found is None:
            return False
        of, documents = found
        for number, document in enumerate(documents):
            counted[document] = with_names(known.get(document) or count_terms(document), document)
            if give_way is not None:
                await give_way()
            elif not is_busy or number % _BUSY_MESSAGES == 0:
                begun = loop.time()
                await asyncio.sleep(0)
                is_busy = loop.time() - begun > _BUSY_S
        return await self._write_index(of, counted) or await self._add_segment(agent)

    async def _add_segment(self, agent: int) -> bool:
        """Makes a segment of the search index, if one can be made. Returns whether there is more to do."""

        async def make(connection: Connection) -> tuple[int, int, Segment] | None:
            of = await load_agent(connection, agent)
            number = None if of is None else await find_unsegmented(connection, agent, of.indexed_seq)
            if number is None:
                return None
            rows = await terms_between(connection, agent, chunks_of(number))
            segment = make_segment(number, ((chunk, data) for chunk, _, data in rows))
            return number, max((stamp for _, stamp, _ in rows), default=0), segment

        try:
            made = await self._database.long_read(make)
        except blob.CorruptIndex:
            await self.mend(agent)
            return True
        if made is None:
            return False
        await self._write_segment(agent, *made)
        return True

    @bulk_writes
    async def _write_segment(
        self, connection: Connection, agent: int, number: int, stamp: int, made: Segment
    ) -> None:
        await connection.lock(agent)
        # Of a memory that is gone by now nothing may stay.
        if await load_agent(connection, agent) is not None:
            await add_segment(connection, agent, number, stamp, made)

    async def mend(self, agent: int) -> None:
        """Empties what is damaged of the search index. The next steps of `index` make it again."""
        await self._grow(agent, 0, self._database.bulk(lambda connection: _mend_index(connection, agent)))
        self._memories.drop(agent)

    @reads
    async def _read_unindexed(
        self, connection: Connection, agent: int
    ) -> tuple[Agent, list[blob.Document]] | None:
        of = await load_agent(connection, agent)
        if of is None:
            return None
        first = of.indexed_seq + 1
        rows = await connection.rows(exchanges.SQL["shown_since"], (agent, first, _BATCH))
        more = await load_passages_and_facts(
            connection, exchanges.SQL["passages_and_facts_since"], (agent, first, _STEP_PASSAGES)
        )
        shown = exchanges.make_shown_exchanges(rows)
        return of, [*self._make_documents(shown), *map(make_document, more)]

    def _make_documents(self, shown: Iterable[exchanges.ShownExchange]) -> list[blob.Document]:
        return [
            make_document(message)
            for each in shown
            if each.exchange.active and each.exchange.state == "finished"
            for message in self._rules.messages_of(each.exchange, False, each.previous_seq, None)
        ]

    @bulk_writes
    async def _write_index(
        self, connection: Connection, of: Agent, counted: Mapping[blob.Document, Counted]
    ) -> bool:
        """Writes a step of the index. Returns True while there is more.

        counted: terms that need not be counted within the transaction.
        """

        agent = of.id
        row = await connection.row(exchanges.SQL["epoch"], (agent,))  # it locks the agent
        if row is None:
            return False
        _, indexed, next_seq, _ = row
        stale = [e for (e,) in await connection.rows(exchanges.SQL["stale"], (agent, _BATCH))]
        rows = await connection.rows(exchanges.SQL["shown_since"], (agent, indexed + 1, _BATCH))
        fresh = exchanges.make_shown_exchanges(rows)
        is_all = len(rows) < _BATCH
        if is_all:
            # A message that is being answered is indexed with its reply: else its chunk would be written twice, and
            # what is cached of the memory dropped for it.
            under_way = await connection.value(exchanges.SQL["under_way"], (agent, next_seq))
            end = (next_seq if under_way is None else under_way) - 1
        else:
            end = max(each.exchange.reply_seq for each in fresh)
        again = await _remove_from_index(connection, agent, stale, indexed) if stale else []
        more = await load_passages_and_facts(
            connection, exchanges.SQL["passages_and_facts_since"], (agent, indexed + 1, _STEP_PASSAGES)
        )
        if len(more) == _STEP_PASSAGES and more[-1].seq < end:
            end, is_all = more[-1].seq, False  # the rest comes with the next step
        documents = self._make_documents(each for each in (*again, *fresh) if each.exchange.seq <= end)
        documents += [make_document(m) for m in more if m.seq <= end]
        if not await _merge_terms(connection, agent, blob.encode(documents, of.secret, counted)):
            return True
        for exchange in stale:
            await connection.run(exchanges.SQL["stale_done"], (agent, exchange))
        if end > indexed:
            await set_indexed(connection, agent, end)
        return not is_all or len(stale) == _BATCH


async def _mend_index(connection: Connection, agent: int) -> None:
    await connection.lock(agent)
    await mend_terms(connection, agent)


async def _remove_from_index(
    connection: Connection, agent: int, stale: Sequence[int], indexed: int
) -> list[exchanges.ShownExchange]:
    """Takes exchanges that have changed out of the index. Returns those to be indexed again.

    indexed: the last number that the index knows; what it has not reached yet is indexed as it is then.
    """
    found = exchanges.make_shown_exchanges(
        await connection.rows(exchanges.SQL["shown_stale"], (agent, stale))
    )
    again = [each for each in found if each.exchange.seq <= indexed]
    for exchange in [each.exchange for each in again]:
        await forget_indexed(connection, agent, range(exchange.seq, exchange.next_seq))
        await connection.run(vectors.SQL["indexed_again"], (exchange.seq - 1, agent))
    return again


async def _merge_terms(connection: Connection, agent: int, blobs: Mapping[int, bytes]) -> bool:
    """Merges blobs into the chunks of the index. False: one is damaged, and is made again by the next steps."""
    for chunk, data in blobs.items():
        try:
            merged = blob.merge(await get_terms(connection, agent, chunk), data)
        except blob.CorruptIndex:
            await mend_terms(connection, agent)
            return False
        await replace_terms(connection, agent, chunk, merged)
    return True


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
