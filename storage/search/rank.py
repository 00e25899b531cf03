"""Ranking the packed search index (storage/search/blob.py): BM25 over one agent's messages alone, and their vectors.

Pure: bytes and values in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from storage.search.blob import ASKS, FREQUENCY, HEAD, PRESENT, SLIGHT, USER, Counted, count_terms
from storage.search.common import all_common, load_tables, shares_in_general
from storage.search.find import Found, find, widen
from storage.search.index import Index
from storage.search.layout import IndexLayout
from storage.search.words import forget_words, split_words, terms_of
from storage.value import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The weight of a hit in the neighbouring turn.
_NEIGHBOUR = 0.5
# Distinct words of a query that are looked up.
_QUERY_WORDS = 256

# A turn that only asks counts by what it says beside the query's words, in full from so many terms on: an earlier
# question like this one is no answer, a long request tells something by the way. Its words count nothing for the turn
# before it, and so much for the one behind it, which may answer. Measured with 300 questions asked before: 76% of the
# evidence where these count in full, 84% so (2,000 tokens); a fixed quarter costs LongMemEval 0.6 points.
_TELLING_TERMS = 12
_LEAST_TELLING = 0.05
_ANSWERING = 0.7
# Puts one turn next behind another.
_BEHIND = 0.999

# Bounds for a search that nobody asked for. The best hit has to hold so much of the query's weight (over 240 questions
# of LongMemEval, 550 turns each, it held 0.3 or more), or, since a question may have several parts, the best few
# together so much. Then hits below a tenth of the best score are left out, and below a twentieth of the query's weight.
_LEAST_BEST_SHARE = 0.25
_FEW = 5
_LEAST_SHARE_OF_FEW = 0.5
_LEAST_SHARE = 0.05
_LEAST_RELATIVE = 0.1

# A word is as common as this memory and people in general have it, who count like as many messages as the memory has
# and like this many at least: a few messages cannot tell which words are common. Measured on LongMemEval against counts
# of the memory alone: evidence in the note with histories of 22 messages from 90.6 to 91.3%, of 550 from 87.6 to 87.9%,
# in one of 10,866 from 71.4 to 71.9%; questions about something else that get a note, with 22 messages, 35 to 30%.
_LEAST_IN_GENERAL = 500

# Likenesses that differ by no more than this, as rounding does, are all the same.
_LEAST_SPREAD = 1e-6
# Standard deviations by which a vector has to stand out to count without a word of the query. Measured on LongMemEval:
# between 0 and 2 the evidence found differs by 0.3 points.
_NEAR_ENOUGH = 1.5
# How far beyond texts that have nothing to do with the query a message has to be that is shown though hardly a word of
# the query was ever said: 3, and 1 more for ten times as many messages, among which chance finds nearer ones. Measured
# with 10 to 550 messages: 84 to 69% of questions have one, and 1 to 5% of small talk and errands, which nobody wants
# notes for.
_BEYOND_ALONE = 3.0

# The most messages that are returned, and read at once, where they are short. Tokens for each term of a message, whose
# function words the index leaves out; and the most terms of a message that are told.
MOST_HITS = 96
_TOKENS_OF_TERM = 2.4
_TOLD_TERMS = 32

# A second look: so many of the first hits give names and numbers, and so many hits of the first look stay in front.
# Measured: 88.2 and 88.7% of LongMemEval's evidence (1,000 tokens, index and note alone); of questions of two steps in
# short talk 65 and 85%.
_SECOND_LOOK = 3
_SURE = 10
# An index larger than this is looked at once, since a second look takes nearly as long: 4,000 long messages.
_LOOKED_AGAIN_BYTES = 4 << 20


@frozen
class Near:
    """The vectors of an agent's messages, compared with the query's (storage/search/vectors.py).

    likeness: similarities, in whatever measure. beyond: in standard deviations of texts that have nothing to do with
    the query, above the mean of those or of all messages that have a vector, the higher one; zeros where these texts
    are not known.
    """

    seqs: NDArray[np.int64]
    likeness: NDArray[np.float64]
    beyond: NDArray[np.float64]


def clear_caches() -> None:
    """Drops what is remembered between queries: words of messages, some of which may have been forgotten."""
    forget_words()
    count_terms.cache_clear()


def preload() -> None:
    """Imports numpy (0.1 s) and reads the table of common words now instead of in the first query.

    Meant for a thread while the server starts.
    """
    import numpy  # noqa: F401

    load_tables()


def rank(
    index: Index,
    query: str,
    secret: bytes,
    *,
    tail: Sequence[Counted] = (),
    skip: range = range(0),
    limit: int = 50,
    room: int = 0,
    only_strong: bool = False,
    near: Near | None = None,
) -> list[int]:
    """Returns the numbers of the messages that answer the query, best first.

    Two rankings, of all turns and of the user's alone, each relative to its best, are added, the second the more the
    longer the assistant's turns are: these would win most places by their mere number of words, yet some things only
    the assistant said.
    near: two more rankings, by vectors; messages without a vector have the others alone. (Weights other than 1 gained
    nothing that held on both halves of the questions. Without the ranking of the user's turns 3 points were lost at
    1,000 tokens.)

    room: tokens that the messages are wanted for; where they are short, more than `limit` are returned. Such a search
    looks a second time, also for names and numbers that the first hits add: "What did my sister win?" shares its words
    with the message that names her, and not with the one that tells.
    tail: messages that are not indexed yet; where the index has one of them too, the tail's text counts. skip: messages
    that count for the statistics and are not wanted.
    only_strong: for a search that nobody asked for. Small talk finds nothing, and without hits that hold a good part of
    the query nothing is returned. A search tool leaves it off.
    """
    words = split_words(query)
    terms = list(dict.fromkeys(terms_of(words)))[:_QUERY_WORDS]
    if not terms or not (index.has_words or tail):
        return []
    in_general = shares_in_general(words, terms)
    if only_strong and all_common(in_general):
        return []
    found = find(index, tail, terms, in_general, secret)
    if not len(found.term) and near is None:
        return []
    rows = _fuse(found, skip, max(limit, MOST_HITS) if room else limit, only_strong, near)
    if room and index.blob_bytes <= _LOOKED_AGAIN_BYTES:
        wider = widen(found, index, rows[:_SECOND_LOOK].tolist(), terms, secret)
        if wider is not None:
            rows = _mix(rows, _fuse(wider, skip, MOST_HITS, only_strong, near))
    numbers: list[int] = found.layout.seqs[_fill(rows, found.layout, limit, room)].tolist()
    return numbers


@frozen
class _Scored:
    """BM25 scores of some rows. rows: which, in order. flags: theirs. share: what each holds of the query.

    weight: of each term, in the measure of the shares. asked: the weight of the whole query.
    """

    rows: NDArray[np.int64]
    flags: NDArray[np.uint8]
    score: NDArray[np.float64]
    share: NDArray[np.float64]
    weight: NDArray[np.float64]
    asked: float


def _score(found: Found, *, all_rows: bool) -> _Scored:
    """Scores the rows that have a term, or whose neighbours have one; or all of them, of which others have nothing.

    A word's weight is by how many messages have it, of all rows and of people in general.
    """
    import numpy as np

    layout, row = found.layout, found.row
    total = len(layout.seqs)
    others = max(layout.lengths.count, _LEAST_IN_GENERAL)
    sample = layout.lengths.count + others
    df = np.bincount(found.term, minlength=len(found.in_general)) + others * found.in_general
    idf = np.log((sample + 1) / (df + 0.5))
    # A word never heard counts like one heard once; else, with few messages, it would outweigh all that was found.
    asked = max(float(np.minimum(idf, math.log((sample + 1) / 1.5)).sum()), 1e-9)
    weight, times = idf[found.term], found.packed & FREQUENCY
    own = weight * times / (times + layout.against[row])

    # A word in the head of a message counts for both of its neighbours, as if it stood in a text of the head's length.
    # Of what is true or not numpy finds the places in a fifth of the time.
    in_head = (found.packed & HEAD).astype(bool).nonzero()[0]
    source = row[in_head]
    there = weight[in_head] * _NEIGHBOUR
    back = forth = there
    if layout.marks & ASKS:
        asking = (layout.flags[source] & ASKS) > 0
        back, forth = np.where(asking, 0.0, there), np.where(asking, _ANSWERING * there, there)
    to = np.concatenate((row, layout.earlier[source], layout.later[source]))
    against = 1 + layout.head_against[source]
    # Behind the rows is one for the neighbours that there are not.
    scores = np.bincount(to, np.concatenate((own, back / against, forth / against)), total + 1)
    shares = np.bincount(to, np.concatenate((weight, back, forth)), total + 1)
    rows = None if all_rows else (shares[:total] > 0).nonzero()[0]
    if rows is None or 2 * len(rows) > total:
        # A word as common as that is in nearly all: they are taken as they lie.
        rows, scores, shares, flags = np.arange(total), scores[:total], shares[:total], layout.flags
    else:
        scores, shares, flags = scores[rows], shares[rows], layout.flags[rows]
    # Of nothing bincount makes whole numbers.
    score, share = scores.astype(float, copy=False), shares.astype(float, copy=False)
    if layout.marks & ASKS:
        told = layout.head[rows] - np.bincount(row, minlength=total)[rows]
        score *= np.where(flags & ASKS, (told / _TELLING_TERMS).clip(_LEAST_TELLING, 1.0), 1.0)
    return _Scored(rows, flags, score, share, idf, asked)


def _is_weak(found: Found, scored: _Scored) -> bool:
    """Returns whether what was found holds too little of the query."""
    if _most(scored.share) >= _LEAST_BEST_SHARE * scored.asked:
        return False
    import numpy as np

    is_few, is_held = np.zeros(len(found.layout.seqs), bool), np.zeros(len(scored.weight), bool)
    is_few[scored.rows[_best(scored.score, _FEW)]] = True
    is_held[found.term[is_few[found.row]]] = True
    return float(scored.weight[is_held].sum()) < _LEAST_SHARE_OF_FEW * scored.asked


def _mix(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rows of both looks: the best of the first, then one of each in turn."""
    import numpy as np

    rest = chain.from_iterable(zip_longest(first[_SURE:].tolist(), second.tolist()))
    rows = dict.fromkeys((*first[:_SURE].tolist(), *(row for row in rest if row is not None)))
    return np.array(list(rows)[:MOST_HITS], np.int64)


