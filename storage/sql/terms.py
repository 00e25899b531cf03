"""The packed search index as it is stored, a blob for each chunk of an agent: see storage/search/blob.py."""

from __future__ import annotations

from collections.abc import Iterable

from storage.database import Connection, Row
from storage.search import blob
from storage.sql.statements import load

SQL = load("statements.sql")


async def terms_since(connection: Connection, agent: int, stamp: int) -> list[Row]:
    """Returns (chunk number, stamp, bytes) of the chunks that were written after one with this stamp; -1: of all."""
    return await connection.rows(SQL["terms_since"], (agent, stamp))


async def get_terms(connection: Connection, agent: int, chunk: int) -> bytes | None:
    """Returns the blob of a chunk of an agent's search index; None where there is none."""
    data: bytes | None = await connection.value(SQL["terms_get"], (agent, chunk))
    return data


async def replace_terms(connection: Connection, agent: int, chunk: int, data: bytes) -> None:
    """Writes the blob of a chunk."""
    await connection.run(SQL["terms_replace"], (agent, chunk, data))


async def mend_terms(connection: Connection, agent: int) -> None:
    """Empties the chunks that are damaged. What they held is indexed again."""
    for chunk, _, data in await terms_since(connection, agent, -1):
        try:
            blob.check(data, chunk)
        except blob.CorruptIndex:
            await replace_terms(connection, agent, chunk, b"")
            covered = chunk * blob.CHUNK - 1
            await connection.run(SQL["agent_indexed_again"], (covered, agent, covered))


async def forget_terms(connection: Connection, agent: int, seqs: Iterable[int]) -> None:
    """Takes these messages out of the index."""
    for chunk, gone in blob.by_chunk(seqs).items():
        data = await get_terms(connection, agent, chunk)
        if data is not None:
            try:
                left = blob.forget(data, gone)
            except blob.CorruptIndex:
                await mend_terms(connection, agent)
            else:
                await replace_terms(connection, agent, chunk, left)
