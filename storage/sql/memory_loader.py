"""Reading a memory for a search: what the cache lacks of its index, its newest messages, and the messages found.

The memory is right for the numbers of its agent (storage/sql/memory_cache.py): those are read first, then what has
changed since.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from storage.commands import Rules
from storage.database import Connection, Database, Operation
from storage.errors import TooSlow
from storage.records import Agent, AgentNumbers, Message
from storage.search import rank
from storage.search.segment import Buckets
from storage.sql import exchanges
from storage.sql.agents import load_numbers
from storage.sql.memory_cache import CachedMemory, MemoryCache
from storage.sql.passages import load_passages_and_facts
from storage.sql.terms import load_buckets

T = TypeVar("T")

# A memory of more messages is read in the reader's thread, the first time (10,000 messages take 15 ms).
_LONG_MEMORY = 2_000
_READ_MS = 5_000.0
# A search reads a memory at most so often, if segments of its index are dropped meanwhile.
_ATTEMPTS = 3


@asynccontextmanager
async def _search_timeout(deadline_ms: float) -> AsyncIterator[None]:
    """Raises: TooSlow past the deadline."""
    try:
        async with asyncio.timeout(deadline_ms / 1000):
            yield
    except TimeoutError:
        raise TooSlow("the search did not end in time") from None


class MemoryLoader:
    """Reads memories into the cache. Every method raises TooSlow where a read takes too long, and Unavailable."""

    def __init__(self, database: Database, memories: MemoryCache, rules: Rules) -> None:
        self._database = database
        self._memories = memories
        self._rules = rules
        # The long reads for which queries wait, by what is read.
        self._reading: dict[tuple[object, ...], asyncio.Task[Any]] = {}

    async def load(
        self, agent: Agent, numbers: AgentNumbers | None, skip: range, deadline_ms: float
    ) -> CachedMemory | None:
        """Returns the memory as it is now; None where it is gone.

        numbers: the agent's, as they were just read; None: they are read.
        skip: numbers of messages that the query leaves out.
        """
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
            elif memory.needs_no_read(now, skip):
                return memory
            else:
                reading = partial(memory.read_changes, now=now, rules=self._rules)
                changes = await self._database.read(reading, deadline_ms=deadline_ms)
                if memory.is_outdated_by(changes):
                    memory = await self._read_memory(agent.id, now, deadline_ms)
                elif not memory.apply(changes):
                    continue  # another search has updated the memory meanwhile
            # A memory that was read before a forgetting may hold what was forgotten: it is not cached.
            if drop_count == self._memories.drop_count:
                self._memories.put(memory)
            # A reading that another search had begun may lack the newest messages. Then the memory is read again.
            if memory.numbers is not None and memory.numbers.next_seq >= now.next_seq:
                return memory

    async def _read_memory(self, agent_row: int, now: AgentNumbers, deadline_ms: float) -> CachedMemory:
        """Returns a memory that was not cached."""

        async def read(connection: Connection) -> CachedMemory:
            memory = CachedMemory(agent_row)
            memory.apply(await memory.read_changes(connection, now, self._rules))
            return memory

        if now.next_seq <= _LONG_MEMORY:
            return await self._database.read(read, deadline_ms=deadline_ms)
        # A query after a forgetting must not get a reading from before it.
        drop_count = self._memories.drop_count

        def cache(memory: CachedMemory) -> None:
            if drop_count == self._memories.drop_count:
                self._memories.put(memory)

        async with _search_timeout(deadline_ms):
            return await self.read_once(("memory", agent_row, now.epoch, drop_count), read, cache)

    async def read_once(
        self, key: tuple[object, ...], read: Operation[T], cache: Callable[[T], None] = lambda _: None
    ) -> T:
        """Returns the result of a long read. Queries that need the same read at one time wait for one reading.

        The reading goes on when no query waits for it any more, or the next query would be too slow as well.

        key: names what is read.
        cache: is called with the result, also if no query waits for it any more; left out if `read` caches it.
        """
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.create_task(self._read_and_cache(read, cache))
            self._reading[key] = reading
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        result: T = await asyncio.shield(reading)
        return result

    async def _read_and_cache(self, read: Operation[T], cache: Callable[[T], None]) -> T:
        result = await self._database.long_read(read, deadline_ms=_READ_MS)
        cache(result)
        return result

    async def load_with_buckets(
        self,
        agent: Agent,
        query: str,
        numbers: AgentNumbers | None,
        skip: range,
        deadline_ms: float,
        *,
        only_strong: bool = False,
    ) -> tuple[CachedMemory, Buckets] | None:
        """Returns the memory as it is now, and what was read of its segments for a query; None where it is gone.

        only_strong: as for `rank.rank`. The other parameters are as for `load`.
        """
        for _ in range(_ATTEMPTS):
            memory = await self.load(agent, numbers, skip, deadline_ms)
            if memory is None:
                return None
            segments = memory.index.segments
            hashes = rank.hashes_of(query, agent.secret, only_strong=only_strong) if segments else []
            if not hashes:
                return memory, Buckets()
            reading = partial(load_buckets, agent_row=agent.id, hashes=hashes)
            buckets = await self._database.read(reading, deadline_ms=deadline_ms)
            # A segment that was made since is left out: the memory has its chunks.
            current_rows = [
                (bucket, number, data)
                for bucket, number, stamp, data in buckets.rows
                if segments.get(number) == stamp
            ]
            bucket_count = len({bucket for bucket, _, _ in current_rows})
            if current_rows and len(current_rows) == len(segments) * bucket_count:
                return memory, Buckets(current_rows, buckets.sizes, hashes)
            # A segment was dropped, or made again, after the numbers of the memory were read.
            self._memories.drop(agent.id)
            numbers = None
        raise TooSlow("the search index has changed meanwhile")

    async def load_messages(
        self, agent_row: int, memory: CachedMemory, seqs: Sequence[int], deadline_ms: float
    ) -> list[Message]:
        """Returns the messages with these numbers, in this order. Hidden messages are left out."""
        messages, unread = memory.find_messages(seqs)
        if unread:
            numbers = memory.numbers
            reading = partial(read_messages, agent_row=agent_row, seqs=unread, rules=self._rules)
            read_by_seq = await self._database.read(reading, deadline_ms=deadline_ms)
            by_seq = {m.seq: m for m in messages} | read_by_seq
            messages = [by_seq[seq] for seq in seqs if seq in by_seq]
            # If another search has updated the memory meanwhile, these messages may be from before the update.
            if memory.numbers is numbers:
                memory.cache_messages({seq: read_by_seq.get(seq) for seq in unread})
        if memory.has_grown:
            self._memories.update_size(memory)
        return messages


async def read_messages(
    connection: Connection, agent_row: int, seqs: Sequence[int], rules: Rules
) -> dict[int, Message]:
    """Returns the messages, passages and facts with these numbers that may be shown, by number."""
    seq_set = frozenset(seqs)
    rows = await connection.rows(exchanges.SQL["shown_at"], (agent_row, seqs))
    messages = {
        m.seq: m
        for e, is_shared, _ in exchanges.make_shown_exchanges(rows)
        for m in rules.messages_of(e, is_shared, None, seq_set)
    }
    if any(seq not in messages for seq in seqs):
        others = await load_passages_and_facts(
            connection, exchanges.SQL["passages_and_facts_at"], (agent_row, seqs)
        )
        messages.update({m.seq: m for m in others})
    return messages
