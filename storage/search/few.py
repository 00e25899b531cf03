"""The ranking of few hits, one after the other: in a small memory all of numpy's calls take longer than the hits do."""

from __future__ import annotations

from collections import Counter

from storage.search.blob import ASKS, FREQUENCY, HEAD, ROW_SHIFT, SLIGHT, USER
from storage.search.find import Found
from storage.search.layout import LEAST_AGAINST, IndexLayout
from storage.search.weigh import (
    ANSWERING,
    BEHIND,
    FEW,
    LEAST_BEST_SHARE,
    LEAST_RELATIVE,
    LEAST_SHARE,
    LEAST_SHARE_OF_FEW,
    LEAST_TELLING,
    NEIGHBOUR,
    TELLING_TERMS,
    weigh,
)


class Few:
    """The sums of what a query has found, by row: the score of BM25, and how much of the query's weight a row holds."""

    def __init__(self, layout: IndexLayout) -> None:
        self._layout = layout
        # Behind the rows is one for the neighbours that there are not, whose row is -1.
        self._score = [0.0] * (layout.end + 1)
        self._share = self._score[:]
        self._hits: list[tuple[float, list[int]]] = []
        self._asked = 0.0

    def add(self, found: Found) -> None:
        layout, score, share = self._layout, self._score, self._share
        length, slope, in_head = layout.length, layout.slope, dict[int, float]()
        weights, asked = weigh(found)
        self._asked += asked
        indexed, end = found.indexed.tolist(), 0
        for weight, size, fresh in zip(weights, found.sizes, found.fresh, strict=True):
            start, end = end, end + size
            hits = indexed[start:end] + fresh if size else fresh
            self._hits.append((weight, hits))
            for hit in hits:
                row, times = hit >> ROW_SHIFT, hit & FREQUENCY
                score[row] += weight * times / (times + (length[row] * slope + LEAST_AGAINST))
                share[row] += weight
                if hit & HEAD:
                    in_head[row] = in_head.get(row, 0.0) + weight
        # Words in the head of a message count for both of its neighbours, as in a text of the head's length.
        slope, asks = layout.head_slope, layout.marks & ASKS
        # From the last row on: what the one behind it has comes to a row before what the one before it has.
        for row in sorted(in_head, reverse=True):
            back = forth = in_head[row] * NEIGHBOUR
            if asks and layout.flags[row] & ASKS:
                back, forth = 0.0, ANSWERING * forth
            against = 1 + (layout.head[row] * slope + LEAST_AGAINST)
            before, behind = layout.earlier[row], layout.later[row]
            score[before] += back / against
            share[before] += back
            score[behind] += forth / against
            share[behind] += forth

    def best(self, skip: range, limit: int, *, only_strong: bool) -> list[int]:
        """Returns the rows of the best messages."""
        layout, share, flags = self._layout, self._share, self._layout.flags
        score = self._wanted(skip)
        best = max(score.values(), default=0.0)
        if not best > 0 or (only_strong and self._is_weak(score)):
            return []
        fused = {row: value / best for row, value in score.items()}
        users = [row for row in score if flags[row] & USER] if layout.user_weight else []
        if users:
            own = layout.user_weight / (max([score[row] for row in users]) or 1.0)
            for row in users:
                fused[row] += score[row] * own
        least = least_share = 0.0
        if only_strong:
            if layout.marks & SLIGHT:
                self._hold_back(fused)
            least, least_share = LEAST_RELATIVE * max(fused.values()), LEAST_SHARE * self._asked
        # Of equals the newer one first.
        found = [row for row in reversed(fused) if 0 < fused[row] >= least and share[row] >= least_share]
        found.sort(key=fused.__getitem__, reverse=True)
        return found[:limit]

    def _wanted(self, skip: range) -> dict[int, float]:
        """Returns the scores of rows that may be shown, in order. A turn that only asks counts by what else it says."""
        layout = self._layout
        first, end = layout.rows_of(skip) if skip else (0, 0)
        # Only now: the statistics of words are those of the whole memory.
        score = {row: value for row, value in enumerate(self._score[:-1]) if value and not first <= row < end}
        if layout.marks & ASKS:
            asking = [row for row in score if layout.flags[row] & ASKS]
            known = Counter([hit >> ROW_SHIFT for _, hits in self._hits for hit in hits]) if asking else {}
            for row in asking:
                told = (layout.head[row] - known.get(row, 0)) / TELLING_TERMS
                score[row] *= min(max(told, LEAST_TELLING), 1.0)
        return score

    def _is_weak(self, score: dict[int, float]) -> bool:
        """Returns whether what was found holds too little of the query."""
        share = self._share
        if max([share[row] for row in score]) >= LEAST_BEST_SHARE * self._asked:
            return False
        few = {*sorted(sorted(score, reverse=True), key=score.__getitem__, reverse=True)[:FEW]}
        held = [weight for weight, hits in self._hits if any(hit >> ROW_SHIFT in few for hit in hits)]
        return sum(held) < LEAST_SHARE_OF_FEW * self._asked

    def _hold_back(self, fused: dict[int, float]) -> None:
        """Takes small talk out: "Thanks." says nothing, and "Yes." no more than the question before it."""
        flags, earlier, held = self._layout.flags, self._layout.earlier, {}
        for row in [row for row in fused if flags[row] & SLIGHT]:
            before = earlier[row]
            is_answer = before >= 0 and flags[before] & ASKS
            held[row] = min(fused[row], BEHIND * fused.get(before, 0.0)) if is_answer else 0.0
        fused.update(held)
