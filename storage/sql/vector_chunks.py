"""Chunks of vectors, and how far a memory has been embedded.

A chunk of an agent's messages is one blob (storage/search/vector_blobs.py). A message that is taken out of the search
index loses its vector in the same transaction (`forget_indexed`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from storage.database import Connection
from storage.search import vector_blobs
from storage.search.blob import CorruptIndex, group_by_chunk
from storage.sql.statements import load
from storage.sql.terms import forget_terms, get_covered

SQL = load("vectors.sql")


class EmbeddingProgress(NamedTuple):
    """The progress of the embedding of a memory: its row in `embedded`."""

    # The name of the embedder (`Vector.model`).
    model: str
    # The dimension of the vectors; 0: not known yet.
    dimension: int
    # The number up to which all messages are embedded.
    cursor: int
    # A number that each change of the row or of a vector raises.
    stamp: int


async def find_progress(connection: Connection, agent_row: int) -> EmbeddingProgress | None:
    """Returns the progress of a memory; None: its embedding has not begun."""
    row = await connection.fetch_row(SQL["progress_find"], (agent_row,))
    return None if row is None else EmbeddingProgress(*row)


async def begin_embedding(connection: Connection, agent_row: int, model: str, dimension: int) -> None:
    """Begins to embed a memory with a model, from the memory's first message on.

    dimension: the dimension of the vectors; 0: not known yet.
    """
    await connection.run(SQL["embedding_begin"], (agent_row, model, dimension))


async def move_cursor_back(connection: Connection, agent_row: int, seq: int) -> None:
    """Has the messages of a memory from this number on embedded again, since a text among them has changed."""
    await connection.run(SQL["cursor_move_back"], (seq - 1, agent_row))


async def read_chunk(
    connection: Connection, agent_row: int, number: int, model: str
) -> vector_blobs.VectorRows | None:
    """Returns a chunk of a model; None: there is none, or it is damaged. The next write of a damaged chunk replaces it.

    number: the number of the chunk.
    """
    row = await connection.fetch_row(SQL["chunk_find_of_model"], (agent_row, number, model))
    try:
        return None if row is None else vector_blobs.read_vectors(row[0])
    except CorruptIndex:
        return None


async def add_vectors(
    connection: Connection, agent_row: int, model: str, stamp: int, added: Mapping[int, bytes]
) -> int | None:
    """Writes vectors. Returns the number of the first chunk that was damaged; None: no chunk was.

    A damaged chunk loses its other vectors, so its messages have to be embedded again.

    stamp: the stamp of the progress after this write.
    added: the vectors, float32 of one length, by the number of the message.
    """
    damaged: int | None = None
    for number, seqs in group_by_chunk(added).items():
        chunk_vectors = {seq: added[seq] for seq in seqs}
        row = await connection.fetch_row(SQL["chunk_find"], (agent_row, number))
        try:
            data = vector_blobs.merge(row[0] if row is not None and row[1] == model else None, chunk_vectors)
        except CorruptIndex:
            data = vector_blobs.merge(None, chunk_vectors)
            damaged = number if damaged is None else min(number, damaged)
        await connection.run(SQL["chunk_put"], (agent_row, number, stamp, model, data))
    return damaged


async def forget_indexed(connection: Connection, agent_row: int, seqs: Collection[int]) -> None:
    """Removes these messages from the search index, with their vectors."""
    await forget_terms(connection, agent_row, seqs)
    stamp: int | None = None
    for number, chunk_seqs in group_by_chunk(seqs).items():
        row = await connection.fetch_row(SQL["chunk_find"], (agent_row, number))
        if row is None:
            continue
        try:
            remaining = vector_blobs.forget(row[0], chunk_seqs)
        except CorruptIndex:
            # The content of the chunk is unknown, so nothing of it may stay.
            remaining = b""
            await move_cursor_back(
                connection, agent_row, await get_covered(connection, agent_row, number) + 1
            )
        if stamp is None:
            stamp = await connection.fetch_value(SQL["stamp_raise"], (agent_row,)) or 0
        if remaining:
            await connection.run(SQL["chunk_put"], (agent_row, number, stamp, row[1], remaining))
        else:
            await connection.run(SQL["chunk_delete"], (agent_row, number))
