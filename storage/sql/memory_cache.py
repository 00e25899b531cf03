"""A process's cache of the memories used last: each memory's open index, its messages that are not indexed yet, and
the messages that queries have read.

The database holds all of this. An agent's numbers (`AgentNumbers`) show which parts of its cached memory are out of
date, also after writes of other processes. When a number has risen, so much is read again:

    epoch        everything: something was forgotten, or the memory was paused or resumed
    indexed_seq  chunks of the index written since; everything, if a chunk of a segment was written
    stamp        the same chunks, and all messages that are not indexed; messages read by queries are dropped
    next_seq     messages written since, unless the query leaves them out anyway

`stamp` rises with changes of searchable texts that take no new number: an exchange that is replaced, a fact that
ends or is muted, a text that is edited, a step of the index (the triggers `stamp_...` in the `schema.sql` of each
database, and `storage/sql/terms.sql`).

The numbers are read before the parts, so a part may be newer than its number, and never older. A turn that this process
has committed is handed on rather than read, if it opens a conversation. Only the event loop's thread uses the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from sys import getsizeof
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from storage.database import Connection, Row
from storage.records import MUTED, Agent, AgentNumbers, Exchange, ExchangeState, Message
from storage.search.blob import compute_chunk
from storage.search.document import Document, Indexable
from storage.search.index import Index
from storage.search.language import clear_words
from storage.search.segment import MIN_SEGMENTS, StampedDocuments, compute_segment
from storage.search.tail import Tail
from storage.sql.passages import load_passages_and_facts_since
from storage.sql.shown_exchanges import load_unindexed_exchanges
from storage.sql.terms import load_segments, load_terms_since, load_uncovered
from storage.sql.vector_cache import VectorCache
from storage.store_rules import Rules

# The bytes that all cached memories may take together. A memory of 10,000 messages takes some 6 MB; of a dozen messages
# that are not indexed, 13 kB; of two, 5 kB. A process with its cached snapshots and lists then takes some 150 MB.
CACHE_BYTES = 21 << 20
# The bytes of memories with segments in their indexes, besides: a memory of a million messages takes 18 MB.
LARGE_BYTES = 40 << 20
# The bytes that the messages read by queries may take in one memory.
_READ_BYTES = 2 << 20
# Measured: the bytes of a message besides its text, and of a hidden message.
_MESSAGE_BYTES = 300
_HIDDEN_BYTES = 100
# The most exchanges that are not indexed, and passages with facts, that are read at once; a query waits for no more.
_MAX_UNINDEXED_ROWS = 64


class MemoryChanges(Struct, frozen=True):
    """The changes of a memory between two reads."""

    # The numbers of the agent at the read before; None: there was no read before.
    since: AgentNumbers | None
    # The numbers of the agent at this read.
    numbers: AgentNumbers
    # The first number of a message that is not read.
    unread_from: int
    # The chunks of the index that changed: (chunk, stamp, bytes).
    terms: Sequence[Row]
    # Messages, passages and facts that are not indexed.
    unindexed: Sequence[Message] = ()
    # The segments of the index by number. Only the first read has them.
    segments: Mapping[int, StampedDocuments] = {}


class CachedMessages(NamedTuple):
    """The messages of some numbers, as far as they are cached, without hidden messages."""

    # The cached messages.
    messages: list[Message]
    # The numbers that have to be read.
    unread_seqs: list[int]


class _Unindexed(NamedTuple):
    """The messages, passages and facts that are not indexed, as far as they were read."""

    # The first number of a message that was not read.
    unread_from: int
    # The messages, passages and facts.
    messages: list[Message]


@dataclass(slots=True)
class CachedMemory:
    """A memory as far as it was read."""

    # The row of the memory's agent.
    agent_row: int
    # The search index of the memory.
    index: Index = field(default_factory=Index)
    # The agent's numbers for which all fields are right; None: nothing was read yet.
    numbers: AgentNumbers | None = None
    # The first number of a message that is not read.
    unread_from: int = 0
    # Messages, passages and facts that are not indexed, by their numbers.
    unindexed: dict[int, Message] = field(default_factory=dict)
    # The messages of `unindexed` with counted terms.
    tail: Tail = field(default_factory=Tail)
    # The messages of `unindexed` with terms that no query has needed.
    uncounted: list[Message] = field(default_factory=list)
    # The messages that were read because a query found them, by number; None: the message is hidden.
    read_messages: dict[int, Message | None] = field(default_factory=dict)
    # True if the memory may take more bytes than the cache has counted.
    has_grown: bool = True
    # The number of exchanges with messages in `unindexed`.
    _unindexed_exchanges: int = field(default=0, init=False)
    # The highest stamp of the index's chunks.
    _terms_stamp: int = field(default=-1, init=False)
    # The bytes that `unindexed` takes.
    _unindexed_bytes: int = field(default=0, init=False)
    # The bytes that `read_messages` takes.
    _read_bytes: int = field(default=0, init=False)

    @property
    def size_bytes(self) -> int:
        """An estimate of the memory that all fields take, in bytes."""
        return self.index.size_bytes + self.tail.size_bytes + self._unindexed_bytes + self._read_bytes

    @property
    def _is_full(self) -> bool:
        """True if no more exchanges that are not indexed are cached."""
        return self._unindexed_exchanges >= _MAX_UNINDEXED_ROWS

    def is_ready(self, current: AgentNumbers, skip: range) -> bool:
        """Returns whether a query can search this memory before anything more is read.

        current: the agent's present numbers.
        skip: the numbers of messages that the query leaves out.

        A full memory is ready without its newest messages, until they are indexed.
        """
        cached = self.numbers
        if cached is None or (cached.epoch, cached.indexed_seq, cached.stamp) != (
            current.epoch, current.indexed_seq, current.stamp,
        ):  # fmt: skip
            return False
        is_left_out = skip.start <= self.unread_from and current.next_seq <= skip.stop
        return self.unread_from >= current.next_seq or is_left_out or self._is_full

    def list_all_messages(self, current: AgentNumbers, skip: range) -> list[Message] | None:
        """Returns all messages but those in `skip`; None: some of them would have to be read.

        current: the agent's present numbers.
        """
        if current.indexed_seq or self._is_full or not self.is_ready(current, skip):
            return None
        return [
            message for seq, message in self.unindexed.items() if seq not in skip and message.kind != MUTED
        ]

    async def read_changes(
        self, connection: Connection, current: AgentNumbers, rules: Rules
    ) -> MemoryChanges:
        """Reads the changes since `self.numbers`, for `apply`. current: the agent's present numbers."""
        before = self.numbers
        indexed = current.indexed_seq
        has_same_stamp = before is not None and before.stamp == current.stamp
        has_same_index = has_same_stamp and before is not None and before.indexed_seq == indexed
        terms: Sequence[Row] = ()
        segments: Mapping[int, StampedDocuments] = {}
        if before is None and compute_segment(compute_chunk(indexed)) >= MIN_SEGMENTS:
            segments = await load_segments(connection, self.agent_row)
            terms = await load_uncovered(connection, self.agent_row, segments, compute_chunk(indexed))
        elif indexed and not has_same_index:
            terms = await load_terms_since(connection, self.agent_row, self._terms_stamp)
        start = max(indexed + 1, self.unread_from if has_same_stamp else 0)
        if has_same_stamp and start >= current.next_seq:
            return MemoryChanges(before, current, start, terms, segments=segments)
        unread_from, unindexed = await self._read_unindexed(connection, current, start, rules)
        return MemoryChanges(
            since=before,
            numbers=current,
            unread_from=unread_from,
            terms=terms,
            unindexed=unindexed,
            segments=segments,
        )

    async def _read_unindexed(
        self, connection: Connection, current: AgentNumbers, start: int, rules: Rules
    ) -> _Unindexed:
        """Returns the messages, passages and facts that are not indexed.

        start: the number from which on exchanges are read; earlier exchanges are read if they were changed since.
        """
        rows = await load_unindexed_exchanges(
            connection, self.agent_row, current.indexed_seq + 1, start, _MAX_UNINDEXED_ROWS
        )
        messages = [
            message for row in rows if _is_recallable(row[0]) for message in rules.list_messages(*row, None)
        ]
        following = [exchange for exchange, _, _ in rows if exchange.seq >= start]
        gapless_end = start
        for exchange in following:
            if exchange.seq == gapless_end:
                gapless_end = exchange.next_seq
        is_full_page = len(following) == _MAX_UNINDEXED_ROWS
        end = following[-1].next_seq if is_full_page else max(current.next_seq, gapless_end)
        # Numbers that no exchange has belong to passages and facts.
        if gapless_end < current.next_seq:
            passages_and_facts = await load_passages_and_facts_since(
                connection, self.agent_row, start, _MAX_UNINDEXED_ROWS
            )
            messages += passages_and_facts
            if len(passages_and_facts) == _MAX_UNINDEXED_ROWS:
                end = min(end, passages_and_facts[-1].seq + 1)  # the next query reads on from here
        # An open exchange has no content yet, so it is to be read again later.
        open_seqs = (exchange.seq for exchange in following if exchange.state is ExchangeState.OPEN)
        return _Unindexed(min([end, *open_seqs]), messages)

    def is_outdated_by(self, changes: MemoryChanges) -> bool:
        """Returns whether the whole memory has to be read again, since a segment is gone."""
        return self.index.is_outdated_by(chunk for chunk, _, _ in changes.terms)

    def apply(self, changes: MemoryChanges) -> bool:
        """Adds changes that were read. Returns False if others were applied meanwhile. Raises: CorruptIndex."""
        # Compared by identity, since each change of the memory makes a new object.
        if changes.since is not self.numbers:
            return False
        current = changes.numbers
        self.index.put(((chunk, data) for chunk, _, data in changes.terms), changes.segments)
        stamps = [segment.stamp for segment in changes.segments.values()]
        stamps += [stamp for _, stamp, _ in changes.terms]
        self._terms_stamp = max(stamps, default=self._terms_stamp)
        cached = self.numbers
        if cached is None or cached.stamp != current.stamp:
            self._drop_messages()
        elif cached.indexed_seq != current.indexed_seq:
            # Unindexed messages with lower numbers stay: their texts were changed after they were indexed.
            self._note_indexed(range(cached.indexed_seq + 1, current.indexed_seq + 1))
        for message in changes.unindexed:
            if self.unindexed.setdefault(message.seq, message) is message:
                self.uncounted.append(message)
        self.numbers = current
        self.unread_from = changes.unread_from
        self._unindexed_exchanges = len({message.exchange_row for message in self.unindexed.values()})
        self._unindexed_bytes = sum(map(_measure_message, self.unindexed.values()))
        self.has_grown = True
        return True

    def _drop_messages(self) -> None:
        """Drops all messages, unindexed messages included."""
        self.read_messages = {}
        self._read_bytes = 0
        self.unindexed = {}
        self.uncounted = []
        self.tail = Tail()

    def _note_indexed(self, seqs: range) -> None:
        """Notes that the index has the messages with these numbers now; they stay cached, as if they had been read."""
        indexed = {seq: message for seq, message in self.unindexed.items() if seq in seqs}
        self.cache_messages({seq: self._make_message_as_read(message) for seq, message in indexed.items()})
        self.unindexed = {seq: message for seq, message in self.unindexed.items() if seq not in indexed}
        self.tail = Tail()
        self.uncounted = list(self.unindexed.values())

    def add_exchange(self, exchange: Exchange, rules: Rules) -> None:
        """Adds an exchange that was just committed; does nothing if the exchange has to be read from the database.

        An exchange has to be read if it does not follow the cached exchanges, is open, or has messages made elsewhere.
        """
        if (
            self.numbers is None
            or exchange.seq != self.unread_from
            or exchange.state is ExchangeState.OPEN
            or exchange.prefix_length
        ):
            return
        if _is_recallable(exchange):
            if self._is_full:
                return
            self._unindexed_exchanges += 1
            for message in rules.list_messages(exchange, False, None, None):
                self.unindexed[message.seq] = message
                self.uncounted.append(message)
                self._unindexed_bytes += _measure_message(message)
        self.unread_from = exchange.next_seq
        # A new object, so that `apply` refuses changes that are being read: they lack this exchange.
        self.numbers = self.numbers._replace(next_seq=self.unread_from)

    def extend_tail(self, skip: range) -> Tail:
        """Counts the terms of all unindexed messages but those in `skip`. Returns the tail."""
        uncounted: list[Message] = []
        for message in self.uncounted:
            if message.seq in skip:
                uncounted.append(message)
            else:
                self.tail.add(message)
                self.has_grown = True
        self.uncounted = uncounted
        return self.tail

    def find_messages(self, seqs: Sequence[int]) -> CachedMessages:
        """Returns the messages with these numbers as far as they are cached."""
        messages: list[Message] = []
        unread_seqs: list[int] = []
        for seq in seqs:
            message = self.unindexed.get(seq) or self.read_messages.get(seq)
            if message is not None:
                messages.append(message)
            elif seq not in self.read_messages:
                unread_seqs.append(seq)
        return CachedMessages(messages, unread_seqs)

    def cache_messages(self, messages: Mapping[int, Message | None]) -> None:
        """Caches messages that were read because a query found them; None: the message is hidden."""
        self.has_grown = True
        for seq, message in messages.items():
            if seq in self.read_messages:
                self._read_bytes -= _measure_message(self.read_messages.pop(seq))
            self.read_messages[seq] = message
            self._read_bytes += _measure_message(message)
        while self._read_bytes > _READ_BYTES and len(self.read_messages) > 1:
            self._read_bytes -= _measure_message(self.read_messages.pop(next(iter(self.read_messages))))

    def _make_message_as_read(self, message: Message) -> Message:
        """Returns a message as it is read by its number: without a `previous` of another exchange."""
        previous = None if message.previous is None else self.unindexed.get(message.previous)
        is_known = previous is not None and previous.exchange_row == message.exchange_row
        return message if is_known else replace(message, previous=None)


