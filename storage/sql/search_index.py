"""The upkeep of a memory's search index, in steps: new texts are indexed, changed texts are indexed again.

A step is a read, a count of words in the event loop, and a transaction that gives way to turns. The messages with
higher numbers are left to the next step; a search reads them besides the index meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from storage.database import Connection, Database
from storage.records import Agent, AgentNumbers, Message
from storage.search import blob
from storage.search.document import CountedDocument, Document, count_terms, mark_names
from storage.search.segment import Segment, list_segment_chunks, make_segment
from storage.sql.agents import find_agent_by_id, find_numbers, lock_numbers, set_indexed
from storage.sql.exchange_rows import ShownExchange
from storage.sql.group import bulk_writes, long_reads, reads
from storage.sql.growth import GrowingGroup, Growth
from storage.sql.memory_cache import MemoryCache, make_document
from storage.sql.passages import load_passages_and_facts_since
from storage.sql.shown_exchanges import load_exchanges_since, load_stale_exchanges
from storage.sql.statements import load, load_column
from storage.sql.terms import (
    add_segment,
    empty_damaged_chunks,
    find_terms,
    find_unsegmented,
    load_terms_between,
    replace_terms,
)
from storage.sql.vector_chunks import forget_indexed, move_cursor_back
from storage.store_rules import Rules

SQL = load("search_index.sql")

# Exchanges indexed in one write. SQLite's writer takes 1 ms for them and the loop 0.3 ms to read them; for 64 it is 2.7
# and 1 ms, and all of an index takes a tenth less.
_STEP_EXCHANGES = 16
# Passages and facts indexed in one write: a part of a file has 2,000 characters, which take 0.4 ms.
_STEP_PASSAGES = 64
# A round of the loop that takes longer shows that the loop is busy.
_BUSY_S = 0.005
# The messages that are counted in a round of a busy loop, in 0.7 ms: with one message a round the index would lag.
_BUSY_MESSAGES = 16


class _Unindexed(NamedTuple):
    """The next messages that the index of an agent lacks."""

    # The agent, with its present numbers.
    agent: Agent
    # The messages as documents.
    documents: list[Document]


class _NextTexts(NamedTuple):
    """The texts that a step adds to an index: all that the index lacks up to a number."""

    # The exchanges up to the number.
    exchanges: list[ShownExchange]
    # The passages and facts up to the number.
    passages: list[Message]
    # The number, which the index has reached after the step.
    end_seq: int
    # True if the memory may have texts with higher numbers that can be indexed now.
    has_more: bool


class _MadeSegment(NamedTuple):
    """A segment to be stored."""

    # The number of the segment.
    number: int
    # The stamp of the chunk that was written last of those that the segment has.
    stamp: int
    # The documents of the segment.
    segment: Segment


class SearchIndex(GrowingGroup):
    """Brings the index of each memory up to its stored texts."""

    def __init__(self, database: Database, growth: Growth, memories: MemoryCache, rules: Rules) -> None:
        super().__init__(database, growth)
        self._rules = rules
        self._memories = memories

    @reads
    async def count_backlog(self, connection: Connection, agent_row: int) -> int:
        """Returns how many messages, passages and facts the search index of an agent lacks; 0: the agent is gone."""
        numbers = await find_numbers(connection, agent_row)
        return 0 if numbers is None else numbers.next_seq - 1 - numbers.indexed_seq

    @long_reads
    async def find_lagging_agents(self, connection: Connection, at_least: int, limit: int) -> list[int]:
        """Returns agents with an index that lacks at least so many messages."""
        return await load_column(connection, SQL["unindexed_agents"], (at_least, limit))

    async def advance(self, agent_row: int, give_way: Callable[[], Awaitable[None]] | None = None) -> bool:
        """Brings the search index a step further. Returns True while there is more. Raises: StoreUnavailable.

        give_way: awaited between two messages, to leave the loop to turns; None: a round of the loop passes.
        """
        unindexed = await self._read_unindexed(agent_row)
        if unindexed is None:
            return False
        agent, documents = unindexed
        counted = await self._count_words(agent_row, documents, give_way)
        return await self._write_step(agent, counted) or await self._add_segment(agent_row)

    async def empty_damaged_chunks(self, agent_row: int) -> None:
        """Empties the damaged chunks of the search index. The next steps of `advance` make them again."""

        async def empty(connection: Connection) -> None:
            await connection.lock(agent_row)
            await empty_damaged_chunks(connection, agent_row)

        await self._grow(agent_row, 0, self._database.bulk_write(empty))
        self._memories.drop(agent_row)

    @reads
    async def _read_unindexed(self, connection: Connection, agent_row: int) -> _Unindexed | None:
        """Returns an agent with the next messages that its index lacks; None: the agent is gone."""
        agent = await find_agent_by_id(connection, agent_row)
        if agent is None:
            return None
        first = agent.indexed_seq + 1
        shown_exchanges = await load_exchanges_since(connection, agent_row, first, _STEP_EXCHANGES)
        passages = await load_passages_and_facts_since(connection, agent_row, first, _STEP_PASSAGES)
        return _Unindexed(agent, [*self._make_documents(shown_exchanges), *map(make_document, passages)])

    async def _count_words(
        self, agent_row: int, documents: Sequence[Document], give_way: Callable[[], Awaitable[None]] | None
    ) -> dict[Document, CountedDocument]:
        """Counts the words of documents, unless queries have counted them already. give_way: as in `advance`.

        Counting takes most of a step's time. Within the transaction turns would wait for all of it.
        """
        memory = self._memories.get(agent_row)
        already_counted: dict[Document, CountedDocument] = {}
        if memory is not None:
            already_counted = dict(
                zip(
                    map(make_document, memory.tail.documents),
                    memory.tail.list_counted_documents(),
                    strict=True,
                )
            )
        counted: dict[Document, CountedDocument] = {}
        loop = asyncio.get_running_loop()
        is_busy = False
        for number, document in enumerate(documents):
            counted[document] = mark_names(already_counted.get(document) or count_terms(document), document)
            if give_way is not None:
                await give_way()
            elif not is_busy or number % _BUSY_MESSAGES == 0:
                begun = loop.time()
                await asyncio.sleep(0)
                is_busy = loop.time() - begun > _BUSY_S
        return counted

    @bulk_writes
    async def _write_step(
        self, connection: Connection, agent: Agent, counted: Mapping[Document, CountedDocument]
    ) -> bool:
        """Writes a step of the index. Returns True while there is more.

        counted: documents that need not be counted within the transaction.
        """
        numbers = await lock_numbers(connection, agent.id)
        if numbers is None:
            return False
        stale_rows = await load_column(connection, SQL["stale"], (agent.id, _STEP_EXCHANGES))
        outdated: list[ShownExchange] = []
        if stale_rows:
            outdated = await _remove_from_index(connection, agent.id, stale_rows, numbers.indexed_seq)
        added = await _load_next_texts(connection, agent.id, numbers)
        documents = self._make_documents((*outdated, *added.exchanges))
        documents += map(make_document, added.passages)
        if not await _merge_terms(connection, agent.id, blob.encode(documents, agent.secret, counted)):
            return True
        for exchange_row in stale_rows:
            await connection.run(SQL["stale_done"], (agent.id, exchange_row))
        if added.end_seq > numbers.indexed_seq:
            await set_indexed(connection, agent.id, added.end_seq)
        return added.has_more or len(stale_rows) == _STEP_EXCHANGES

    def _make_documents(self, shown_exchanges: Iterable[ShownExchange]) -> list[Document]:
        return [
            make_document(message)
            for shown_exchange in shown_exchanges
            if shown_exchange.exchange.active and shown_exchange.exchange.state == "finished"
            for message in self._rules.list_messages(
                shown_exchange.exchange, False, shown_exchange.previous_seq, None
            )
        ]

    async def _add_segment(self, agent_row: int) -> bool:
        """Makes a segment of the search index, if one can be made. Returns whether there is more to do."""

        async def make(connection: Connection) -> _MadeSegment | None:
            agent = await find_agent_by_id(connection, agent_row)
            if agent is None:
                return None
            number = await find_unsegmented(connection, agent_row, agent.indexed_seq)
            if number is None:
                return None
            rows = await load_terms_between(connection, agent_row, list_segment_chunks(number))
            segment = make_segment(number, ((chunk, data) for chunk, _, data in rows))
            return _MadeSegment(number, max((stamp for _, stamp, _ in rows), default=0), segment)

        try:
            made_segment = await self._database.long_read(make)
        except blob.CorruptIndex:
            await self.empty_damaged_chunks(agent_row)
            return True
        if made_segment is None:
            return False
        await self._write_segment(agent_row, made_segment)
        return True

    @bulk_writes
    async def _write_segment(
        self, connection: Connection, agent_row: int, made_segment: _MadeSegment
    ) -> None:
        await connection.lock(agent_row)
        # Nothing may stay of a memory that is gone by now.
        if await find_agent_by_id(connection, agent_row) is not None:
            await add_segment(
                connection, agent_row, made_segment.number, made_segment.stamp, made_segment.segment
            )


async def _load_next_texts(connection: Connection, agent_row: int, numbers: AgentNumbers) -> _NextTexts:
    """Returns the texts after those that an index has, for one step."""
    first = numbers.indexed_seq + 1
    exchanges = await load_exchanges_since(connection, agent_row, first, _STEP_EXCHANGES)
    passages = await load_passages_and_facts_since(connection, agent_row, first, _STEP_PASSAGES)
    has_more = len(exchanges) == _STEP_EXCHANGES
    if has_more:
        end_seq = max(shown_exchange.exchange.reply_seq for shown_exchange in exchanges)
    else:
        end_seq = await _compute_last_indexable(connection, agent_row, numbers.next_seq)
    if len(passages) == _STEP_PASSAGES and passages[-1].seq < end_seq:
        end_seq = passages[-1].seq
        has_more = True
    return _NextTexts(
        [shown_exchange for shown_exchange in exchanges if shown_exchange.exchange.seq <= end_seq],
        [passage for passage in passages if passage.seq <= end_seq],
        end_seq,
        has_more,
    )


async def _compute_last_indexable(connection: Connection, agent_row: int, next_seq: int) -> int:
    """Returns the last number up to which messages can be indexed now. next_seq: the agent's next number.

    A message that is being answered is indexed together with its reply. Otherwise its chunk would be written twice, and
    the cached parts of the memory would be dropped for it.
    """
    under_way: int | None = await connection.fetch_value(SQL["under_way"], (agent_row, next_seq))
    return (next_seq if under_way is None else under_way) - 1


async def _remove_from_index(
    connection: Connection, agent_row: int, stale_rows: Sequence[int], indexed_seq: int
) -> list[ShownExchange]:
    """Removes exchanges that have changed from the index. Returns the exchanges that have to be indexed again.

    indexed_seq: the last number that the index knows. Later exchanges are left out: they are indexed as they are then.
    """
    shown_exchanges = await load_stale_exchanges(connection, agent_row, stale_rows)
    outdated = [
        shown_exchange for shown_exchange in shown_exchanges if shown_exchange.exchange.seq <= indexed_seq
    ]
    for shown_exchange in outdated:
        exchange = shown_exchange.exchange
        await forget_indexed(connection, agent_row, range(exchange.seq, exchange.next_seq))
        await move_cursor_back(connection, agent_row, exchange.seq)
    return outdated


async def _merge_terms(connection: Connection, agent_row: int, blobs: Mapping[int, bytes]) -> bool:
    """Merges blobs into the chunks of the index. Returns False if a chunk is damaged.

    The next steps index its messages again.
    """
    for chunk, data in blobs.items():
        try:
            merged = blob.merge(await find_terms(connection, agent_row, chunk), data)
        except blob.CorruptIndex:
            await empty_damaged_chunks(connection, agent_row)
            return False
        await replace_terms(connection, agent_row, chunk, merged)
    return True
