"""Vectors of messages: where they lie, the comparison with a query's, and how far a memory has been embedded.

They lie in a blob for each chunk of an agent, as storage/search/vector_blobs.py makes them. What leaves the search
index leaves here too (`forget_indexed`), in the same transaction.

The caller decides who embeds, and what a message of an exchange is. What the search index knows is embedded: finished
exchanges whether they stand or not, since that may change, passages and facts. It goes on from a number in the agent's
order. Where words change, or the embedder, that number goes back; messages that have a vector are passed over.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from storage.commands import Rules, Unembedded
from storage.database import Connection, Database
from storage.records import Vector
from storage.search import vector_blobs
from storage.search.blob import CHUNK, CorruptIndex, by_chunk, chunk_of
from storage.search.scores import Near
from storage.sql import exchanges
from storage.sql.agents import load_agent
from storage.sql.group import Group, effect, reads
from storage.sql.passages import load_passages_and_facts
from storage.sql.statements import load
from storage.sql.terms import forget_terms

SQL = load("vectors.sql")

# Exchanges, and passages with facts, that are read at once.
_BATCH = 32
_MOST_PASSAGES = 64
# Chunks of another model that go with one write, of some 60 kB each.
_OTHERS = 8
_READ_MS = 5_000.0

# Measured: reading 10,000 vectors of 256 numbers takes some 10 ms, comparing them half of one.
CACHE_BYTES = 64 << 20


class _Progress(NamedTuple):
    """How far a memory has been embedded: its row in `embedded`."""

    model: str
    # 0: not known yet.
    dimension: int
    # The last number up to which all messages are embedded.
    cursor: int
    # Rises with each change of the row or of a vector.
    stamp: int


class _CachedChunk(NamedTuple):
    """A chunk among the cached vectors of an agent."""

    # As it was when the chunk was written.
    stamp: int
    # Its rows in `_CachedVectors.joined`, the last one exclusive.
    start: int
    end: int


class _CachedVectors(Struct, frozen=True):
    """An agent's vectors in one piece."""

    # As it was when they were read.
    stamp: int
    # By number.
    chunks: dict[int, _CachedChunk]
    joined: vector_blobs.Joined


class VectorCache:
    """The vectors of the memories asked last, by agent and model. Two threads use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[int, str], _CachedVectors] = OrderedDict()
        self._bytes = 0

    def get(self, agent: int, model: str) -> _CachedVectors | None:
        with self._lock:
            found = self._entries.get((agent, model))
            if found is not None:
                self._entries.move_to_end((agent, model))
            return found

    def put(self, agent: int, model: str, cached: _CachedVectors) -> None:
        with self._lock:
            self._drop((agent, model))
            self._entries[agent, model] = cached
            self._bytes += cached.joined.size
            while self._bytes > CACHE_BYTES and self._entries:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _drop(self, name: tuple[int, str]) -> None:
        found = self._entries.pop(name, None)
        if found is not None:
            self._bytes -= found.joined.size


async def find_near(connection: Connection, cache: VectorCache, agent: int, query: Vector) -> Near | None:
    """Returns how far the agent's messages stand out; None where none has a vector of this model."""
    progress = await _load_progress(connection, agent)
    if progress is None or progress.model != query.model:
        return None
    cached = cache.get(agent, query.model)
    if cached is None or cached.stamp != progress.stamp:
        cached = await _load_vectors(connection, agent, progress, cached)
        if cached is None:
            return None
        cache.put(agent, query.model, cached)
    return vector_blobs.compare(cached.joined, query)


async def _load_progress(connection: Connection, agent: int) -> _Progress | None:
    row = await connection.row(SQL["state"], (agent,))
    return None if row is None else _Progress(*row)


async def _load_vectors(
    connection: Connection, agent: int, progress: _Progress, before: _CachedVectors | None
) -> _CachedVectors | None:
    """Returns all vectors as they are now. Chunks that have not changed since `before` are not read again."""
    found: list[vector_blobs.Chunk] = []
    chunks: dict[int, _CachedChunk] = {}
    rows = 0
    for number, stamp in await connection.rows(SQL["chunks"], (agent, progress.model)):
        cached = before.chunks.get(number) if before is not None else None
        if before is not None and cached is not None and cached.stamp == stamp:
            chunk = before.joined.all.part(cached.start, cached.end)
        else:
            read = await _read_chunk(connection, agent, number, progress.model)
            if read is None:
                continue
            chunk = read
        if chunk.dimension == progress.dimension:
            found.append(chunk)
            chunks[number] = _CachedChunk(stamp, rows, rows + len(chunk))
            rows += len(chunk)
    return _CachedVectors(progress.stamp, chunks, vector_blobs.join(found)) if found else None


async def _read_chunk(
    connection: Connection, agent: int, number: int, model: str
) -> vector_blobs.Chunk | None:
    """Returns a chunk; None where there is none, or it is damaged, which is found out when it is written."""
    row = await connection.row(SQL["get"], (agent, number, model))
    try:
        return None if row is None else vector_blobs.open_chunk(row[0])
    except CorruptIndex:
        return None


