"""The cached vectors of memories, which a search compares with its query's vector."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from msgspec import Struct

from storage.database import Connection
from storage.records import Vector, VectorSimilarities
from storage.search import vector_blobs
from storage.sql.statements import load
from storage.sql.vector_chunks import EmbeddingProgress, find_progress, read_chunk

SQL = load("vectors.sql")

# The most bytes of cached vectors. Measured: 10,000 vectors of 256 numbers are read in some 10 ms, and compared in half
# a millisecond.
CACHE_BYTES = 64 << 20


class _CachedChunk(NamedTuple):
    """A chunk among the cached vectors of an agent."""

    # `EmbeddingProgress.stamp` as the chunk's last write made it.
    stamp: int
    # The first of the chunk's rows in `CachedVectors.joined`.
    start: int
    # The row after the last of the chunk's rows.
    end: int


class CachedVectors(Struct, frozen=True):
    """An agent's vectors in one piece."""

    # `EmbeddingProgress.stamp` when they were read.
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
        self._entries: OrderedDict[tuple[int, str], CachedVectors] = OrderedDict()
        self._size_bytes = 0

    def get(self, agent_row: int, model: str) -> CachedVectors | None:
        """Returns the cached vectors of a memory, which count as used last."""
        with self._lock:
            entry = self._entries.get((agent_row, model))
            if entry is not None:
                self._entries.move_to_end((agent_row, model))
            return entry

    def put(self, agent_row: int, model: str, cached: CachedVectors, clear_count: int) -> None:
        """Caches vectors, which count as used last. The newest stay even if they alone are too large.

        clear_count: the cache's `clear_count` before the vectors were read. If it has risen since, the vectors are not
            cached.
        """
        with self._lock:
            if clear_count != self.clear_count:
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


async def find_joined_vectors(
    connection: Connection, cache: VectorCache, agent_row: int, model: str
) -> vector_blobs.JoinedVectors | None:
    """Returns the agent's vectors of a model, from the cache if that is up to date; None: there are no vectors."""
    clear_count = cache.clear_count
    progress = await find_progress(connection, agent_row)
    if progress is None or progress.model != model:
        return None
    cached = cache.get(agent_row, model)
    if cached is None or cached.stamp != progress.stamp:
        cached = await _find_vectors(connection, agent_row, progress, cached)
        if cached is None:
            return None
        cache.put(agent_row, model, cached, clear_count)
    return cached.joined


async def find_similarities(
    connection: Connection, cache: VectorCache, agent_row: int, query: Vector
) -> VectorSimilarities | None:
    """Returns the similarities of the agent's messages to a query; None: no message has a vector of its model."""
    joined = await find_joined_vectors(connection, cache, agent_row, query.model)
    return None if joined is None else vector_blobs.compare(joined, query)


async def _find_vectors(
    connection: Connection, agent_row: int, progress: EmbeddingProgress, cached: CachedVectors | None
) -> CachedVectors | None:
    """Returns all vectors as they are now; None: there are none.

    Chunks that have not changed since they were cached are not read again.

    cached: the vectors as they were cached before; None: they were not cached.
    """
    loaded: list[vector_blobs.VectorRows] = []
    chunks: dict[int, _CachedChunk] = {}
    row_count = 0
    for number, stamp in await connection.fetch_rows(SQL["chunks_list"], (agent_row, progress.model)):
        chunk = None if cached is None else cached.find_chunk(number, stamp)
        if chunk is None:
            chunk = await read_chunk(connection, agent_row, number, progress.model)
        if chunk is not None and chunk.dimension == progress.dimension:
            loaded.append(chunk)
            chunks[number] = _CachedChunk(stamp, row_count, row_count + len(chunk))
            row_count += len(chunk)
    return CachedVectors(progress.stamp, chunks, vector_blobs.join(loaded)) if loaded else None
