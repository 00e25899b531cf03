"""The packed search index of one agent, opened: its blobs (storage/search/blob.py) as columns that a query searches.

Pure: bytes in, columns of numbers out. An index changes in place with its chunks; one thread uses it at a time.

An occurrence of a term is one number of 64 bits, so that in a sorted column the occurrences of a term lie side by side:

    hash 32 | row 22 | a name 1 | in the head 1 | frequency 8

Every document is a row, 64 rows to a chunk, in the order of the chunks. Of a large index the older chunks lie in
segments (storage/search/segment.py): their documents have rows here, and a query brings the occurrences of its terms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from storage.search.blob import (
    CHUNK,
    EMPTY_TABLE,
    MARKS_SHIFT,
    SLOT,
    SLOT_BITS,
    OpenBlob,
    compute_chunk,
    make_document_type,
    open_blob,
)
from storage.search.document import HEAD, NAME, PRESENT, ROW_SHIFT
from storage.search.layout import IndexLayout
from storage.search.segment import (
    ENTRY_BYTES,
    SEGMENT_ROWS_SHIFT,
    Postings,
    StampedDocuments,
    compute_segment,
    list_segment_chunks,
)
from storage.search.tail import Tail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# To the left of these bits an occurrence has its hash.
HASH_SHIFT = 32
# The bits of the hash in a number of `Index._names`.
_HASH = 0xFFFFFFFF
# The lower half of an occurrence: its row, marks and frequency. The hash is to the left.
LOW_HALF = (1 << HASH_SHIFT) - 1
_ROW_BITS = HASH_SHIFT - ROW_SHIFT
# The most chunks of an index: those of four million messages.
_MAX_CHUNKS = 1 << (_ROW_BITS - SLOT_BITS)
# To the left of these bits a row is the position of its chunk.
_CHUNK_SHIFT = ROW_SHIFT + SLOT_BITS

# Changed chunks lie in a column of their own until they are more than this, or more than a quarter of all chunks:
# sorting a long column takes milliseconds.
_MAX_CHANGED_CHUNKS = 16
# Measured in memory: a row without the numbers of its neighbours, an occurrence, and an index that has none of these.
_LAYOUT_ROW_BYTES = 6
_OCCURRENCE_BYTES = 8
_INDEX_BYTES = 2_200


class Index:
    """The chunks of one agent."""

    __slots__ = ("_blob_sizes", "_changed_chunks", "_columns", "_names", "blob_bytes", "layout", "segments")

    def __init__(self, blobs: Iterable[tuple[int, bytes]] = ()) -> None:
        """Makes an index of blobs by chunk. Raises: CorruptIndex."""
        self.layout = IndexLayout()
        # The occurrences of all chunks, and the occurrences of chunks that have changed since. Each column is sorted.
        self._columns = [make_empty_column(), make_empty_column()]
        # The chunks of the second column. Their occurrences in the first column do not count.
        self._changed_chunks = frozenset[int]()
        # A number for each name in the head of a document: its row, and to the right of it the hash in 32 bits. Sorted.
        self._names = make_empty_column()
        # The bytes of each chunk's blob.
        self._blob_sizes: dict[int, int] = {}
        # The bytes of all blobs together.
        self.blob_bytes = 0
        # The stamps of the segments that hold some of the chunks, by number.
        self.segments: dict[int, int] = {}
        self.put(blobs)

    @property
    def size_bytes(self) -> int:
        """An estimate of the memory that the index takes, in bytes."""
        number_count = len(self._columns[0]) + len(self._columns[1]) + len(self._names)
        row_bytes = _LAYOUT_ROW_BYTES + 2 * self.layout.neighbours.earlier.itemsize
        return _INDEX_BYTES + _OCCURRENCE_BYTES * number_count + row_bytes * len(self.layout.flags)

    def put(
        self,
        blobs: Iterable[tuple[int, bytes]],
        segments: Mapping[int, StampedDocuments] = MappingProxyType({}),
    ) -> None:
        """Replaces chunks. A chunk with an empty blob has no messages any more. Raises: CorruptIndex.

        segments: the segments by their numbers. The index has none of their chunks yet.
        """
        import numpy as np

        new_blobs = dict(blobs)
        open_blobs = [(chunk, open_blob(data)) for chunk, data in new_blobs.items() if data]
        segment_chunks = [chunk for number in segments for chunk in list_segment_chunks(number)]
        self._make_room([*segment_chunks, *(chunk for chunk, _ in open_blobs)])
        changed_chunks = [chunk for chunk in new_blobs if chunk in self.layout.chunk_rows.positions]
        if not changed_chunks and not segment_chunks:
            return
        for chunk in changed_chunks:
            self._blob_sizes.pop(chunk, None)
        self._blob_sizes.update((chunk, len(blob.data)) for chunk, blob in open_blobs)
        for number, segment in segments.items():
            self.segments[number] = segment.stamp
            self._blob_sizes[list_segment_chunks(number).start] = ENTRY_BYTES * segment.documents.entry_count
        self.blob_bytes = sum(self._blob_sizes.values())
        tables = {chunk: blob.table for chunk, blob in open_blobs}
        joined_tables = b"".join([tables.get(chunk, EMPTY_TABLE) for chunk in changed_chunks])
        rows = [np.frombuffer(joined_tables, make_document_type()).reshape(-1, CHUNK)]
        rows += [segment.documents.rows for segment in segments.values()]
        self.layout.put_indexed(
            [self.layout.chunk_rows.positions[chunk] for chunk in (*changed_chunks, *segment_chunks)],
            np.concatenate(rows),
        )
        self._put_occurrences(
            changed_chunks, self._list_chunk_occurrences(open_blobs) if open_blobs else make_empty_column()
        )

    def _put_occurrences(self, chunks: Sequence[int], occurrences: NDArray[np.uint64]) -> None:
        """Replaces the occurrences of some chunks."""
        names = occurrences[(occurrences & NAME).astype(bool)]
        is_replaced = self._make_chunk_mask(chunks)
        all_chunks, changed_chunks = self._columns
        parts = [_remove_chunks(changed_chunks, is_replaced), occurrences]
        self._changed_chunks = self._changed_chunks.union(chunks)
        max_changed = min(_MAX_CHANGED_CHUNKS, len(self.layout.chunk_rows.chunks) // 4)
        if not len(all_chunks) or len(self._changed_chunks) > max_changed:
            parts.append(_remove_chunks(all_chunks, self._make_chunk_mask(self._changed_chunks)))
            self._columns = [_sort_column(parts), make_empty_column()]
            self._changed_chunks = frozenset()
        else:
            self._columns = [all_chunks, _sort_column(parts)]
        other_names = self._names[~is_replaced[self._names >> (HASH_SHIFT + SLOT_BITS)]]
        name_rows = (names & LOW_HALF) >> ROW_SHIFT
        self._names = _sort_column([other_names, name_rows << HASH_SHIFT | names >> HASH_SHIFT])

    def make_layout(self, tail: Tail, skip: range) -> IndexLayout:
        """Returns the layout with the messages of a tail in their rows. skip: the numbers of messages to leave out."""
        layout = self.layout
        placed_count = len(layout.placed.rows) if tail is layout.placed.tail else 0
        if new_documents := tail.documents[placed_count:]:
            self._make_room({compute_chunk(document.seq) for document in new_documents})
        layout.put_tail(tail, skip)
        return layout

    def list_occurrences(self, hashes: Collection[int], postings: Postings) -> list[NDArray[np.uint64]]:
        """Returns the occurrences of each term. postings: the terms' occurrences in segments."""
        import numpy as np

        bounds = _make_bounds(hashes)
        all_chunks, changed_chunks = self._columns
        by_term = _cut_slices(all_chunks, bounds)
        if self._changed_chunks:
            is_changed = self._make_chunk_mask(self._changed_chunks)
            changed_by_term = _cut_slices(changed_chunks, bounds)
            by_term = [
                np.concatenate((_remove_chunks(unchanged, is_changed), changed))
                for unchanged, changed in zip(by_term, changed_by_term, strict=True)
            ]
        if by_hash := postings.read:
            by_term = [
                np.concatenate((self._move_to_rows(by_hash[hash_]), in_chunks))
                if hash_ in by_hash
                else in_chunks
                for hash_, in_chunks in zip(hashes, by_term, strict=True)
            ]
        return by_term

    def _move_to_rows(self, occurrences: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Returns occurrences in segments with rows of this index."""
        import numpy as np

        # The numbers that are added to the occurrences of each segment, by its number.
        shifts = np.zeros(max(self.segments) + 1, np.int64)
        for number in self.segments:
            row = self.layout.chunk_rows.positions[list_segment_chunks(number).start] * CHUNK
            shifts[number] = (row - (number << SEGMENT_ROWS_SHIFT)) << ROW_SHIFT
        of_segment = occurrences >> (ROW_SHIFT + SEGMENT_ROWS_SHIFT)
        in_rows: NDArray[np.uint64] = (occurrences + shifts[of_segment]).view(np.uint64)
        return in_rows

    def list_name_hashes(self, rows: Sequence[int]) -> list[list[int]]:
        """Returns the hashes of the names in the head of each document."""
        parts = _cut_slices(self._names, _make_bounds(rows))
        return [[name & _HASH for name in names.tolist()] for names in parts]

    def _make_room(self, chunks: Iterable[int]) -> None:
        """Gives rows to chunks that have none. Rows after them move."""
        new_positions = self.layout.make_room(chunks)
        if len(self.layout.chunk_rows.chunks) > _MAX_CHUNKS:
            raise OverflowError(f"no index has more than {_MAX_CHUNKS} chunks")
        if new_positions and self.blob_bytes:
            import numpy as np

            shifts = (np.array(new_positions) - np.arange(len(new_positions))).astype(np.uint64) << np.uint64(
                SLOT_BITS
            )
            self._columns = [
                column + (shifts[(column & LOW_HALF) >> _CHUNK_SHIFT] << ROW_SHIFT)
                for column in self._columns
            ]
            self._names = self._names + (shifts[self._names >> (HASH_SHIFT + SLOT_BITS)] << HASH_SHIFT)

    def is_outdated_by(self, chunks: Iterable[int]) -> bool:
        """Returns whether a changed chunk lies in a segment, which was dropped for the change."""
        return bool(self.segments) and not self.segments.keys().isdisjoint(map(compute_segment, chunks))

    def _make_chunk_mask(self, chunks: Iterable[int]) -> NDArray[np.bool_]:
        """Returns a mask of the layout's chunks, by position: whether a chunk is among the given chunks."""
        import numpy as np

        mask = np.zeros(len(self.layout.chunk_rows.chunks), bool)
        mask[[self.layout.chunk_rows.positions[chunk] for chunk in chunks]] = True
        return mask

    def _list_chunk_occurrences(self, chunks: Sequence[tuple[int, OpenBlob]]) -> NDArray[np.uint64]:
        """Returns the occurrences in some chunks, without occurrences of no document, as a damaged chunk may have."""
        import numpy as np

        positions = np.array([self.layout.chunk_rows.positions[chunk] for chunk, _ in chunks])
        blobs = [blob for _, blob in chunks]
        marked_slots = np.concatenate([blob.marked_slots for blob in blobs])
        # Changed in place, since for a long memory each of these columns takes millions of bytes.
        low_halves = (positions * CHUNK).astype(np.uint32).repeat([blob.entry_count for blob in blobs])
        low_halves += marked_slots & SLOT
        has_document = (np.asarray(self.layout.flags) & PRESENT)[low_halves] > 0
        low_halves <<= ROW_SHIFT
        low_halves |= marked_slots.astype(np.uint32) << MARKS_SHIFT & (HEAD | NAME)
        low_halves |= np.concatenate([blob.frequencies for blob in blobs])
        occurrences = np.concatenate([blob.hashes for blob in blobs]).astype(np.uint64)
        occurrences <<= HASH_SHIFT
        occurrences |= low_halves
        return occurrences if has_document.all() else occurrences[has_document]


@cache
def make_empty_column() -> NDArray[np.uint64]:
    """Returns a column without occurrences."""
    import numpy as np

    return np.empty(0, np.uint64)


def _sort_column(parts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Returns the numbers of all parts in one sorted column."""
    import numpy as np

    column = np.concatenate(parts)
    column.sort()
    return column


def remove_rows(
    by_term: Iterable[NDArray[np.uint64]], rows: Iterable[int], total: int
) -> list[NDArray[np.uint64]]:
    """Returns the occurrences that are in none of these rows, by term. total: the number of all rows."""
    import numpy as np

    stays = np.ones(total, bool)
    stays[[*rows]] = False
    return [part[stays[(part & LOW_HALF) >> ROW_SHIFT]] for part in by_term]


def _make_bounds(keys: Collection[int]) -> NDArray[np.uint64]:
    """Returns the bounds, in the form of `_cut_slices`, of the numbers with these keys left of `HASH_SHIFT`."""
    import numpy as np

    return np.array([*keys, *(key + 1 for key in keys)], np.uint64) << np.uint64(HASH_SHIFT)


def _cut_slices(column: NDArray[np.uint64], bounds: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """Returns parts of a sorted column.

    bounds: the least number of each part, and after these the least number after each part.
    """
    offsets = column.searchsorted(bounds).tolist()
    empty = column[:0]
    part_count = len(bounds) // 2
    starts, ends = offsets[:part_count], offsets[part_count:]
    return [column[start:end] if start < end else empty for start, end in zip(starts, ends, strict=True)]


def _remove_chunks(column: NDArray[np.uint64], mask: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Returns the occurrences that are in none of some chunks. mask: the chunks, by `Index._make_chunk_mask`."""
    return column[~mask[(column & LOW_HALF) >> _CHUNK_SHIFT]] if len(column) else column
