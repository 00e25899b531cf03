"""Vectors of messages: their chunks, the comparison with a query's vector, and how far a memory has been embedded.

A chunk of an agent's messages is one blob (storage/search/vector_blobs.py). A message that is taken out of the search
index loses its vector in the same transaction (`forget_indexed`).

All that the search index holds is embedded: passages, facts and finished exchanges, including inactive exchanges, which
may become active. The cursor, in the table `embedded`, is the number of the last embedded message. It moves back when a
text or the embedder changes; messages that still have a vector are skipped.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from storage.database import BACKGROUND_READ_MS, Connection, Database
from storage.reader_commands import UnembeddedMessages
from storage.records import Vector, VectorSimilarities
from storage.search import vector_blobs
from storage.search.blob import CorruptIndex, compute_chunk, group_by_chunk
from storage.sql.agents import find_agent_by_id
from storage.sql.group import StoreGroup, as_method, long_reads, makes_effect, reads
from storage.sql.passages import load_passages_and_facts_since
from storage.sql.shown_exchanges import load_exchanges_since
from storage.sql.statements import load, load_column, load_rows
from storage.sql.terms import forget_terms, get_covered
from storage.store_rules import Rules

SQL = load("vectors.sql")

# The most exchanges, and the most passages with facts, that are read at once.
_MAX_EXCHANGES = 32
_MAX_PASSAGES = 64
# The most chunks of other models that one write deletes. A chunk has some 60 kB.
_MAX_OLD_CHUNKS = 8

# The most bytes of cached vectors. Measured: 10,000 vectors of 256 numbers are read in some 10 ms, and compared in half
# a millisecond.
CACHE_BYTES = 64 << 20


class _Progress(NamedTuple):
    """The progress of the embedding of a memory: its row in `embedded`."""

    # The name of the embedder (`Vector.model`).
    model: str
    # The dimension of the vectors; 0: not known yet.
    dimension: int
    # The number up to which all messages are embedded.
    cursor: int
    # A number that each change of the row or of a vector raises.
    stamp: int


class _CachedChunk(NamedTuple):
    """A chunk among the cached vectors of an agent."""

    # `_Progress.stamp` as the chunk's last write made it.
    stamp: int
    # The first of the chunk's rows in `_CachedVectors.joined`.
    start: int
    # The row after the last of the chunk's rows.
    end: int


class _CachedVectors(Struct, frozen=True):
    """An agent's vectors in one piece."""

    # `_Progress.stamp` when they were read.
    stamp: int
    # The chunks by their numbers.
    chunks: dict[int, _CachedChunk]
    # The vectors of all chunks.
    joined: vector_blobs.JoinedVectors

    def find_chunk(self, number: int, stamp: int) -> vector_blobs.VectorRows | None:
        """Returns a chunk as it was last written with this stamp; None: the chunk is not cached."""
        cached = self.chunks.get(number)
        if cached is None or cached.stamp != stamp:
            return None
        return self.joined.rows.slice_rows(cached.start, cached.end)


