"""Finding the words of a query in an agent's index (storage/search/index.py): which messages have which.

Pure: values in, columns of numbers out. What they are worth, storage/search/rank.py says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from storage.search.blob import Counted, hash_terms
from storage.search.index import HASH_SHIFT, NO_HASH, ROW_SHIFT, Index
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
    """Every occurrence of a query term, one for each document and term, in columns.

    in_general: of each term of the query the share of people's messages that has it. packed: row, frequency and marks,
    as the index has them. term: its number in the query. hashes: of the query's terms, where the index has any.
    """

    layout: IndexLayout
    in_general: NDArray[np.float64]
    packed: NDArray[np.int64]
    term: NDArray[np.int64]
    hashes: Mapping[str, int]

    @property
    def row(self) -> NDArray[np.int64]:
        return self.packed >> ROW_SHIFT


def find(
    index: Index, tail: Sequence[Counted], terms: Sequence[str], in_general: Sequence[float], secret: bytes
) -> Found:
    """Returns where the terms are. tail: messages that are not indexed yet."""
    import numpy as np

    layout = index.layout(tail)
    hashes = hash_terms(terms, secret) if index.has_words else {}
    packed, term = _occurrences(index, layout, [*hashes.values()], terms)
    if len(terms) > _QUERY_TERMS:
        # A pasted page is ranked by its rarest words that occur at all; the others would cost and decide nothing.
        rarest = np.bincount(term, minlength=len(terms)).argsort(kind="stable")
        rarest = rarest[np.isin(rarest, term)][:_QUERY_TERMS]
        stays = np.isin(term, rarest)
        packed, term = packed[stays], term[stays]
    return Found(layout, np.array(in_general), packed, term, hashes)


def widen(
    found: Found, index: Index, best: Sequence[int], terms: Collection[str], secret: bytes
) -> Found | None:
    """Returns what is found with the names of the best rows as well; None where they add none. terms: the query's.

    A name that comes from the index is not looked for in the tail, whose words would all have to be hashed for it.
    """
    tail, named = found.layout.tail, dict[int | str, str]()
    indexed = [row for row in best if row not in tail]
    names = dict(zip(indexed, index.names_in(indexed), strict=True)) if indexed else {}
    for row in best:
        if row in names:
            for value in names[row]:
                named.setdefault(value, "")
        elif index.has_words:
            named.update((h, term) for term, h in hash_terms(tail[row].names, secret).items())
        else:
            # By themselves, where there are no hashes to compare them with.
            named.update((term, term) for term in tail[row].names)
    known = found.hashes.values() if index.has_words else terms
    more = {value: term for value, term in named.items() if value not in known}
    if not more:
        return None
    import numpy as np

    more = dict(list(more.items())[:_NAMES])
    hashes = [value for value in more if isinstance(value, int)]
    packed, term = _occurrences(index, found.layout, hashes, list(more.values()))
    return replace(
        found,
        in_general=np.concatenate((found.in_general, np.zeros(len(more)))),
        packed=np.concatenate((found.packed, packed)),
        term=np.concatenate((found.term, term + len(found.in_general))),
    )


def _occurrences(
    index: Index, layout: IndexLayout, hashes: Sequence[int], terms: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the occurrences of terms in the index and in the tail. hashes: of the terms, where the index has any."""
    import numpy as np

    packed = numbers = np.empty(0, np.int64)
    if hashes:
        packed, numbers = index.occurrences(hashes)
        if layout.replaced is not None:
            stays = ~layout.replaced[packed >> ROW_SHIFT]
            packed, numbers = packed[stays], numbers[stays]
    # In these numbers a term's own stands for its hash.
    numbered = [(number << HASH_SHIFT, term) for number, term in enumerate(terms)]
    added: list[int] = []
    for row, counted in layout.tail.items():
        known, place = counted.terms, row << ROW_SHIFT
        added += [number | place | known[term] for number, term in numbered if term in known]
    if added:
        both = np.array(added, np.int64)
        packed = np.concatenate((packed, both & NO_HASH))
        numbers = np.concatenate((numbers, both >> HASH_SHIFT))
    return packed, numbers
