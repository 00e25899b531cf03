"""Where vectors lie: a blob for each chunk of an agent, as storage/vectors.py makes them, and the comparison with a
query's. What leaves the search index leaves here too (`forget_indexed`), in the same transaction.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from storage import vectors
from storage.records import Vector
from storage.sqlite.queries import load_queries
from storage.sqlite.terms_table import forget_terms
from storage.terms import CHUNK, CorruptIndex, Near, chunk_of

__all__ = ["VECTORS", "VectorCache", "add_vectors", "find_near", "forget_indexed", "known_seqs"]

VECTORS = load_queries("vectors.sql")

# Measured: reading 10,000 vectors of 256 numbers takes some 10 ms, comparing them 1.5 ms.
CACHE_BYTES = 64 << 20

_Chunks = dict[int, tuple[int, vectors.Chunk]]  # number -> (since when it is as it is, itself)


class VectorCache:
    """Chunks of the memories asked last, by agent and model. Used from two threads."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, str], tuple[int, _Chunks]] = OrderedDict()
        self._bytes = 0

    def get(self, agent: int, model: str) -> tuple[int, _Chunks] | None:
        """(the agent's stamp when they were read, chunks)."""
        with self._lock:
            found = self._kept.get((agent, model))
            if found is not None:
                self._kept.move_to_end((agent, model))
            return found

    def keep(self, agent: int, model: str, stamp: int, chunks: _Chunks) -> None:
        with self._lock:
            self._drop((agent, model))
            self._kept[agent, model] = stamp, chunks
            self._bytes += _size(chunks)
            while self._bytes > self._limit and self._kept:
                self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _drop(self, name: tuple[int, str]) -> None:
        found = self._kept.pop(name, None)
        if found is not None:
            self._bytes -= _size(found[1])


def _size(chunks: _Chunks) -> int:
    return sum(chunk.size for _, chunk in chunks.values())


def find_near(connection: sqlite3.Connection, cache: VectorCache, agent: int, asked: Vector) -> Near | None:
    """How far the agent's messages stand out; None where none has a vector of this model."""
    row = connection.execute(VECTORS["state"], (agent,)).fetchone()
    if row is None or row[0] != asked.model:
        return None
    stamp = row[3]
    known = cache.get(agent, asked.model)
    if known is None or known[0] != stamp:
        chunks = _load(connection, agent, asked.model, {} if known is None else known[1])
        cache.keep(agent, asked.model, stamp, chunks)
    else:
        chunks = known[1]
    return vectors.compare([chunk for _, chunk in chunks.values()], asked.data)


def _load(connection: sqlite3.Connection, agent: int, model: str, known: _Chunks) -> _Chunks:
    """All chunks as they are now; those that have not changed are not read again."""
    found: _Chunks = {}
    for number, stamp in connection.execute(VECTORS["chunks"], (agent, model)).fetchall():
        before = known.get(number)
        if before is not None and before[0] == stamp:
            found[number] = before
            continue
        row = connection.execute(VECTORS["get"], (agent, number, model)).fetchone()
        if row is not None:
            with suppress(CorruptIndex):  # as if there were none: it is found out when the chunk is written
                found[number] = stamp, vectors.open_chunk(row[0])
    return found


def known_seqs(
    connection: sqlite3.Connection, agent: int, model: str, dimension: int, chunks: Iterable[int]
) -> set[int]:
    """Which messages of these chunks have a vector."""
    found: set[int] = set()
    for number in chunks:
        row = connection.execute(VECTORS["get"], (agent, number, model)).fetchone()
        if row is not None:
            with suppress(CorruptIndex):
                chunk = vectors.open_chunk(row[0])
                if chunk.numbers.shape[1] == dimension:
                    found.update(chunk.seqs.tolist())
    return found


def add_vectors(
    connection: sqlite3.Connection, agent: int, model: str, stamp: int, added: Mapping[int, bytes]
) -> int | None:
    """added: by seq. Returns the first number of a chunk that was damaged and has to be embedded anew."""
    by_chunk: dict[int, dict[int, bytes]] = {}
    for seq, data in added.items():
        by_chunk.setdefault(chunk_of(seq), {})[seq] = data
    damaged: int | None = None
    for number, of_chunk in by_chunk.items():
        row = connection.execute(VECTORS["any"], (agent, number)).fetchone()
        try:
            data = vectors.merge(row[0] if row is not None and row[1] == model else None, of_chunk)
        except CorruptIndex:
            data = vectors.merge(None, of_chunk)
            damaged = min(number * CHUNK, number * CHUNK if damaged is None else damaged)
        connection.execute(VECTORS["put"], (agent, number, stamp, model, data))
    return damaged


def forget_indexed(connection: sqlite3.Connection, agent: int, seqs: Collection[int]) -> None:
    """These messages leave the search index and have no vectors any more."""
    forget_terms(connection, agent, seqs)
    by_chunk: dict[int, list[int]] = {}
    for seq in seqs:
        by_chunk.setdefault(chunk_of(seq), []).append(seq)
    stamp: int | None = None
    for number, gone in by_chunk.items():
        row = connection.execute(VECTORS["any"], (agent, number)).fetchone()
        if row is None:
            continue
        try:
            left = vectors.forget(row[0], gone)
        except CorruptIndex:  # nobody knows what is in it
            left = b""
            connection.execute(VECTORS["look_again"], (number * CHUNK - 1, agent))
        if stamp is None:
            changed = connection.execute(VECTORS["changed"], (agent,)).fetchone()
            stamp = 0 if changed is None else changed[0]
        if left:
            connection.execute(VECTORS["put"], (agent, number, stamp, row[1], left))
        else:
            connection.execute(VECTORS["drop"], (agent, number))