def _fill(ranked: NDArray[np.int64], layout: IndexLayout, limit: int, room: int) -> NDArray[np.int64]:
    """Returns the first `limit` rows, and of those behind them as many as the room has place for."""
    filled = 0.0
    for place, terms in enumerate(layout.length[ranked].tolist() if len(ranked) > limit else ()):
        if place >= limit and filled >= room:
            return ranked[:place]
        filled += min(terms, _TOLD_TERMS) * _TOKENS_OF_TERM
    return ranked


def _fuse(found: Found, skip: range, limit: int, only_strong: bool, near: Near | None) -> NDArray[np.int64]:
    """Returns the rows of the best messages by words and vectors together."""
    import numpy as np

    none, layout = np.empty(0, np.int64), found.layout
    scored = _score(found, all_rows=near is not None)
    score, share = scored.score, scored.share
    outstanding = beyond = None
    if near is not None:
        outstanding, beyond = _by_row(layout, near)
    if skip:
        # Only now: the statistics of words and vectors are those of the whole memory.
        ends = layout.seqs.searchsorted((skip.start, skip.stop))
        unwanted = slice(*scored.rows.searchsorted(ends).tolist())
        score[unwanted] = share[unwanted] = 0.0
        if outstanding is not None and beyond is not None:
            outstanding[unwanted] = beyond[unwanted] = 0.0
    best, nearest = _most(score), 0.0 if outstanding is None else _most(outstanding)
    far = None
    if only_strong and (not best > 0 or _is_weak(found, scored)):
        # The words say nothing. Vectors alone have to show that something is about the query, and not only that it is
        # the nearest there is, as something always is.
        if near is None or beyond is None:
            return none
        far = beyond >= _BEYOND_ALONE + math.log10(len(near.seqs))
        if not far.any():
            return none
    if not best > 0 and not nearest > 0:
        return none
    of_user, weight = scored.flags & USER, layout.user_weight
    fused = _relative(score, of_user, weight)
    if outstanding is not None:
        fused += _relative(outstanding, of_user, weight)
    if only_strong:
        weak = share < _LEAST_SHARE * scored.asked
        if outstanding is not None:
            weak &= outstanding < _NEAR_ENOUGH
        if far is not None:
            weak = ~far
        if layout.marks & SLIGHT:
            _hold_back(fused, scored, layout)
        fused[weak | (fused < _LEAST_RELATIVE * _most(fused))] = 0.0
    return scored.rows[_best(fused, limit)]


