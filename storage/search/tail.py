"""The messages of a memory that its index (storage/search/index.py) does not know yet, and where each word is in them.

Pure: values in, occurrences out. A tail grows at its end; one thread uses it at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from sys import getsizeof

from storage.search.blob import NO_ROW, ROW_SHIFT, Counted, DocumentRow

# Measured: what a tail takes beside its table of terms, and what each message takes in it.
_TAIL_BYTES, _MESSAGE_BYTES = 500, 150


class Tail:
    """Messages that are not indexed yet. By place: `seqs`, their numbers, and `rows`, as a blob has them.

    names: the terms of names in the head, by seq, where there are any. terms: by term its occurrences, in order, with
    places in the tail for rows.
    """

    __slots__ = ("names", "rows", "seqs", "terms")

    def __init__(self, counted: Iterable[Counted] = ()) -> None:
        self.seqs: list[int] = []
        self.rows: list[DocumentRow] = []
        self.names: dict[int, tuple[str, ...]] = {}
        self.terms: dict[str, tuple[int, ...]] = {}
        for each in counted:
            self.add(each)

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _TAIL_BYTES + getsizeof(self.terms) + _MESSAGE_BYTES * len(self.seqs)

    def add(self, counted: Counted) -> None:
        """Adds a message whose number is new."""
        place, terms = len(self.seqs) << ROW_SHIFT, self.terms
        self.seqs.append(counted.seq)
        self.rows.append(counted.row)
        if counted.names:
            self.names[counted.seq] = counted.names
        for term, times in counted.terms.items():
            terms[term] = _with(terms.get(term, ()), place | times)

    def counted(self) -> list[Counted]:
        """Returns its messages as they were counted, in order."""
        of_place: list[dict[str, int]] = [{} for _ in self.seqs]
        for term, hits in self.terms.items():
            for hit in hits:
                of_place[hit >> ROW_SHIFT][term] = hit & NO_ROW
        return [
            Counted(seq, row, terms, self.names.get(seq, ()))
            for seq, row, terms in zip(self.seqs, self.rows, of_place, strict=True)
        ]


# Most terms are in one or two messages of a tail, so that tails share nearly all of these tuples, and their numbers.
@lru_cache(4096)
def _with(hits: tuple[int, ...], hit: int) -> tuple[int, ...]:
    return (*hits, hit)
