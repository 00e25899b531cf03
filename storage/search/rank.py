"""Ranking the packed search index (storage/search/blob.py): BM25 over one agent's messages alone, and their vectors.

Pure: bytes and values in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.search.blob import (
    CHUNK,
    IN_HEAD,
    PRESENT,
    SLOT,
    USER,
    Document,
    OpenBlob,
    chunk_of,
    count_terms,
    document_row,
    document_type,
    hash_terms,
    open_blob,
)
from storage.search.words import COURTESY, terms_of_word, words_of
from storage.value import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Hit", "Near", "clear_caches", "preload", "rank"]

_K1 = 1.2
_B = 0.75
_NEIGHBOUR = 0.5  # weight of a hit in the neighbouring turn
_QUERY_WORDS = 256  # distinct words of a query that are looked up
_QUERY_TERMS = 64  # of them, the rarest ones that are scored; a question has about 7

# When nobody asked: over 240 questions of LongMemEval (550 turns each) every one's best hit held 0.3 of the query's
# weight or more, and hits below a fifth of the best one's score held 0.2% of the evidence and half of the text.
_LEAST_BEST_SHARE = 0.25
_LEAST_SHARE = 0.1
_LEAST_RELATIVE = 0.2

# A word that most of few messages have is what they are about, and not as common as it would be in many: its weight is
# reckoned as if there were this many. Measured with histories of 24 messages: evidence in the note from 84.7 to 89.6%,
# of 46: 88.9 to 91.2%; questions about something else that get a note: from 31 to 37% and from 54 to 60%.
_LEAST_SAMPLE = 200

# Vectors, where there are any, in standard deviations. Measured on LongMemEval: from nothing to 2 as the least that
# counts without a word of the query, evidence found differs by 0.3 points.
_NEAR_ENOUGH = 1.5
# How far beyond the usual a message has to be that is told though hardly a word of the query was ever said: 3, and 1
# more for ten times as many messages, among which chance finds nearer ones. Measured with 10 to 550 messages: 84 to 69%
# of questions have one, and of small talk and errands, which nobody wants notes for, 1 to 5%.
_BEYOND_ALONE = 3.0


class Hit(NamedTuple):  # not a dataclass: fifty of those would take a third of a small query's time
    """One message found.

    score: to compare within one answer. share: what part of the query's weight it and its neighbours hold, 0 to 1.
    """

    seq: int
    score: float
    share: float


@frozen
class Near:
    """Messages by how near their vectors are to the query's (storage/search/vectors.py).

    outstanding: standard deviations above the mean of all that have a vector. beyond: of texts that have nothing to do
    with the query, above the higher of the two means; zeros where that is not known.
    """

    seqs: NDArray[np.int64]
    outstanding: NDArray[np.float64]
    beyond: NDArray[np.float64]


def clear_caches() -> None:
    """What is remembered between queries: words of messages, among them such as were forgotten."""
    terms_of_word.cache_clear()
    count_terms.cache_clear()
    _lay_out_again.cache_clear()


def preload() -> None:
    """Import numpy now (0.1 s) instead of in the first query; meant for a thread beside the start."""
    import numpy  # noqa: F401


def rank(
    blobs: Iterable[bytes],
    query: str,
    secret: bytes,
    *,
    tail: Sequence[Document] = (),
    skip: range = range(0),
    limit: int = 50,
    only_strong: bool = False,
    near: Near | None = None,
) -> list[Hit]:
    """The messages that answer the query, best first.

    Two rankings, of all turns and of the user's alone, each relative to its best, are added: long turns of the
    assistant would win most places by their mere number of words, yet some things only the assistant said.
    near: two more, by vectors; messages without one have the others. (Weights other than 1 gained nothing that held
    on both halves of the questions. Without the one of the user's turns 3 points were lost at 1,000 tokens.)
    blobs: all of the agent's; empty ones are skipped.
    skip: messages that count for the statistics and are not wanted.
    tail: messages not indexed yet; where a blob has one of them too, the tail's text counts.
    only_strong: for what nobody asked for. Without hits that hold a good part of the query nothing is returned, and
    small talk finds nothing. A search tool leaves it off. Raises: CorruptIndex.
    """
    terms = list(dict.fromkeys(words_of(query)))[:_QUERY_WORDS]
    opened = sorted(open_blob(blob) for blob in blobs if blob)
    if not terms or not (opened or tail) or (only_strong and COURTESY.issuperset(terms)):
        return []
    found = _find(opened, tail, terms, secret)
    if not len(found.row) and near is None:
        return []
    return _fuse(found, skip, limit, only_strong, near)


@frozen
class _IndexLayout:
    """Every document as a row: 64 rows a chunk, in the order of the chunks. What is known before there is a query.

    first_rows: of the opened blobs, by number. present, user, lengths, heads, back: by row. earlier, later: rows of
    neighbours, -1: none.
    """

    first_rows: NDArray[np.int64]
    seqs: NDArray[np.int64]
    present: NDArray[np.bool_]
    user: NDArray[np.bool_]
    lengths: NDArray[np.float64]
    heads: NDArray[np.float64]
    back: NDArray[np.int64]
    earlier: NDArray[np.int64]
    later: NDArray[np.int64]


@frozen
class _Found:
    """Every occurrence of a query term: row, term, frequency, in_head (one for each document and term)."""

    layout: _IndexLayout
    terms: int
    row: NDArray[np.int64]
    term: NDArray[np.int64]
    frequency: NDArray[np.int64]
    in_head: NDArray[np.bool_]


_CACHED_BYTES = 128 * 1024  # a larger index takes longer to rank than to lay out


@lru_cache(maxsize=256)  # a person's index changes once in a dozen messages, and each of them is a query
def _lay_out_again(opened: tuple[OpenBlob, ...], more: tuple[int, ...]) -> _IndexLayout:
    return _lay_out(opened, more)


def _lay_out(opened: Sequence[OpenBlob], more: Collection[int]) -> _IndexLayout:
    """more: chunks that get rows as well."""
    import numpy as np

    chunks = sorted({blob.chunk for blob in opened}.union(more))
    first_row = {chunk: place * CHUNK for place, chunk in enumerate(chunks)}
    seqs = (np.array(chunks, np.int64)[:, None] * CHUNK + np.arange(CHUNK)).ravel()
    table = np.zeros((len(chunks), CHUNK), document_type())
    first_rows = np.array([first_row[blob.chunk] for blob in opened], np.int64)
    if opened:
        joined = b"".join([blob.table for blob in opened])
        table[first_rows // CHUNK] = np.frombuffer(joined, document_type()).reshape(-1, CHUNK)
    documents = table.ravel()
    flags = documents["flags"]
    present = (flags & PRESENT) > 0
    back = documents["back"].astype(np.int64)
    earlier, later = _neighbours(seqs, present, back)
    return _IndexLayout(
        first_rows=first_rows,
        seqs=seqs,
        present=present,
        user=present & ((flags & USER) > 0),
        lengths=documents["length"].astype(np.float64),
        heads=documents["head"].astype(np.float64),
        back=back,
        earlier=earlier,
        later=later,
    )


def _lay_over(layout: _IndexLayout, rows: NDArray[np.int64], tail: Sequence[Document]) -> _IndexLayout:
    """With messages that no blob has yet in their rows."""
    import numpy as np

    lengths, back, flags, heads = np.array(
        [document_row(each, count_terms(each)) for each in tail], np.int64
    ).T
    present, new_back = layout.present.copy(), _put(layout.back, rows, back)
    present[rows] = True
    earlier, later = _neighbours(layout.seqs, present, new_back)
    return replace(
        layout,
        present=present,
        user=_put(layout.user, rows, (flags & USER) > 0),
        lengths=_put(layout.lengths, rows, lengths),
        heads=_put(layout.heads, rows, heads),
        back=new_back,
        earlier=earlier,
        later=later,
    )


def _put(column: NDArray[Any], rows: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
    changed = column.copy()
    changed[rows] = values
    return changed


def _neighbours(
    seqs: NDArray[np.int64], present: NDArray[np.bool_], back: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each row those of the message before it and of the one behind it; -1: none."""
    import numpy as np

    linked = ((back > 0) & present).nonzero()[0]
    target = seqs[linked] - back[linked]
    if seqs[-1] - seqs[0] < len(seqs):
        target_row = np.maximum(target - seqs[0], 0)
    else:  # chunks are missing in between
        target_row = np.minimum(seqs.searchsorted(target), len(seqs) - 1)
    right = (seqs[target_row] == target) & present[target_row]
    linked, target_row = linked[right], target_row[right]
    earlier = np.full(len(seqs), -1, np.int64)
    later = earlier.copy()
    earlier[linked] = target_row
    later[target_row] = linked
    return earlier, later


def _find(
    opened: Sequence[OpenBlob], tail: Sequence[Document], terms: Sequence[str], secret: bytes
) -> _Found:
    import numpy as np

    is_small = sum(len(blob.data) for blob in opened) <= _CACHED_BYTES
    more = sorted({chunk_of(document.seq) for document in tail}.difference(blob.chunk for blob in opened))
    layout = _lay_out_again(tuple(opened), tuple(more)) if is_small else _lay_out(opened, more)
    row, term, frequency, in_head = _occurrences(
        opened, layout.first_rows, hash_terms(terms, secret).values()
    )
    stays = layout.present[row]  # always true but for a damaged blob
    if tail:
        replaced = layout.seqs.searchsorted([document.seq for document in tail])  # rows are in this order
        layout = _lay_over(layout, replaced, tail)
        is_replaced = np.zeros(len(layout.seqs), bool)
        is_replaced[replaced] = True
        stays &= ~is_replaced[row]
    if not stays.all():
        row, term, frequency, in_head = row[stays], term[stays], frequency[stays], in_head[stays]
    if tail:
        row, term, frequency, in_head = _with_tail(tail, replaced, terms, (row, term, frequency, in_head))
    if len(terms) > _QUERY_TERMS:
        rarest = np.bincount(term, minlength=len(terms)).argsort(kind="stable")
        rarest = rarest[np.isin(rarest, term)][:_QUERY_TERMS]
        stays = np.isin(term, rarest)
        row, term, frequency, in_head = row[stays], term[stays], frequency[stays], in_head[stays]
    return _Found(layout, len(terms), row, term, frequency, in_head)


_Occurrences = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.bool_]"]


