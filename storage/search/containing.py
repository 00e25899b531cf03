"""Finding every message that has all words of a query, the newest first. No message that has them is missed.

Pure: values in, numbers out. Some messages that the index names do not have the words: the index also has the words of
dates and of speakers, and two words may share a hash. So callers check the texts of the messages (`has_terms`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from storage.search.blob import CHUNK, hash_terms
from storage.search.chunk_rows import list_seqs
from storage.search.document import PRESENT, ROW_SHIFT
from storage.search.index import LOW_HALF, Index
from storage.search.layout import IndexLayout
from storage.search.segment import NO_POSTINGS, Postings
from storage.search.tail import Tail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def find_containing(
    index: Index,
    terms: Sequence[str],
    secret: bytes,
    *,
    tail: Tail,
    before: int,
    limit: int,
    postings: Iterable[tuple[int, Postings]] = ((0, NO_POSTINGS),),
) -> list[int]:
    """Returns the numbers of the messages that have all terms, as far as the index knows, the newest first.

    terms: the terms, at least one.
    tail: the messages that are not indexed yet; if the index has a message as well, the tail's text counts.
    before: the number below which messages are looked for.
    postings: the terms in the segments of the index, as `Buckets.read_newest_first` yields them; only as many are taken
        as are needed. A term that was not read there is passed over, so that messages without it may be returned.
    """
    layout = index.make_layout(tail, range(0))
    end = min(layout.chunk_rows.make_range(range(before)).stop, layout.end)
    rows = {row for row in _find_rows_in_tail(layout, tail, terms) if row < end}
    if index.blob_bytes:
        hashes = [*hash_terms(terms, secret).values()]
        stop = end
        for first_chunk, segment_postings in postings:
            start = layout.chunk_rows.make_range(range(first_chunk * CHUNK)).stop
            if start < stop:
                read = segment_postings.read
                read_hashes = [term_hash for term_hash in hashes if not index.segments or term_hash in read]
                within = range(start, stop)
                segment_rows = _find_rows_in_index(index, layout, read_hashes, segment_postings, within)
                rows.update(segment_rows[-limit:].tolist())
                stop = start
            if sum(row >= stop for row in rows) >= limit:
                break
    return list_seqs(sorted(rows, reverse=True)[:limit], layout.chunk_rows.chunks)


def _find_rows_in_tail(layout: IndexLayout, tail: Tail, terms: Sequence[str]) -> set[int]:
    """Returns the rows of the tail's messages that have all terms."""
    indices_by_term = [{hit >> ROW_SHIFT for hit in tail.terms.get(term, ())} for term in terms]
    return {layout.placed.rows[index_in_tail] for index_in_tail in set.intersection(*indices_by_term)}


def _find_rows_in_index(
    index: Index, layout: IndexLayout, hashes: Sequence[int], postings: Postings, within: range
) -> NDArray[np.int64]:
    """Returns the rows of a range that have all terms and are the index's own documents, in order."""
    import numpy as np

    first = within.start
    has_all = (np.asarray(layout.flags)[first : within.stop] & PRESENT) > 0
    has_all[[row - first for row in layout.placed.replaced if row in within]] = False
    for occurrences in index.list_occurrences(hashes, postings):
        rows = (occurrences & LOW_HALF) >> ROW_SHIFT
        has_term = np.zeros(len(has_all), bool)
        has_term[rows[(rows >= first) & (rows < within.stop)] - first] = True
        has_all &= has_term
    return has_all.nonzero()[0] + first
