"""The messages of a memory that its index (storage/search/index.py) does not have yet, and where each term is in them.

Without IO. A tail grows at its end; one thread uses it at a time.
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

# The bytes of a tail besides its table of terms and its messages. Measured.
_TAIL_BYTES = 400
# The bytes of each message besides its text and its terms. Measured.
_MESSAGE_BYTES = 80


class _Names(dict[int, list[str]]):
    """The terms of names by a message's index in the tail, found when they are read first."""

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
        # The greatest number of a message.
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
    def size_bytes(self) -> int:
        """An estimate of the memory that the tail takes, in bytes."""
        return _TAIL_BYTES + getsizeof(self.terms) + _MESSAGE_BYTES * len(self.documents)

    def add(self, document: Indexable) -> None:
        """Adds a message with a new number, and counts its terms."""
        counted = count_terms(document)
        row = len(self.documents) << ROW_SHIFT
        self.documents.append(document)
        self.last_seq = max(self.last_seq, document.seq)
        self._row_numbers.extend(counted.row)
        for term, counted_term in counted.terms.items():
            self.terms[term] = _append_hit(self.terms.get(term, ()), row | counted_term)

    def iterate_rows(self, start: int) -> Iterator[DocumentRow]:
        """Yields the rows of the messages from an index on. start: the index of the first message."""
        numbers = iter(self._row_numbers[len(DocumentRow._fields) * start :])
        return map(DocumentRow, numbers, numbers, numbers, numbers)

    def list_counted_documents(self) -> list[CountedDocument]:
        """Returns the messages as their terms were counted, in order."""
        documents = [CountedDocument(row, {}) for row in self.iterate_rows(0)]
        for term, hits in self.terms.items():
            for hit in hits:
                documents[hit >> ROW_SHIFT].terms[term] = hit & COUNTED_TERM
        return documents


# Most terms are in one or two messages of a tail, so that tails share nearly all of these tuples and their numbers.
@lru_cache(4096)
def _append_hit(hits: tuple[int, ...], hit: int) -> tuple[int, ...]:
    return (*hits, hit)
