"""Finding the words of a query in an agent's index (storage/search/index.py): which messages have which.

Pure: values in, columns of numbers out. What they are worth, storage/search/rank.py says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from storage.search.blob import Counted, hash_terms
from storage.search.index import FREQUENCY, FREQUENCY_SHIFT, HEAD, ROW_SHIFT, Index, IndexLayout
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
    packed: NDArray[np.uint32]
    term: NDArray[np.int64]
    hashes: Mapping[str, int]

    @property
    def row(self) -> NDArray[np.int64]:
        import numpy as np

        return (self.packed >> ROW_SHIFT).astype(np.int64)


def find(
    index: Index, tail: Sequence[Counted], terms: Sequence[str], in_general: Sequence[float], secret: bytes
) -> Found:
    """Returns where the terms are. tail: messages that are not indexed yet."""
    import numpy as np

    layout = index.layout(tail)
    hashes = hash_terms(terms, secret) if index.has_words else {}
    packed, term = _occurrences(index, layout, hashes.values(), tail, terms)
    if len(terms) > _QUERY_TERMS:
        # A pasted page is ranked by its rarest words that occur at all; the others would cost and decide nothing.
        rarest = np.bincount(term, minlength=len(terms)).argsort(kind="stable")
        rarest = rarest[np.isin(rarest, term)][:_QUERY_TERMS]
        stays = np.isin(term, rarest)
        packed, term = packed[stays], term[stays]
    return Found(layout, np.array(in_general), packed, term, hashes)


def widen(
    found: Found,
    index: Index,
    tail: Sequence[Counted],
    best: Iterable[int],
    terms: Collection[str],
    secret: bytes,
) -> Found | None:
    """Returns what is found with the names of the best rows as well; None where they add none. terms: the query's.

    A name that comes from the index is not looked for in the tail, whose words would all have to be hashed for it.
    """
    import numpy as np

    counted_at = dict(zip(found.layout.in_tail, tail, strict=True))
    # The names of the tail by themselves where there are no hashes to compare them with.
    named = dict[int | str, str]()
    for row in best:
        if (counted := counted_at.get(row)) is None:
            named.update((value, named.get(value, "")) for value in index.names_in(row))
        elif index.has_words:
            named.update((h, term) for term, h in hash_terms(sorted(counted.named), secret).items())
        else:
            named.update((term, term) for term in sorted(counted.named))
    known = set(found.hashes.values()) if index.has_words else set(terms)
    more = {value: term for value, term in named.items() if value not in known}
    more = dict(list(more.items())[:_NAMES])
    if not more:
        return None
    hashes = [value for value in more if isinstance(value, int)]
    packed, term = _occurrences(index, found.layout, hashes, tail, list(more.values()))
    return replace(
        found,
        in_general=np.concatenate((found.in_general, np.zeros(len(more)))),
        packed=np.concatenate((found.packed, packed)),
        term=np.concatenate((found.term, term + len(found.in_general))),
    )


def _occurrences(
    index: Index, layout: IndexLayout, hashes: Collection[int], tail: Sequence[Counted], terms: Sequence[str]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Returns the occurrences of terms in the index and in the tail. hashes: of the terms, where the index has any."""
    import numpy as np

    if hashes:
        packed, term = index.occurrences([*hashes])
        if layout.replaced is not None:
            stays = ~layout.replaced[packed >> ROW_SHIFT]
            packed, term = packed[stays], term[stays]
    added, numbers = list[int](), list[int]()
    for row, counted in zip(layout.in_tail, tail, strict=True):
        frequency, head = counted.frequency, counted.head
        for number, word in enumerate(terms):
            if word in frequency:
                # As in a blob, which has no larger number.
                times = min(frequency[word], FREQUENCY)
                added.append(row << ROW_SHIFT | times << FREQUENCY_SHIFT | (HEAD if word in head else 0))
                numbers.append(number)
    if not hashes:
        return np.array(added, np.uint32), np.array(numbers, np.int64)
    if added:
        packed = np.concatenate((packed, np.array(added, np.uint32)))
        term = np.concatenate((term, np.array(numbers, np.int64)))
    return packed, term
