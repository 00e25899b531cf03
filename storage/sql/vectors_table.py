"""Where vectors lie: a blob for each chunk of an agent, as storage/search/vectors.py makes them, and the comparison
with a query's. What leaves the search index leaves here too (`forget_indexed`), in the same transaction.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from storage.records import Vector
from storage.search import vectors
from storage.search.blob import CHUNK, CorruptIndex, chunk_of
from storage.search.rank import Near
from storage.sql.statements import load_queries
from storage.sql.terms import forget_terms

__all__ = ["VECTORS", "VectorCache", "add_vectors", "find_near", "forget_indexed", "known_seqs"]

VECTORS = load_queries("vectors.sql")

# Measured: reading 10,000 vectors of 256 numbers takes some 10 ms, comparing them half of one.
CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Kept:
    """An agent's vectors in one piece. stamp: the agent's when they were read.

    parts: by number of the chunk (since when it is as it is, its first row, the row after its last).
    """

    stamp: int
    parts: dict[int, tuple[int, int, int]]
    all: vectors.Chunk


class VectorCache:
    """Vectors of the memories asked last, by agent and model. Used from two threads."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, str], _Kept] = OrderedDict()
        self._bytes = 0

    def get(self, agent: int, model: str) -> _Kept | None:
        with self._lock:
            found = self._kept.get((agent, model))
            if found is not None:
                self._kept.move_to_end((agent, model))
            return found

    def keep(self, agent: int, model: str, kept: _Kept) -> None:
        with self._lock:
            self._drop((agent, model))
            self._kept[agent, model] = kept
            self._bytes += kept.all.size
            while self._bytes > self._limit and self._kept:
                self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _drop(self, name: tuple[int, str]) -> None:
        found = self._kept.pop(name, None)
        if found is not None:
            self._bytes -= found.all.size


def find_near(connection: sqlite3.Connection, cache: VectorCache, agent: int, asked: Vector) -> Near | None:
    """How far the agent's messages stand out; None where none has a vector of this model."""
    row = connection.execute(VECTORS["state"], (agent,)).fetchone()
    if row is None or row[0] != asked.model:
        return None
    _, dimension, _, stamp = row
    kept = cache.get(agent, asked.model)
    if kept is None or kept.stamp != stamp:
        kept = _load(connection, agent, asked.model, dimension, stamp, kept)
        if kept is None:
            return None
        cache.keep(agent, asked.model, kept)
    return vectors.compare(kept.all, asked)


def _load(
    connection: sqlite3.Connection, agent: int, model: str, dimension: int, stamp: int, before: _Kept | None
) -> _Kept | None:
    """All chunks as they are now; those that have not changed are not read again."""
    found: list[vectors.Chunk] = []
    parts: dict[int, tuple[int, int, int]] = {}
    rows = 0
    for number, since in connection.execute(VECTORS["chunks"], (agent, model)).fetchall():
        known = before.parts.get(number) if before is not None else None
        if before is not None and known is not None and known[0] == since:
            chunk = before.all.part(*known[1:])
        else:
            read = _read(connection, agent, number, model)
            if read is None:
                continue
            chunk = read
        if chunk.dimension == dimension:
            found.append(chunk)
            parts[number] = since, rows, rows + len(chunk)
            rows += len(chunk)
    return _Kept(stamp, parts, vectors.join(found)) if found else None


def _read(connection: sqlite3.Connection, agent: int, number: int, model: str) -> vectors.Chunk | None:
    """None: there is none, or it is damaged, which is found out when it is written."""
    row = connection.execute(VECTORS["get"], (agent, number, model)).fetchone()
    try:
        return None if row is None else vectors.open_chunk(row[0])
    except CorruptIndex:
        return None


def known_seqs(
    connection: sqlite3.Connection, agent: int, model: str, dimension: int, chunks: Iterable[int]
) -> set[int]:
    """Which messages of these chunks have a vector."""
    found: set[int] = set()
    for number in chunks:
        chunk = _read(connection, agent, number, model)
        if chunk is not None and chunk.dimension == dimension:
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
