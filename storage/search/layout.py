"""The layout of one agent's search index (storage/search/index.py): every document by row, before any query.

Pure: values in, columns of numbers out. A layout changes in place with its chunks and its tail.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storage.search.blob import CHUNK
from storage.search.chunk_rows import ChunkRows
from storage.search.document import NO_DOCUMENT, DocumentRow
from storage.search.lengths import Lengths
from storage.search.neighbours import Neighbours
from storage.search.tail import Tail

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COLUMNS = DocumentRow._fields


@dataclass(slots=True)
class PlacedTail:
    """A tail whose messages are in rows of the layout."""

    # The messages that the index lacks.
    tail: Tail = field(default_factory=Tail)
    # The indices in the tail of messages that are left out, ascending.
    left_out: list[int] = field(default_factory=list)
    # The row of each message, by its index in the tail; -1: it is left out.
    rows: list[int] = field(default_factory=list)
    # The index's documents of messages that are in the tail as well, by row.
    replaced: dict[int, DocumentRow] = field(default_factory=dict)


class IndexLayout:
    """Every document by row, with all columns that do not depend on a query.

    Its columns are arrays, which are read one number at a time, or by numpy without a copy. A query is answered after
    `put_tail`, which finds the neighbours.
    """

    __slots__ = (
        "all_flags", "chunk_rows", "end", "flags", "head_length", "length", "lengths", "neighbours", "placed",
        "previous_distance",
    )  # fmt: skip

    def __init__(self) -> None:
        # The chunks that have rows.
        self.chunk_rows = ChunkRows()
        # The fields of `DocumentRow`, by row; zeros: the row has no document.
        self.length = array("H")
        self.previous_distance = array("H")
        self.flags = array("B")
        self.head_length = array("B")
        # The neighbours of each document.
        self.neighbours = Neighbours()
        # The tail whose messages are among the rows.
        self.placed = PlacedTail()
        # Sums over all rows.
        self.lengths = Lengths()
        # The flags that any row has.
        self.all_flags = 0
        # The first row after all documents, once `put_tail` was called.
        self.end = 0

    def make_room(self, chunks: Iterable[int]) -> Sequence[int]:
        """Gives rows to chunks that have none. Returns the new positions of the other chunks; []: none has moved."""
        new_chunks = {*chunks}.difference(self.chunk_rows.positions)
        if not new_chunks:
            return []
        self._remove_tail()
        new_positions = self.chunk_rows.insert(new_chunks)
        if not new_positions or new_positions[-1] < len(new_positions):
            self._append_rows(len(new_chunks))
            return []
        import numpy as np

        for name in _COLUMNS:
            old_column: array[int] = getattr(self, name)
            row_count = CHUNK * len(self.chunk_rows.chunks)
            column = array(old_column.typecode, bytes(row_count * old_column.itemsize))
            by_chunk = np.asarray(column).reshape(-1, CHUNK)
            by_chunk[new_positions] = np.asarray(old_column).reshape(-1, CHUNK)
            setattr(self, name, column)
        self.neighbours.forget(0)
        return new_positions

    def _append_rows(self, chunk_count: int) -> None:
        """Adds the empty rows of as many chunks after all other rows."""
        for name in _COLUMNS:
            column: array[int] = getattr(self, name)
            setattr(self, name, column + array(column.typecode, bytes(CHUNK * chunk_count * column.itemsize)))

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
        self.neighbours.forget(CHUNK * min(positions, default=0))

    def put_tail(self, tail: Tail, skip: range) -> None:
        """Puts the messages of a tail into their rows, which `make_room` has made. skip: the numbers to leave out."""
        left_out: list[int] = []
        placed_count = len(self.placed.rows)
        if skip and skip.start <= tail.last_seq:  # a request mostly shows the last messages
            left_out = [index for index, message in enumerate(tail.documents) if message.seq in skip]
        is_placed = tail is self.placed.tail
        if not is_placed or left_out[: bisect_left(left_out, placed_count)] != self.placed.left_out:
            self._remove_tail()
            placed_count = 0
        self._link_neighbours()
        if placed_count == len(tail.documents):
            return
        self.placed.tail = tail
        self.placed.left_out = left_out
        is_linked = True
        documents = tail.iterate_rows(placed_count)
        for message, document in zip(tail.documents[placed_count:], documents, strict=True):
            if message.seq in skip:
                self.placed.rows.append(-1)
                continue
            row = self.chunk_rows.compute_row(message.seq)
            self._put_tail_document(row, document)
            # Messages after this one may still wait for their rows.
            is_linked = is_linked and row >= self.end
            if is_linked:
                self.end = row + 1
                if document.previous_distance:
                    earlier_row = self.chunk_rows.compute_row(message.seq - document.previous_distance)
                    if earlier_row >= 0 and self.flags[earlier_row]:
                        self.neighbours.add(row, earlier_row)
        if not is_linked:
            self.neighbours.forget(min(row for row in self.placed.rows if row >= 0))
            self._link_neighbours()

    def _put_tail_document(self, row: int, document: DocumentRow) -> None:
        """Puts a document of the tail into its row, and sets aside the index's document in that row."""
        if self.flags[row]:
            replaced_document = self._get_document(row)
            self.placed.replaced[row] = replaced_document
            self.lengths.add(replaced_document, -1)
        self._put_document(row, document)
        self.lengths.add(document)
        self.placed.rows.append(row)
        self.all_flags |= document.flags

    def _remove_tail(self) -> None:
        """Removes the tail's messages from their rows, and puts back the index's documents."""
        for row in self.placed.rows:
            if row < 0:
                continue
            self.neighbours.forget(row)
            self.lengths.add(self._get_document(row), -1)
            indexed_document = self.placed.replaced.get(row)
            self._put_document(row, indexed_document or NO_DOCUMENT)
            if indexed_document is not None:
                self.lengths.add(indexed_document)
        self.placed = PlacedTail()

    def _get_document(self, row: int) -> DocumentRow:
        """Returns the document in a row."""
        return DocumentRow(
            self.length[row], self.previous_distance[row], self.flags[row], self.head_length[row]
        )

    def _put_document(self, row: int, document: DocumentRow) -> None:
        """Puts a document into a row, in place of the row's document."""
        self.length[row], self.previous_distance[row], self.flags[row], self.head_length[row] = document

    def _link_neighbours(self) -> None:
        """Finds the neighbours that are not known, and the end of the documents."""
        if self.neighbours.unlinked == len(self.flags):
            return
        self.end = len(self.flags.tobytes().rstrip(b"\0"))
        self.neighbours.link(self.chunk_rows, self.previous_distance, self.flags, is_empty=not self.end)
