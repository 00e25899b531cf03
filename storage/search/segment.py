"""Segments of a large search index: 512 chunks (storage/search/blob.py) sorted by term, so that a query reads only the
buckets of its terms.

Pure: bytes in, bytes and columns of numbers out. A segment is a copy of its chunks, and dropped as soon as a chunk
changes. Its entries, one for each term of each message, lie in 512 buckets by the first bits of the hash.

    header (little endian)   magic 2s, version u8, kind u8, number u32, entries u32
    documents                the header; 32,768 rows as in a blob
    bucket                   the header; hash u32[m], row u16[m] (bit 15: in the head), frequency u8[m]

The chunks' marks of names are left out: only a second search of the same index reads the marks, and a large index is
searched once.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from storage.search.blob import (
    CHUNK,
    EMPTY_TABLE,
    HASH_BYTES,
    MARKS_SHIFT,
    SLOT,
    CorruptIndex,
    OpenBlob,
    make_document_type,
    open_blob,
)
from storage.search.document import HEAD, ROW_SHIFT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The chunks in a segment, which hold as many messages as 15 bits can number. Half as many make twice the rows that a
# query reads, twice as many make a forgotten message drop 7 MB.
SEGMENT_CHUNKS = 512
# In the row of an occurrence, the bits above these are the number of its segment.
SEGMENT_ROWS_SHIFT = 15
# The buckets of a segment. Each has some 1,000 entries, in 7 kB.
BUCKETS = 512
# The most bytes of buckets that a query reads, in 10 ms. In a memory of a million messages these are the buckets of all
# words but those that more than a tenth of the messages have.
_READ_BYTES = 1 << 20
# The number of a bucket under which the documents are stored.
DOCUMENTS = -1
# An index that would have fewer segments has none: opened whole, it takes 8 MB at most.
MIN_SEGMENTS = 2

# In the 16 bits of a stored row: the mark of a term that is in the head of its document, and the bits of the row.
_IN_HEAD = 0x8000
_ROW = 0x7FFF
# A hash has 32 bits; the first 9 are the number of its bucket.
_BUCKET_SHIFT = 32 - 9
# In a sorted entry: the bits to the right of its hash, and the bits of its frequency. Row and mark are in between.
_HASH_SHIFT = 24
_FREQUENCY_BITS = 8
# The header of a blob: magic, version and kind, then the number of the segment or bucket, and the count of entries.
_MAGIC = b"ms"
_VERSION = 1
_HEADER = struct.Struct("<2sBBII")
# The kinds of blobs.
_OF_DOCUMENTS = 0
_OF_BUCKET = 1
# The columns of an entry of a bucket, one after the other: a hash (HASH_BYTES), then a row with its marks and a
# frequency.
_MARKED_ROW_BYTES = 2
_FREQUENCY_BYTES = 1
ENTRY_BYTES = HASH_BYTES + _MARKED_ROW_BYTES + _FREQUENCY_BYTES


class Segment(NamedTuple):
    """A segment as it is stored."""

    # The documents of the segment, encoded.
    documents: bytes
    # The encoded buckets, one for each value of the first bits of a hash, in their order.
    buckets: list[bytes]


class OpenDocuments(NamedTuple):
    """The documents of a segment."""

    # A row of `make_document_type` for each message, by [chunk, slot].
    rows: NDArray[Any]
    # The number of entries of all buckets together.
    entry_count: int


class StampedDocuments(NamedTuple):
    """The documents of a segment, and the segment's stamp."""

    # The stamp of the segment.
    stamp: int
    # The documents.
    documents: OpenDocuments


class Postings(Struct, frozen=True):
    """The occurrences of some terms in the segments of an index."""

    # The occurrences by hash, packed as in a chunk, but with the number and the row of the segment as the row.
    read: Mapping[int, NDArray[np.int64]] = {}
    # The most occurrences that terms can have that were not read, by the hashes of the terms.
    unread: Mapping[int, int] = {}


NO_POSTINGS = Postings()


class NewestPostings(NamedTuple):
    """The occurrences in some segments."""

    # The first chunk of these segments; 0: no earlier segments follow.
    first_chunk: int
    # The occurrences.
    postings: Postings


class SegmentBucket(NamedTuple):
    """A bucket of one segment."""

    # The number of the bucket.
    bucket: int
    # The number of the segment.
    segment: int
    # The stamp of the segment.
    stamp: int
    # The entries of the bucket, as they are stored.
    data: bytes


