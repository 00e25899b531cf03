"""The scores of messages by words and by vectors, and the best of them, in columns of numbers (numpy arrays)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from storage.records import VectorSimilarities
from storage.search.document import ASKS, PRESENT, SLIGHT, USER
from storage.search.layout import IndexLayout
from storage.search.measures import (
    AFTER_FACTOR,
    FEW_TERMS,
    MIN_BEST_SHARE,
    MIN_BEST_SHARE_OF_ONE,
    MIN_SHARE,
    MIN_STATEMENT_FACTOR,
    VECTORS_FADE,
)
from storage.search.score_sums import ScoreSums
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


@dataclass(slots=True)
class _Ranking:
    """The rows that a call of `Scores.list_best` has ranked, and their scores."""

    # The ranked rows, ascending.
    rows: NDArray[np.int64]
    # The scores of the rows by words.
    by_words: NDArray[np.float64]
    # The part of the query that each row holds by its words.
    share: NDArray[np.float64]
    # The flags of the rows' messages, as in the layout.
    flags: NDArray[np.uint8]
    # The measures of the rows' vectors; None: there are no vectors.
    vectors: _VectorColumns | None
    # The weight of the ranking of the user's turns alone.
    user_weight: float
    # The weight of the ranking by vectors.
    vector_weight: float
    # The rows that were returned.
    best_rows: list[int] = field(default_factory=list)
    # The scores by which `best_rows` were chosen: 0 where the bounds left a row out. None if no row was returned.
    chosen_by: NDArray[np.float64] | None = None

    @property
    def by_vectors(self) -> NDArray[np.float64] | None:
        """The scores of the rows by vectors; None: there are no vectors."""
        return None if self.vectors is None else self.vectors.outstanding

    @property
    def has_scores(self) -> bool:
        """True if any row has a score."""
        by_vectors = self.by_vectors
        return _compute_max(self.by_words) > 0 or (by_vectors is not None and _compute_max(by_vectors) > 0)

    def fuse(self) -> NDArray[np.float64]:
        """Returns the scores by words and vectors together, of each row."""
        of_user = self.flags & USER
        fused = _scale_to_best(self.by_words, of_user, self.user_weight)
        if self.by_vectors is not None:
            fused += self.vector_weight * _scale_to_best(self.by_vectors, of_user, self.user_weight)
        return fused

    def defer_columns(self, rows: Sequence[int], fused: NDArray[np.float64]) -> Callable[[], ScoreColumns]:
        """Returns a function that computes the columns of some rows. It holds their scores alone, not the ranking.

        fused: the score of each ranked row by words and vectors together.
        """
        position = self.rows.searchsorted(rows)
        scores = (fused, self.by_words, self.by_vectors)
        with_best = [None if score is None else (score[position], _compute_max(score)) for score in scores]
        return partial(_make_hit_scores, with_best, len(rows))


class Scores:
    """The scores of messages by words and by vectors together.

    A number here is one of two kinds:

    - row: a message in the layout, over the whole memory.
    - position: a row among the rows that one call of `list_best` ranks (`_Ranking.rows`).
    """

    def __init__(self, layout: IndexLayout, similarities: VectorSimilarities | None) -> None:
        # The sums of the scores by words, to which the caller adds occurrences.
        self.sums = ScoreSums(layout, has_vectors=similarities is not None)
        self._layout = layout
        self._similarities = similarities
        # The ranking of the last call of `list_best`; None: there was no call.
        self._ranking: _Ranking | None = None

    def list_best(self, skipped_rows: range, limit: int, *, only_strong: bool) -> list[int]:
        """Returns the rows of the best messages by words and vectors together.

        `defer_scores` and `list_rows_left_out` are about the ranking of the last call.

        skipped_rows: the rows to leave out.
        only_strong: True if no row is to be returned by common words alone.
        """
        ranking = self._ranking = self._rank_rows(skipped_rows)
        strong_by_vector = None
        if only_strong and not self._has_strong_row(ranking):
            strong_by_vector = self._mask_strong_by_vector(ranking.vectors)
            if strong_by_vector is None:
                return []
        if not ranking.has_scores:
            return []
        fused = ranking.fuse()
        if only_strong:
            if self._layout.all_flags & SLIGHT:
                _lower_small_talk(fused, ranking, self._layout)
            fused[self._mask_weak(ranking, strong_by_vector)] = 0.0
        ranking.best_rows = ranking.rows[_choose_best_positions(fused, limit)].tolist()
        ranking.chosen_by = fused
        return ranking.best_rows

    def _rank_rows(self, skipped_rows: range) -> _Ranking:
        """Returns the rows that may be hits, with their scores. Skipped rows have no score."""
        vectors = None
        if self._similarities is not None:
            vectors = _measure_vectors_by_row(self._layout, self._similarities)
        rows, score, share, flags = self.sums.collect_row_scores()
        if skipped_rows:
            # Only now, since the statistics of words and vectors are about the whole memory.
            positions = slice(*rows.searchsorted((skipped_rows.start, skipped_rows.stop)).tolist())
            for column in (score, share, *(vectors or ())):
                column[positions] = 0.0
        user_weight = self._layout.lengths.user_weight
        return _Ranking(rows, score, share, flags, vectors, user_weight, self._weigh_vectors(share, flags))

    def _has_strong_row(self, ranking: _Ranking) -> bool:
        """Returns whether one of the rows holds enough of the query by its words.

        One of several terms is not enough, unless other rows have other terms: a question may ask for several things.
        """
        query_weight = self.sums.query_weight
        best_share = _compute_max(ranking.share)
        min_share = MIN_BEST_SHARE * query_weight
        if best_share < min_share or not _compute_max(ranking.by_words) > 0:
            return False
        if self.sums.term_count <= FEW_TERMS or best_share >= MIN_BEST_SHARE_OF_ONE * query_weight:
            return True
        return self.sums.have_several_terms(ranking.rows[ranking.share >= min_share])

    def _mask_strong_by_vector(self, vectors: _VectorColumns | None) -> NDArray[np.bool_] | None:
        """Returns a mask of the rows whose vector alone shows that they are about the query; None: no row's does.

        The mask is by position. With vectors all rows are ranked, so that each row is its own position. The nearest
        vector is not enough, since some vector is always the nearest.
        """
        if self._similarities is None or vectors is None:
            return None
        is_strong: NDArray[np.bool_] = vectors.beyond >= _MIN_BEYOND_ALONE + math.log10(
            len(self._similarities.seqs)
        )
        return is_strong if is_strong.any() else None

    def _mask_weak(self, ranking: _Ranking, strong_by_vector: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Returns a mask, by position, of the rows that are too weak for a search that no caller asked for.

        strong_by_vector: the mask that `_mask_strong_by_vector` returns, if the words are weak; None: the words are
            strong.
        """
        if strong_by_vector is not None:
            return ~strong_by_vector
        weak: NDArray[np.bool_] = ranking.share < MIN_SHARE * self.sums.query_weight
        if ranking.by_vectors is not None:
            weak &= ranking.by_vectors < _NEAR_ENOUGH
        return weak

    def _weigh_vectors(self, share: NDArray[np.float64], flags: NDArray[np.uint8]) -> float:
        """Returns the weight of the ranking by vectors: the less, the more of the query one message has by its words.

        Messages that only ask do not count, since a question with the same words answers nothing.
        """
        stated_share = share * ((flags & ASKS) == 0) if self._layout.all_flags & ASKS else share
        return (1.0 - min(_compute_max(stated_share) / (self.sums.query_weight or 1.0), 1.0)) ** VECTORS_FADE

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


def _lower_small_talk(fused: NDArray[np.float64], ranking: _Ranking, layout: IndexLayout) -> None:
    """Lowers the scores of small talk: "Thanks." has no content, and "Yes." no more than the question before it."""
    import numpy as np

    slight = (ranking.flags & SLIGHT).nonzero()[0]
    if not len(slight):
        return
    # The flags and scores by row; after the rows comes one for missing neighbours.
    all_flags = np.append(np.asarray(layout.flags), np.uint8(0))
    score = np.zeros(len(layout.flags) + 1)
    score[ranking.rows] = fused
    earlier_rows = np.asarray(layout.neighbours.earlier)[ranking.rows[slight]]
    is_answer = (all_flags[earlier_rows] & ASKS) > 0
    fused[slight] = np.where(is_answer, np.minimum(fused[slight], AFTER_FACTOR * score[earlier_rows]), 0.0)


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
