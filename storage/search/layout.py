"""The layout of one agent's search index (storage/search/index.py): every document by row, before any query.

Pure: values in, columns of numbers out. A layout changes in place with its chunks and its tail.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.search.blob import CHUNK
from storage.search.document import NO_DOCUMENT, PRESENT, USER, DocumentRow
from storage.search.tail import Tail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The parameters of BM25, with the values that are usual: how soon a repeated word stops counting (k1), and how much the
# length of a message lowers its score (b).
_K1 = 1.2
_B = 0.75
# BM25 divides how often a term is in a message by that number plus k1 * (1 - b + b * length / mean length), here called
# the saturation: this is its part without the length, and `IndexLayout.slope` its growth with each term of the message.
MIN_SATURATION = _K1 * (1 - _B)

# The ranking of the user's turns counts in full if the assistant's turns are 2**3 times as long as the user's, as they
# are in LongMemEval, where a smaller weight found less.
_FULL_WEIGHT_LOG2 = 3

_COLUMNS = DocumentRow._fields


@dataclass(slots=True)
class Lengths:
    """Sums over documents. Lengths are in terms; logarithms have the base 2."""

    # The number of documents.
    count: int = 0
    # The sum of their lengths.
    length: int = 0
    # The number of documents that are messages of the user.
    user_count: int = 0
    # The sum of the logarithms of the lengths of the user's messages.
    user_logs: float = 0.0
    # The sum of the logarithms of the lengths of all other documents.
    other_logs: float = 0.0

    @classmethod
    def sum_rows(cls, length: NDArray[np.uint16], flags: NDArray[np.uint8]) -> Lengths:
        """Returns the sums over some rows; a row without a document has zeros."""
        import numpy as np

        logs = np.log2(length + 1.0)
        user_rows = (flags & USER).nonzero()[0]
        user_logs = float(logs[user_rows].sum())
        count = int(np.count_nonzero(flags & PRESENT))
        return cls(count, int(length.sum()), len(user_rows), user_logs, float(logs.sum()) - user_logs)

    def add(self, document: DocumentRow, sign: int = 1) -> None:
        """Adds a document; with the sign -1 subtracts it."""
        log = math.log2(document.length + 1)
        self.count += sign
        self.length += sign * document.length
        if document.flags & USER:
            self.user_count += sign
            self.user_logs += sign * log
        else:
            self.other_logs += sign * log

    def with_replaced(self, old_sums: Lengths, new_sums: Lengths) -> Lengths:
        """Returns a copy of the sums after a change of some rows.

        old_sums: the sums over these rows before the change.
        new_sums: the sums over these rows after the change.
        """
        count = self.count - old_sums.count + new_sums.count
        if not count:
            return Lengths()
        return Lengths(
            count,
            self.length - old_sums.length + new_sums.length,
            self.user_count - old_sums.user_count + new_sums.user_count,
            self.user_logs - old_sums.user_logs + new_sums.user_logs,
            self.other_logs - old_sums.other_logs + new_sums.other_logs,
        )

    def compute_user_weight(self) -> float:
        """Returns the weight of the ranking of the user's turns: the greater, the longer the assistant's turns are.

        The typical length is the geometric mean, which a few very long turns do not change much.
        """
        other_count = self.count - self.user_count
        if not self.user_count or not other_count:
            return 0.0
        # Rounded, since sums of the same rows in another order differ by a rounding error, which would decide between
        # equal weights.
        ratio_log2 = round(self.other_logs / other_count - self.user_logs / self.user_count, 9)
        return min(max(ratio_log2 / _FULL_WEIGHT_LOG2, 0.0), 1.0)


class IndexLayout:
    """Every document by row, 64 rows to a chunk in order, with all columns that do not depend on a query.

    Its columns are arrays, which are read one number at a time, or by numpy without a copy. `earlier`, `later`, `slope`
    and `user_weight` are right once `put_tail` was called.
    """

    __slots__ = (
        "_linked", "all_flags", "chunks", "earlier", "end", "flags", "head_length", "later", "left_out",
        "length", "lengths", "positions", "previous_distance", "replaced", "slope", "tail", "tail_rows", "user_weight",
    )  # fmt: skip

    # The amount that each term of a document adds to the saturation of its terms, next to MIN_SATURATION.
    slope: float
    # The weight of the ranking of the user's turns.
    user_weight: float

    def __init__(self) -> None:
        # The numbers of the chunks that have rows, ascending.
        self.chunks: list[int] = []
        # The position in `chunks` of each chunk.
        self.positions: dict[int, int] = {}
        # The fields of `DocumentRow`, by row; zeros: the row has no document.
        self.length = array("H")
        self.previous_distance = array("H")
        self.flags = array("B")
        self.head_length = array("B")
        # The row of the document before a document in its conversation, by row; -1: there is none.
        self.earlier = array("h")
        # The row of the document after a document, by row; -1: there is none. Of several, the last one counts.
        self.later = array("h")
        # The messages that the index lacks.
        self.tail = Tail()
        # The indices in the tail of messages that are left out.
        self.left_out: list[int] = []
        # The row of each message in the tail, by its index there; -1: it is left out.
        self.tail_rows: list[int] = []
        # The index's documents of messages that are in the tail as well, by row.
        self.replaced: dict[int, DocumentRow] = {}
        # Sums over all rows.
        self.lengths = Lengths()
        # The flags that any row has.
        self.all_flags = 0
        # The first row after all documents.
        self.end = 0
        # The first row with neighbours that are not known.
        self._linked = 0
        self._update_weights()

    def make_room(self, chunks: Iterable[int]) -> list[int]:
        """Gives rows to chunks that have none. Returns the new positions of the other chunks; []: none has moved."""
        old_chunks = self.chunks
        new_chunks = {*chunks}.difference(self.positions)
        if not new_chunks:
            return []
        self._remove_tail()
        if old_chunks and old_chunks[-1] < min(new_chunks):
            self._append(sorted(new_chunks))
            return []
        self.chunks = sorted(new_chunks.union(old_chunks))
        self.positions = {chunk: position for position, chunk in enumerate(self.chunks)}
        new_positions = [self.positions[chunk] for chunk in old_chunks]
        for name in _COLUMNS:
            old_column: array[int] = getattr(self, name)
            column = array(old_column.typecode, bytes(CHUNK * len(self.chunks) * old_column.itemsize))
            if old_chunks:
                import numpy as np

                np.asarray(column).reshape(-1, CHUNK)[new_positions] = np.asarray(old_column).reshape(
                    -1, CHUNK
                )
            setattr(self, name, column)
        self._linked = 0
        has_moved = bool(new_positions) and new_positions[-1] >= len(new_positions)
        return new_positions if has_moved else []

    def _append(self, chunks: Sequence[int]) -> None:
        """Gives rows to chunks that come after all others."""
        self.positions.update(
            zip(chunks, range(len(self.chunks), len(self.chunks) + len(chunks)), strict=True)
        )
        self.chunks = [*self.chunks, *chunks]
        for name in _COLUMNS:
            column: array[int] = getattr(self, name)
            new_rows = array(column.typecode, bytes(CHUNK * len(chunks) * column.itemsize))
            setattr(self, name, column + new_rows)

    def put_indexed(self, positions: Sequence[int], documents: NDArray[Any]) -> None:
        """Puts documents into the rows of some chunks. documents: the index's present documents, by [chunk, slot]."""
        import numpy as np

        self._remove_tail()
        columns = {name: np.asarray(getattr(self, name)).reshape(-1, CHUNK) for name in _COLUMNS}
        old_sums = Lengths.sum_rows(*(columns[name][positions].ravel() for name in ("length", "flags")))
        for name in _COLUMNS:
            columns[name][positions] = documents[name]
        new_sums = Lengths.sum_rows(*(columns[name][positions].ravel() for name in ("length", "flags")))
        self.lengths = self.lengths.with_replaced(old_sums, new_sums)
        self.all_flags = int(np.bitwise_or.reduce(np.asarray(self.flags), initial=0))
        self._linked = min(self._linked, CHUNK * min(positions, default=0))
        self._update_weights()

    def put_tail(self, tail: Tail, skip: range) -> None:
        """Puts the messages of a tail into their rows, which `make_room` has made. skip: the numbers to leave out."""
        left_out: list[int] = []
        row_count = len(self.tail_rows)
        if skip and skip.start <= tail.last_seq:  # a request mostly shows the last messages
            left_out = [index for index, message in enumerate(tail.documents) if message.seq in skip]
        if tail is not self.tail or left_out[: bisect_left(left_out, row_count)] != self.left_out:
            self._remove_tail()
            row_count = 0
        if self._linked < len(self.flags) or len(self.earlier) < len(self.flags):
            self._link_neighbours()
        if row_count == len(tail.documents):
            return
        self.tail = tail
        self.left_out = left_out
        is_linked = True
        for message, document in zip(tail.documents[row_count:], tail.iterate_rows(row_count), strict=True):
            seq = message.seq
            if seq in skip:
                self.tail_rows.append(-1)
                continue
            row = self.positions[seq // CHUNK] * CHUNK + seq % CHUNK
            self._put_tail_document(row, document)
            # Messages after this one may still wait for their rows.
            is_linked = is_linked and row >= self.end
            if is_linked:
                self.end = row + 1
                earlier_row = (
                    self._compute_row(seq - document.previous_distance) if document.previous_distance else -1
                )
                if earlier_row >= 0 and self.flags[earlier_row]:
                    self.earlier[row] = earlier_row
                    self.later[earlier_row] = row
        if not is_linked:
            self._linked = min([row for row in self.tail_rows if row >= 0], default=0)
            self._link_neighbours()
        self._update_weights()

    def _put_tail_document(self, row: int, document: DocumentRow) -> None:
        """Puts a document of the tail into its row, and sets aside the index's document in that row."""
        if self.flags[row]:
            self.replaced[row] = self._get_document(row)
            self.lengths.add(self.replaced[row], -1)
        self._put_document(row, document)
        self.lengths.add(document)
        self.tail_rows.append(row)
        self.all_flags |= document.flags

    def _remove_tail(self) -> None:
        """Removes the tail's messages from their rows, and puts back the index's documents."""
        if not self.tail_rows:
            return
        rows = [row for row in self.tail_rows if row >= 0]
        self._linked = min(self._linked, *rows) if rows else self._linked
        for row in rows:
            self.lengths.add(self._get_document(row), -1)
            indexed_document = self.replaced.get(row)
            self._put_document(row, indexed_document or NO_DOCUMENT)
            if indexed_document is not None:
                self.lengths.add(indexed_document)
        self.tail = Tail()
        self.left_out = []
        self.tail_rows = []
        self.replaced = {}
        self._update_weights()

    def _get_document(self, row: int) -> DocumentRow:
        """Returns the document in a row."""
        return DocumentRow(
            self.length[row], self.previous_distance[row], self.flags[row], self.head_length[row]
        )

    def _put_document(self, row: int, document: DocumentRow) -> None:
        """Puts a document into a row, in place of the row's document."""
        self.length[row], self.previous_distance[row], self.flags[row], self.head_length[row] = document

    def make_row_range(self, seqs: range) -> range:
        """Returns the rows of the numbers in a range."""
        return (
            range(self._compute_first_row(seqs.start), self._compute_first_row(seqs.stop)) if seqs else seqs
        )

    def _compute_first_row(self, seq: int) -> int:
        """Returns the row of the smallest number from `seq` on that has a row."""
        position = bisect_left(self.chunks, seq // CHUNK)
        return position * CHUNK + (seq % CHUNK if seq // CHUNK in self.positions else 0)

    def find_rows(self, seqs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows of numbers; -1: the chunk of a number is not there."""
        import numpy as np

        if self._is_gapless:
            rows = seqs - self.chunks[0] * CHUNK
            return np.where((rows >= 0) & (rows < len(self.flags)), rows, -1)
        chunks, chunk_of_seq = np.array(self.chunks, np.int64), seqs // CHUNK
        position = np.minimum(chunks.searchsorted(chunk_of_seq), len(chunks) - 1)
        return np.where(chunks[position] == chunk_of_seq, position * CHUNK + seqs % CHUNK, -1)

    @property
    def _is_gapless(self) -> bool:
        """True if each chunk between the first and the last one has rows."""
        return bool(self.chunks) and self.chunks[-1] - self.chunks[0] == len(self.chunks) - 1

    def _compute_row(self, seq: int) -> int:
        """Returns the row of a number; -1: the chunk of the number is not there."""
        position = self.positions.get(seq // CHUNK)
        return -1 if position is None else position * CHUNK + seq % CHUNK

    def _update_weights(self) -> None:
        """Computes `slope` and `user_weight` from the sums."""
        count = max(self.lengths.count, 1)
        self.slope = _K1 * _B / max(self.lengths.length / count, 1.0)
        self.user_weight = self.lengths.compute_user_weight()

    def _link_neighbours(self) -> None:
        """Finds the neighbours of the rows from `_linked` on."""
        # In most memories two bytes hold a row's number.
        no_neighbour = array("h" if len(self.flags) < 1 << 15 else "i", [-1])
        first_row = self._linked
        self._linked = len(self.flags)
        # All rows are linked again if their numbers need more bytes now, or if fewer than half stay as they are.
        if no_neighbour.typecode != self.earlier.typecode or first_row < len(self.earlier) // 2:
            first_row = 0
        unlinked = no_neighbour * (len(self.flags) - first_row)
        if first_row:
            self.earlier, self.later = self.earlier[:first_row] + unlinked, self.later[:first_row] + unlinked
        else:
            self.earlier, self.later = unlinked, unlinked[:]
        self.end = len(self.flags.tobytes().rstrip(b"\0"))
        if self.end <= first_row and not first_row:
            return
        import numpy as np

        earlier, later = np.asarray(self.earlier), np.asarray(self.later)
        # The later neighbour of a row before `first_row` may be one of the rows to link; then the row may have another
        # later neighbour before `first_row`.
        if len(unlinked_rows := (later[:first_row] >= first_row).nonzero()[0]):
            later[unlinked_rows] = -1
            start = int(unlinked_rows[0])
            row = (earlier[start:first_row] >= 0).nonzero()[0] + start
            later[earlier[row]] = row
        distance, flags = np.asarray(self.previous_distance), np.asarray(self.flags)
        row = ((distance[first_row:] > 0) & (flags[first_row:] > 0)).nonzero()[0] + first_row
        if self._is_gapless:
            earlier_row = np.maximum(row - distance[row], -1)
        else:
            seqs = np.array(self.chunks, np.int64)[row // CHUNK] * CHUNK + row % CHUNK
            earlier_row = self.find_rows(seqs - distance[row])
        is_there = (earlier_row >= 0) & (flags[earlier_row] > 0)
        earlier[row[is_there]] = earlier_row[is_there]
        later[earlier_row[is_there]] = row[is_there]


def list_seqs(rows: Iterable[int], chunks: Sequence[int]) -> list[int]:
    """Returns the numbers of the messages in some rows. chunks: the chunks of the layout."""
    return [chunks[row // CHUNK] * CHUNK + row % CHUNK for row in rows]