def _with_tail(
    tail: Sequence[Document], rows: NDArray[np.int64], terms: Sequence[str], found: _Occurrences
) -> _Occurrences:
    """The occurrences with those in messages that no blob has yet. rows: the messages' own."""
    import numpy as np

    number_of = {term: number for number, term in enumerate(terms)}
    added = list[tuple[int, int, int, bool]]()
    for at, document in zip(rows.tolist(), tail, strict=True):
        counted = count_terms(document)
        added += [
            (at, number_of[word], counted.frequency[word], word in counted.head)
            for word in number_of.keys() & counted.frequency.keys()
        ]
    if not added:
        return found
    more = np.array(added, np.int64)
    row, term, frequency, in_head = found
    return (
        np.concatenate((row, more[:, 0])),
        np.concatenate((term, more[:, 1])),
        np.concatenate((frequency, more[:, 2])),
        np.concatenate((in_head, more[:, 3] > 0)),
    )


def _occurrences(
    opened: Sequence[OpenBlob], first_rows: NDArray[np.int64], hashes: Collection[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Rows, terms, frequencies and head marks of all entries with one of these hashes."""
    import numpy as np

    if not opened:
        none = np.empty(0, np.int64)
        return none, none, none, none > 0
    k = len(hashes)
    keys = np.array([*hashes, *(value + 1 for value in hashes)], "<u4")
    bounds = np.empty((len(opened), 2 * k), np.int64)
    for number, blob in enumerate(opened):
        bounds[number] = blob.hashes.searchsorted(keys)
    low = bounds[:, :k].ravel()
    counts = np.maximum(bounds[:, k:].ravel() - low, 0)  # negative only where a damaged blob is out of order
    ends = counts.cumsum()
    group = np.arange(len(counts)).repeat(counts)
    blob_number, term = np.divmod(group, k)
    within = np.arange(ends[-1]) + (low - ends + counts)[group]
    sizes = np.array([blob.entries for blob in opened], np.int64)
    joined = np.frombuffer(b"".join([blob.columns for blob in opened]), np.uint8)
    at = within + (2 * (sizes.cumsum() - sizes))[blob_number]
    place = joined[at]
    frequency = joined[at + sizes[blob_number]].astype(np.int64)
    return first_rows[blob_number] + (place & SLOT), term, frequency, (place & IN_HEAD) > 0


def _score(found: _Found) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """BM25 of every row by the statistics of all of them, and its share of the query's weight."""
    import numpy as np

    layout = found.layout
    total = len(layout.present)
    documents = int(layout.present.sum())
    df = np.bincount(found.term, minlength=found.terms)
    sample = max(documents, _LEAST_SAMPLE)
    idf = np.log1p(np.maximum(sample - df + 0.5, 0.0) / (df + 0.5))
    length = _K1 * (1 - _B + _B * layout.lengths / max(float(layout.lengths.sum()) / documents, 1.0))
    row, weight, f = found.row, idf[found.term], found.frequency
    score = np.bincount(row, weight * f * (_K1 + 1) / (f + length[row]), total).astype(np.float64, copy=False)
    share = np.bincount(row, weight, total).astype(np.float64, copy=False)

    source, weight = row[found.in_head], weight[found.in_head] * _NEIGHBOUR
    head = _K1 * (1 - _B + _B * layout.heads / max(float(layout.heads.sum()) / documents, 1.0))
    gain = weight * (_K1 + 1) / (1 + head[source])
    for neighbour in (layout.earlier, layout.later):
        to = neighbour[source]
        has = to >= 0
        score += np.bincount(to[has], gain[has], total)
        share += np.bincount(to[has], weight[has], total)
    score[~layout.present] = 0.0
    # A word never heard counts like one heard once; else, with few messages, it would outweigh all that was found.
    unseen_as_rare = np.minimum(idf, np.log1p((sample - 0.5) / 1.5))
    return score, np.minimum(share / max(float(unseen_as_rare.sum()), 1e-9), 1.0)


def _fuse(found: _Found, skip: range, limit: int, only_strong: bool, near: Near | None) -> list[Hit]:
    import numpy as np

    score, share = _score(found)
    outstanding = beyond = None
    if near is not None:
        outstanding = np.maximum(_by_row(found.layout, near.seqs, near.outstanding), 0.0)
        beyond = _by_row(found.layout, near.seqs, near.beyond)
    if skip:
        unwanted = (found.layout.seqs >= skip.start) & (found.layout.seqs < skip.stop)
        score[unwanted] = share[unwanted] = 0.0
        if outstanding is not None and beyond is not None:
            outstanding[unwanted] = beyond[unwanted] = 0.0
    best, nearest = float(score.max()), 0.0 if outstanding is None else float(outstanding.max())
    is_alone = only_strong and (not best > 0 or share.max() < _LEAST_BEST_SHARE)  # words tell nothing
    far = None
    if is_alone:
        if near is None or beyond is None:
            return []
        far = beyond >= _BEYOND_ALONE + math.log10(len(near.seqs))
        if not far.any():
            return []
    if not best > 0 and not nearest > 0:
        return []
    fused = _relative(score, found.layout.user)
    weak = share < _LEAST_SHARE
    if outstanding is not None:
        fused += _relative(outstanding, found.layout.user)
        weak &= outstanding < _NEAR_ENOUGH
    if far is not None:
        weak = ~far
    if only_strong:
        fused[weak | (fused < _LEAST_RELATIVE * fused.max())] = 0.0
    rows = _best(fused, limit)
    return list(map(Hit, found.layout.seqs[rows].tolist(), fused[rows].tolist(), share[rows].tolist()))


def _relative(score: NDArray[np.float64], user: NDArray[np.bool_]) -> NDArray[np.float64]:
    """To the best of all turns, and for the user's to the best of those as well."""
    import numpy as np

    of_user = np.where(user, score, 0.0)
    relative: NDArray[np.float64] = score / (float(score.max()) or 1.0) + of_user / (
        float(of_user.max()) or 1.0
    )
    return relative


def _by_row(
    layout: _IndexLayout, seqs: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The values in their rows, 0 in the others. What the index does not know is left out."""
    import numpy as np

    found = np.zeros(len(layout.seqs))
    row = np.minimum(layout.seqs.searchsorted(seqs), len(layout.seqs) - 1)
    known = (layout.seqs[row] == seqs) & layout.present[row]
    found[row[known]] = values[known]
    return found


def _best(score: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Rows with a score, best first; of equals the newer one."""
    import numpy as np

    rows = np.flatnonzero(score > 0)
    if len(rows) > limit:
        least = np.partition(score[rows], len(rows) - limit)[len(rows) - limit]
        rows = rows[score[rows] >= least]
    return rows[np.lexsort((-rows, -score[rows]))[:limit]]
