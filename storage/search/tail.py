"""The messages of a memory that its index (storage/search/index.py) does not know yet, and where each word is in them.

Pure: values in, occurrences out. A tail grows at its end; one thread uses it at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from functools import lru_cache
from sys import getsizeof

from storage.search.blob import NO_ROW, ROW_SHIFT, Counted, Indexable, count_terms, names_of

# Measured: what a tail takes besides its table of terms, and what each message takes in it.
_TAIL_BYTES, _MESSAGE_BYTES = 400, 80


class _Names(dict[int, list[str]]):
    """The terms of names by a message's place, found when they are asked for first."""

    __slots__ = ("_documents",)

    def __init__(self, documents: list[Indexable]) -> None:
        self._documents = documents

    def __missing__(self, place: int) -> list[str]:
        names = self[place] = names_of(self._documents[place])
        return names


class Tail:
    """Messages that are not indexed yet, in the order in which they came."""

    __slots__ = ("documents", "last", "names", "rows", "terms")

    def __init__(self, documents: Iterable[Indexable] = ()) -> None:
        self.documents: list[Indexable] = []
        # The greatest of their numbers.
        self.last = 0
        # Four numbers for each, as a blob has them.
        self.rows = array("H")
        # By term its occurrences, in order, with places in the tail for rows.
        self.terms: dict[str, tuple[int, ...]] = {}
        # By place the terms of the names in the head of a message.
        self.names = _Names(self.documents)
        for each in documents:
            self.add(each)

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _TAIL_BYTES + getsizeof(self.terms) + _MESSAGE_BYTES * len(self.documents)

    def add(self, document: Indexable) -> None:
        """Adds a message with a new number, and counts its terms."""
        counted, place, terms = count_terms(document), len(self.documents) << ROW_SHIFT, self.terms
        self.documents.append(document)
        self.last = max(self.last, document.seq)
        self.rows.extend(counted.row)
        for term, times in counted.terms.items():
            terms[term] = _append(terms.get(term, ()), place | times)

    def counted_documents(self) -> list[Counted]:
        """Returns its messages as they were counted."""
        found = [Counted(tuple(self.rows[at : at + 4]), {}) for at in range(0, len(self.rows), 4)]
        for term, hits in self.terms.items():
            for hit in hits:
                found[hit >> ROW_SHIFT].terms[term] = hit & NO_ROW
        return found


# Most terms are in one or two messages of a tail, so that tails share nearly all of these tuples, and their numbers.
@lru_cache(4096)
def _append(hits: tuple[int, ...], hit: int) -> tuple[int, ...]:
    return (*hits, hit)
