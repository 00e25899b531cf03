"""Finding the words of a query in an agent's index (storage/search/index.py): which messages have which.

Pure: values in, occurrences out. What they are worth, storage/search/rank.py says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from storage.search.blob import NO_ROW, ROW_SHIFT, hash_terms
from storage.search.index import NO_HASH, Index, no_occurrences, without
from storage.search.layout import IndexLayout
from storage.value import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Terms of a query that are scored, the rarest. A question has about 7.
_QUERY_TERMS = 64
# Names of the first hits that a second look asks for.
_NAMES = 8


@frozen
class Found:
    """Every occurrence of some terms, one for each document and term: row, frequency and marks, as the index has them.

    in_general: of each term the share of people's messages that has it. indexed: occurrences in the index, those of a
    term side by side; sizes: how many there are of each. fresh: by term, those in messages that are not indexed yet.
    count: of all. hashes: of the terms, where the index has any.
    """

    layout: IndexLayout
    in_general: Sequence[float]
    indexed: NDArray[np.int64]
    sizes: Sequence[int]
    fresh: Sequence[list[int]]
    count: int
    hashes: Mapping[str, int]


def find(
    index: Index, layout: IndexLayout, terms: Sequence[str], in_general: Sequence[float], secret: bytes
) -> Found:
    """Returns where the terms are. layout: of the index and its tail."""
    hashes = hash_terms(terms, secret) if index.blob_bytes else {}
    return _occurrences(index, layout, hashes, terms, in_general)


def widen(
    found: Found, index: Index, best: Sequence[int], terms: Collection[str], secret: bytes
) -> Found | None:
    """Returns where the names of the best rows are; None where the query has them all. terms: the query's.

    A name that comes from the index is not looked for in the tail, whose words would all have to be hashed for it.
    """
    layout, has_words, named = found.layout, index.blob_bytes > 0, dict[int | str, str]()
    indexed = [row for row in best if row << ROW_SHIFT not in layout.tail_rows]
    values = dict(zip(indexed, index.names_in(indexed), strict=True)) if indexed else {}
    for row in best:
        if row in values:
            for value in values[row]:
                named.setdefault(value, "")
            continue
        names = layout.tail.names(layout.tail_rows.index(row << ROW_SHIFT))
        # By themselves, where there are no hashes to compare them with.
        for term, key in hash_terms(names, secret).items() if has_words else zip(names, names, strict=True):
            named[key] = term
    for known in found.hashes.values() if has_words else terms:
        named.pop(known, None)
    if not named:
        return None
    more = [*named][:_NAMES]
    hashes = {str(value): value for value in more if isinstance(value, int)} if has_words else {}
    return _occurrences(index, layout, hashes, [named[value] for value in more], [0.0] * len(more))


def _occurrences(
    index: Index,
    layout: IndexLayout,
    hashes: Mapping[str, int],
    terms: Sequence[str],
    in_general: Sequence[float],
) -> Found:
    """Returns the occurrences of terms in the index and in the tail. hashes: of each, where the index has any."""
    parts = index.occurrences([*hashes.values()]) if hashes else []
    if layout.replaced:
        parts = without(parts, layout.replaced, len(layout.flags))
    sizes = list(map(len, parts)) or [0] * len(terms)
    fresh, known, rows = [], layout.tail.terms, layout.tail_rows
    for term in terms:
        hits = known.get(term, ())
        # One that is left out has no row.
        fresh.append(
            [row | hit & NO_ROW for hit in hits if (row := rows[hit >> ROW_SHIFT]) >= 0] if hits else []
        )
    if len(terms) > _QUERY_TERMS:
        # A pasted page is ranked by its rarest words that occur at all; the others would cost and decide nothing.
        counts = [size + len(hits) for size, hits in zip(sizes, fresh, strict=True)]
        rarest = sorted((count, number) for number, count in enumerate(counts) if count)
        for _, number in rarest[_QUERY_TERMS:]:
            sizes[number], fresh[number] = 0, []
            if parts:
                parts[number] = parts[number][:0]
    indexed, count = no_occurrences(), sum(sizes)
    if count:
        import numpy as np

        indexed = np.concatenate(parts).view(np.int64) & NO_HASH
    return Found(layout, in_general, indexed, sizes, fresh, count + sum(map(len, fresh)), hashes)