class Buckets(Struct, frozen=True):
    """The buckets that were read for a query."""

    # The buckets, each with its segment.
    rows: Sequence[SegmentBucket] = ()
    # The bytes of each bucket in all segments, read or not.
    sizes: Mapping[int, int] = {}
    # The hashes of the query's terms.
    hashes: Collection[int] = ()

    def read_all(self) -> Postings:
        """Returns the occurrences of the terms. Raises: CorruptIndex."""
        return read_postings(self.rows, self.sizes, self.hashes)

    def read_newest_first(self) -> Iterator[NewestPostings]:
        """Yields the occurrences in a few segments at a time, newest first: in one, then in eight times as many.

        Raises: CorruptIndex.
        """
        numbers = sorted({row.segment for row in self.rows}, reverse=True)
        segment_count = 1
        while True:
            read_numbers = numbers[:segment_count]
            numbers = numbers[segment_count:]
            rows = [row for row in self.rows if row.segment in read_numbers]
            yield NewestPostings(
                list_segment_chunks(read_numbers[-1]).start if numbers else 0,
                read_postings(rows, self.sizes, self.hashes),
            )
            if not numbers:
                return
            segment_count *= 8


def compute_segment(chunk: int) -> int:
    """Returns the number of the segment that a chunk belongs to."""
    return chunk // SEGMENT_CHUNKS


def list_segment_chunks(number: int) -> range:
    """Returns the chunks of a segment."""
    return range(number * SEGMENT_CHUNKS, (number + 1) * SEGMENT_CHUNKS)


def compute_buckets(hashes: Iterable[int]) -> list[int]:
    """Returns the buckets in which the terms with these hashes lie."""
    return sorted({term_hash >> _BUCKET_SHIFT for term_hash in hashes})


def make_segment(number: int, blobs: Iterable[tuple[int, bytes]]) -> Segment:
    """Makes a segment of its chunks. Raises: CorruptIndex.

    blobs: (chunk, bytes); a chunk without messages may be left out, or be empty.
    """
    open_blobs = [open_blob(data) for _, data in blobs if data]
    tables = {blob.chunk: blob.table for blob in open_blobs}
    if not tables.keys() <= {*list_segment_chunks(number)}:
        raise CorruptIndex(f"a chunk does not belong to segment {number}")
    documents = b"".join([tables.get(chunk, EMPTY_TABLE) for chunk in list_segment_chunks(number)])
    entries = _sort_entries(open_blobs)
    header = _HEADER.pack(_MAGIC, _VERSION, _OF_DOCUMENTS, number, len(entries))
    return Segment(header + documents, _make_buckets(number, entries))


def _sort_entries(blobs: Sequence[OpenBlob]) -> NDArray[np.uint64]:
    """Returns the entries of chunks as one number each, sorted by hash and then by row.

    An entry is: hash 32 bits | row 15 | in the head 1 | frequency 8.
    """
    import numpy as np

    none = np.empty(0, np.uint8)
    marked_slots = np.concatenate([none, *(blob.marked_slots for blob in blobs)])
    frequencies = np.concatenate([none, *(blob.frequencies for blob in blobs)])
    hashes = np.concatenate([np.empty(0, np.uint32), *(blob.hashes for blob in blobs)])
    first_rows = [blob.chunk % SEGMENT_CHUNKS * CHUNK for blob in blobs]
    entries = np.array(first_rows, np.uint64).repeat([blob.entry_count for blob in blobs])
    entries += marked_slots & np.uint8(SLOT)
    entries <<= np.uint64(1)
    entries |= (marked_slots & np.uint8(HEAD >> MARKS_SHIFT)) > 0
    entries <<= np.uint64(_FREQUENCY_BITS)
    entries |= frequencies
    entries |= hashes.astype(np.uint64) << np.uint64(_HASH_SHIFT)
    entries.sort()
    return entries


def _make_buckets(number: int, entries: NDArray[np.uint64]) -> list[bytes]:
    """Returns the buckets of a segment. entries: the entries in the order of `_sort_entries`."""
    import numpy as np

    hashes = (entries >> np.uint64(_HASH_SHIFT)).astype("<u4")
    rows = (entries >> np.uint64(_FREQUENCY_BITS)).astype("<u2")
    rows = rows >> 1 | (rows & 1) * np.uint16(_IN_HEAD)  # the mark of the head moves to the left of the row
    frequencies = entries.astype(np.uint8)
    bounds = np.arange(BUCKETS + 1, dtype=np.uint64) << np.uint64(_BUCKET_SHIFT)
    ends = hashes.astype(np.uint64).searchsorted(bounds).tolist()
    return [
        b"".join(
            (
                _HEADER.pack(_MAGIC, _VERSION, _OF_BUCKET, number, end - start),
                hashes[start:end].tobytes(),
                rows[start:end].tobytes(),
                frequencies[start:end].tobytes(),
            )
        )
        for start, end in pairwise(ends)
    ]


def open_documents(number: int, data: bytes) -> OpenDocuments:
    """Returns the documents of a segment. Raises: CorruptIndex."""
    import numpy as np

    entry_count = _read_entry_count(data, _OF_DOCUMENTS, number)
    if len(data) != _HEADER.size + SEGMENT_CHUNKS * len(EMPTY_TABLE):
        raise CorruptIndex(f"{len(data)} bytes do not make the documents of a segment")
    return OpenDocuments(
        np.frombuffer(data, make_document_type(), -1, _HEADER.size).reshape(-1, CHUNK), entry_count
    )