class VectorCache:
    """The vectors of the memories used last, by agent and model. Two threads use it."""

    def __init__(self) -> None:
        # The number of times that the cache was cleared because it might hold forgotten content.
        self.clear_count = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[int, str], _CachedVectors] = OrderedDict()
        self._size_bytes = 0

    def get(self, agent_row: int, model: str) -> _CachedVectors | None:
        """Returns the cached vectors of a memory, which count as used last."""
        with self._lock:
            entry = self._entries.get((agent_row, model))
            if entry is not None:
                self._entries.move_to_end((agent_row, model))
            return entry

    def put(self, agent_row: int, model: str, cached: _CachedVectors, since: int) -> None:
        """Caches vectors, which count as used last. The newest stay even if they alone are too large.

        since: `clear_count` before the vectors were read; if it has risen, they are not cached.
        """
        with self._lock:
            if since != self.clear_count:
                return
            self._drop_entry((agent_row, model))
            self._entries[agent_row, model] = cached
            self._size_bytes += cached.joined.size_bytes
            while self._size_bytes > CACHE_BYTES and len(self._entries) > 1:
                self._drop_entry(next(iter(self._entries)))

    def clear(self) -> None:
        """Empties the cache. Vectors that are being read now are not cached."""
        with self._lock:
            self.clear_count += 1
            self._entries.clear()
            self._size_bytes = 0

    def _drop_entry(self, key: tuple[int, str]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size_bytes -= entry.joined.size_bytes


async def find_joined(
    connection: Connection, cache: VectorCache, agent_row: int, model: str
) -> vector_blobs.JoinedVectors | None:
    """Returns the agent's vectors of a model, from the cache if that is up to date; None: there are no vectors."""
    since = cache.clear_count
    progress = await _find_progress(connection, agent_row)
    if progress is None or progress.model != model:
        return None
    cached = cache.get(agent_row, model)
    if cached is None or cached.stamp != progress.stamp:
        cached = await _find_vectors(connection, agent_row, progress, cached)
        if cached is None:
            return None
        cache.put(agent_row, model, cached, since)
    return cached.joined


async def find_similarities(
    connection: Connection, cache: VectorCache, agent_row: int, query: Vector
) -> VectorSimilarities | None:
    """Returns the similarities of the agent's messages to a query; None: no message has a vector of its model."""
    joined = await find_joined(connection, cache, agent_row, query.model)
    return None if joined is None else vector_blobs.compare(joined, query)


async def _find_progress(connection: Connection, agent_row: int) -> _Progress | None:
    row = await connection.fetch_row(SQL["state"], (agent_row,))
    return None if row is None else _Progress(*row)


async def _find_vectors(
    connection: Connection, agent_row: int, progress: _Progress, cached: _CachedVectors | None
) -> _CachedVectors | None:
    """Returns all vectors as they are now. Chunks that have not changed since they were cached are not read again."""
    loaded: list[vector_blobs.VectorRows] = []
    chunks: dict[int, _CachedChunk] = {}
    row_count = 0
    for number, stamp in await connection.fetch_rows(SQL["chunks"], (agent_row, progress.model)):
        chunk = None if cached is None else cached.find_chunk(number, stamp)
        if chunk is None:
            chunk = await _read_chunk(connection, agent_row, number, progress.model)
        if chunk is not None and chunk.dimension == progress.dimension:
            loaded.append(chunk)
            chunks[number] = _CachedChunk(stamp, row_count, row_count + len(chunk))
            row_count += len(chunk)
    return _CachedVectors(progress.stamp, chunks, vector_blobs.join(loaded)) if loaded else None


async def _read_chunk(
    connection: Connection, agent_row: int, number: int, model: str
) -> vector_blobs.VectorRows | None:
    """Returns a chunk; None: there is no chunk, or it is damaged, and its next write mends it."""
    row = await connection.fetch_row(SQL["get"], (agent_row, number, model))
    try:
        return None if row is None else vector_blobs.read_vectors(row[0])
    except CorruptIndex:
        return None


async def add_vectors(
    connection: Connection, agent_row: int, model: str, stamp: int, added: Mapping[int, bytes]
) -> int | None:
    """Writes vectors. Returns the first chunk that was damaged: its messages are to be embedded again.

    stamp: the stamp of the progress that the write has made.
    added: float32 of one length, by the number of the message.
    """
    damaged: int | None = None
    for number, seqs in group_by_chunk(added).items():
        chunk_vectors = {seq: added[seq] for seq in seqs}
        row = await connection.fetch_row(SQL["any"], (agent_row, number))
        try:
            data = vector_blobs.merge(row[0] if row is not None and row[1] == model else None, chunk_vectors)
        except CorruptIndex:
            data = vector_blobs.merge(None, chunk_vectors)
            damaged = number if damaged is None else min(number, damaged)
        await connection.run(SQL["put"], (agent_row, number, stamp, model, data))
    return damaged


async def begin_embedding_at(connection: Connection, agent_row: int, seq: int) -> None:
    """Has a memory embedded again from a number on, since a text with this or a later number has changed."""
    await connection.run(SQL["indexed_again"], (seq - 1, agent_row))


async def forget_indexed(connection: Connection, agent_row: int, seqs: Collection[int]) -> None:
    """Removes these messages from the search index, and their vectors."""
    await forget_terms(connection, agent_row, seqs)
    stamp: int | None = None
    for number, chunk_seqs in group_by_chunk(seqs).items():
        row = await connection.fetch_row(SQL["any"], (agent_row, number))
        if row is None:
            continue
        try:
            remaining = vector_blobs.forget(row[0], chunk_seqs)
        except CorruptIndex:
            # The content of the chunk is unknown, so nothing of it may stay.
            remaining = b""
            await begin_embedding_at(
                connection, agent_row, await get_covered(connection, agent_row, number) + 1
            )
        if stamp is None:
            stamp = await connection.fetch_value(SQL["changed"], (agent_row,)) or 0
        if remaining:
            await connection.run(SQL["put"], (agent_row, number, stamp, row[1], remaining))
        else:
            await connection.run(SQL["drop"], (agent_row, number))


async def _lacks_vectors(connection: Connection, agent_row: int, model: str) -> bool:
    """Returns whether something that is indexed of a memory lacks a vector of this model."""
    return bool(await connection.fetch_value(SQL["lacks"], (model, agent_row)))


class Vectors(StoreGroup):
    """Vectors of memories, and the progress of embedding. Forgotten or changed messages lose their vectors."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    async def find_unembedded(self, agent_row: int, model: str) -> UnembeddedMessages | None:
        """Returns the next messages without a vector of this model; None: the agent is gone."""
        return await self._database.long_read(
            lambda connection: self._find_unembedded(connection, agent_row, model),
            deadline_ms=BACKGROUND_READ_MS,
        )

    async def _find_unembedded(
        self, connection: Connection, agent_row: int, model: str
    ) -> UnembeddedMessages | None:
        agent = await find_agent_by_id(connection, agent_row)
        if agent is None:
            return None
        progress = await _find_progress(connection, agent_row)
        if progress is None or progress.model != model:
            return UnembeddedMessages(agent, model, 0, 0, 0, is_new=True)
        cursor = progress.cursor
        upto = max(cursor, agent.indexed_seq)
        exchanges = [
            exchange
            for exchange, _, _ in await load_exchanges_since(
                connection, agent_row, cursor + 1, _MAX_EXCHANGES
            )
        ]
        if len(exchanges) == _MAX_EXCHANGES:
            upto = min(upto, exchanges[-1].reply_seq)
        passages_and_facts = await load_passages_and_facts_since(
            connection, agent_row, cursor + 1, _MAX_PASSAGES
        )
        if len(passages_and_facts) == _MAX_PASSAGES:
            upto = min(upto, passages_and_facts[-1].seq)
        messages = [
            message
            for exchange in exchanges
            if exchange.seq <= upto
            for message in self._rules.list_messages(exchange, False, None, None)
        ]
        messages += [message for message in passages_and_facts if message.seq <= upto]
        embedded: set[int] = set()
        for number in {compute_chunk(message.seq) for message in messages}:
            chunk = await _read_chunk(connection, agent_row, number, model)
            if chunk is not None and chunk.dimension == progress.dimension:
                embedded.update(chunk.seqs.tolist())
        messages = [message for message in messages if message.seq not in embedded]
        return UnembeddedMessages(
            agent=agent, model=model, cursor=cursor, upto=upto, stamp=progress.stamp, messages=messages
        )

    @makes_effect
    async def make_begin_effect(self, connection: Connection, agent_row: int, model: str) -> None:
        """Returns the effect that begins to embed a memory with a model, from the memory's first message on."""
        await connection.lock(agent_row)
        await connection.run(SQL["begin"], (agent_row, model, 0))

    @makes_effect
    async def make_add_effect(
        self, connection: Connection, unembedded: UnembeddedMessages, added: Mapping[int, bytes]
    ) -> bool:
        """Returns the effect that adds vectors.

        The effect does nothing if something has changed since `unembedded` was read, and begins again if the model's
        vectors have another length than before. It returns whether an indexed message still lacks a vector.

        added: float32 of one length, by the number of the message.
        """
        await connection.lock(unembedded.agent.id)
        await _add_embedded(connection, unembedded, added)
        return await _lacks_vectors(connection, unembedded.agent.id, unembedded.model)

    @reads
    async def has(self, connection: Connection, agent_rows: Sequence[int], model: str) -> bool:
        """Returns whether a model has embedded anything of any of these memories."""
        return bool(await load_rows(connection, SQL["embedded"], agent_rows, model))

    lacks = reads(as_method(_lacks_vectors))

    @long_reads
    async def find_agents_to_embed(self, connection: Connection, model: str, limit: int) -> list[int]:
        """Returns memories that span conversations, can be reached, and are not wholly embedded by a model."""
        return await load_column(connection, SQL["unembedded_agents"], (model, limit))


async def _add_embedded(
    connection: Connection, unembedded: UnembeddedMessages, added: Mapping[int, bytes]
) -> None:
    agent_row, model = unembedded.agent.id, unembedded.model
    progress = await _find_progress(connection, agent_row)
    if progress is None or (progress.model, progress.stamp) != (model, unembedded.stamp):
        return
    dimension = len(next(iter(added.values()))) // 4 if added else progress.dimension
    if progress.dimension not in (0, dimension) and unembedded.cursor:
        await connection.run(SQL["begin"], (agent_row, model, dimension))
        return
    stamp = await connection.fetch_value(SQL["advance"], (dimension, unembedded.upto, agent_row))
    damaged = await add_vectors(connection, agent_row, model, stamp, added)
    if damaged is not None:
        await begin_embedding_at(connection, agent_row, await get_covered(connection, agent_row, damaged) + 1)
    await connection.run(
        SQL["drop_others"], (agent_row, model, compute_chunk(unembedded.upto), _MAX_OLD_CHUNKS)
    )
