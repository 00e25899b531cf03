"""The scores of messages by words and by vectors, and the best of them, in columns of numbers (numpy arrays)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.records import VectorSimilarities
from storage.search.document import ASKS, COUNTED_TERM, FREQUENCY, HEAD, PRESENT, ROW_SHIFT, SLIGHT, USER
from storage.search.layout import IndexLayout
from storage.search.lengths import MIN_SATURATION
from storage.search.measures import (
    AFTER_FACTOR,
    ANSWER_FACTOR,
    FEW_TERMS,
    HALVING_TERMS,
    MIN_BEST_SHARE,
    MIN_BEST_SHARE_OF_ONE,
    MIN_NEIGHBOUR_FACTOR,
    MIN_SHARE,
    MIN_STATEMENT_FACTOR,
    MIN_TURN_LENGTH,
    NEIGHBOUR_FACTOR,
    STATEMENT_TERMS,
    VECTORS_FADE,
)
from storage.search.occurrences import Occurrences
from storage.search.term_weights import TermWeights
from storage.search_trace import ScoreColumns, make_no_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Similarities that differ by no more than this, as rounding does, are all the same.
_MIN_SPREAD = 1e-6
# Standard deviations by which a vector has to stand out to count without a word of the query. Measured with the local
# table on wishes, with 1.5, 1, 0.75 and 0.5: 56, 63.5, 64 and 64.5% are in the prompt, with as many needless notes;
# friends and projects as before.
_NEAR_ENOUGH = 1.0
# In a memory of at most so many rows all rows get a score: to find the rows that may have one would take longer.
_FEW_ROWS = 4_096
# Up to so many cells for each occurrence, all cells are added up in one array. Beyond, with many terms, and many short
# messages around the hits, the array would be large and nearly empty: then cells are added up term by term, which takes
# as long.
_MAX_CELLS_PER_OCCURRENCE = 8
# A message that has hardly a word of the query is shown if it is this far beyond texts that have nothing to do with the
# query: 3, plus 1 for each tenfold of messages, since chance finds nearer messages among more. Measured with 10 to 550
# messages: 84 to 69% of questions have such a message, and 1 to 5% of small talk and errands, which need no notes.
_MIN_BEYOND_ALONE = 3.0


# numpy is imported in the functions that need it: without memory it is not needed (storage/search/blob.py).


class _VectorColumns(NamedTuple):
    """The measures of vectors, by row. Both are 0 for a message without a vector."""

    # The standard deviations by which each message stands out among the messages of the memory.
    outstanding: NDArray[np.float64]
    # `VectorSimilarities.beyond` of each message.
    beyond: NDArray[np.float64]


class _RowScores(NamedTuple):
    """Some rows, and their scores by words."""

    # The rows.
    rows: NDArray[np.int64]
    # The score of each row by BM25.
    score: NDArray[np.float64]
    # The part of the query that each row holds.
    share: NDArray[np.float64]
    # The flags of the rows' messages, as in the layout.
    flags: NDArray[np.uint8]


@dataclass(slots=True)
class _Ranking:
    """The rows that a call of `Scores.list_best` has ranked, and their scores."""

    # The ranked rows, ascending.
    rows: NDArray[np.int64]
    # The scores of the rows by words.
    by_words: NDArray[np.float64]
    # The scores of the rows by vectors; None: there are no vectors.
    by_vectors: NDArray[np.float64] | None
    # Not 0 for messages of the user.
    of_user: NDArray[np.integer]
    # The weight of the ranking of the user's turns alone.
    user_weight: float
    # The weight of the ranking by vectors.
    vector_weight: float
    # The rows that were returned.
    best_rows: list[int] = field(default_factory=list)
    # The scores by which `best_rows` were chosen: 0 where the bounds left a row out. None if no row was returned.
    chosen_by: NDArray[np.float64] | None = None

    def fuse(self) -> NDArray[np.float64]:
        """Returns the scores by words and vectors together, of each row."""
        fused = _scale_to_best(self.by_words, self.of_user, self.user_weight)
        if self.by_vectors is not None:
            fused += self.vector_weight * _scale_to_best(self.by_vectors, self.of_user, self.user_weight)
        return fused

    def defer_columns(self, rows: Sequence[int], fused: NDArray[np.float64]) -> Callable[[], ScoreColumns]:
        """Returns a function that computes the columns of some rows. It holds their scores alone, not the ranking.

        fused: the score of each ranked row by words and vectors together.
        """
        position = self.rows.searchsorted(rows)
        scores = (fused, self.by_words, self.by_vectors)
        with_best = [None if score is None else (score[position], _compute_max(score)) for score in scores]
        return partial(_make_hit_scores, with_best, len(rows))


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


class Scores:
    """The sums over the occurrences of a query's terms, by row: the score of BM25, and the part of the query in a row.

    A number here is one of four kinds:

    - row: a message in the layout, over the whole memory.
    - bin: a row among the rows that may have a score (`_rows`); the sums are columns by bin, as `numpy.bincount` makes
      them. In a small memory, or with vectors, each row is its own bin.
    - cell: a pair of a bin and a term, within one call of `add`.
    - position: a row among the rows that one call of `list_best` ranks (`_Ranking.rows`).
    """

    def __init__(self, layout: IndexLayout, similarities: VectorSimilarities | None) -> None:
        import numpy as np

        self._layout = layout
        self._similarities = similarities
        self._total = len(layout.flags)
        # The row of each bin, in order: all rows of a small memory, or the rows of a large memory that have
        # occurrences.
        self._rows = np.arange(self._total if similarities is not None or self._total <= _FEW_ROWS else 0)
        # The bin of each row; 0 also for a row without a bin.
        self._bin_of_row = np.zeros(self._total, np.int64)
        self._bin_of_row[self._rows] = self._rows
        # The sums by bin.
        self._score = np.zeros(len(self._rows))
        self._share = np.zeros(len(self._rows))
        # The row of each occurrence, and the number of its term among all calls of `add`; an array for each call.
        self._occurrence_rows: list[NDArray[np.int64]] = []
        self._occurrence_terms: list[NDArray[np.int64]] = []
        self._term_count = 0
        # The weight of the query: a message that has all terms has about this share (`TermWeights.query_weight`).
        self._query_weight = 0.0
        # The ranking of the last call of `list_best`; None: there was no call.
        self._ranking: _Ranking | None = None

    def add(self, occurrences: Occurrences) -> None:
        """Adds the occurrences of a query's terms, or of the names in its first hits."""
        self._query_weight += occurrences.weights.query_weight
        packed, term = self._unpack_terms(occurrences)
        row = packed >> ROW_SHIFT
        self._occurrence_rows.append(row)
        self._occurrence_terms.append(term + self._term_count)
        self._term_count += len(occurrences.sizes)
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

    def list_best(self, skipped_rows: range, limit: int, *, only_strong: bool) -> list[int]:
        """Returns the rows of the best messages by words and vectors together.

        `defer_scores` and `list_rows_left_out` are about the ranking of the last call.

        skipped_rows: the rows to leave out.
        only_strong: True if no row is to be returned by common words alone.
        """
        layout = self._layout
        outstanding = None
        beyond = None
        if self._similarities is not None:
            outstanding, beyond = _measure_vectors_by_row(layout, self._similarities)
        rows, score, share, flags = self._collect_row_scores()
        if skipped_rows:
            # Only now, since the statistics of words and vectors are about the whole memory.
            positions = slice(*rows.searchsorted((skipped_rows.start, skipped_rows.stop)).tolist())
            for column in (score, share, outstanding, beyond):
                if column is not None:
                    column[positions] = 0.0
        vector_weight = self._weigh_vectors(share, flags)
        ranking = _Ranking(rows, score, outstanding, flags & USER, layout.lengths.user_weight, vector_weight)
        self._ranking = ranking
        best_by_words = _compute_max(score)
        strong_by_vector = None
        if only_strong and not (best_by_words > 0 and self._has_strong_row(rows, share)):
            strong_by_vector = self._mask_strong_by_vector(beyond)
            if strong_by_vector is None:
                return []
        if not best_by_words > 0 and (outstanding is None or not _compute_max(outstanding) > 0):
            return []
        fused = ranking.fuse()
        if only_strong:
            if layout.all_flags & SLIGHT:
                _lower_small_talk(fused, rows, flags, layout)
            fused[self._mask_weak(share, outstanding, strong_by_vector)] = 0.0
        ranking.best_rows = rows[_choose_best_positions(fused, limit)].tolist()
        ranking.chosen_by = fused
        return ranking.best_rows

    def select_with_own_words(self, rows: Sequence[int]) -> list[int]:
        """Returns the rows that have a term themselves, in their order."""
        import numpy as np

        has_term = np.zeros(self._total, bool)
        for occurrence_rows in self._occurrence_rows:
            has_term[occurrence_rows] = True
        return [row for row in rows if has_term[row]]

    def _has_strong_row(self, rows: NDArray[np.int64], share: NDArray[np.float64]) -> bool:
        """Returns whether one of the rows holds enough of the query by its words.

        One of several terms is not enough, unless other rows have other terms: a question may ask for several things.
        """
        best_share = _compute_max(share)
        min_share = MIN_BEST_SHARE * self._query_weight
        if best_share < min_share:
            return False
        if self._term_count <= FEW_TERMS or best_share >= MIN_BEST_SHARE_OF_ONE * self._query_weight:
            return True
        return self._have_several_terms(rows[share >= min_share])

    def _have_several_terms(self, rows: NDArray[np.int64]) -> bool:
        """Returns whether rows and their neighbours have more than one term of the query, between them."""
        import numpy as np

        earlier = np.asarray(self._layout.neighbours.earlier)[rows]
        later = np.asarray(self._layout.neighbours.later)[rows]
        is_near = np.zeros(self._total + 1, bool)  # after the rows comes one for missing neighbours
        is_near[rows] = is_near[earlier] = is_near[later] = True
        is_there = is_near[np.concatenate(self._occurrence_rows)]
        terms = np.concatenate(self._occurrence_terms)[is_there]
        return len(terms) > 0 and bool((terms != terms[0]).any())

    def _mask_strong_by_vector(self, beyond: NDArray[np.float64] | None) -> NDArray[np.bool_] | None:
        """Returns a mask of the rows whose vector alone shows that they are about the query; None: no row's does.

        The mask is by position. With vectors all rows are ranked, so that each row is its own position. The nearest
        vector is not enough, since some vector is always the nearest.
        """
        if self._similarities is None or beyond is None:
            return None
        is_strong: NDArray[np.bool_] = beyond >= _MIN_BEYOND_ALONE + math.log10(len(self._similarities.seqs))
        return is_strong if is_strong.any() else None

    def _mask_weak(
        self,
        share: NDArray[np.float64],
        outstanding: NDArray[np.float64] | None,
        strong_by_vector: NDArray[np.bool_] | None,
    ) -> NDArray[np.bool_]:
        """Returns a mask, by position, of the rows that are too weak for a search that no caller asked for.

        strong_by_vector: the mask that `_mask_strong_by_vector` returns, if the words are weak; None: the words are
            strong.
        """
        if strong_by_vector is not None:
            return ~strong_by_vector
        weak: NDArray[np.bool_] = share < MIN_SHARE * self._query_weight
        if outstanding is not None:
            weak &= outstanding < _NEAR_ENOUGH
        return weak

    def _weigh_vectors(self, share: NDArray[np.float64], flags: NDArray[np.uint8]) -> float:
        """Returns the weight of the ranking by vectors: the less, the more of the query one message has by its words.

        Messages that only ask do not count, since a question with the same words answers nothing.
        """
        stated_share = share * ((flags & ASKS) == 0) if self._layout.all_flags & ASKS else share
        return (1.0 - min(_compute_max(stated_share) / (self._query_weight or 1.0), 1.0)) ** VECTORS_FADE

    def defer_scores(self, rows: Sequence[int]) -> Callable[[], ScoreColumns]:
        """Returns a function that computes the scores of rows that `list_best` returned.

        It refers to the scores of these rows alone.
        """
        ranking = self._ranking
        if not rows or ranking is None:
            return make_no_scores
        return ranking.defer_columns(rows, ranking.fuse() if ranking.chosen_by is None else ranking.chosen_by)

    def list_rows_left_out(self, limit: int) -> tuple[list[int], ScoreColumns]:
        """Returns the best rows that the last ranking scored and did not return, and their scores."""
        ranking = self._ranking
        if ranking is None:
            return [], make_no_scores()
        # Without the bounds, which have set the scores of these rows to 0.
        fused = ranking.fuse()
        other_scores = fused.copy()
        other_scores[ranking.rows.searchsorted(ranking.best_rows)] = 0.0
        rows: list[int] = ranking.rows[_choose_best_positions(other_scores, limit)].tolist()
        return rows, ranking.defer_columns(rows, fused)()

    def _collect_row_scores(self) -> _RowScores:
        """Returns the rows that hold a part of the query; all rows if vectors count, or if most rows hold a part."""
        import numpy as np

        layout = self._layout
        bins = np.arange(len(self._rows))
        if self._similarities is None:
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
        return _RowScores(rows, score, share, flags)


