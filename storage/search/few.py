"""The ranking of few hits, one after the other: in a small memory all of numpy's calls take longer than the hits do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from storage.search.blob import ASKS, FREQUENCY, HEAD, ROW_SHIFT, SLIGHT, USER
from storage.search.find import Found
from storage.search.layout import LEAST_AGAINST, IndexLayout
from storage.search.weigh import (
    AFTER_FACTOR,
    ANSWERING,
    FEW,
    LEAST_BEST_SHARE,
    LEAST_RELATIVE,
    LEAST_SHARE,
    LEAST_SHARE_OF_FEW,
    LEAST_TELLING,
    NEIGHBOUR,
    TELLING_TERMS,
)

# Of an occurrence that counts once, in the head.
_COUNTS, _ONCE = HEAD | FREQUENCY, HEAD | 1
# Occurrences by term, with the rows of the places that they have.
_Hits = tuple[Sequence[int], Sequence[Sequence[int]]]


class Few:
    """The sums of what a query has found, by row: the score of BM25, and how much of the query's weight a row holds."""

    def __init__(self, layout: IndexLayout) -> None:
        self._layout = layout
        # After the rows comes one for missing neighbours, with the row -1.
        self._score = [0.0] * (layout.end + 1)
        self._share = self._score[:]
        # How many of the query's words each row has, which matters for those that only ask.
        self._known = [0] * layout.end
        self._looks: list[Found] = []
        self._asked = 0.0

    def add(self, found: Found) -> None:
        layout, score, share, known = self._layout, self._score, self._share, self._known
        length, slope = layout.length, layout.slope
        # Most words stand once, in the head of a message: their weights are summed up, and counted at the end.
        once = [0.0] * layout.end
        in_head = once[:]
        self._asked += found.asked
        self._looks.append(found)
        for rows, by_term in self._hits_of(found):
            for weight, hits in zip(found.weights, by_term, strict=True):
                for hit in hits:
                    row = rows[hit >> ROW_SHIFT]
                    known[row] += 1
                    if hit & _COUNTS == _ONCE:
                        once[row] += weight
                        continue
                    times = hit & FREQUENCY
                    score[row] += weight * times / (times + (length[row] * slope + LEAST_AGAINST))
                    share[row] += weight
                    if hit & HEAD:
                        in_head[row] += weight
        # Words in the head of a message count for both of its neighbours, as in a text of the head's length.
        head_slope, asks = layout.head_slope, layout.marks & ASKS
        # From the last row on: the later neighbour's share comes to a row before the earlier one's.
        for row in range(layout.end - 1, -1, -1):
            held = once[row]
            if held:
                score[row] += held / (1 + (length[row] * slope + LEAST_AGAINST))
                share[row] += held
            held += in_head[row]
            if not held:
                continue
            part, against = held * NEIGHBOUR, 1 + (layout.head[row] * head_slope + LEAST_AGAINST)
            if asks and layout.flags[row] & ASKS:
                part *= ANSWERING  # and nothing for the turn before it
            else:
                before = layout.earlier[row]
                score[before] += part / against
                share[before] += part
            later = layout.later[row]
            score[later] += part / against
            share[later] += part

    def _hits_of(self, found: Found) -> list[_Hits]:
        """Returns the occurrences in the tail, and those in the index."""
        in_tail = self._layout.tail_rows, found.fresh
        if not len(found.indexed):
            return [in_tail]
        ends, hits = accumulate(found.sizes), found.indexed.tolist()
        parts = [hits[end - size : end] for size, end in zip(found.sizes, ends, strict=True)]
        return [in_tail, (range(self._layout.end), parts)]

    def best(self, unwanted: range, limit: int, *, only_strong: bool) -> list[int]:
        """Returns the rows of the best messages. unwanted: rows that are not shown."""
        layout, score, share, flags = self._layout, self._score, self._share, self._layout.flags
        found: dict[int, float] = {}
        best = of_user = most = 0.0
        # From the last row on: of equals the newer one comes first.
        for row in range(layout.end - 1, -1, -1):
            value = score[row]
            # Only now: the statistics of words are those of the whole memory.
            if not value or row in unwanted:
                continue
            flag = flags[row]
            if flag & ASKS:
                # A turn that only asks counts by its other words.
                stated = (layout.head[row] - self._known[row]) / TELLING_TERMS
                value *= min(max(stated, LEAST_TELLING), 1.0)
            found[row] = value
            if value > best:
                best = value
            if share[row] > most:
                most = share[row]
            if flag & USER and value > of_user:
                of_user = value
        if not best > 0 or (only_strong and most < LEAST_BEST_SHARE * self._asked and self._is_weak(found)):
            return []
        own = layout.user_weight / (of_user or 1.0)
        for row, value in found.items():
            found[row] = value / best + value * own if flags[row] & USER else value / best
        rows: list[int] = []
        least = least_share = 0.0
        if only_strong:
            if layout.marks & SLIGHT:
                self._hold_back(found)
            least, least_share = LEAST_RELATIVE * max(found.values()), LEAST_SHARE * self._asked
        for row, value in found.items():
            if 0 < value >= least and share[row] >= least_share:
                rows.append(row)
        rows.sort(key=found.__getitem__, reverse=True)
        return rows[:limit]

    def _is_weak(self, score: dict[int, float]) -> bool:
        """Returns whether even the best few together hold too little of the query. score: of the newest row first."""
        few = {*sorted(score, key=score.__getitem__, reverse=True)[:FEW]}
        held = 0.0
        for look in self._looks:
            hits_of = self._hits_of(look)
            for number, weight in enumerate(look.weights):
                hits = ((rows, by_term[number]) for rows, by_term in hits_of)
                if any(rows[hit >> ROW_SHIFT] in few for rows, of_term in hits for hit in of_term):
                    held += weight
        return held < LEAST_SHARE_OF_FEW * self._asked

    def _hold_back(self, fused: dict[int, float]) -> None:
        """Takes small talk out: "Thanks." has no content, and "Yes." no more than the question before it."""
        flags, earlier, held = self._layout.flags, self._layout.earlier, {}
        for row in [row for row in fused if flags[row] & SLIGHT]:
            before = earlier[row]
            is_answer = before >= 0 and flags[before] & ASKS
            held[row] = min(fused[row], AFTER_FACTOR * fused.get(before, 0.0)) if is_answer else 0.0
        fused.update(held)
