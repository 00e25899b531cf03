"""The packed search index of one agent, opened: its blobs (storage/search/blob.py) as columns that a query searches.

Pure: bytes in, columns of numbers out. An index changes in place with its chunks; one thread uses it at a time.

An occurrence of a term is one number of 64 bits, so that in a sorted column those of a term lie side by side:

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
    HEAD,
    MARKS_SHIFT,
    NAME,
    PRESENT,
    ROW_SHIFT,
    SLOT,
    OpenBlob,
    chunk_of,
    document_type,
    open_blob,
)
from storage.search.layout import IndexLayout
from storage.search.segment import (
    ENTRY_BYTES,
    SEGMENT_ROWS_SHIFT,
    OpenDocuments,
    Postings,
    chunks_of,
    segment_of,
)
from storage.search.tail import Tail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HASH_SHIFT = 32
NO_HASH = 0xFFFFFFFF
_MAX_CHUNKS = (1 << 22) // CHUNK  # four million messages
_ROW_CHUNK_SHIFT = ROW_SHIFT + 6

# Chunks that changed lie in a column of their own until they are more than this, or than a quarter of all: to sort a
# long column takes milliseconds.
_MAX_CHANGED = 16
# Measured: what a row takes in memory besides the numbers of its neighbours, an occurrence, and an index without any.
_ROW_BYTES, _OCCURRENCE_BYTES, _INDEX_BYTES = 6, 8, 2_200


class Index:
    """The chunks of one agent."""

    __slots__ = ("_changed_chunks", "_columns", "_lengths", "_names", "blob_bytes", "layout", "segments")

    def __init__(self, blobs: Iterable[tuple[int, bytes]] = ()) -> None:
        """Makes an index of blobs by chunk. Raises: CorruptIndex."""
        self.layout = IndexLayout()
        # The occurrences of all chunks, and those of chunks that have changed since. Each column is sorted.
        self._columns = [_empty_column(), _empty_column()]
        # The chunks of the second column. What the first one has of them does not count.
        self._changed_chunks = frozenset[int]()
        # By row, the hashes of the names in the head of each document, sorted.
        self._names = _empty_column()
        # How long each chunk is as a blob, and all together.
        self._lengths, self.blob_bytes = dict[int, int](), 0
        # By number the stamp of each segment that holds some of the chunks.
        self.segments = dict[int, int]()
        self.put(blobs)

    @property
    def size(self) -> int:
        """About how many bytes the index takes in memory."""
        occurrences = len(self._columns[0]) + len(self._columns[1]) + len(self._names)
        row = _ROW_BYTES + 2 * self.layout.earlier.itemsize
        return _INDEX_BYTES + _OCCURRENCE_BYTES * occurrences + row * len(self.layout.flags)

    def put(
        self,
        blobs: Iterable[tuple[int, bytes]],
        segments: Mapping[int, tuple[int, OpenDocuments]] = MappingProxyType({}),
    ) -> None:
        """Replaces chunks by what they are now; an empty one has no messages any more. Raises: CorruptIndex.

        segments: by number with their stamps; none of their chunks is there.
        """
        import numpy as np

        written = dict(blobs)
        opened = [(chunk, open_blob(data)) for chunk, data in written.items() if data]
        covered = [chunk for number in segments for chunk in chunks_of(number)]
        self._make_room([*covered, *(chunk for chunk, _ in opened)])
        changed = [chunk for chunk in written if chunk in self.layout.positions]
        if not changed and not covered:
            return
        for chunk in changed:
            self._lengths.pop(chunk, None)
        self._lengths.update((chunk, len(blob.data)) for chunk, blob in opened)
        for number, (stamp, each) in segments.items():
            self.segments[number] = stamp
            self._lengths[chunks_of(number).start] = ENTRY_BYTES * each.entries
        self.blob_bytes = sum(self._lengths.values())
        tables = {chunk: blob.table for chunk, blob in opened}
        joined = b"".join([tables.get(chunk, EMPTY_TABLE) for chunk in changed])
        rows = [np.frombuffer(joined, document_type()).reshape(-1, CHUNK)]
        rows += [each.rows for _, each in segments.values()]
        self.layout.put_indexed(
            [self.layout.positions[chunk] for chunk in (*changed, *covered)], np.concatenate(rows)
        )
        self._put_occurrences(changed, self._occurrences(opened) if opened else _empty_column())

    def _put_occurrences(self, changed: Sequence[int], found: NDArray[np.uint64]) -> None:
        """Puts the occurrences of changed chunks in place of those that they had."""
        named = found[(found & NAME).astype(bool)]
        gone = self._chunk_mask(changed)
        all_chunks, changed_chunks = self._columns
        parts = [_without_chunks(changed_chunks, gone), found]
        self._changed_chunks = self._changed_chunks.union(changed)
        if not len(all_chunks) or len(self._changed_chunks) > min(_MAX_CHANGED, len(self.layout.chunks) // 4):
            parts.append(_without_chunks(all_chunks, self._chunk_mask(self._changed_chunks)))
            self._columns = [_sorted_column(parts), _empty_column()]
            self._changed_chunks = frozenset()
        else:
            self._columns = [all_chunks, _sorted_column(parts)]
        stay = self._names[~gone[self._names >> (HASH_SHIFT + 6)]]
        named_rows = (named & NO_HASH) >> ROW_SHIFT
        self._names = _sorted_column([stay, named_rows << HASH_SHIFT | named >> HASH_SHIFT])

    def layout_with(self, tail: Tail, skip: range) -> IndexLayout:
        """Returns the layout with the messages of a tail in their rows. skip: numbers of those that are left out."""
        layout = self.layout
        new = tail.documents[len(layout.tail_rows) if tail is layout.tail else 0 :]
        if new:
            self._make_room({chunk_of(each.seq) for each in new})
        layout.put_tail(tail, skip)
        return layout

    def occurrences(self, hashes: Collection[int], postings: Postings) -> list[NDArray[np.uint64]]:
        """Returns the occurrences of each term. postings: those in segments."""
        import numpy as np

        bounds = np.array([*hashes, *(each + 1 for each in hashes)], np.uint64) << np.uint64(HASH_SHIFT)
        all_chunks, changed_chunks = self._columns
        found = _slices_between(all_chunks, bounds)
        if self._changed_chunks:
            old, new = self._chunk_mask(self._changed_chunks), _slices_between(changed_chunks, bounds)
            found = [
                np.concatenate((_without_chunks(part, old), more))
                for part, more in zip(found, new, strict=True)
            ]
        if read := postings.read:
            found = [
                np.concatenate((self._in_rows(read[each]), part)) if each in read else part
                for each, part in zip(hashes, found, strict=True)
            ]
        return found

    def _in_rows(self, occurrences: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Returns occurrences in segments with rows of this index."""
        import numpy as np

        first = np.zeros(max(self.segments) + 1, np.int64)
        for number in self.segments:
            row = self.layout.positions[chunks_of(number).start] * CHUNK
            first[number] = (row - (number << SEGMENT_ROWS_SHIFT)) << ROW_SHIFT
        of_segment = occurrences >> (ROW_SHIFT + SEGMENT_ROWS_SHIFT)
        found: NDArray[np.uint64] = (occurrences + first[of_segment]).view(np.uint64)
        return found

    def names_in(self, rows: Sequence[int]) -> list[list[int]]:
        """Returns the hashes of the names in the head of each document."""
        import numpy as np

        bounds = np.array([*rows, *(row + 1 for row in rows)], np.uint64) << np.uint64(HASH_SHIFT)
        return [[each & NO_HASH for each in part.tolist()] for part in _slices_between(self._names, bounds)]

    def _make_room(self, chunks: Iterable[int]) -> None:
        """Gives rows to chunks that have none. Rows after them move."""
        moved = self.layout.make_room(chunks)
        if len(self.layout.chunks) > _MAX_CHUNKS:
            raise OverflowError(f"no index has more than {_MAX_CHUNKS} chunks")
        if moved and self.blob_bytes:
            import numpy as np

            shifts = (np.array(moved) - np.arange(len(moved))).astype(np.uint64) << np.uint64(6)
            self._columns = [
                column + (shifts[(column & NO_HASH) >> _ROW_CHUNK_SHIFT] << ROW_SHIFT)
                for column in self._columns
            ]
            self._names = self._names + (shifts[self._names >> (HASH_SHIFT + 6)] << HASH_SHIFT)

    def is_outdated_by(self, chunks: Iterable[int]) -> bool:
        """Returns whether one of these chunks, which have changed, lies in a segment: then it was dropped."""
        return bool(self.segments) and not self.segments.keys().isdisjoint(map(segment_of, chunks))

    def _chunk_mask(self, chunks: Iterable[int]) -> NDArray[np.bool_]:
        """Returns by position in the layout whether a chunk is one of these."""
        import numpy as np

        found = np.zeros(len(self.layout.chunks), bool)
        found[[self.layout.positions[chunk] for chunk in chunks]] = True
        return found

    def _occurrences(self, chunks: Sequence[tuple[int, OpenBlob]]) -> NDArray[np.uint64]:
        """Returns the occurrences in some chunks. In a damaged one those are left out that belong to no document."""
        import numpy as np

        positions = np.array([self.layout.positions[chunk] for chunk, _ in chunks])
        opened = [blob for _, blob in chunks]
        columns = [np.frombuffer(blob.columns, np.uint8) for blob in opened]
        marks = np.concatenate([both[: len(both) // 2] for both in columns])
        frequency = np.concatenate([both[len(both) // 2 :] for both in columns])
        # In place, since of a long memory these are millions of bytes each.
        low = (positions * CHUNK).astype(np.uint32).repeat([blob.entries for blob in opened])
        low += marks & SLOT
        is_known = (np.asarray(self.layout.flags) & PRESENT)[low] > 0
        low <<= ROW_SHIFT
        low |= marks.astype(np.uint32) << MARKS_SHIFT & (HEAD | NAME)
        low |= frequency
        found = np.concatenate([blob.hashes for blob in opened]).astype(np.uint64)
        found <<= HASH_SHIFT
        found |= low
        return found if is_known.all() else found[is_known]


@cache
def _empty_column() -> NDArray[np.uint64]:
    """Returns an empty column."""
    import numpy as np

    return np.empty(0, np.uint64)


@cache
def no_occurrences() -> NDArray[np.int64]:
    """Returns no occurrences at all, as a query finds them."""
    import numpy as np

    return np.empty(0, np.int64)


def _sorted_column(parts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    import numpy as np

    column = np.concatenate(parts)
    column.sort()
    return column


def without_rows(
    parts: Iterable[NDArray[np.uint64]], rows: Iterable[int], total: int
) -> list[NDArray[np.uint64]]:
    """Returns the occurrences that are in none of these rows. total: of all rows."""
    import numpy as np

    stays = np.ones(total, bool)
    stays[[*rows]] = False
    return [part[stays[(part & NO_HASH) >> ROW_SHIFT]] for part in parts]


def _slices_between(column: NDArray[np.uint64], bounds: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """Returns parts of a sorted column. bounds: the least number of each part, then the least after each."""
    places, none = column.searchsorted(bounds).tolist(), column[:0]
    ends = places[len(bounds) // 2 :]
    return [column[low:high] if low < high else none for low, high in zip(places, ends, strict=False)]


def _without_chunks(column: NDArray[np.uint64], mask: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Returns the occurrences that are in none of some chunks. mask: those of `Index._chunk_mask`."""
    return column[~mask[(column & NO_HASH) >> _ROW_CHUNK_SHIFT]] if len(column) else column