class _SizedCache:
    """The memories used last, up to a limit in bytes. The newest memory stays even if it is over the limit alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        # Each memory with its bytes when they were last counted.
        self._memories: OrderedDict[int, tuple[CachedMemory, int]] = OrderedDict()
        self._bytes = 0

    def get(self, agent_row: int) -> CachedMemory | None:
        """Returns a memory, which counts as used last."""
        memory = self._memories.get(agent_row)
        if memory is None:
            return None
        self._memories.move_to_end(agent_row)
        return memory[0]

    def put(self, memory: CachedMemory) -> None:
        """Caches a memory, which counts as used last, or counts its bytes again."""
        self.drop(memory.agent_row)
        size_bytes = memory.size_bytes
        memory.has_grown = False
        self._memories[memory.agent_row] = memory, size_bytes
        self._bytes += size_bytes
        while self._bytes > self._limit_bytes and len(self._memories) > 1:
            self.drop(next(iter(self._memories)))

    def drop(self, agent_row: int) -> None:
        memory = self._memories.pop(agent_row, None)
        if memory is not None:
            self._bytes -= memory[1]

    def clear(self) -> None:
        self._memories.clear()
        self._bytes = 0


class MemoryCache:
    """The memories used last, as many as fit, and their vectors, which are read only where they are needed.

    drop_count: the number of times that a memory was dropped because its cached content may be wrong.
    """

    def __init__(self, rules: Rules, limit_bytes: int = CACHE_BYTES) -> None:
        self.vectors = VectorCache()
        self._rules = rules
        # A memory with segments takes as much as a thousand others, so neither kind may drop the other.
        self._small = _SizedCache(limit_bytes)
        self._large = _SizedCache(LARGE_BYTES)
        self.drop_count = 0

    def get(self, agent_row: int) -> CachedMemory | None:
        """Returns a memory, which counts as used last; None: the memory is not cached."""
        return self._small.get(agent_row) or self._large.get(agent_row)

    def put(self, memory: CachedMemory) -> None:
        """Caches a memory, or counts its bytes again."""
        self._drop_memory(memory.agent_row)
        (self._large if memory.index.segments else self._small).put(memory)

    def update_size(self, memory: CachedMemory) -> None:
        """Counts the present bytes of a memory that may have grown, and makes room for it."""
        if self.get(memory.agent_row) is memory:
            self.put(memory)

    def add_committed(self, agent: Agent, exchange: Exchange) -> None:
        """Adds a committed exchange to its cached memory, if it opens a conversation, so that no query has to read it.

        A later exchange of a conversation is read from the database: queries leave the present conversation out, so
        nothing of it is needed until another begins. The first turn of a memory puts the memory into the cache, since
        the turn is all that the memory has.
        """
        if exchange.parent is not None:
            return
        memory = self.get(agent.id)
        if memory is None and exchange.seq == 1:
            # The turn took the first number, so nothing was indexed before. This cache never compares `rev`. If the
            # stamp is not 0 any more, the next query reads the memory.
            memory = CachedMemory(
                agent.id,
                numbers=AgentNumbers(agent.epoch, next_seq=1, indexed_seq=0, rev=0, stamp=0),
                unread_from=1,
            )
            self.put(memory)
        if memory is None or memory.numbers is None or memory.numbers.epoch != agent.epoch:
            return
        memory.add_exchange(exchange, self._rules)
        self.update_size(memory)

    def drop(self, agent_row: int) -> None:
        """Drops a memory of which something was forgotten."""
        self.drop_count += 1
        self._drop_memory(agent_row)

    def clear(self) -> None:
        """Drops all memories, and the cached words of messages as well."""
        clear_words()
        self.vectors.clear()
        self.drop_count += 1
        self._small.clear()
        self._large.clear()

    def _drop_memory(self, agent_row: int) -> None:
        self._small.drop(agent_row)
        self._large.drop(agent_row)


def make_document(message: Indexable) -> Document:
    """Returns a message as the index reads it."""
    return Document(message.seq, message.role, message.text, message.at, message.speaker, message.previous)


def _is_recallable(exchange: Exchange) -> bool:
    return exchange.active and exchange.state is ExchangeState.FINISHED


def _measure_message(message: Message | None) -> int:
    return _HIDDEN_BYTES if message is None else _MESSAGE_BYTES + getsizeof(message.text)
