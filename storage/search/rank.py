"""Ranking the packed search index (storage/search/blob.py): BM25 over one agent's messages alone, and their vectors.

Pure: bytes and values in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from storage.search.blob import (
    ASKS,
    SLIGHT,
    USER,
    Document,
    count_terms,
    hash_terms,
    open_blob,
)
from storage.search.common import load_tables, says_nothing, shares_in_general
from storage.search.find import Found, IndexLayout, find, lay_out_again, widen
from storage.search.words import terms_of_word, words_of
from storage.value import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# BM25's own: how soon a repeated word stops counting, and how much a long message is held against it.
_K1 = 1.2
_B = 0.75
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
# The same for what its vector counts, in which two questions are alike whatever they ask for. Chosen.
_ASKING_NEAR = 0.25
_ANSWERING = 0.7
# Puts one turn next behind another.
_BEHIND = 0.999

# The assistant's turns are this many times as long as the user's, as an exponent of 2, where the ranking of the user's
# turns counts in full. That is so in LongMemEval, where nothing less found as much.
_FULL_WEIGHT_LOG2 = 3

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

    outstanding: standard deviations above the mean of all messages that have a vector. beyond: the same in standard
    deviations of texts that have nothing to do with the query, above the higher of the two means; zeros where these
    are not known.
    """

    seqs: NDArray[np.int64]
    outstanding: NDArray[np.float64]
    beyond: NDArray[np.float64]


def clear_caches() -> None:
    """Drops what is remembered between queries: words of messages, some of which may have been forgotten."""
    terms_of_word.cache_clear()
    count_terms.cache_clear()
    lay_out_again.cache_clear()


def preload() -> None:
    """Imports numpy (0.1 s) and reads the table of common words now instead of in the first query.

    Meant for a thread while the server starts.
    """
    import numpy  # noqa: F401

    load_tables()


