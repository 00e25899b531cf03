"""Where the packed search index lies: a blob for each chunk of an agent.

What is in one only storage/search/blob.py knows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from storage.search import blob
from storage.sql.statements import load_queries

__all__ = ["forget_terms", "get_terms", "load_terms", "replace_terms"]

_Q = load_queries()


def load_terms(connection: sqlite3.Connection, agent: int) -> list[tuple[int, bytes]]:
    """Chunk number and bytes, in order."""
    return connection.execute(_Q["terms_load"], (agent,)).fetchall()


def get_terms(connection: sqlite3.Connection, agent: int, chunk: int) -> bytes | None:
    row = connection.execute(_Q["terms_get"], (agent, chunk)).fetchone()
    return None if row is None else row[0]


def replace_terms(connection: sqlite3.Connection, agent: int, chunk: int, data: bytes) -> None:
    connection.execute(_Q["terms_replace"], (agent, chunk, data))


def forget_terms(connection: sqlite3.Connection, agent: int, seqs: Iterable[int]) -> None:
    """These messages leave the index."""
    by_chunk: dict[int, list[int]] = {}
    for seq in seqs:
        by_chunk.setdefault(blob.chunk_of(seq), []).append(seq)
    for chunk, gone in by_chunk.items():
        data = get_terms(connection, agent, chunk)
        if data is not None:
            replace_terms(connection, agent, chunk, blob.forget(data, gone))
