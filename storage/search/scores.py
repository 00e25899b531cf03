"""The ranking of many hits, and of vectors, in columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from storage.records import Near
from storage.search.blob import ASKS, FREQUENCY, HEAD, NO_ROW, PRESENT, ROW_SHIFT, SLIGHT, USER
from storage.search.find import Found
from storage.search.layout import MIN_AGAINST, IndexLayout
from storage.search.weights import (
    AFTER_FACTOR,
    ANSWERING,
    FEW_TERMS,
    HALVING_TERMS,
    LEAST_PART,
    MIN_BEST_SHARE,
    MIN_BEST_SHARE_OF_ONE,
    MIN_SHARE,
    MIN_TELLING,
    NEIGHBOUR,
    TELLING_TERMS,
    VECTORS_FADE,
)
from storage.search_trace import ScoreColumns, no_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Similarities that differ by no more than this, as rounding does, are all the same.
_MIN_SPREAD = 1e-6
# Standard deviations by which a vector has to stand out to count without a word of the query. Measured with the local
# table on wishes, with 1.5, 1, 0.75 and 0.5: 56, 63.5, 64 and 64.5% are in the prompt, with as many needless notes;
# friends and projects as before.
_NEAR_ENOUGH = 1.0
# The most rows of a memory in which all get a score: to find those that may have one takes longer.
_FEW_ROWS = 4_096
# How far beyond texts that have nothing to do with the query a message has to be that is shown though hardly a word of
# the query was ever used: 3, and 1 more for ten times as many messages, among which chance finds nearer ones. Measured
# with 10 to 550 messages: 84 to 69% of questions have one, and 1 to 5% of small talk and errands, which need none
# notes for.
_BEYOND_ALONE = 3.0


class _RowScores(NamedTuple):
    """Some rows, and their scores by words."""

    rows: NDArray[np.int64]
    score: NDArray[np.float64]
    # How much of the query each holds.
    share: NDArray[np.float64]
    flags: NDArray[np.uint8]


@dataclass(slots=True)
class _Ranking:
    """The rows that a call of `Scores.best` has ranked, and their scores."""

    rows: NDArray[np.int64]
    by_words: NDArray[np.float64]
    by_vectors: NDArray[np.float64] | None
    # Not 0 for messages of the user.
    of_user: NDArray[np.integer]
    # How much the ranking of the user's turns alone counts.
    user_weight: float
    # How much the ranking by vectors counts.
    vector_weight: float
    # The rows that were returned.
    found: list[int] = field(default_factory=list)
    # The scores by which they were chosen.
    chosen_by: NDArray[np.float64] | None = None

    def fuse(self) -> NDArray[np.float64]:
        """Returns the scores by words and vectors together."""
        fused = _relative(self.by_words, self.of_user, self.user_weight)
        if self.by_vectors is not None:
            fused += self.vector_weight * _relative(self.by_vectors, self.of_user, self.user_weight)
        return fused


class Scores:
    """The sums of what a query has found, by row: the score of BM25, and how much of the query a row holds."""

    def __init__(self, layout: IndexLayout, near: Near | None) -> None:
        import numpy as np

        self._layout, self._near = layout, near
        self._total = len(layout.flags)
        # The rows that may have a score: all of a small memory, of a large one those that were found. And by row its
        # place among them.
        self._rows = np.arange(self._total if near is not None or self._total <= _FEW_ROWS else 0)
        self._place = np.zeros(self._total, np.int64)
        self._place[self._rows] = self._rows
        self._score, self._share = np.zeros(len(self._rows)), np.zeros(len(self._rows))
        # By call of `add`, the row of each occurrence, and the number of its term among all of these calls.
        self._hits: list[NDArray[np.int64]] = []
        self._terms: list[NDArray[np.int64]] = []
        self._term_count = 0
        self._asked = 0.0
        # The ranking of the last call of `best`; None: it was not called.
        self._ranking: _Ranking | None = None

    def add(self, found: Found) -> None:
        """Adds what was found of the terms of a query, or of names in its first hits."""
        import numpy as np

        layout, term_count = self._layout, len(found.weights)
        self._asked += found.asked
        in_tail = np.array([*chain.from_iterable(found.in_tail)], np.int64)
        in_tail = np.array(layout.tail_rows, np.int64)[in_tail >> ROW_SHIFT] << ROW_SHIFT | in_tail & NO_ROW
        packed = np.concatenate((found.in_index, in_tail), dtype=np.int64)
        # The index has occurrences of each term, and the tail.
        sizes = [*found.sizes, *map(len, found.in_tail)]
        term = np.tile(np.arange(term_count), 2).repeat(sizes)
        row, times = packed >> ROW_SHIFT, packed & FREQUENCY
        self._hits.append(row)
        self._terms.append(term + self._term_count)
        self._term_count += term_count

        # A word in the head of a message is a part of a word in each of those around it.
        head = (packed & HEAD).nonzero()[0]
        around, near, part = self._around(row[head])
        place = self._places_of(np.concatenate((row, around)))
        term = np.concatenate((term, term[head[near]]))
        rows, index = _distinct(place, len(self._rows))
        # By row and term how often the term is there. Most rows have few terms; numpy finds true values sooner than
        # numbers.
        times = np.bincount(index * term_count + term, np.concatenate((times, part)))
        cell = (times > 0).nonzero()[0]
        index, term = np.divmod(cell, term_count)
        times, row = times[cell], rows[index]
        against = np.asarray(layout.length)[self._rows[row]] * layout.slope + MIN_AGAINST
        count = len(self._rows)
        self._score += np.bincount(row, np.array(found.weights)[term] * times / (times + against), count)
        # What a message holds of the query counts by the squares: one rare word says more than many common ones, which
        # any message has some of. A word that is often there, or around, is held once.
        self._share += np.bincount(row, np.array(found.held)[term] * np.minimum(times, 1.0), count)

    def _around(
        self, row: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Returns the rows around some rows, the index of the row that each is near, and what a word there is in it.

        The more terms lie between, the less. A turn that only asks counts for nothing before it.
        """
        import numpy as np

        layout = self._layout
        length = np.asarray(layout.length)
        asks = (np.asarray(layout.flags)[row] & ASKS) > 0
        rows, indices, parts = [row[:0]], [row[:0]], [np.empty(0)]
        for side, of_question in ((layout.earlier, 0.0), (layout.later, ANSWERING)):
            neighbours = np.asarray(side)
            index, target = np.arange(len(row)), neighbours[row]
            part = NEIGHBOUR * np.where(asks, of_question, 1.0)
            while len(some := ((target >= 0) & (part >= LEAST_PART)).nonzero()[0]):
                index, target, part = index[some], target[some], part[some]
                rows.append(target)
                indices.append(index)
                parts.append(part)
                part = part * np.exp2(np.maximum(length[target], 1) / -HALVING_TERMS)
                target = neighbours[target]
        return np.concatenate(rows), np.concatenate(indices), np.concatenate(parts)

    def _places_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the places of rows, which are given to those that have none."""
        import numpy as np

        if len(self._rows) < self._total:
            is_known = np.zeros(self._total, bool)
            is_known[self._rows] = is_known[rows] = True
            known = is_known.nonzero()[0]
            if len(known) > len(self._rows):
                before, score, share = self._rows, self._score, self._share
                self._rows, self._place[known] = known, np.arange(len(known))
                self._score, self._share = np.zeros(len(known)), np.zeros(len(known))
                self._score[self._place[before]], self._share[self._place[before]] = score, share
        return self._place[rows]

    def best(self, unwanted: range, limit: int, *, only_strong: bool) -> list[int]:
        """Returns the rows of the best messages by words and vectors together.

        unwanted: rows that are not shown.
        only_strong: as for `rank`.
        """
        layout, near = self._layout, self._near
        outstanding = beyond = None
        if near is not None:
            outstanding, beyond = _vectors_by_row(layout, near)
        rows, score, share, flags = self._row_scores()
        if unwanted:
            # Only now: the statistics of words and vectors are those of the whole memory.
            gone = slice(*rows.searchsorted((unwanted.start, unwanted.stop)).tolist())
            score[gone] = share[gone] = 0.0
            if outstanding is not None and beyond is not None:
                outstanding[gone] = beyond[gone] = 0.0
        vector_weight = self._weigh_vectors(share, flags)
        ranking = _Ranking(rows, score, outstanding, flags & USER, layout.user_weight, vector_weight)
        self._ranking = ranking
        best, nearest = _max(score), 0.0 if outstanding is None else _max(outstanding)
        far = None
        if only_strong and not (best > 0 and self._has_strong_row(rows, share)):
            far = self._far_rows(beyond)
            if far is None:
                return []
        if not best > 0 and not nearest > 0:
            return []
        fused = ranking.fuse()
        if only_strong:
            if layout.all_flags & SLIGHT:
                _hold_back_small_talk(fused, rows, flags, layout)
            fused[self._weak_rows(share, outstanding, far)] = 0.0
        ranking.found, ranking.chosen_by = rows[_best_rows(fused, limit)].tolist(), fused
        return ranking.found

    def with_own_words(self, rows: Sequence[int]) -> list[int]:
        """Returns those of some rows that have a term themselves, in their order."""
        import numpy as np

        have = np.isin(rows, np.concatenate(self._hits)).tolist()
        return [row for row, has_one in zip(rows, have, strict=True) if has_one]

    def _has_strong_row(self, rows: NDArray[np.int64], share: NDArray[np.float64]) -> bool:
        """Returns whether one of the rows holds enough of the query by its words.

        One term of several is not enough, unless other rows have others: a question may ask for several things.
        """
        most, least = _max(share), MIN_BEST_SHARE * self._asked
        if most < least:
            return False
        if self._term_count <= FEW_TERMS or most >= MIN_BEST_SHARE_OF_ONE * self._asked:
            return True
        return self._hold_several(rows[share >= least])

    def _hold_several(self, rows: NDArray[np.int64]) -> bool:
        """Returns whether rows and their neighbours have more than one term of the query, between them."""
        import numpy as np

        near = np.concatenate(
            (rows, np.asarray(self._layout.earlier)[rows], np.asarray(self._layout.later)[rows])
        )
        is_near = np.isin(np.concatenate(self._hits), near)
        return len(np.unique(np.concatenate(self._terms)[is_near])) > 1

    def _far_rows(self, beyond: NDArray[np.float64] | None) -> NDArray[np.bool_] | None:
        """Returns by row whether its vector alone shows that it is about the query; None: no vector does.

        To be the nearest there is does not show it, as something always is.
        """
        if self._near is None or beyond is None:
            return None
        far: NDArray[np.bool_] = beyond >= _BEYOND_ALONE + math.log10(len(self._near.seqs))
        return far if far.any() else None

    def _weak_rows(
        self,
        share: NDArray[np.float64],
        outstanding: NDArray[np.float64] | None,
        far: NDArray[np.bool_] | None,
    ) -> NDArray[np.bool_]:
        """Returns by row whether it is too weak for a search that was not asked for.

        far: as `_far_rows` returns it, where the words are weak; None: they are not.
        """
        if far is not None:
            return ~far
        weak: NDArray[np.bool_] = share < MIN_SHARE * self._asked
        if outstanding is not None:
            weak &= outstanding < _NEAR_ENOUGH
        return weak

    def _weigh_vectors(self, share: NDArray[np.float64], flags: NDArray[np.uint8]) -> float:
        """Returns how much the ranking by vectors counts; an earlier question that has the same words answers none."""
        stated = share * ((flags & ASKS) == 0) if self._layout.all_flags & ASKS else share
        return (1.0 - min(_max(stated) / (self._asked or 1.0), 1.0)) ** VECTORS_FADE

    def relative(self, rows: Sequence[int]) -> Callable[[], ScoreColumns]:
        """Returns what computes how good rows of the last ranking are. It refers to the scores of these rows alone."""
        ranking = self._ranking
        if not rows or ranking is None:
            return no_scores
        at = ranking.rows.searchsorted(rows)
        fused = ranking.chosen_by if ranking.chosen_by is not None else ranking.fuse()
        columns = (fused, ranking.by_words, ranking.by_vectors)
        some = [None if each is None else (each[at], _max(each)) for each in columns]
        return partial(_hit_scores, some, len(rows))

    def left_out(self, limit: int) -> list[int]:
        """Returns the best rows that the last ranking had scores for and did not return."""
        ranking = self._ranking
        if ranking is None:
            return []
        fused = ranking.fuse()
        fused[ranking.rows.searchsorted(ranking.found)] = 0.0
        left_out: list[int] = ranking.rows[_best_rows(fused, limit)].tolist()
        # The bounds have set the scores of these rows to 0 there.
        ranking.chosen_by = None
        return left_out

    def _row_scores(self) -> _RowScores:
        """Returns the rows that hold something of the query; all, where vectors count or more than half hold some."""
        import numpy as np

        layout = self._layout
        flags = np.asarray(layout.flags)
        rows, score, share = self._rows, self._score, self._share
        at = np.arange(len(rows)) if self._near is not None else (share > 0).nonzero()[0]
        if 2 * len(at) > len(rows):
            at, score, share = np.arange(len(rows)), score.copy(), share.copy()
        else:
            score, share = score[at], share[at]
        rows = rows[at]
        flags = flags[rows]
        if layout.all_flags & ASKS:
            known = np.zeros(len(self._rows), np.int64)
            for row in self._hits:
                known += np.bincount(self._place[row], minlength=len(known))
            stated = np.asarray(layout.head)[rows] - known[at]
            score *= np.where(flags & ASKS, (stated / TELLING_TERMS).clip(MIN_TELLING, 1.0), 1.0)
        return _RowScores(rows, score, share, flags)


def _hold_back_small_talk(
    fused: NDArray[np.float64], rows: NDArray[np.int64], flags: NDArray[np.uint8], layout: IndexLayout
) -> None:
    """Lowers the scores of small talk: "Thanks." has no content, and "Yes." no more than the question before it."""
    import numpy as np

    slight = (flags & SLIGHT).nonzero()[0]
    if not len(slight):
        return
    # After the rows comes one for missing neighbours.
    worth, flags = np.zeros(len(layout.flags) + 1), np.append(np.asarray(layout.flags), np.uint8(0))
    worth[rows] = fused
    before = np.asarray(layout.earlier)[rows[slight]]
    is_answer = (flags[before] & ASKS) > 0
    fused[slight] = np.where(is_answer, np.minimum(fused[slight], AFTER_FACTOR * worth[before]), 0.0)


def _distinct(places: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the distinct places among some, in order, and for each its index there. count: of all places."""
    import numpy as np

    is_there = np.zeros(count, bool)
    is_there[places] = True
    distinct = is_there.nonzero()[0]
    index = np.empty(count, np.int64)
    index[distinct] = np.arange(len(distinct))
    return distinct, index[places]


