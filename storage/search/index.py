"""The packed search index of one agent, opened: its blobs (storage/search/blob.py) as columns that a query searches.

Pure: bytes in, columns of numbers out. An index changes in place with its chunks; one thread uses it at a time.

An occurrence of a term is one number of 64 bits, so that in a sorted column those of a term lie side by side:

    hash 32 | row 22 | a name 1 | in the head 1 | frequency 8

Every document is a row, 64 rows to a chunk, in the order of the chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from storage.search.blob import (
    CHUNK,
    HEAD,
    MARKS_SHIFT,
    NAME,
    PRESENT,
    SLOT,
    Counted,
    OpenBlob,
    chunk_of,
    document_type,
    open_blob,
)
from storage.search.layout import IndexLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HASH_SHIFT, ROW_SHIFT = 32, 10
NO_HASH = 0xFFFFFFFF
_MOST_CHUNKS = (1 << 22) // CHUNK  # four million messages
_ROW_CHUNK_SHIFT = ROW_SHIFT + 6

# Chunks that changed lie in a column of their own until they are so many, or a quarter of all: a long one takes
# milliseconds to sort.
_APART = 16
# Measured: what a row and an occurrence take in memory, and an index without any; and what a row takes as numbers of
# lists, where it was asked for so (storage/search/few.py).
_ROW_BYTES, _OCCURRENCE_BYTES, _INDEX_BYTES, _LISTED_BYTES = 58, 8, 3_500, 100


class Index:
    """The chunks of one agent. blob_bytes: how long they are as blobs; size: about how many bytes they take here."""

    def __init__(self, blobs: Iterable[tuple[int, bytes]] = ()) -> None:
        """Makes an index of blobs by chunk. Raises: CorruptIndex."""
        import numpy as np

        self._places: dict[int, int] = {}
        self._chunks = np.empty(0, np.int64)
        self._table = np.zeros((0, CHUNK), document_type())
        self._columns = [np.empty(0, np.uint64), np.empty(0, np.uint64)]
        # By place of a chunk whether its occurrences lie in the second column; those in the first are old then.
        self._is_apart, self._has_apart = np.empty(0, bool), False
        self._names = np.empty(0, np.uint64)
        self._blob_bytes: dict[int, int] = {}
        # What is indexed with a tail, laid out, and by itself where tails take turns.
        self._laid: IndexLayout | None = None
        self._base: IndexLayout | None = None
        self.put(blobs)

    @property
    def blob_bytes(self) -> int:
        return sum(self._blob_bytes.values())

    @property
    def size(self) -> int:
        occurrences = len(self._columns[0]) + len(self._columns[1]) + len(self._names)
        listed = 0 if self._laid is None else self._laid.listed
        layouts = 1 if self._base is None else 2
        rows = _ROW_BYTES * layouts * CHUNK * len(self._chunks) + _LISTED_BYTES * listed
        return _INDEX_BYTES + _OCCURRENCE_BYTES * occurrences + rows

    @property
    def has_words(self) -> bool:
        return bool(self._blob_bytes)

    def put(self, blobs: Iterable[tuple[int, bytes]]) -> None:
        """Takes chunks as they are now; an empty one has no messages any more. Raises: CorruptIndex."""
        import numpy as np

        written = dict(blobs)
        if not written:
            return
        opened = [(chunk, open_blob(data)) for chunk, data in written.items() if data]
        known = [chunk for chunk in written if chunk in self._places]
        self._make_room(chunk for chunk, _ in opened)
        if not opened and not known:
            return
        changed = np.zeros(len(self._chunks), bool)
        for chunk in (*known, *(chunk for chunk, _ in opened)):
            changed[self._places[chunk]] = True
            self._blob_bytes.pop(chunk, None)
        self._table[changed] = 0
        places = np.array([self._places[chunk] for chunk, _ in opened], np.int64)
        found = np.empty(0, np.uint64)
        if opened:
            self._blob_bytes.update((chunk, len(blob.data)) for chunk, blob in opened)
            joined = b"".join([blob.table for _, blob in opened])
            self._table[places] = np.frombuffer(joined, document_type()).reshape(-1, CHUNK)
            found = self._occurrences([blob for _, blob in opened], places)
        named = found[(found & NAME).astype(bool)]
        whole, apart = self._columns
        parts = [_of_others(apart, changed), found]
        self._is_apart |= changed
        if not len(whole) or self._is_apart.sum() > min(_APART, len(self._chunks) // 4):
            parts.append(_of_others(whole, self._is_apart))
            whole, self._is_apart[:] = whole[:0], False
            self._columns = [_sorted(parts), whole]
        else:
            self._columns = [whole, _sorted(parts)]
        self._has_apart = bool(self._is_apart.any())
        self._laid, self._base = self._indexed(self._laid, changed), self._indexed(self._base, changed)
        stay = self._names[~changed[self._names >> (HASH_SHIFT + 6)]]
        rows = (named & NO_HASH) >> ROW_SHIFT
        self._names = _sorted([stay, rows << HASH_SHIFT | named >> HASH_SHIFT])

    def occurrences(self, hashes: Sequence[int]) -> list[NDArray[np.uint64]]:
        """Returns the occurrences of each term."""
        import numpy as np

        bounds = np.array([*hashes, *(each + 1 for each in hashes)], np.uint64) << np.uint64(HASH_SHIFT)
        whole, apart = self._columns
        found = _between(whole, bounds)
        if self._has_apart:
            parts = zip(found, _between(apart, bounds), strict=True)
            found = [np.concatenate((_of_others(part, self._is_apart), more)) for part, more in parts]
        return found

    def names_in(self, rows: Sequence[int]) -> list[list[int]]:
        """Returns the hashes of the names in the head of each document."""
        import numpy as np

        bounds = np.array([*rows, *(row + 1 for row in rows)], np.uint64) << np.uint64(HASH_SHIFT)
        return [[each & NO_HASH for each in part.tolist()] for part in _between(self._names, bounds)]

    def layout(self, tail: Sequence[Counted]) -> IndexLayout:
        """Returns the layout with the messages of the tail in their rows. tail: of different numbers."""
        tail = [*tail]
        if self._laid is not None and [*self._laid.tail.values()] == tail:
            return self._laid
        self._make_room(chunk_of(each.document.seq) for each in tail)
        laid = self._laid
        # A tail mostly grows at its end. One that becomes another does so again: two conversations take turns.
        if laid is None or [*laid.tail.values()] != tail[: len(laid.tail)]:
            made = self._base or self._lay_out()
            self._base = made if laid is not None else self._base
            laid = self._laid = made.copy() if made is self._base else made
        laid.add(tail[len(laid.tail) :])
        return laid

    def _indexed(self, layout: IndexLayout | None, changed: NDArray[np.bool_]) -> IndexLayout | None:
        """Returns a layout with chunks as they are now; None where it has to be made anew."""
        places = changed.nonzero()[0].tolist()
        is_kept = layout is not None and all(layout.index(place, self._table[place]) for place in places)
        return layout if is_kept else None

    def _lay_out(self) -> IndexLayout:
        """Lays out what is indexed."""
        import numpy as np

        seqs = (self._chunks[:, None] * CHUNK + np.arange(CHUNK)).ravel()
        return IndexLayout.of(self._places, seqs, self._table.ravel())

    def _make_room(self, chunks: Iterable[int]) -> None:
        """Gives rows to chunks that have none. Rows behind them move."""
        import numpy as np

        new = {chunk for chunk in chunks if chunk not in self._places}
        if not new:
            return
        before = self._chunks
        self._chunks = np.array(sorted({*self._places, *new}), np.int64)
        if len(self._chunks) > _MOST_CHUNKS:
            raise OverflowError(f"no index has more than {_MOST_CHUNKS} chunks")
        moved = self._chunks.searchsorted(before)
        self._places = {chunk: place for place, chunk in enumerate(self._chunks.tolist())}
        table, is_apart = (
            np.zeros((len(self._chunks), CHUNK), document_type()),
            np.zeros(len(self._chunks), bool),
        )
        table[moved], is_apart[moved] = self._table, self._is_apart
        self._table, self._is_apart = table, is_apart
        self._laid = self._base = None
        if len(before) and moved[-1] >= len(before):
            by = (moved - np.arange(len(before))).astype(np.uint64) << 6
            self._columns = [
                column + (by[(column & NO_HASH) >> _ROW_CHUNK_SHIFT] << ROW_SHIFT) for column in self._columns
            ]
            self._names = self._names + (by[self._names >> (HASH_SHIFT + 6)] << HASH_SHIFT)

    def _occurrences(self, opened: Sequence[OpenBlob], places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Returns the occurrences in some blobs, but in a damaged one those that belong to no document."""
        import numpy as np

        columns = [np.frombuffer(blob.columns, np.uint8) for blob in opened]
        marks = np.concatenate([both[: len(both) // 2] for both in columns])
        frequency = np.concatenate([both[len(both) // 2 :] for both in columns])
        # In place, since of a long memory these are millions of bytes each.
        low = (places * CHUNK).astype(np.uint32).repeat([blob.entries for blob in opened])
        low += marks & SLOT
        is_known = (self._table["flags"].ravel() & PRESENT)[low] > 0
        low <<= ROW_SHIFT
        low |= marks.astype(np.uint32) << MARKS_SHIFT & (HEAD | NAME)
        low |= frequency
        found = np.concatenate([blob.hashes for blob in opened]).astype(np.uint64)
        found <<= HASH_SHIFT
        found |= low
        return found if is_known.all() else found[is_known]


def _sorted(parts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    import numpy as np

    column = np.concatenate(parts)
    column.sort()
    return column


def without(parts: Iterable[NDArray[np.uint64]], rows: Iterable[int], total: int) -> list[NDArray[np.uint64]]:
    """Returns the occurrences that are in none of these rows. total: of all rows."""
    import numpy as np

    stays = np.ones(total, bool)
    stays[[*rows]] = False
    return [part[stays[(part & NO_HASH) >> ROW_SHIFT]] for part in parts]


def _between(column: NDArray[np.uint64], bounds: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """Returns parts of a sorted column. bounds: where each begins, then where each ends."""
    places, none = column.searchsorted(bounds).tolist(), column[:0]
    ends = places[len(bounds) // 2 :]
    return [column[low:high] if low < high else none for low, high in zip(places, ends, strict=False)]


def _of_others(column: NDArray[np.uint64], places: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Returns the occurrences that are in none of these chunks."""
    return column[~places[(column & NO_HASH) >> _ROW_CHUNK_SHIFT]] if len(column) else column