def rank(
    blobs: Iterable[bytes],
    query: str,
    secret: bytes,
    *,
    tail: Sequence[Document] = (),
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
    blobs: all of the agent's; empty ones are skipped. tail: messages that are not indexed yet; where a blob has one of
    them too, the tail's text counts. skip: messages that count for the statistics and are not wanted.
    only_strong: for a search that nobody asked for. Small talk finds nothing, and without hits that hold a good part of
    the query nothing is returned. A search tool leaves it off.

    Raises: CorruptIndex.
    """
    terms = list(dict.fromkeys(words_of(query)))[:_QUERY_WORDS]
    opened = sorted(open_blob(blob) for blob in blobs if blob)
    if not terms or not (opened or tail):
        return []
    in_general = shares_in_general(query, terms)
    if only_strong and says_nothing(query, terms):
        return []
    found = find(opened, tail, terms, in_general, secret)
    if not len(found.row) and near is None:
        return []
    rows = _fuse(found, skip, max(limit, MOST_HITS) if room else limit, only_strong, near)
    if room and sum(len(blob.data) for blob in opened) <= _LOOKED_AGAIN_BYTES:
        wider = widen(found, opened, tail, rows[:_SECOND_LOOK].tolist(), hash_terms(terms, secret), secret)
        if wider is not None:
            rows = _mix(rows, _fuse(wider, skip, MOST_HITS, only_strong, near))
    numbers: list[int] = found.layout.seqs[_fill(rows, found.layout, limit, room)].tolist()
    return numbers


@frozen
class _Scored:
    """BM25 scores. share: of the query's weight, by row. weight: of each term, in the same measure.

    telling: how much each row tells, 1 but for one that only asks.
    """

    score: NDArray[np.float64]
    telling: NDArray[np.float64]
    share: NDArray[np.float64]
    weight: NDArray[np.float64]


def _score(found: Found) -> _Scored:
    """Scores every row. A word's weight is by how many messages have it, of all rows and of people in general."""
    import numpy as np

    layout = found.layout
    total = len(layout.present)
    documents = int(layout.present.sum())
    others = max(documents, _LEAST_IN_GENERAL)
    sample = documents + others
    df = np.bincount(found.term, minlength=len(found.in_general)) + others * found.in_general
    idf = np.log1p(np.maximum(sample - df + 0.5, 0.0) / (df + 0.5))
    length = _K1 * (1 - _B + _B * layout.lengths / max(float(layout.lengths.sum()) / documents, 1.0))
    row, weight, f = found.row, idf[found.term], found.frequency
    score = np.bincount(row, weight * f * (_K1 + 1) / (f + length[row]), total).astype(np.float64, copy=False)
    share = np.bincount(row, weight, total).astype(np.float64, copy=False)
    asks = layout.has(ASKS)

    # A word in the head of a message counts for both of its neighbours, as if it stood in a text of the head's length.
    source, weight = row[found.in_head], weight[found.in_head] * _NEIGHBOUR
    head = _K1 * (1 - _B + _B * layout.heads / max(float(layout.heads.sum()) / documents, 1.0))
    gain = weight * (_K1 + 1) / (1 + head[source])
    for neighbour, of_asking in ((layout.earlier, 0.0), (layout.later, _ANSWERING)):
        to = neighbour[source]
        has = to >= 0
        part = np.where(asks[source[has]], of_asking, 1.0)
        score += np.bincount(to[has], gain[has] * part, total)
        share += np.bincount(to[has], weight[has] * part, total)
    matched = np.bincount(row, minlength=total)
    telling = np.where(asks, np.clip((layout.heads - matched) / _TELLING_TERMS, _LEAST_TELLING, 1.0), 1.0)
    score *= telling
    score[~layout.present] = 0.0
    # A word never heard counts like one heard once; else, with few messages, it would outweigh all that was found.
    unseen_as_rare = np.minimum(idf, np.log1p((sample - 0.5) / 1.5))
    asked = max(float(unseen_as_rare.sum()), 1e-9)
    return _Scored(score, telling, np.minimum(share / asked, 1.0), idf / asked)


def _is_weak(found: Found, scored: _Scored) -> bool:
    """Returns whether what was found holds too little of the query."""
    if scored.share.max() >= _LEAST_BEST_SHARE:
        return False
    import numpy as np

    few = _best(scored.score, _FEW)
    return float(scored.weight[np.unique(found.term[np.isin(found.row, few)])].sum()) < _LEAST_SHARE_OF_FEW


def _mix(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rows of both looks: the best of the first, then one of each in turn."""
    import numpy as np

    rest = chain.from_iterable(zip_longest(first[_SURE:].tolist(), second.tolist()))
    rows = dict.fromkeys((*first[:_SURE].tolist(), *(row for row in rest if row is not None)))
    return np.array(list(rows)[:MOST_HITS], np.int64)


def _fill(ranked: NDArray[np.int64], layout: IndexLayout, limit: int, room: int) -> NDArray[np.int64]:
    """Returns the first `limit` rows, and of those behind them as many as the room has place for."""
    import numpy as np

    tokens = np.minimum(layout.lengths[ranked], _TOLD_TERMS) * _TOKENS_OF_TERM
    before = tokens.cumsum() - tokens
    return ranked[(before < room) | (np.arange(len(ranked)) < limit)]


def _fuse(found: Found, skip: range, limit: int, only_strong: bool, near: Near | None) -> NDArray[np.int64]:
    """Returns the rows of the best messages by words and vectors together."""
    import numpy as np

    none = np.empty(0, np.int64)

    scored = _score(found)
    score, share = scored.score, scored.share
    outstanding = beyond = None
    if near is not None:
        # A similarity below the mean must not count against a message that has the words.
        outstanding = np.maximum(_by_row(found.layout, near.seqs, near.outstanding), 0.0)
        outstanding[found.layout.has(ASKS)] *= _ASKING_NEAR
        beyond = _by_row(found.layout, near.seqs, near.beyond)
    if skip:
        # Only now: the statistics of words and vectors are those of the whole memory.
        unwanted = (found.layout.seqs >= skip.start) & (found.layout.seqs < skip.stop)
        score[unwanted] = share[unwanted] = 0.0
        if outstanding is not None and beyond is not None:
            outstanding[unwanted] = beyond[unwanted] = 0.0
    best, nearest = float(score.max()), 0.0 if outstanding is None else float(outstanding.max())
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
    fused = _relative(score, found.layout)
    weak = share < _LEAST_SHARE
    if outstanding is not None:
        fused += _relative(outstanding, found.layout)
        weak &= outstanding < _NEAR_ENOUGH
    if far is not None:
        weak = ~far
    if only_strong:
        _hold_back(fused, found.layout)
        fused[weak | (fused < _LEAST_RELATIVE * fused.max())] = 0.0
    return _best(fused, limit)


def _hold_back(fused: NDArray[np.float64], layout: IndexLayout) -> None:
    """Takes small talk out: "Thanks." says nothing, and "Yes." no more than the question before it."""
    import numpy as np

    slight = np.flatnonzero(layout.has(SLIGHT))
    before = layout.earlier[slight]
    is_answer = (before >= 0) & layout.has(ASKS)[before]
    fused[slight] = np.where(is_answer, np.minimum(fused[slight], _BEHIND * fused[before]), 0.0)


def _relative(score: NDArray[np.float64], layout: IndexLayout) -> NDArray[np.float64]:
    """Returns the score relative to the best of all turns, plus, for the user's, relative to the best of these."""
    import numpy as np

    of_user = np.where(layout.has(USER), score, 0.0)
    relative: NDArray[np.float64] = score / (float(score.max()) or 1.0)
    return relative + _user_weight(layout) * of_user / (float(of_user.max()) or 1.0)


def _user_weight(layout: IndexLayout) -> float:
    """Returns how much the ranking of the user's turns counts: the more, the longer the assistant's turns are here.

    The typical length is the geometric mean, which a few very long turns do not change much.
    """
    import numpy as np

    user = layout.present & layout.has(USER)
    other = layout.present & ~user
    if not user.any() or not other.any():
        return 0.0
    lengths = np.log2(layout.lengths + 1)
    longer = float(lengths[other].mean() - lengths[user].mean())
    return min(max(longer / _FULL_WEIGHT_LOG2, 0.0), 1.0)


def _by_row(layout: IndexLayout, seqs: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the values in their rows and 0 in the others. What the index does not know is left out."""
    import numpy as np

    found = np.zeros(len(layout.seqs))
    row = np.minimum(layout.seqs.searchsorted(seqs), len(layout.seqs) - 1)
    known = (layout.seqs[row] == seqs) & layout.present[row]
    found[row[known]] = values[known]
    return found


def _best(score: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Returns the rows with a score, best first; of equals the newer one first."""
    import numpy as np

    rows = np.flatnonzero(score > 0)
    if len(rows) > limit:
        least = np.partition(score[rows], len(rows) - limit)[len(rows) - limit]
        rows = rows[score[rows] >= least]
    return rows[np.lexsort((-rows, -score[rows]))[:limit]]
