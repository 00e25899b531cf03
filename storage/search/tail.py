"""The messages of a memory that its index (storage/search/index.py) does not know yet, and where each word is in them.

Pure: values in, occurrences out. A tail grows at its end; one thread uses it at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from sys import getsizeof

from storage.search.document import (
    COUNTED_TERM,
    ROW_SHIFT,
    CountedDocument,
    DocumentRow,
    Indexable,
    count_terms,
    list_name_terms,
)

# Measured: the bytes of a tail besides its table of terms, and the bytes of each message in it.
_TAIL_BYTES, _MESSAGE_BYTES = 400, 80


class _Names(dict[int, list[str]]):
    """The terms of names by a message's index in the tail, found when they are asked for first."""

    __slots__ = ("_documents",)

    def __init__(self, documents: list[Indexable]) -> None:
        self._documents = documents

    def __missing__(self, index: int) -> list[str]:
        names = self[index] = list_name_terms(self._documents[index])
        return names


class Tail:
    """Messages that are not indexed yet, in the order in which they came."""

    __slots__ = ("_row_numbers", "documents", "last_seq", "names", "terms")

    def __init__(self, documents: Iterable[Indexable] = ()) -> None:
        self.documents: list[Indexable] = []
        # The greatest number of a message in it.
        self.last_seq = 0
        # For each message the four numbers of its `DocumentRow`.
        self._row_numbers = array("H")
        # The occurrences of each term, in order. Their rows are indices in the tail.
        self.terms: dict[str, tuple[int, ...]] = {}
        # The terms of the names in the head of each message, by its index in the tail.
        self.names = _Names(self.documents)
        for document in documents:
            self.add(document)

    @property
    def size(self) -> int:
        """An estimate of the bytes that the tail takes."""
        return _TAIL_BYTES + getsizeof(self.terms) + _MESSAGE_BYTES * len(self.documents)

    def add(self, document: Indexable) -> None:
        """Adds a message with a new number, and counts its terms."""
        counted, row, terms = count_terms(document), len(self.documents) << ROW_SHIFT, self.terms
        self.documents.append(document)
        self.last_seq = max(self.last_seq, document.seq)
        self._row_numbers.extend(counted.row)
        for term, counted_term in counted.terms.items():
            terms[term] = _append(terms.get(term, ()), row | counted_term)

    def iterate_rows(self, start: int) -> Iterator[DocumentRow]:
        """Yields the rows of its messages from this index on."""
        numbers = iter(self._row_numbers[len(DocumentRow._fields) * start :])
        return map(DocumentRow, numbers, numbers, numbers, numbers)

    def list_counted_documents(self) -> list[CountedDocument]:
        """Returns its messages as they were counted."""
        documents = [CountedDocument(row, {}) for row in self.iterate_rows(0)]
        for term, hits in self.terms.items():
            for hit in hits:
                documents[hit >> ROW_SHIFT].terms[term] = hit & COUNTED_TERM
        return documents


# Most terms are in one or two messages of a tail, so that tails share nearly all of these tuples, and their numbers.
@lru_cache(4096)
def _append(hits: tuple[int, ...], hit: int) -> tuple[int, ...]:
    return (*hits, hit)
