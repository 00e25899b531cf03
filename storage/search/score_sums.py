"""The sums of a query's scores by words over its occurrences, by message, in columns of numbers (numpy arrays)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.search.document import ASKS, COUNTED_TERM, FREQUENCY, HEAD, ROW_SHIFT
from storage.search.layout import IndexLayout
from storage.search.lengths import MIN_SATURATION
from storage.search.measures import (
    ANSWER_FACTOR,
    HALVING_TERMS,
    MIN_NEIGHBOUR_FACTOR,
    MIN_STATEMENT_FACTOR,
    MIN_TURN_LENGTH,
    NEIGHBOUR_FACTOR,
    STATEMENT_TERMS,
)
from storage.search.occurrences import Occurrences
from storage.search.term_weights import TermWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# In a memory of at most so many rows all rows get a score: to find the rows that may have one would take longer.
_FEW_ROWS = 4_096
# Up to so many cells for each occurrence, all cells are added up in one array. Beyond, with many terms, and many short
# messages around the hits, the array would be large and nearly empty: then cells are added up term by term, which takes
# as long.
_MAX_CELLS_PER_OCCURRENCE = 8

# numpy is imported in the functions that need it: without memory it is not needed (storage/search/blob.py).


class RowScores(NamedTuple):
    """Some rows, and their scores by words."""

    # The rows.
    rows: NDArray[np.int64]
    # The score of each row by BM25.
    score: NDArray[np.float64]
    # The part of the query that each row holds.
    share: NDArray[np.float64]
    # The flags of the rows' messages, as in the layout.
    flags: NDArray[np.uint8]


class _OccurrenceColumns(NamedTuple):
    """Occurrences, one at each index. A row may have several of a term: its own, and parts of its neighbours'."""

    # The row of the occurrence.
    row: NDArray[np.int64]
    # The number of the term among the query's terms.
    term: NDArray[np.int64]
    # The number of times that the term is there; below 1 for a part of an occurrence.
    times: NDArray[np.float64]
    # The number of terms that the occurrence adds to the length of its row.
    length: NDArray[np.float64]


class _UnpackedOccurrences(NamedTuple):
    """The occurrences of a query's terms in index and tail, one at each index."""

    # Each occurrence with the row of its message, packed as in the index.
    packed: NDArray[np.int64]
    # The number of the term among the query's terms.
    term: NDArray[np.int64]


class _NeighbourColumns(NamedTuple):
    """Neighbouring rows for which a word in a head counts, one at each index. A word may have several."""

    # The neighbour's row.
    row: NDArray[np.int64]
    # The index of the word among the given ones.
    word: NDArray[np.int64]
    # The part of an occurrence for which the word counts there.
    part: NDArray[np.float64]


class _DistinctBins(NamedTuple):
    """The distinct bins of some occurrences."""

    # The bins, in order.
    bins: NDArray[np.int64]
    # For each occurrence the position of its bin in `bins`.
    bin_index: NDArray[np.int64]


class _Cells(NamedTuple):
    """Cells that have an occurrence, one at each index."""

    # The index of the cell's bin among those that have occurrences.
    bin_index: NDArray[np.int64]
    # The number of the cell's term among the query's terms.
    term: NDArray[np.int64]
    # The number of times that the term is in the bin.
    times: NDArray[np.float64]


