"""Finds where the terms of a query are in an agent's index and its tail (storage/search/index.py, tail.py).

Without IO: values in, occurrences out. storage/search/score_sums.py sums the occurrences up by message.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, repeat
from typing import TYPE_CHECKING

from msgspec import Struct

from storage.search.blob import hash_terms
from storage.search.document import HEAD, ROW_SHIFT
from storage.search.index import LOW_HALF, Index, make_empty_column, remove_rows
from storage.search.layout import IndexLayout
from storage.search.segment import NO_POSTINGS, Postings
from storage.search.term_weights import QueryTerms, TermWeights, weigh_terms
from storage.search.tokens import is_date_word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The most terms of a query that are scored: the rarest. A question has about 7.
_QUERY_TERMS = 64
# The most names of the first hits that are searched for after them.
_NAMES = 8
# The most occurrences that are scored, which takes 5 ms. The terms of a question have a tenth of them in 10,000
# messages.
_MAX_OCCURRENCES = 1 << 16
# The most terms of a message's frame: four of its date, and two of its speaker's name. A text that is a little longer
# than its head has its last words outside of the head as well, so a name is what so many messages have there. Not
# measured: with fewer messages a last word counts as a name, with more a name is known later.
_FRAME_TERMS = 6
_MIN_SPEAKER_MESSAGES = 3


class Occurrences(Struct, frozen=True):
    """Every occurrence of some terms, one for each message and term, packed as in the index: row, marks, frequency."""

    # The weights of the terms.
    weights: TermWeights
    # The occurrences in the index; the occurrences of a term lie side by side.
    in_index: NDArray[np.int64]
    # The number of occurrences in the index, by term.
    sizes: Sequence[int]
    # The occurrences in the tail, by term. Their rows are indices in the tail.
    in_tail: Sequence[Sequence[int]]
    # The number of occurrences of all terms, in index and tail.
    count: int


def collect_occurrences(
    index: Index, layout: IndexLayout, query: QueryTerms, postings: Postings = NO_POSTINGS
) -> Occurrences:
    """Returns the occurrences of a query's terms.

    query: the terms, at least one.
    layout: the layout of the index and its tail.
    postings: the occurrences in segments.
    """
    import numpy as np

    terms = query.terms
    by_term = (
        index.list_occurrences(query.hashes, postings) if query.hashes else [make_empty_column()] * len(terms)
    )
    if layout.placed.replaced:
        by_term = remove_rows(by_term, layout.placed.replaced, len(layout.flags))
    in_tail = _collect_in_tail(layout, terms)
    _drop_all_but_rarest(by_term, in_tail)
    counts = [len(in_index) + len(hits) for in_index, hits in zip(by_term, in_tail, strict=True)]
    if postings.unread:
        most_unread = (postings.unread.get(term_hash, 0) for term_hash in query.hashes)
        counts = [
            min(count + most, layout.lengths.count) for count, most in zip(counts, most_unread, strict=True)
        ]
    if sum(map(len, by_term)) > _MAX_OCCURRENCES:
        by_term = _choose_near_rarest(layout, by_term)
    sizes = [*map(len, by_term)]
    in_index = np.concatenate(by_term).view(np.int64) & LOW_HALF
    name_counts = _count_speaker_names(layout, in_index, sizes, in_tail)
    in_frames = [
        count if is_date_word(term) else name_count
        for term, count, name_count in zip(terms, counts, name_counts, strict=True)
    ]
    weights = weigh_terms(query, counts, in_frames, layout.lengths)
    return Occurrences(weights, in_index, sizes, in_tail, sum(counts))


def _collect_in_tail(layout: IndexLayout, terms: Sequence[str]) -> list[Sequence[int]]:
    """Returns the occurrences of each term in the messages of the tail that are not left out."""
    in_tail: list[Sequence[int]] = [*map(layout.placed.tail.terms.get, terms, repeat(()))]
    if layout.placed.left_out:
        rows = layout.placed.rows
        in_tail = [[hit for hit in hits if rows[hit >> ROW_SHIFT] >= 0] for hits in in_tail]
    return in_tail


def _drop_all_but_rarest(by_term: list[NDArray[np.uint64]], in_tail: list[Sequence[int]]) -> None:
    """Empties the occurrences of all but the rarest of the terms that occur.

    The rarest rank a pasted page. Its other terms would cost much and decide nothing.
    """
    if len(by_term) <= _QUERY_TERMS:
        return
    counts = [len(in_index) + len(hits) for in_index, hits in zip(by_term, in_tail, strict=True)]
    rarest = sorted((count, number) for number, count in enumerate(counts) if count)
    for _, number in rarest[_QUERY_TERMS:]:
        by_term[number], in_tail[number] = make_empty_column(), ()


def _count_speaker_names(
    layout: IndexLayout, in_index: NDArray[np.int64], sizes: Sequence[int], in_tail: Sequence[Sequence[int]]
) -> list[int]:
    """Returns, for each term, how many messages have it as a name of their speaker; fewer than a minimum count as 0.

    Only messages with texts no longer than a head are counted: there the terms outside the head are the frame's.

    in_index, sizes, in_tail: the occurrences, as in `Occurrences`.
    """
    length = layout.length
    head = layout.head_length
    tail_rows = layout.placed.rows
    counts = [
        sum(
            not hit & HEAD and length[row := tail_rows[hit >> ROW_SHIFT]] - head[row] <= _FRAME_TERMS
            for hit in hits
        )
        for hits in in_tail
    ]
    if len(in_index):
        import numpy as np

        rows = in_index >> ROW_SHIFT
        is_in_frame = (in_index & HEAD) == 0
        is_in_frame &= np.asarray(length)[rows].astype(np.int64) - np.asarray(head)[rows] <= _FRAME_TERMS
        term_numbers = np.arange(len(sizes)).repeat(sizes)
        counts = (counts + np.bincount(term_numbers, is_in_frame, len(sizes))).astype(int).tolist()
    return [count if count >= _MIN_SPEAKER_MESSAGES else 0 for count in counts]


def _choose_near_rarest(
    layout: IndexLayout, by_term: Sequence[NDArray[np.uint64]]
) -> list[NDArray[np.uint64]]:
    """Returns the occurrences of the rarest terms, and the occurrences of other terms that are near one of these.

    The rarest terms have at most `_MAX_OCCURRENCES` together. An occurrence in the same message is near, or in one next
    to it. A term that has more than `_MAX_OCCURRENCES` by itself is looked for in the newest messages.
    """
    import numpy as np

    columns = [column[-_MAX_OCCURRENCES:] for column in by_term]
    remaining = _MAX_OCCURRENCES
    is_near = np.zeros(len(layout.flags) + 1, bool)  # after the rows comes one for missing neighbours
    occurring = [number for number, column in enumerate(columns) if len(column)]
    for number in sorted(occurring, key=lambda number: len(columns[number])):
        rows = ((columns[number] & LOW_HALF) >> ROW_SHIFT).astype(np.int64)
        remaining -= len(rows)
        if remaining < 0:
            columns[number] = columns[number][is_near[rows]]
        else:
            is_near[rows] = True
            for side in (layout.neighbours.earlier, layout.neighbours.later):
                is_near[np.asarray(side)[rows]] = True
    return columns


def find_names(
    index: Index, layout: IndexLayout, rows: Sequence[int], query: QueryTerms, secret: bytes
) -> Occurrences | None:
    """Returns the occurrences of the names in some messages; None: the query has all of these names.

    A name that comes from the index is not looked for in the tail, since all words there would have to be hashed.

    rows: the rows of the messages, best first: only the first names are looked for.
    query: the query; its own names are not looked for again.
    secret: the secret of the agent, with which names are hashed.
    """
    has_index = index.blob_bytes > 0
    tail = layout.placed.tail
    tail_rows = layout.placed.rows
    # The names by their hashes if there is an index to compare with, otherwise by themselves. Of a name that comes from
    # the index only the hash is known.
    names: dict[int | str, str] = {}
    indexed_rows = [row for row in rows if row not in tail_rows] if has_index else []
    hashes_by_row = (
        dict(zip(indexed_rows, index.list_name_hashes(indexed_rows), strict=True)) if indexed_rows else {}
    )
    for row in rows:
        if row in hashes_by_row:
            for name_hash in hashes_by_row[row]:
                names.setdefault(name_hash, "")
        else:
            tail_names = tail.names[tail_rows.index(row)]
            name_keys = hash_terms(tail_names, secret).values() if has_index else tail_names
            names.update(zip(name_keys, tail_names, strict=True))
    for key in query.hashes if has_index else query.terms:
        names.pop(key, None)
    if not names:
        return None
    first_names = dict(islice(names.items(), _NAMES))
    hashes = [key for key in first_names if isinstance(key, int)]
    zeros = [0] * len(first_names)
    return collect_occurrences(index, layout, QueryTerms([*first_names.values()], zeros, zeros, hashes))