def _hold_back(fused: NDArray[np.float64], scored: _Scored, layout: IndexLayout) -> None:
    """Takes small talk out: "Thanks." says nothing, and "Yes." no more than the question before it."""
    import numpy as np

    slight = (scored.flags & SLIGHT).nonzero()[0]
    if not len(slight):
        return
    # Behind the rows is one for the neighbours that there are not.
    worth, flags = np.zeros(len(layout.seqs) + 1), np.append(layout.flags, np.uint8(0))
    worth[scored.rows] = fused
    before = layout.earlier[scored.rows[slight]]
    is_answer = (flags[before] & ASKS) > 0
    fused[slight] = np.where(is_answer, np.minimum(fused[slight], _BEHIND * worth[before]), 0.0)


def _relative(score: NDArray[np.float64], of_user: NDArray[np.integer], weight: float) -> NDArray[np.float64]:
    """Returns the score relative to the best of all turns, plus, for the user's, relative to the best of these."""
    relative: NDArray[np.float64] = score / (_most(score) or 1.0)
    if not weight:
        return relative
    users = score * of_user
    users *= weight / (_most(users) or 1.0)
    relative += users
    return relative


def _by_row(layout: IndexLayout, near: Near) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns by row how far a message stands out by its likeness, in standard deviations, and how far beyond it is.

    0 for a message without a vector; what the index does not know is left out.
    Two questions are alike whatever they ask for. So one that was asked before counts the least by its likeness, and
    nothing for the measure of the others: it stands behind whatever answers. A likeness below the mean must not count
    against a message that has the words.
    """
    import numpy as np

    outstanding, beyond = np.zeros(len(layout.seqs)), np.zeros(len(layout.seqs))
    row = np.minimum(layout.seqs.searchsorted(near.seqs), len(layout.seqs) - 1)
    known = (layout.seqs[row] == near.seqs) & ((layout.flags[row] & PRESENT) > 0)
    row, likeness = row[known], near.likeness[known]
    asks = (layout.flags[row] & ASKS) > 0
    among = likeness[~asks] if np.count_nonzero(~asks) > 1 else likeness
    # The meaning of a similarity differs from model to model; how unusual it is in this memory does not.
    spread = float(among.std()) if len(among) else 0.0
    if spread > _LEAST_SPREAD:
        far = np.maximum((likeness - among.mean()) / spread, 0.0)
        outstanding[row] = np.where(asks, far * _LEAST_TELLING, far)
    beyond[row] = near.beyond[known]
    return outstanding, beyond


def _most(score: NDArray[np.float64]) -> float:
    """Returns the largest number; of a short column numpy's own `max` takes five times as long."""
    return float(score[score.argmax()]) if len(score) else 0.0


def _best(score: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Returns the rows with a score, best first; of equals the newer one first."""
    import numpy as np

    rows = (score > 0).nonzero()[0][::-1]
    value = score[rows]
    if len(rows) > limit:
        least = np.partition(value, len(rows) - limit)[len(rows) - limit]
        rows, value = rows[value >= least], value[value >= least]
    best: NDArray[np.int64] = rows[(-value).argsort(kind="stable")[:limit]]
    return best