def pick_buckets(sizes: Mapping[int, int]) -> set[int]:
    """Returns the buckets that a query reads: the smallest ones, up to `_READ_BYTES`, at least one.

    sizes: bucket -> its bytes in all segments. The terms of larger buckets are in so many messages that they decide
        little.
    """
    remaining_bytes = _READ_BYTES
    chosen_buckets: set[int] = set()
    for size, bucket in sorted((size, bucket) for bucket, size in sizes.items()):
        remaining_bytes -= size
        if chosen_buckets and remaining_bytes < 0:
            break
        chosen_buckets.add(bucket)
    return chosen_buckets


def read_postings(
    rows: Iterable[SegmentBucket], sizes: Mapping[int, int], hashes: Collection[int]
) -> Postings:
    """Returns the occurrences of some terms in the segments.

    rows: the buckets that were read, each with its segment.
    sizes: bucket -> its bytes in all segments.

    Raises: CorruptIndex.
    """
    rows_by_bucket: dict[int, list[SegmentBucket]] = {}
    for row in rows:
        rows_by_bucket.setdefault(row.bucket, []).append(row)
    occurrences: dict[int, NDArray[np.int64]] = {}
    for bucket, bucket_rows in rows_by_bucket.items():
        occurrences |= _read_bucket_occurrences(
            bucket_rows, [term_hash for term_hash in hashes if term_hash >> _BUCKET_SHIFT == bucket]
        )
    max_counts = {
        term_hash: sizes.get(term_hash >> _BUCKET_SHIFT, 0) // ENTRY_BYTES
        for term_hash in hashes
        if term_hash not in occurrences
    }
    return Postings(occurrences, max_counts)


def _read_bucket_occurrences(
    parts: Sequence[SegmentBucket], hashes: Sequence[int]
) -> dict[int, NDArray[np.int64]]:
    """Returns the occurrences of the terms of one bucket in all segments, by hash. Raises: CorruptIndex."""
    import numpy as np

    counts = [_read_entry_count(part.data, _OF_BUCKET, part.segment) for part in parts]
    columns = [memoryview(part.data)[_HEADER.size :] for part in parts]
    for view, count in zip(columns, counts, strict=True):
        if len(view) != count * ENTRY_BYTES:
            raise CorruptIndex(f"{len(view)} bytes do not make {count} entries")

    def join(start: int, width: int) -> bytes:
        """Returns a column of all segments.

        start: the bytes of an entry in the columns before this one.
        width: the bytes of an entry in this column.
        """
        parts_and_counts = zip(columns, counts, strict=True)
        return b"".join([view[start * count : (start + width) * count] for view, count in parts_and_counts])

    entry_hashes = np.frombuffer(join(0, HASH_BYTES), "<u4")
    marked_rows = np.frombuffer(join(HASH_BYTES, _MARKED_ROW_BYTES), "<u2")
    frequencies = np.frombuffer(join(HASH_BYTES + _MARKED_ROW_BYTES, _FREQUENCY_BYTES), np.uint8)
    ends = np.cumsum(counts)
    by_hash: dict[int, NDArray[np.int64]] = {}
    segments = np.array([part.segment for part in parts], np.int64) << SEGMENT_ROWS_SHIFT
    for term_hash in hashes:
        indices = (entry_hashes == term_hash).nonzero()[0]
        rows = marked_rows[indices].astype(np.int64)
        # `indices` is ascending, so the entries of each segment stand together.
        all_rows = segments.repeat(np.diff(indices.searchsorted(ends), prepend=0)) + (rows & _ROW)
        by_hash[term_hash] = all_rows << ROW_SHIFT | np.where(rows & _IN_HEAD, HEAD, 0) | frequencies[indices]
    return by_hash


def _read_entry_count(data: bytes, kind: int, number: int) -> int:
    """Returns the number of entries that a header states. Raises: CorruptIndex if it is not the header of this part."""
    if len(data) < _HEADER.size:
        raise CorruptIndex(f"{len(data)} bytes are too few for a part of a segment")
    *header, entry_count = _HEADER.unpack_from(data)
    if header != [_MAGIC, _VERSION, kind, number]:
        raise CorruptIndex(f"this is no part of segment {number}")
    return int(entry_count)


def find_uncovered_chunks(numbers: Sequence[int], last_chunk: int) -> list[range]:
    """Returns ranges of the chunks up to the last one that no segment has. numbers: numbers of segments, ascending."""
    next_chunk = 0
    gaps: list[range] = []
    for number in numbers:
        segment_chunks = list_segment_chunks(number)
        if next_chunk < segment_chunks.start:
            gaps.append(range(next_chunk, segment_chunks.start))
        next_chunk = segment_chunks.stop
    if next_chunk <= last_chunk:
        gaps.append(range(next_chunk, last_chunk + 1))
    return gaps
