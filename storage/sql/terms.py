"""The packed search index as it is stored, a blob for each chunk of an agent: see storage/search/blob.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storage.database import Connection, Row
from storage.search import blob
from storage.search.segment import (
    DOCUMENTS,
    MIN_SEGMENTS,
    Buckets,
    Segment,
    SegmentBucket,
    StampedDocuments,
    compute_buckets,
    compute_segment,
    find_uncovered_chunks,
    list_segment_chunks,
    open_documents,
    pick_buckets,
)
from storage.sql.statements import load, load_column, load_rows

SQL = load("terms.sql")


async def load_terms_since(connection: Connection, agent_row: int, stamp: int) -> list[Row]:
    """Returns (chunk number, stamp, bytes) of the chunks with later stamps than `stamp`; -1 for all chunks."""
    return await connection.fetch_rows(SQL["load_terms_since"], (agent_row, stamp))


async def load_terms_between(connection: Connection, agent_row: int, chunks: range) -> list[Row]:
    """Returns (chunk number, stamp, bytes) of some chunks."""
    return await connection.fetch_rows(SQL["load_terms_between"], (agent_row, chunks.start, chunks.stop))


async def find_terms(connection: Connection, agent_row: int, chunk: int) -> bytes | None:
    """Returns the blob of a chunk of an agent's search index; None if the index has no such chunk."""
    return await connection.fetch_value(SQL["terms_get"], (agent_row, chunk))


async def replace_terms(connection: Connection, agent_row: int, chunk: int, data: bytes) -> None:
    """Writes the blob of a chunk, and drops the segment that has the chunk's old content."""
    await connection.run(SQL["segment_drop"], (agent_row, compute_segment(chunk)))
    await connection.run(SQL["terms_replace"], (agent_row, chunk, data))


async def load_segments(connection: Connection, agent_row: int) -> dict[int, StampedDocuments]:
    """Returns the documents of an agent's segments by number. Raises: CorruptIndex."""
    rows = await connection.fetch_rows(SQL["segment_documents"], (agent_row, DOCUMENTS))
    return {number: StampedDocuments(stamp, open_documents(number, data)) for number, stamp, data in rows}


async def load_uncovered(
    connection: Connection, agent_row: int, segments: Iterable[int], last_chunk: int
) -> list[Row]:
    """Returns (chunk number, stamp, bytes) of the chunks that no segment has."""
    rows: list[Row] = []
    for chunks in find_uncovered_chunks(sorted(segments), last_chunk):
        rows += await load_terms_between(connection, agent_row, chunks)
    return rows


async def load_buckets(connection: Connection, agent_row: int, hashes: Sequence[int]) -> Buckets:
    """Reads the buckets of some terms, as many as a query can afford."""
    bucket_sizes = await load_rows(connection, SQL["segment_sizes"], compute_buckets(hashes), agent_row)
    sizes: dict[int, int] = {row[0]: row[1] for row in bucket_sizes}
    rows = await load_rows(connection, SQL["segment_buckets"], sorted(pick_buckets(sizes)), agent_row)
    return Buckets([SegmentBucket._make(row) for row in rows], sizes, hashes)


async def find_unsegmented(connection: Connection, agent_row: int, indexed_seq: int) -> int | None:
    """Returns the number of a segment that can be made; None if no segment can be made."""
    # The number of segments that have all of their chunks.
    count = compute_segment(blob.compute_chunk(indexed_seq + 1))
    if count < MIN_SEGMENTS:
        return None
    stored_numbers = set(await load_column(connection, SQL["segment_numbers"], (agent_row, DOCUMENTS)))
    return min({*range(count)} - stored_numbers, default=None)


async def add_segment(
    connection: Connection, agent_row: int, number: int, stamp: int, segment: Segment
) -> bool:
    """Writes a segment, unless one of its chunks was written meanwhile. stamp: the stamp of the newest chunk."""
    chunks = list_segment_chunks(number)
    if await connection.fetch_value(SQL["terms_newer"], (agent_row, stamp, chunks.start, chunks.stop)):
        return False
    for bucket, data in ((DOCUMENTS, segment.documents), *enumerate(segment.buckets)):
        await connection.run(SQL["segment_put"], (agent_row, bucket, number, stamp, data))
    return True


async def empty_damaged_chunks(connection: Connection, agent_row: int) -> None:
    """Empties damaged chunks, so that their messages are indexed again. Drops all segments."""
    await connection.run(SQL["segments_drop"], (agent_row,))
    for chunk, _, data in await load_terms_since(connection, agent_row, -1):
        try:
            blob.check_can_add(data, chunk)
        except blob.CorruptIndex:
            await replace_terms(connection, agent_row, chunk, b"")
            covered = await get_covered(connection, agent_row, chunk)
            await connection.run(SQL["agent_indexed_again"], (covered, agent_row, covered))


async def get_covered(connection: Connection, agent_row: int, chunk: int) -> int:
    """Returns the number before the first exchange that has a message in a chunk. It may begin before the chunk."""
    return int(await connection.fetch_value(SQL["chunk_begin"], (agent_row, chunk * blob.CHUNK))) - 1


async def forget_terms(connection: Connection, agent_row: int, seqs: Iterable[int]) -> None:
    """Removes these messages from the index."""
    for chunk, chunk_seqs in blob.group_by_chunk(seqs).items():
        data = await find_terms(connection, agent_row, chunk)
        if data is not None:
            try:
                remaining = blob.forget(data, chunk_seqs)
            except blob.CorruptIndex:
                await empty_damaged_chunks(connection, agent_row)
            else:
                await replace_terms(connection, agent_row, chunk, remaining)