async def add_vectors(
    connection: Connection, agent: int, model: str, stamp: int, added: Mapping[int, bytes]
) -> int | None:
    """Writes vectors by seq. Returns the first number of a chunk that was damaged and has to be embedded again."""
    damaged: int | None = None
    for number, seqs in by_chunk(added).items():
        of_chunk = {seq: added[seq] for seq in seqs}
        row = await connection.row(SQL["any"], (agent, number))
        try:
            data = vector_blobs.merge(row[0] if row is not None and row[1] == model else None, of_chunk)
        except CorruptIndex:
            data = vector_blobs.merge(None, of_chunk)
            damaged = number * CHUNK if damaged is None else min(number * CHUNK, damaged)
        await connection.run(SQL["put"], (agent, number, stamp, model, data))
    return damaged


async def forget_indexed(connection: Connection, agent: int, seqs: Collection[int]) -> None:
    """Takes these messages out of the search index and drops their vectors."""
    await forget_terms(connection, agent, seqs)
    stamp: int | None = None
    for number, gone in by_chunk(seqs).items():
        row = await connection.row(SQL["any"], (agent, number))
        if row is None:
            continue
        try:
            left = vector_blobs.forget(row[0], gone)
        except CorruptIndex:
            # Its contents are unknown, so nothing of it may stay.
            left = b""
            await connection.run(SQL["indexed_again"], (number * CHUNK - 1, agent))
        if stamp is None:
            stamp = await connection.value(SQL["changed"], (agent,)) or 0
        if left:
            await connection.run(SQL["put"], (agent, number, stamp, row[1], left))
        else:
            await connection.run(SQL["drop"], (agent, number))


class Vectors(Group):
    """Vectors of a memory, and how far it has been embedded. Forgotten or changed messages lose their vectors."""

    def __init__(self, database: Database, rules: Rules) -> None:
        super().__init__(database)
        self._rules = rules

    async def unembedded(self, agent: int, model: str) -> Unembedded | None:
        """Reads the next messages without a vector of this model; None: the agent is gone."""

        async def read(connection: Connection) -> Unembedded | None:
            of = await load_agent(connection, agent)
            if of is None:
                return None
            progress = await _load_progress(connection, agent)
            if progress is None or progress.model != model:
                return Unembedded(of, model, 0, 0, 0, is_new=True)
            _, dimension, cursor, stamp = progress
            found = Unembedded(of, model, cursor, max(cursor, of.indexed_seq), stamp)
            rows = await connection.rows(exchanges.SQL["shown_since"], (agent, cursor + 1, _BATCH))
            fresh = [e for e, _, _ in exchanges.make_shown_exchanges(rows)]
            if len(rows) == _BATCH:
                found = replace(found, upto=min(found.upto, fresh[-1].seq + len(fresh[-1].inputs)))
            others = await load_passages_and_facts(
                connection, exchanges.SQL["passages_and_facts_since"], (agent, cursor + 1, _MOST_PASSAGES)
            )
            if len(others) == _MOST_PASSAGES:
                found = replace(found, upto=min(found.upto, others[-1].seq))
            messages = [
                m for e in fresh if e.seq <= found.upto for m in self._rules.messages_of(e, False, None, None)
            ]
            messages += [m for m in others if m.seq <= found.upto]
            known: set[int] = set()
            for number in {chunk_of(m.seq) for m in messages}:
                chunk = await _read_chunk(connection, agent, number, model)
                if chunk is not None and chunk.dimension == dimension:
                    known.update(chunk.seqs.tolist())
            return replace(found, messages=[m for m in messages if m.seq not in known])

        return await self._database.long_read(read, deadline_ms=_READ_MS)

    @effect
    async def begin_effect(self, connection: Connection, agent: int, model: str) -> None:
        """Returns the effect that begins at the first message, with this model."""
        await connection.lock(agent)
        await connection.run(SQL["begin"], (agent, model, 0))

    @effect
    async def add_effect(
        self, connection: Connection, unembedded: Unembedded, added: Mapping[int, bytes]
    ) -> None:
        """Returns the effect that adds vectors. added: float32 of one length, by number of the message.

        The effect does nothing where something has changed since `unembedded` was read, and starts over where the
        vectors of this model have another length than before.
        """
        agent, model = unembedded.agent.id, unembedded.model
        await connection.lock(agent)
        progress = await _load_progress(connection, agent)
        if progress is None or (progress.model, progress.stamp) != (model, unembedded.stamp):
            return
        dimension = len(next(iter(added.values()))) // 4 if added else progress.dimension
        if progress.dimension not in (0, dimension) and unembedded.cursor:
            await connection.run(SQL["begin"], (agent, model, dimension))
            return
        stamp = await connection.value(SQL["advance"], (dimension, unembedded.upto, agent))
        damaged = await add_vectors(connection, agent, model, stamp, added)
        if damaged is not None:
            await connection.run(SQL["indexed_again"], (damaged - 1, agent))
        await connection.run(SQL["drop_others"], (agent, model, chunk_of(unembedded.upto), _OTHERS))

    @reads
    async def has(self, connection: Connection, agent: int, model: str) -> bool:
        """Returns whether anything of a memory was embedded by this model."""
        progress = await _load_progress(connection, agent)
        return progress is not None and progress.model == model and progress.dimension > 0

    @reads
    async def lacks(self, connection: Connection, agent: int, model: str) -> bool:
        """Returns whether something of a memory that is indexed was not embedded."""
        return bool(await connection.value(SQL["lacks"], (model, agent)))

    @reads
    async def agents_to_embed(self, connection: Connection, model: str, limit: int) -> list[int]:
        """Returns people's memories of which not all is embedded."""
        return [id for (id,) in await connection.rows(SQL["unembedded_agents"], (model, limit))]