def _lower_small_talk(
    fused: NDArray[np.float64], rows: NDArray[np.int64], flags: NDArray[np.uint8], layout: IndexLayout
) -> None:
    """Lowers the scores of small talk: "Thanks." has no content, and "Yes." no more than the question before it."""
    import numpy as np

    slight = (flags & SLIGHT).nonzero()[0]
    if not len(slight):
        return
    # The flags and scores by row; after the rows comes one for missing neighbours.
    all_flags = np.append(np.asarray(layout.flags), np.uint8(0))
    score = np.zeros(len(layout.flags) + 1)
    score[rows] = fused
    earlier_rows = np.asarray(layout.neighbours.earlier)[rows[slight]]
    is_answer = (all_flags[earlier_rows] & ASKS) > 0
    fused[slight] = np.where(is_answer, np.minimum(fused[slight], AFTER_FACTOR * score[earlier_rows]), 0.0)


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


def _scale_to_best(
    score: NDArray[np.float64], of_user: NDArray[np.integer], weight: float
) -> NDArray[np.float64]:
    """Returns scores relative to the best score. For the user's turns, adds the score relative to their best one."""
    relative: NDArray[np.float64] = score / (_compute_max(score) or 1.0)
    if not weight:
        return relative
    user_scores = score * of_user
    user_scores *= weight / (_compute_max(user_scores) or 1.0)
    relative += user_scores
    return relative


