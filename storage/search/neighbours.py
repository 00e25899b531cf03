"""The neighbours of each document of an index: the documents before and after it in its conversation."""

from __future__ import annotations

from array import array

from storage.search.blob import CHUNK
from storage.search.chunk_rows import ChunkRows


class Neighbours:
    """The rows of neighbours, by row. Those of the rows from `unlinked` on are not known."""

    __slots__ = ("earlier", "later", "unlinked")

    def __init__(self) -> None:
        # The row of the document before a document in its conversation; -1: there is none.
        self.earlier = array("h")
        # The row of the document after a document; -1: there is none. Of several, the last one counts.
        self.later = array("h")
        # The first row with neighbours that are not known; the number of all rows: all neighbours are known.
        self.unlinked = 0

    def forget(self, row: int) -> None:
        """Notes that documents in this row or later ones have changed."""
        self.unlinked = min(self.unlinked, row)

    def add(self, row: int, earlier_row: int) -> None:
        """Notes the neighbour before a document whose row is after all other documents."""
        self.earlier[row] = earlier_row
        self.later[earlier_row] = row

    def link(
        self, chunk_rows: ChunkRows, previous_distance: array[int], flags: array[int], *, is_empty: bool
    ) -> None:
        """Finds the neighbours that are not known.

        previous_distance: the field of `DocumentRow`, by row.
        flags: the field of `DocumentRow`, by row.
        is_empty: True if no row has a document.
        """
        row_count = len(flags)
        # In most memories two bytes hold a row's number.
        no_neighbour = array("h" if row_count < 1 << 15 else "i", [-1])
        first_row = self.unlinked
        self.unlinked = row_count
        # All rows are linked again if their numbers need more bytes now, or if fewer than half stay as they are.
        if no_neighbour.typecode != self.earlier.typecode or first_row < len(self.earlier) // 2:
            first_row = 0
        empty_rows = no_neighbour * (row_count - first_row)
        self.earlier = self.earlier[:first_row] + empty_rows if first_row else empty_rows
        self.later = self.later[:first_row] + empty_rows if first_row else empty_rows[:]
        if is_empty and not first_row:
            return
        import numpy as np

        earlier = np.asarray(self.earlier)
        later = np.asarray(self.later)
        # The later neighbour of a row before `first_row` may be one of the rows to link; then the row may have another
        # later neighbour before `first_row`.
        if len(changed_rows := (later[:first_row] >= first_row).nonzero()[0]):
            later[changed_rows] = -1
            start = int(changed_rows[0])
            rows = (earlier[start:first_row] >= 0).nonzero()[0] + start
            later[earlier[rows]] = rows
        distances = np.asarray(previous_distance)
        all_flags = np.asarray(flags)
        rows = ((distances[first_row:] > 0) & (all_flags[first_row:] > 0)).nonzero()[0] + first_row
        if chunk_rows.is_gapless:
            earlier_rows = np.maximum(rows - distances[rows], -1)
        else:
            seqs = np.array(chunk_rows.chunks, np.int64)[rows // CHUNK] * CHUNK + rows % CHUNK
            earlier_rows = chunk_rows.find_rows(seqs - distances[rows])
        is_there = (earlier_rows >= 0) & (all_flags[earlier_rows] > 0)
        earlier[rows[is_there]] = earlier_rows[is_there]
        later[earlier_rows[is_there]] = rows[is_there]
