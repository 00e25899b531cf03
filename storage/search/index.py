"""The packed search index of one agent, opened: its blobs (storage/search/blob.py) as columns that a query searches.

Pure: bytes in, columns of numbers out. An index changes in place with its chunks; one thread uses it at a time.

An occurrence of a term is one number of 64 bits, so that in a sorted column those of a term lie side by side:

    hash 32 | row 22 | frequency 8 | in the head 1 | a name 1

Every document is a row, 64 rows to a chunk, in the order of the chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from storage.search.blob import (
    ASKS,
    CHUNK,
    IN_HEAD,
    NAMED,
    PRESENT,
    SLOT,
    USER,
    Counted,
    OpenBlob,
    chunk_of,
    document_row,
    document_type,
    open_blob,
)
from storage.value import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HASH_SHIFT, ROW_SHIFT, FREQUENCY_SHIFT = 32, 10, 2
FREQUENCY, HEAD, NAME = 0xFF, 2, 1
_MOST_CHUNKS = (1 << 22) // CHUNK  # four million messages
_ROW_CHUNK_SHIFT = ROW_SHIFT + 6

# Chunks that changed lie in a column of their own until they are so many: a long one takes milliseconds to sort.
_APART = 16
# About what a row and an occurrence take in memory, and an index without any.
_ROW_BYTES, _OCCURRENCE_BYTES, _INDEX_BYTES = 80, 8, 2_000

# BM25's own: how soon a repeated word stops counting, and how much a long message is held against it.
K1 = 1.2
_B = 0.75

# The assistant's turns are this many times as long as the user's, as an exponent of 2, where the ranking of the user's
# turns counts in full. That is so in LongMemEval, where nothing less found as much.
_FULL_WEIGHT_LOG2 = 3


@frozen
class Lengths:
    """Sums over rows: how many there are, their lengths and heads; logarithms of the user's lengths, and of others'."""

    count: int
    length: int
    head: int
    user: int
    user_logs: float
    other_logs: float

    @classmethod
    def of(cls, documents: NDArray[Any]) -> Lengths:
        """Sums up some rows."""
        import numpy as np

        present = documents[(documents["flags"] & PRESENT) > 0]
        logs, user = np.log2(present["length"] + 1.0), (present["flags"] & USER) > 0
        of_user = float(logs[user].sum())
        length, head = int(present["length"].sum()), int(present["head"].sum())
        return cls(len(present), length, head, int(user.sum()), of_user, float(logs.sum()) - of_user)

    def changed(self, more: Lengths, less: Lengths) -> Lengths:
        """Returns the sums with some rows, and without others."""
        return Lengths(
            self.count + more.count - less.count,
            self.length + more.length - less.length,
            self.head + more.head - less.head,
            self.user + more.user - less.user,
            self.user_logs + more.user_logs - less.user_logs,
            self.other_logs + more.other_logs - less.other_logs,
        )

    @property
    def user_weight(self) -> float:
        """How much the ranking of the user's turns counts: the more, the longer the assistant's turns are here.

        The typical length is the geometric mean, which a few very long turns do not change much.
        """
        others = self.count - self.user
        if not self.user or not others:
            return 0.0
        # Rounded, since sums of the same rows in another order differ by a hair, which would decide between equals.
        longer = round(self.other_logs / others - self.user_logs / self.user, 9)
        return min(max(longer / _FULL_WEIGHT_LOG2, 0.0), 1.0)


@frozen
class IndexLayout:
    """Every document by row, and all that is known of them before a query.

    documents: as in a blob, zeros where there is none. earlier, later: by row the rows of its neighbours, the number of
    rows for none; loose: rows whose message before them is not there. has_asking: some only ask. in_tail: the rows of
    the messages that are not indexed yet, in their order. replaced: by row whether it is one of these and indexed
    nevertheless; None where none is.
    """

    seqs: NDArray[np.int64]
    documents: NDArray[Any]
    earlier: NDArray[np.int64]
    later: NDArray[np.int64]
    loose: NDArray[np.int64]
    lengths: Lengths
    has_asking: bool
    in_tail: Sequence[int] = ()
    replaced: NDArray[np.bool_] | None = None

    @property
    def flags(self) -> NDArray[np.uint8]:
        flags: NDArray[np.uint8] = self.documents["flags"]
        return flags

    def against(self, rows: NDArray[np.int64], *, head: bool) -> NDArray[np.float64]:
        """Returns how much the length of each row, or of its head, counts against a term in it."""
        lengths, total = (
            (self.documents["head"], self.lengths.head)
            if head
            else (self.documents["length"], self.lengths.length)
        )
        mean = max(total / max(self.lengths.count, 1), 1.0)
        found: NDArray[np.float64] = K1 * (1 - _B + _B * lengths[rows] / mean)
        return found


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
        self._is_apart = np.empty(0, bool)
        self._names = np.empty(0, np.uint64)
        self._blob_bytes: dict[int, int] = {}
        self._base: IndexLayout | None = None
        self._layout: tuple[tuple[Counted, ...], IndexLayout] | None = None
        self.put(blobs)

    @property
    def blob_bytes(self) -> int:
        return sum(self._blob_bytes.values())

    @property
    def size(self) -> int:
        occurrences = len(self._columns[0]) + len(self._columns[1]) + len(self._names)
        return _INDEX_BYTES + _OCCURRENCE_BYTES * occurrences + _ROW_BYTES * CHUNK * len(self._chunks)

    @property
    def has_words(self) -> bool:
        return bool(self._blob_bytes)

    def put(self, blobs: Iterable[tuple[int, bytes]]) -> None:
        """Takes chunks as they are now; an empty one has no messages any more. Raises: CorruptIndex."""
        import numpy as np

        written = dict(blobs)
        opened = [(chunk, open_blob(data)) for chunk, data in written.items() if data]
        known = [chunk for chunk in written if chunk in self._places]
        self._make_room(chunk for chunk, _ in opened)
        if not opened and not known:
            return
        self._base = self._layout = None
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
        if not len(whole) or self._is_apart.sum() > _APART:
            parts.append(_of_others(whole, self._is_apart))
            whole, self._is_apart[:] = whole[:0], False
            self._columns = [_sorted(parts), whole]
        else:
            self._columns = [whole, _sorted(parts)]
        stay = self._names[~changed[self._names >> (HASH_SHIFT + 6)]]
        rows = (named & 0xFFFFFFFF) >> ROW_SHIFT
        self._names = _sorted([stay, rows << HASH_SHIFT | named >> HASH_SHIFT])

    def occurrences(self, hashes: Sequence[int]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Returns all occurrences of terms, without their hashes, and the number of each one's term."""
        import numpy as np

        keys = np.array(hashes, np.uint64) << HASH_SHIFT
        bounds = np.concatenate((keys, keys + (1 << HASH_SHIFT)))
        parts, terms = list[Any](), list[int]()
        counts = list[int]()
        for number, column in enumerate(self._columns):
            if not len(column):
                continue
            low_high = column.searchsorted(bounds).tolist()
            start = len(parts)
            for term, (low, high) in enumerate(zip(low_high, low_high[len(hashes) :], strict=False)):
                if low < high:
                    parts.append(column[low:high])
                    terms.append(term)
                    counts.append(high - low)
            if not number and self._is_apart.any():
                for at in range(start, len(parts)):
                    parts[at] = _of_others(parts[at], self._is_apart)
                    counts[at] = len(parts[at])
        if not parts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        # A number of 64 bits is cut to its lower half, which has no hash.
        found = np.concatenate(parts).astype(np.uint32)
        return found, np.array(terms, np.int64).repeat(counts)

    def names_in(self, row: int) -> list[int]:
        """Returns the hashes of the names in the head of a document."""
        import numpy as np

        ends = np.array([row << HASH_SHIFT, (row + 1) << HASH_SHIFT], np.uint64)
        low, high = self._names.searchsorted(ends).tolist()
        hashes: list[int] = (self._names[low:high] & 0xFFFFFFFF).tolist()
        return hashes

    def layout(self, tail: Sequence[Counted]) -> IndexLayout:
        """Returns the layout with the messages of the tail in their rows. tail: of different numbers."""
        tail = tuple(tail)
        if self._layout is None or self._layout[0] != tail:
            self._make_room(chunk_of(each.document.seq) for each in tail)
            if self._base is None:
                self._base = _lay_out(self._chunks, self._table)
            self._layout = tail, _lay_over(self._base, tail) if tail else self._base
        return self._layout[1]

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
        self._base = self._layout = None
        if len(before) and moved[-1] >= len(before):
            by = (moved - np.arange(len(before))).astype(np.uint64) << 6
            self._columns = [
                column + (by[(column & 0xFFFFFFFF) >> _ROW_CHUNK_SHIFT] << ROW_SHIFT)
                for column in self._columns
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
        low |= frequency.astype(np.uint32) << FREQUENCY_SHIFT
        low |= (marks & IN_HEAD) // (IN_HEAD // HEAD) | (marks & NAMED) // (NAMED // NAME)
        found = np.concatenate([blob.hashes for blob in opened]).astype(np.uint64)
        found <<= HASH_SHIFT
        found |= low
        return found if is_known.all() else found[is_known]


def _sorted(parts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    import numpy as np

    column = np.concatenate(parts)
    column.sort()
    return column


def _of_others(column: NDArray[np.uint64], places: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Returns the occurrences that are in none of these chunks."""
    return column[~places[(column & 0xFFFFFFFF) >> _ROW_CHUNK_SHIFT]] if len(column) else column


def _lay_out(chunks: NDArray[np.int64], table: NDArray[Any]) -> IndexLayout:
    import numpy as np

    seqs: NDArray[np.int64] = (chunks[:, None] * CHUNK + np.arange(CHUNK)).ravel()
    documents = table.ravel()
    earlier, later, loose = _neighbours(seqs, documents)
    has_asking = bool((documents["flags"] & ASKS).any())
    return IndexLayout(seqs, documents, earlier, later, loose, Lengths.of(documents), has_asking)


def _lay_over(base: IndexLayout, tail: Sequence[Counted]) -> IndexLayout:
    """Returns the layout with the messages of the tail in their rows."""
    import numpy as np

    # Rows are in the order of their numbers. What a blob says of a message in the tail does not count any more.
    rows = base.seqs.searchsorted([each.document.seq for each in tail])
    new, old = np.array([document_row(each) for each in tail], document_type()), base.documents[rows]
    documents = base.documents.copy()
    documents[rows] = new
    replaced = None
    if (old["flags"] & PRESENT).any():
        replaced = np.zeros(len(documents), bool)
        replaced[rows] = True
        earlier, later, loose = _neighbours(base.seqs, documents)
    else:
        earlier, later, loose = base.earlier.copy(), base.later.copy(), base.loose
        # Only these and what waits for one of them have other neighbours than before.
        linked = np.union1d(rows, loose)
        targets, right = _targets(base.seqs, documents, linked)
        for row, target in zip(linked[right].tolist(), targets[right].tolist(), strict=True):
            earlier[row] = target
            if later[target] == len(documents) or later[target] < row:
                later[target] = row
    return IndexLayout(
        seqs=base.seqs,
        documents=documents,
        earlier=earlier,
        later=later,
        loose=loose,
        lengths=base.lengths.changed(Lengths.of(new), Lengths.of(old)),
        has_asking=base.has_asking or bool((new["flags"] & ASKS).any()),
        in_tail=rows.tolist(),
        replaced=replaced,
    )


def _neighbours(
    seqs: NDArray[np.int64], documents: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns for each row the row of the message before it and of the one behind it; for none the number of rows.

    Last the rows whose message before them is not there.
    """
    import numpy as np

    linked = (documents["back"] > 0).nonzero()[0]
    targets, right = _targets(seqs, documents, linked)
    earlier = np.full(len(seqs), len(seqs), np.int64)
    later = earlier.copy()
    earlier[linked[right]] = targets[right]
    later[targets[right]] = linked[right]
    return earlier, later, linked[~right]


def _targets(
    seqs: NDArray[np.int64], documents: NDArray[Any], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the rows of the messages before some, and whether each is there."""
    import numpy as np

    back = documents["back"][rows].astype(np.int64)
    target = seqs[rows] - back
    if seqs[-1] - seqs[0] < len(seqs):
        found = np.maximum(target - seqs[0], 0)
    else:
        # Chunks are missing in between, so that a row is not found by counting.
        found = np.minimum(seqs.searchsorted(target), len(seqs) - 1)
    return found, (back > 0) & (seqs[found] == target) & ((documents["flags"][found] & PRESENT) > 0)