class ScoreSums:
    """The sums over the occurrences of a query's terms, by row: the score of BM25, and the part of the query in a row.

    A number here is one of three kinds:

    - row: a message in the layout, over the whole memory.
    - bin: a row among the rows that may have a score (`_rows`); the sums are columns by bin, as `numpy.bincount` makes
      them. In a small memory, or with vectors, each row is its own bin.
    - cell: a pair of a bin and a term, within one call of `add`.
    """

    def __init__(self, layout: IndexLayout, *, has_vectors: bool) -> None:
        """Begins without an occurrence. has_vectors: True if each row may have a score by its vector."""
        import numpy as np

        self._layout = layout
        self._has_vectors = has_vectors
        self._total = len(layout.flags)
        # The row of each bin, in order: all rows of a small memory, or the rows of a large memory that have
        # occurrences.
        self._rows = np.arange(self._total if has_vectors or self._total <= _FEW_ROWS else 0)
        # The bin of each row; 0 also for a row without a bin.
        self._bin_of_row = np.zeros(self._total, np.int64)
        self._bin_of_row[self._rows] = self._rows
        # The sums by bin.
        self._score = np.zeros(len(self._rows))
        self._share = np.zeros(len(self._rows))
        # The row of each occurrence, and the number of its term among all calls of `add`; an array for each call.
        self._occurrence_rows: list[NDArray[np.int64]] = []
        self._occurrence_terms: list[NDArray[np.int64]] = []
        # The number of terms in all calls of `add`.
        self.term_count = 0
        # The weight of the query: a message that has all terms has about this share (`TermWeights.query_weight`).
        self.query_weight = 0.0

    def add(self, occurrences: Occurrences) -> None:
        """Adds the occurrences of a query's terms, or of the names in its first hits."""
        self.query_weight += occurrences.weights.query_weight
        packed, term = self._unpack_terms(occurrences)
        row = packed >> ROW_SHIFT
        self._occurrence_rows.append(row)
        self._occurrence_terms.append(term + self.term_count)
        self.term_count += len(occurrences.sizes)
        self._sum_occurrences(occurrences.weights, self._add_neighbours(packed, term))

    def _add_neighbours(self, packed: NDArray[np.int64], term: NDArray[np.int64]) -> _OccurrenceColumns:
        """Returns occurrences, followed by the parts of them that count for the neighbouring messages.

        packed, term: the occurrences, as `_unpack_terms` returns them.

        This is a method of its own, so that its arrays are freed at its end: in a large memory they would double the
        memory that a search takes.
        """
        import numpy as np

        # A word in a message's head counts as a part of a word in each neighbour, so the head counts as a part of the
        # neighbour's text: otherwise "Ok." between two messages with a word would rank before these messages.
        row = packed >> ROW_SHIFT
        in_head = (packed & HEAD).nonzero()[0]
        head_row = row[in_head]
        neighbours = self._make_neighbours(head_row)
        source = head_row[neighbours.word]
        length = (
            neighbours.part * np.asarray(self._layout.head_length)[source] / np.bincount(head_row)[source]
        )
        return _OccurrenceColumns(
            row=np.concatenate((row, neighbours.row)),
            term=np.concatenate((term, term[in_head[neighbours.word]])),
            times=np.concatenate((packed & FREQUENCY, neighbours.part)),
            length=np.concatenate((np.zeros(len(row)), length)),
        )

    def _unpack_terms(self, occurrences: Occurrences) -> _UnpackedOccurrences:
        """Returns the occurrences in index and tail, with the number of each occurrence's term."""
        import numpy as np

        in_tail = np.array([*chain.from_iterable(occurrences.in_tail)], np.int64)
        tail_rows = np.array(self._layout.placed.rows, np.int64)
        in_tail = tail_rows[in_tail >> ROW_SHIFT] << ROW_SHIFT | in_tail & COUNTED_TERM
        packed = np.concatenate((occurrences.in_index, in_tail), dtype=np.int64)
        # The index has occurrences of each term, and the tail.
        sizes = [*occurrences.sizes, *map(len, occurrences.in_tail)]
        term = (np.arange(len(sizes)) % len(occurrences.sizes)).repeat(sizes)
        return _UnpackedOccurrences(packed, term)

    def _sum_occurrences(self, weights: TermWeights, occurrences: _OccurrenceColumns) -> None:
        """Adds occurrences to the sums of their rows."""
        import numpy as np

        layout = self._layout
        term_count = len(weights.in_ranking)
        bins, index = _list_distinct_bins(self._assign_bins(occurrences.row), len(self._rows))
        lengths = np.asarray(layout.length)[self._rows[bins]] + np.bincount(index, occurrences.length)
        cells = _sum_by_cell(index, occurrences.term, occurrences.times, term_count)
        cell_bins = bins[cells.bin_index]
        length = lengths[cells.bin_index]

        saturation = length * layout.lengths.slope + MIN_SATURATION  # of BM25 (lengths.py)
        bin_count = len(self._rows)
        in_ranking, in_bounds, costs, usual_lengths = map(
            np.array, (weights.in_ranking, weights.in_bounds, weights.length_costs, weights.usual_lengths)
        )
        self._score += np.bincount(
            cell_bins, in_ranking[cells.term] * cells.times / (cells.times + saturation), bin_count
        )
        # The longer a message is, the more words it has by chance, and the less each word says.
        weight = in_bounds[cells.term]
        length_ratio = length / (usual_lengths[cells.term] * np.maximum(cells.times, 1.0))
        long = (length_ratio > 1.0).nonzero()[0]
        weight[long] = np.maximum(weight[long] - np.log(length_ratio[long]) * costs[cells.term[long]], 0.0)
        # A message's share of the query is measured by the squares of weights: one rare word says more than many common
        # words, some of which any message has. A word that occurs several times, or in neighbours too, counts once.
        self._share += np.bincount(cell_bins, weight * weight * np.minimum(cells.times, 1.0), bin_count)

    def _make_neighbours(self, head_rows: NDArray[np.int64]) -> _NeighbourColumns:
        """Returns the neighbouring rows in the conversation for which the words in heads of rows count as well.

        A word counts for a smaller part the more terms lie between. A turn that only asks counts for nothing before it.

        head_rows: for each word the row with the word in its head.
        """
        import numpy as np

        layout = self._layout
        length = np.asarray(layout.length)
        asks = (np.asarray(layout.flags)[head_rows] & ASKS) > 0
        rows = [head_rows[:0]]
        indices = [head_rows[:0]]
        parts = [np.empty(0)]
        for side, question_factor in (
            (layout.neighbours.earlier, 0.0),
            (layout.neighbours.later, ANSWER_FACTOR),
        ):
            next_row = np.asarray(side)
            index = np.arange(len(head_rows))
            target = next_row[head_rows]
            part = NEIGHBOUR_FACTOR * np.where(asks, question_factor, 1.0)
            while len(counting := ((target >= 0) & (part >= MIN_NEIGHBOUR_FACTOR)).nonzero()[0]):
                index = index[counting]
                target = target[counting]
                part = part[counting]
                rows.append(target)
                indices.append(index)
                parts.append(part)
                part = part * np.exp2(np.maximum(length[target], MIN_TURN_LENGTH) / -HALVING_TERMS)
                target = next_row[target]
        return _NeighbourColumns(np.concatenate(rows), np.concatenate(indices), np.concatenate(parts))

    def _assign_bins(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the bins of rows. Rows without a bin are given one, which may move the other bins."""
        import numpy as np

        if len(self._rows) < self._total:
            has_bin = np.zeros(self._total, bool)
            has_bin[self._rows] = has_bin[rows] = True
            all_rows = has_bin.nonzero()[0]
            if len(all_rows) > len(self._rows):
                self._bin_of_row[all_rows] = np.arange(len(all_rows))
                new_bins = self._bin_of_row[self._rows]
                score = np.zeros(len(all_rows))
                share = np.zeros(len(all_rows))
                score[new_bins] = self._score
                share[new_bins] = self._share
                self._rows = all_rows
                self._score = score
                self._share = share
        return self._bin_of_row[rows]

    def select_with_own_words(self, rows: Sequence[int]) -> list[int]:
        """Returns the rows that have a term themselves, in their order."""
        import numpy as np

        has_term = np.zeros(self._total, bool)
        for occurrence_rows in self._occurrence_rows:
            has_term[occurrence_rows] = True
        return [row for row in rows if has_term[row]]

    def have_several_terms(self, rows: NDArray[np.int64]) -> bool:
        """Returns whether rows and their neighbours have more than one term of the query, between them."""
        import numpy as np

        earlier = np.asarray(self._layout.neighbours.earlier)[rows]
        later = np.asarray(self._layout.neighbours.later)[rows]
        is_near = np.zeros(self._total + 1, bool)  # after the rows comes one for missing neighbours
        is_near[rows] = is_near[earlier] = is_near[later] = True
        is_there = is_near[np.concatenate(self._occurrence_rows)]
        terms = np.concatenate(self._occurrence_terms)[is_there]
        return len(terms) > 0 and bool((terms != terms[0]).any())

    def collect_row_scores(self) -> RowScores:
        """Returns the rows that hold a part of the query; all rows if vectors count, or if most rows hold a part."""
        import numpy as np

        layout = self._layout
        bins = np.arange(len(self._rows))
        if not self._has_vectors:
            bins = (self._share > 0).nonzero()[0]
        if 2 * len(bins) > len(self._rows):
            bins = np.arange(len(self._rows))
            score = self._score.copy()
            share = self._share.copy()
        else:
            score = self._score[bins]
            share = self._share[bins]
        rows = self._rows[bins]
        flags = np.asarray(layout.flags)[rows]
        if layout.all_flags & ASKS:
            # The terms of the query that each bin's message has itself.
            own_terms = np.zeros(len(self._rows), np.int64)
            for rows_of_call in self._occurrence_rows:
                own_terms += np.bincount(self._bin_of_row[rows_of_call], minlength=len(own_terms))
            other_terms = np.asarray(layout.head_length)[rows] - own_terms[bins]
            score *= np.where(
                flags & ASKS, (other_terms / STATEMENT_TERMS).clip(MIN_STATEMENT_FACTOR, 1.0), 1.0
            )
        return RowScores(rows, score, share, flags)


def _list_distinct_bins(bins: NDArray[np.int64], count: int) -> _DistinctBins:
    """Returns the distinct bins. bins: the bin of each occurrence. count: the number of all bins."""
    import numpy as np

    is_there = np.zeros(count, bool)
    is_there[bins] = True
    distinct = is_there.nonzero()[0]
    index = np.empty(count, np.int64)
    index[distinct] = np.arange(len(distinct))
    return _DistinctBins(distinct, index[bins])


def _sum_by_cell(
    index: NDArray[np.int64], term: NDArray[np.int64], times: NDArray[np.float64], term_count: int
) -> _Cells:
    """Adds up occurrences by cell. The cells of a bin are in the order of their terms.

    index: the index of its bin, for each occurrence.
    term, times: its term, and how many times it counts, for each occurrence.
    """
    import numpy as np

    index_count = int(index.max(initial=-1)) + 1
    if index_count * term_count <= _MAX_CELLS_PER_OCCURRENCE * len(index):
        by_cell: NDArray[Any] = np.bincount(index * term_count + term, times)
        # Most rows have few terms, and empty cells add nothing. numpy finds true values sooner than numbers.
        cell = (by_cell > 0).nonzero()[0]
        return _Cells(*np.divmod(cell, term_count), by_cell[cell])
    ends = np.bincount(term, minlength=term_count).cumsum()
    indices = [index[:0]]
    terms = [term[:0]]
    sums = [times[:0]]
    # Numbers of 16 bits are sorted in the time of a few passes.
    for number, part in enumerate(np.split(term.astype(np.uint16).argsort(kind="stable"), ends[:-1])):
        by_index: NDArray[Any] = np.bincount(index[part], times[part])
        filled = (by_index > 0).nonzero()[0]
        indices.append(filled)
        terms.append(np.full(len(filled), number))
        sums.append(by_index[filled])
    return _Cells(np.concatenate(indices), np.concatenate(terms), np.concatenate(sums))
