"""Segments of a large search index: 512 chunks (storage/search/blob.py) by term, so that a query reads its terms alone.

Pure: bytes in, bytes and columns of numbers out. A segment has nothing that its chunks do not have: it is made of them,
and dropped as soon as one of them changes. Its entries lie in 512 buckets, by the first bits of their hash.

    header (little endian)   magic 2s, version u8, kind u8, number u32, entries u32
    documents                the header; 32,768 rows as in a blob
    bucket                   the header; hash u32[m], row u16[m] (bit 15: in the head), frequency u8[m]

Marks of names are left out: only a second look asks for them, and a large index is looked at once.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from storage.search.blob import (
    CHUNK,
    HEAD,
    MARKS_SHIFT,
    NO_DOCUMENTS,
    ROW_SHIFT,
    SLOT,
    CorruptIndex,
    document_type,
    open_blob,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Chunks in a segment, which hold as many messages as 15 bits can number. Half as many make twice the rows that a query
# reads, twice as many make a forgotten message drop 7 MB.
SEGMENT_CHUNKS = 512
# An occurrence has the number of its segment to the left of its row there.
SEGMENT_ROWS_SHIFT = 15
# With as many, a bucket has some 1,000 entries in 7 kB.
BUCKETS = 512
# A query reads so much of the buckets, which takes 10 ms: of a memory of a million messages all but the words that more
# than a tenth of them have.
_READ_BYTES = 1 << 20
# The number under which the documents lie among the buckets.
DOCUMENTS = -1
# Smaller indexes have none: they take 8 MB at most when they are opened whole.
LEAST_SEGMENTS = 2

_IN_HEAD, _ROW = 0x8000, 0x7FFF
_BUCKET_SHIFT = 32 - 9
_MAGIC, _VERSION = b"ms", 1
_HEADER = struct.Struct("<2sBBII")
_OF_DOCUMENTS, _OF_BUCKET = 0, 1
ENTRY_BYTES = 7


class Segment(NamedTuple):
    """A segment as it is stored."""

    documents: bytes
    # In their order.
    buckets: list[bytes]


class OpenDocuments(NamedTuple):
    """The documents of a segment."""

    # By [chunk, slot].
    rows: NDArray[Any]
    # Of all buckets together.
    entries: int


class Postings(Struct, frozen=True):
    """The occurrences of some terms in the segments of an index."""

    # By hash, as a query finds them, but with number and row of the segment for the row.
    read: Mapping[int, NDArray[np.int64]] = {}
    # By hash of those that were not read, how many there are at most.
    unread: Mapping[int, int] = {}


NO_POSTINGS = Postings()


def segment_of(chunk: int) -> int:
    """Returns the number of the segment that a chunk belongs to."""
    return chunk // SEGMENT_CHUNKS


def chunks_of(number: int) -> range:
    """Returns the chunks of a segment."""
    return range(number * SEGMENT_CHUNKS, (number + 1) * SEGMENT_CHUNKS)


def buckets_of(hashes: Iterable[int]) -> list[int]:
    """Returns the buckets in which some terms lie."""
    return sorted({each >> _BUCKET_SHIFT for each in hashes})


def make_segment(number: int, blobs: Iterable[tuple[int, bytes]]) -> Segment:
    """Makes a segment of its chunks; one without messages may be left out or empty. Raises: CorruptIndex."""
    import numpy as np

    opened = [open_blob(data) for _, data in blobs if data]
    tables = {blob.chunk: blob.table for blob in opened}
    if not tables.keys() <= {*chunks_of(number)}:
        raise CorruptIndex(f"a chunk does not belong to segment {number}")
    documents = b"".join([tables.get(chunk, NO_DOCUMENTS) for chunk in chunks_of(number)])
    columns = [np.frombuffer(blob.columns, np.uint8) for blob in opened]
    none = np.empty(0, np.uint8)
    slots = np.concatenate([none, *(both[: len(both) // 2] for both in columns)])
    frequency = np.concatenate([none, *(both[len(both) // 2 :] for both in columns)])
    first = [blob.chunk % SEGMENT_CHUNKS * CHUNK for blob in opened]
    # One number each, which sorts by hash, then by row: hash 32 | row 15 | in the head 1 | frequency 8.
    entries = np.array(first, np.uint64).repeat([blob.entries for blob in opened])
    entries += slots & np.uint8(SLOT)
    entries <<= np.uint64(1)
    entries |= (slots & np.uint8(HEAD >> MARKS_SHIFT)) > 0
    entries <<= np.uint64(8)
    entries |= frequency
    hashes = np.concatenate([np.empty(0, np.uint32), *(blob.hashes for blob in opened)])
    entries |= hashes.astype(np.uint64) << np.uint64(24)
    entries.sort()
    hashes = (entries >> np.uint64(24)).astype("<u4")
    marked = (entries >> np.uint64(8)).astype("<u2")
    marked = marked >> 1 | (marked & 1) << 15
    frequency = entries.astype(np.uint8)
    bounds = np.arange(BUCKETS + 1, dtype=np.uint64) << np.uint64(_BUCKET_SHIFT)
    ends = hashes.astype(np.uint64).searchsorted(bounds).tolist()
    buckets = [
        b"".join(
            (
                _HEADER.pack(_MAGIC, _VERSION, _OF_BUCKET, number, end - start),
                hashes[start:end].tobytes(),
                marked[start:end].tobytes(),
                frequency[start:end].tobytes(),
            )
        )
        for start, end in pairwise(ends)
    ]
    header = _HEADER.pack(_MAGIC, _VERSION, _OF_DOCUMENTS, number, len(entries))
    return Segment(header + documents, buckets)


def open_documents(number: int, data: bytes) -> OpenDocuments:
    """Returns the documents of a segment. Raises: CorruptIndex."""
    import numpy as np

    entries = _entries_of(data, _OF_DOCUMENTS, number)
    if len(data) != _HEADER.size + SEGMENT_CHUNKS * len(NO_DOCUMENTS):
        raise CorruptIndex(f"{len(data)} bytes do not make the documents of a segment")
    return OpenDocuments(np.frombuffer(data, document_type(), -1, _HEADER.size).reshape(-1, CHUNK), entries)


def pick_buckets(sizes: Mapping[int, int]) -> set[int]:
    """Returns the buckets that a query reads: the smallest, as many as it can afford, and one at least.

    sizes: of each bucket in all segments, in bytes. A term of one that is not read is in so many messages that it
        decides little.
    """
    picked, remaining = set[int](), _READ_BYTES
    for size, bucket in sorted((size, bucket) for bucket, size in sizes.items()):
        remaining -= size
        if picked and remaining < 0:
            break
        picked.add(bucket)
    return picked


def postings_of(
    rows: Iterable[tuple[int, int, bytes]], sizes: Mapping[int, int], hashes: Collection[int]
) -> Postings:
    """Returns what the segments have of some terms.

    rows: (bucket, number of the segment, bytes) of the buckets that were read.
    sizes: as for `pick_buckets`.

    Raises: CorruptIndex.
    """
    by_bucket: dict[int, list[tuple[int, bytes]]] = {}
    for bucket, number, data in rows:
        by_bucket.setdefault(bucket, []).append((number, data))
    found: dict[int, NDArray[np.int64]] = {}
    for bucket, parts in by_bucket.items():
        found |= _occurrences(parts, [each for each in hashes if each >> _BUCKET_SHIFT == bucket])
    unread = [each for each in hashes if each not in found]
    return Postings(found, {each: sizes.get(each >> _BUCKET_SHIFT, 0) // ENTRY_BYTES for each in unread})


def _occurrences(parts: Sequence[tuple[int, bytes]], hashes: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """Returns the occurrences of terms of one bucket. parts: (number of the segment, bytes). Raises: CorruptIndex."""
    import numpy as np

    sizes = [_entries_of(data, _OF_BUCKET, number) for number, data in parts]
    views = [memoryview(data)[_HEADER.size :] for _, data in parts]
    for view, m in zip(views, sizes, strict=True):
        if len(view) != m * ENTRY_BYTES:
            raise CorruptIndex(f"{len(view)} bytes do not make {m} entries")
    both = [*zip(views, sizes, strict=True)]
    column = np.frombuffer(b"".join([view[: 4 * m] for view, m in both]), "<u4")
    marked = np.frombuffer(b"".join([view[4 * m : 6 * m] for view, m in both]), "<u2")
    frequency = np.frombuffer(b"".join([view[6 * m :] for view, m in both]), np.uint8)
    ends, found = np.cumsum(sizes), {}
    numbers = np.array([number for number, _ in parts], np.int64) << SEGMENT_ROWS_SHIFT
    for each in hashes:
        at = (column == each).nonzero()[0]
        low = marked[at].astype(np.int64)
        rows = numbers.repeat(np.diff(at.searchsorted(ends), prepend=0)) + (low & _ROW)
        found[each] = rows << ROW_SHIFT | np.where(low & _IN_HEAD, HEAD, 0) | frequency[at]
    return found


def _entries_of(data: bytes, kind: int, number: int) -> int:
    """Returns how many entries a header states. Raises: CorruptIndex: it is no header of these."""
    if len(data) < _HEADER.size:
        raise CorruptIndex(f"{len(data)} bytes are too few for a part of a segment")
    *head, entries = _HEADER.unpack_from(data)
    if head != [_MAGIC, _VERSION, kind, number]:
        raise CorruptIndex(f"this is no part of segment {number}")
    return int(entries)


def uncovered(numbers: Sequence[int], last_chunk: int) -> list[range]:
    """Returns the chunks up to the last one that no segment has, in ranges. numbers: of the segments, ascending."""
    found, begin = list[range](), 0
    for number in numbers:
        covered = chunks_of(number)
        if begin < covered.start:
            found.append(range(begin, covered.start))
        begin = covered.stop
    if begin <= last_chunk:
        found.append(range(begin, last_chunk + 1))
    return found
