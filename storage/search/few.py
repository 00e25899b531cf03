"""The ranking of few hits, one after the other: in a small memory all of numpy's calls take longer than the hits do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

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
)

# Rows, and by term occurrences that have places among these.
_Hits = tuple[Sequence[int], Sequence[Sequence[int]]]


class Few:
    """The sums of what a query has found, by row: the score of BM25, and how much of the query's weight a row holds."""

    def __init__(self, layout: IndexLayout) -> None:
        self._layout = layout
        # Behind the rows is one for the neighbours that there are not, whose row is -1.
        self._score = [0.0] * (layout.end + 1)
        self._share = self._score[:]
        # How many of the query's words each row has, which matters for those that only ask.
        self._known: dict[int, int] = {}
        self._looks: list[tuple[Sequence[float], list[_Hits]]] = []
        self._asked = 0.0

    def add(self, found: Found) -> None:
        layout, score, share, known = self._layout, self._score, self._share, self._known
        length, slope, asks = layout.length, layout.slope, layout.marks & ASKS
        in_head: dict[int, float] = {}
        self._asked += found.asked
        hits_of: list[_Hits] = [(layout.tail_rows, found.fresh)]
        if len(found.indexed):
            ends, hits = accumulate(found.sizes), found.indexed.tolist()
            parts = [hits[end - size : end] for size, end in zip(found.sizes, ends, strict=True)]
            hits_of.append((range(layout.end), parts))
        self._looks.append((found.weights, hits_of))
        for rows, by_term in hits_of:
            for weight, hits in zip(found.weights, by_term, strict=True):
                for hit in hits:
                    row, times = rows[hit >> ROW_SHIFT], hit & FREQUENCY
                    score[row] += weight * times / (times + (length[row] * slope + LEAST_AGAINST))
                    share[row] += weight
                    if hit & HEAD:
                        in_head[row] = in_head.get(row, 0.0) + weight
                    if asks:
                        known[row] = known.get(row, 0) + 1
        # Words in the head of a message count for both of its neighbours, as in a text of the head's length.
        slope = layout.head_slope
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

    def best(self, unwanted: range, limit: int, *, only_strong: bool) -> list[int]:
        """Returns the rows of the best messages. unwanted: rows that are not shown."""
        layout, score, share, flags = self._layout, self._score, self._share, self._layout.flags
        found: dict[int, float] = {}
        of_user = most = 0.0
        # Only now: the statistics of words are those of the whole memory.
        for row in range(unwanted.start, min(unwanted.stop, layout.end)):
            score[row] = 0.0
        for row, value in enumerate(score[:-1]):
            if not value:
                continue
            flag = flags[row]
            if flag & ASKS:
                # A turn that only asks counts by what else it says.
                told = (layout.head[row] - self._known.get(row, 0)) / TELLING_TERMS
                value *= min(max(told, LEAST_TELLING), 1.0)
            found[row] = value
            if share[row] > most:
                most = share[row]
            if flag & USER and value > of_user:
                of_user = value
        best = max(found.values(), default=0.0)
        if not best > 0 or (only_strong and most < LEAST_BEST_SHARE * self._asked and self._is_weak(found)):
            return []
        own = layout.user_weight / (of_user or 1.0)
        for row, value in found.items():
            found[row] = value / best + value * own if flags[row] & USER else value / best
        # Of equals the newer one first.
        rows = list(reversed(found))
        if only_strong:
            if layout.marks & SLIGHT:
                self._hold_back(found)
            least, least_share = LEAST_RELATIVE * max(found.values()), LEAST_SHARE * self._asked
            rows = [row for row in rows if 0 < found[row] >= least and share[row] >= least_share]
        rows.sort(key=found.__getitem__, reverse=True)
        return rows[:limit]

    def _is_weak(self, score: dict[int, float]) -> bool:
        """Returns whether even the best few together hold too little of the query."""
        few = {*sorted(sorted(score, reverse=True), key=score.__getitem__, reverse=True)[:FEW]}
        held = 0.0
        for weights, hits_of in self._looks:
            for number, weight in enumerate(weights):
                hits = ((rows, by_term[number]) for rows, by_term in hits_of)
                if any(rows[hit >> ROW_SHIFT] in few for rows, of_term in hits for hit in of_term):
                    held += weight
        return held < LEAST_SHARE_OF_FEW * self._asked

    def _hold_back(self, fused: dict[int, float]) -> None:
        """Takes small talk out: "Thanks." says nothing, and "Yes." no more than the question before it."""
        flags, earlier, held = self._layout.flags, self._layout.earlier, {}
        for row in [row for row in fused if flags[row] & SLIGHT]:
            before = earlier[row]
            is_answer = before >= 0 and flags[before] & ASKS
            held[row] = min(fused[row], BEHIND * fused.get(before, 0.0)) if is_answer else 0.0
        fused.update(held)