def _relative(score: NDArray[np.float64], of_user: NDArray[np.integer], weight: float) -> NDArray[np.float64]:
    """Returns the score relative to the best of all turns, plus, for the user's, relative to the best of these."""
    relative: NDArray[np.float64] = score / (_max(score) or 1.0)
    if not weight:
        return relative
    users = score * of_user
    users *= weight / (_max(users) or 1.0)
    relative += users
    return relative


def _vectors_by_row(layout: IndexLayout, near: Near) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns by row how far a message stands out by its similarity, in standard deviations, and how far beyond it is.

    0 for a message without a vector; what the index does not know is left out.
    Two questions are alike whatever they ask for. So one that was asked before counts the least by its similarity, and
    nothing for the measure of the others: it comes after whatever answers. A similarity below the mean must not count
    against a message that has the words.
    """
    import numpy as np

    flags = np.asarray(layout.flags)
    outstanding, beyond = np.zeros(len(flags)), np.zeros(len(flags))
    row = layout.find_rows(near.seqs)
    known = (row >= 0) & ((flags[row] & PRESENT) > 0)
    row, similarity = row[known], near.similarity[known]
    asks = (flags[row] & ASKS) > 0
    among = similarity[~asks] if np.count_nonzero(~asks) > 1 else similarity
    # The meaning of a similarity differs from model to model; how unusual it is in this memory does not.
    spread = float(among.std()) if len(among) else 0.0
    if spread > _MIN_SPREAD:
        far = np.maximum((similarity - among.mean()) / spread, 0.0)
        outstanding[row] = np.where(asks, far * MIN_TELLING, far)
    beyond[row] = near.beyond[known]
    return outstanding, beyond


def _hit_scores(columns: Sequence[tuple[NDArray[np.float64], float] | None], count: int) -> ScoreColumns:
    """Returns scores from 0 to 255, relative to the best of all. columns: the scores with that best one."""
    by_all, by_words, by_meaning = (
        bytes(count)
        if each is None or not each[1] > 0
        else (each[0] * (255.0 / each[1])).astype("uint8").tobytes()
        for each in columns
    )
    return by_all, by_words, by_meaning


def _max(score: NDArray[np.float64]) -> float:
    """Returns the largest number; of a short column numpy's own `max` takes five times as long."""
    return float(score[score.argmax()]) if len(score) else 0.0


def _best_rows(score: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Returns the rows with a score, best first; of equals the newer one first."""
    import numpy as np

    rows = (score > 0).nonzero()[0][::-1]
    value = score[rows]
    if len(rows) > limit:
        least = np.partition(value, len(rows) - limit)[len(rows) - limit]
        rows, value = rows[value >= least], value[value >= least]
    best: NDArray[np.int64] = rows[(-value).argsort(kind="stable")[:limit]]
    return best
