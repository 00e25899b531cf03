"""Loads memories into the cache for searches: their indexes, their newest messages, and the messages of hits.

A load reads the agent's numbers first, then the changes since the cached numbers (storage/sql/memory_cache.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from storage.database import BACKGROUND_READ_MS, Connection, Database, Operation
from storage.errors import StoreTimeout
from storage.records import Agent, AgentNumbers, Message
from storage.search import rank
from storage.search.segment import Buckets
from storage.sql.agents import find_numbers_by_uid
from storage.sql.memory_cache import CachedMemory, MemoryCache
from storage.sql.passages import load_passages_and_facts_at
from storage.sql.shown_exchanges import load_exchanges_of_messages
from storage.sql.terms import load_buckets
from storage.store_rules import Rules

T = TypeVar("T")

# The first read of a memory with more messages is a long read, since 10,000 messages take 15 ms.
_LONG_MEMORY = 2_000
# The most reads of a memory for one search, if segments of its index are dropped meanwhile. Not measured: each further
# read is needed only if segments are dropped again.
_MAX_READS = 3


@asynccontextmanager
async def search_timeout(deadline_ms: float | None) -> AsyncIterator[None]:
    """Ends the code within the context at the deadline, if there is one. Raises: StoreTimeout."""
    try:
        async with asyncio.timeout(None if deadline_ms is None else deadline_ms / 1000):
            yield
    except TimeoutError:
        raise StoreTimeout("the search did not end in time") from None


class SearchableMemory(NamedTuple):
    """A memory as it is now, with the buckets of its segments for a query."""

    # The memory.
    memory: CachedMemory
    # The buckets of the query's terms.
    buckets: Buckets


class MemoryLoader:
    """Loads memories into the cache. Each method raises StoreTimeout if a read takes too long, and StoreUnavailable."""

    def __init__(self, database: Database, memories: MemoryCache, rules: Rules) -> None:
        self._database = database
        self._memories = memories
        self._rules = rules
        # The long reads under way, by the keys of `read_once`.
        self._long_reads: dict[tuple[object, ...], asyncio.Task[Any]] = {}

    async def load(
        self, agent: Agent, numbers: AgentNumbers | None, skip: range, deadline_ms: float | None
    ) -> CachedMemory | None:
        """Returns the memory as it is now; None: the memory is gone.

        numbers: the agent's numbers, if the caller has just read them; None: they are read here.
        skip: the numbers of messages that the query leaves out.
        """
        read_numbers = partial(find_numbers_by_uid, agent=agent)
        # Each further pass is needed only if the memory has changed during the pass before.
        while True:
            drop_count = self._memories.drop_count
            current = numbers or await self._database.read(read_numbers, deadline_ms=deadline_ms)
            if current is None:
                return None
            memory = self._memories.get(agent.id)
            if memory is None or memory.numbers is None or memory.numbers.epoch != current.epoch:
                memory = await self._read_memory(agent, current, deadline_ms)
            elif memory.is_ready(current, skip):
                return memory
            else:
                read_changes = partial(memory.read_changes, current=current, rules=self._rules)
                changes = await self._database.read(read_changes, deadline_ms=deadline_ms)
                if memory.is_outdated_by(changes):
                    memory = await self._read_memory(agent, current, deadline_ms)
                elif not memory.apply(changes):
                    continue  # another search has updated the memory meanwhile
            if memory is None:
                return None
            # A memory that was read before a forgetting may hold forgotten content, so it is not cached.
            if drop_count == self._memories.drop_count:
                self._memories.put(memory)
            # A read that another search began may lack the newest messages. Then the memory is read again.
            if memory.numbers is not None and memory.numbers.next_seq >= current.next_seq:
                return memory

    async def _read_memory(
        self, agent: Agent, current: AgentNumbers, deadline_ms: float | None
    ) -> CachedMemory | None:
        """Returns the whole memory; None if the agent is gone. current: the agent's present numbers."""

        async def read(connection: Connection) -> CachedMemory | None:
            # The current numbers may be older than the database, if a copy was restored into it.
            if await find_numbers_by_uid(connection, agent) is None:
                return None
            memory = CachedMemory(agent.id)
            memory.apply(await memory.read_changes(connection, current, self._rules))
            return memory

        if current.next_seq <= _LONG_MEMORY:
            return await self._database.read(read, deadline_ms=deadline_ms)
        # Part of the key: a search after a forgetting must not get a memory that was read before it.
        drop_count = self._memories.drop_count

        def cache(memory: CachedMemory | None) -> None:
            if memory is not None and drop_count == self._memories.drop_count:
                self._memories.put(memory)

        async with search_timeout(deadline_ms):
            return await self.read_once(("memory", agent.id, current.epoch, drop_count), read, cache)

    async def read_once(
        self, key: tuple[object, ...], read: Operation[T], cache: Callable[[T], None] = lambda _: None
    ) -> T:
        """Returns the result of a long read, which all callers with the same key share while it is under way.

        The read goes on after its callers have given up. Otherwise the next search would be too slow as well.

        key: the key of the read: reads of the same content have the same key.
        cache: a function that caches the result, called in any case; left out if `read` itself caches the result.
        """
        task = self._long_reads.get(key)
        if task is None:
            task = asyncio.create_task(self._read_and_cache(read, cache))
            self._long_reads[key] = task
            task.add_done_callback(lambda _: self._long_reads.pop(key, None))
        return await asyncio.shield(task)

    async def _read_and_cache(self, read: Operation[T], cache: Callable[[T], None]) -> T:
        result = await self._database.long_read(read, deadline_ms=BACKGROUND_READ_MS)
        cache(result)
        return result

    async def find_searchable(
        self,
        agent: Agent,
        query: str,
        numbers: AgentNumbers | None,
        skip: range,
        deadline_ms: float | None,
        *,
        only_strong: bool = False,
    ) -> SearchableMemory | None:
        """Returns the memory and the buckets that a search for a query needs; None: the memory is gone.

        numbers: the agent's numbers, if the caller has just read them; None: they are read here.
        skip: the numbers of messages that the query leaves out.
        only_strong: True if the search finds nothing by common words alone.
        """
        for _ in range(_MAX_READS):
            memory = await self.load(agent, numbers, skip, deadline_ms)
            if memory is None:
                return None
            segments = memory.index.segments
            hashes = rank.hash_rare_terms(query, agent.secret, only_strong=only_strong) if segments else []
            if not hashes:
                return SearchableMemory(memory, Buckets())
            read_buckets = partial(load_buckets, agent_row=agent.id, hashes=hashes)
            buckets = await self._database.read(read_buckets, deadline_ms=deadline_ms)
            # A segment that was made after the memory was read is left out: the memory has its chunks.
            current_rows = [row for row in buckets.rows if segments.get(row.segment) == row.stamp]
            bucket_count = len({row.bucket for row in current_rows})
            if current_rows and len(current_rows) == len(segments) * bucket_count:
                return SearchableMemory(memory, replace(buckets, rows=current_rows))
            # A segment was dropped or made again after the memory was read.
            self._memories.drop(agent.id)
            numbers = None
        raise StoreTimeout("the search index has changed meanwhile")

    async def load_messages(
        self, agent_row: int, memory: CachedMemory, seqs: Sequence[int], deadline_ms: float | None
    ) -> list[Message]:
        """Returns the messages with these numbers, in this order. Hidden messages are left out."""
        messages, unread_seqs = memory.find_messages(seqs)
        if unread_seqs:
            numbers = memory.numbers
            read = partial(read_messages, agent_row=agent_row, seqs=unread_seqs, rules=self._rules)
            read_by_seq = await self._database.read(read, deadline_ms=deadline_ms)
            by_seq = {message.seq: message for message in messages} | read_by_seq
            messages = [by_seq[seq] for seq in seqs if seq in by_seq]
            # Not if another search has updated the memory meanwhile: these messages may be from before the update.
            if memory.numbers is numbers:
                memory.cache_messages({seq: read_by_seq.get(seq) for seq in unread_seqs})
        if memory.has_grown:
            self._memories.update_size(memory)
        return messages


async def read_messages(
    connection: Connection, agent_row: int, seqs: Sequence[int], rules: Rules
) -> dict[int, Message]:
    """Returns the messages, passages and facts with these numbers that may be shown, by number."""
    seq_set = frozenset(seqs)
    messages = {
        message.seq: message
        for exchange, is_shared, _ in await load_exchanges_of_messages(connection, agent_row, seqs)
        for message in rules.list_messages(exchange, is_shared, None, seq_set)
    }
    if any(seq not in messages for seq in seqs):
        passages_and_facts = await load_passages_and_facts_at(connection, agent_row, seqs)
        messages.update({message.seq: message for message in passages_and_facts})
    return messages