def _measure_vectors_by_row(layout: IndexLayout, similarities: VectorSimilarities) -> _VectorColumns:
    """Returns the measures of vectors by row. Messages that the index does not have are left out.

    Two questions are alike whatever they ask for. So an earlier question counts little by its similarity, and nothing
    in the measure of the other messages: it ranks after any answer. A similarity below the mean counts as the mean, so
    that it does not weigh against a message that has the words.
    """
    import numpy as np

    flags = np.asarray(layout.flags)
    outstanding, beyond = np.zeros(len(flags)), np.zeros(len(flags))
    row = layout.chunk_rows.find_rows(similarities.seqs)
    is_indexed = (row >= 0) & ((flags[row] & PRESENT) > 0)
    row, similarity = row[is_indexed], similarities.similarity[is_indexed]
    asks = (flags[row] & ASKS) > 0
    statements = similarity[~asks] if np.count_nonzero(~asks) > 1 else similarity
    # The meaning of a similarity differs from model to model; how unusual it is in this memory does not.
    spread = float(statements.std()) if len(statements) else 0.0
    if spread > _MIN_SPREAD:
        deviations = np.maximum((similarity - statements.mean()) / spread, 0.0)
        outstanding[row] = np.where(asks, deviations * MIN_STATEMENT_FACTOR, deviations)
    beyond[row] = similarities.beyond[is_indexed]
    return _VectorColumns(outstanding, beyond)


def _make_hit_scores(columns: Sequence[tuple[NDArray[np.float64], float] | None], count: int) -> ScoreColumns:
    """Returns the scores of hits from 0 to 255, relative to the best score of any row.

    columns: the scores of the hits with the best score of any row: by all, by words, by vectors; None: no such scores.
    """
    by_all, by_words, by_vectors = (
        bytes(count)
        if column is None or not column[1] > 0
        else (column[0] * (255.0 / column[1])).astype("uint8").tobytes()
        for column in columns
    )
    return by_all, by_words, by_vectors


def _compute_max(score: NDArray[np.float64]) -> float:
    """Returns the largest number; of a short column numpy's own `max` takes five times as long."""
    return float(score[score.argmax()]) if len(score) else 0.0


def _choose_best_positions(score: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Returns the positions with a score, best first; of equal scores the newer message's comes first."""
    import numpy as np

    positions = (score > 0).nonzero()[0][::-1]
    value = score[positions]
    if len(positions) > limit:
        least = np.partition(value, len(positions) - limit)[len(positions) - limit]
        positions, value = positions[value >= least], value[value >= least]
    best: NDArray[np.int64] = positions[(-value).argsort(kind="stable")[:limit]]
    return best
