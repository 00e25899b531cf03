"""The layout of one agent's search index (storage/search/index.py): every document by row, before any query.

Pure: values in, columns of numbers out. A layout changes in place with the messages that are not indexed yet.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from storage.search.blob import CHUNK, PRESENT, USER, Counted, chunk_of, document_row
from storage.value import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# BM25's own: how soon a repeated word stops counting, and how much a long message is held against it.
_K1 = 1.2
_B = 0.75
LEAST_AGAINST = _K1 * (1 - _B)

# The assistant's turns are this many times as long as the user's, as an exponent of 2, where the ranking of the user's
# turns counts in full. That is so in LongMemEval, where nothing less found as much.
_FULL_WEIGHT_LOG2 = 3


# Columns that change with the tail.
_COLUMNS = ("length", "head", "back", "flags", "earlier", "later")


@dataclass(slots=True)
class Lengths:
    """Sums over rows: how many there are, their lengths and heads; logarithms of the user's lengths, and of others'."""

    count: int = 0
    length: int = 0
    head: int = 0
    user: int = 0
    user_logs: float = 0.0
    other_logs: float = 0.0

    @classmethod
    def of(cls, length: NDArray[np.float64], head: NDArray[np.float64], flags: NDArray[np.uint8]) -> Lengths:
        """Sums up some rows; those without a document have zeros."""
        import numpy as np

        logs, user = np.log2(length + 1.0), (flags & USER).nonzero()[0]
        of_user = float(logs[user].sum())
        count = int(np.count_nonzero(flags & PRESENT))
        return cls(count, int(length.sum()), int(head.sum()), len(user), of_user, float(logs.sum()) - of_user)

    def change(self, by: int, length: int, head: int, flags: int) -> None:
        """Adds a row, or takes it away. by: 1 or -1."""
        self.count += by
        self.length += by * length
        self.head += by * head
        if flags & USER:
            self.user += by
            self.user_logs += by * math.log2(length + 1)
        else:
            self.other_logs += by * math.log2(length + 1)

    def user_weight(self) -> float:
        """Returns how much the ranking of the user's turns counts: the more, the longer the assistant's turns are here.

        The typical length is the geometric mean, which a few very long turns do not change much.
        """
        others = self.count - self.user
        if not self.user or not others:
            return 0.0
        # Rounded, since sums of the same rows in another order differ by a hair, which would decide between equals.
        longer = round(self.other_logs / others - self.user_logs / self.user, 9)
        return min(max(longer / _FULL_WEIGHT_LOG2, 0.0), 1.0)


@frozen
class Rows:
    """Columns of a layout as lists, which are read faster one number at a time.

    against: how much the length of a document counts against a term in it. earlier, later: for none, the first row
    behind these.
    """

    against: list[float]
    head: list[float]
    flags: list[int]
    earlier: list[int]
    later: list[int]


@dataclass(slots=True)
class IndexLayout:
    """Every document by row, and all that is known of them before a query.

    places: of each chunk, in order. length, head: terms in a document, and in its head; with `back` and `flags` as in a
    blob, zeros where there is none. earlier, later: by row the rows of its neighbours, the number of rows for none.
    waiting: rows by the number of the message before them, where that is not there. marks: the flags that any row has.
    end: the first row behind all that there are. tail: the messages that are not indexed yet, by row. replaced: rows of
    those that are indexed nevertheless. slope, head_slope: how much each term of a document, or of its head, counts
    against a term in it, beside LEAST_AGAINST.
    user_weight: how much the ranking of the user's turns counts.
    """

    places: Mapping[int, int]
    seqs: NDArray[np.int64]
    length: NDArray[np.float64]
    head: NDArray[np.float64]
    back: NDArray[np.int64]
    flags: NDArray[np.uint8]
    earlier: NDArray[np.int64]
    later: NDArray[np.int64]
    waiting: dict[int, tuple[int, ...]]
    lengths: Lengths
    marks: int
    end: int
    tail: dict[int, Counted] = field(default_factory=dict)
    replaced: set[int] = field(default_factory=set)
    slope: float = field(init=False)
    head_slope: float = field(init=False)
    user_weight: float = field(init=False)
    _rows: Rows | None = field(init=False)

    @classmethod
    def of(cls, places: Mapping[int, int], seqs: NDArray[np.int64], documents: NDArray[Any]) -> IndexLayout:
        """Lays out what is indexed. documents: rows as blobs have them."""
        import numpy as np

        length, head = documents["length"].astype(float), documents["head"].astype(float)
        back, flags = documents["back"].astype(np.int64), documents["flags"].copy()
        marks, total = int(np.bitwise_or.reduce(flags, initial=0)), len(seqs)
        earlier = np.full(total, total, np.int64)
        made = cls(
            places, seqs, length, head, back, flags, earlier, earlier.copy(), {}, Lengths(), marks, 0
        )  # fmt: skip
        if marks:
            made.end = int(flags.nonzero()[0][-1]) + 1
            made.lengths = Lengths.of(length, head, flags)
            made._link()
        made._weigh()
        return made

    def copy(self) -> IndexLayout:
        """Returns a copy of one without a tail."""
        columns = {name: getattr(self, name).copy() for name in _COLUMNS}
        made = replace(
            self,
            waiting=dict(self.waiting),
            lengths=replace(self.lengths),
            tail={},
            replaced=set(),
            **columns,
        )
        made._weigh()
        return made

    def add(self, tail: Iterable[Counted]) -> None:
        """Puts messages that are not indexed yet into their rows. Of one that is, the blob does not count any more."""
        is_linked = True
        for counted in tail:
            seq = counted.document.seq
            row = self._row_of(seq)
            if self.flags[row] & PRESENT:
                is_linked = False
                self.replaced.add(row)
                self.lengths.change(-1, int(self.length[row]), int(self.head[row]), int(self.flags[row]))
            self._put(row, *document_row(counted))
            self.tail[row] = counted
            if is_linked:
                self._link_one(row, seq)
        if not is_linked:
            self._link()
        self._weigh()

    def index(self, place: int, documents: NDArray[Any]) -> bool:
        """Takes a chunk's rows as the index has them now; most were in the tail before.

        Returns False where a row has become another one: all has to be laid out anew then.
        """
        first = place * CHUNK
        rows = slice(first, first + CHUNK)
        differs = (self.flags[rows] != documents["flags"]) | (self.length[rows] != documents["length"])
        differs |= (self.back[rows] != documents["back"]) | (self.head[rows] != documents["head"])
        for slot in differs.nonzero()[0].tolist():
            row, (length, back, flags, head) = first + slot, documents[slot].tolist()
            if not self.flags[row]:
                self._put(row, length, back, flags, head)
                self._link_one(row, int(self.seqs[row]))
            elif flags or row not in self.tail:
                return False
        flags = documents["flags"].tolist()
        for row in [row for row in self.tail if 0 <= row - first < CHUNK and flags[row - first]]:
            del self.tail[row]
            self.replaced.discard(row)
        self._weigh()
        return True

    def _put(self, row: int, length: int, back: int, flags: int, head: int) -> None:
        self.length[row], self.head[row], self.back[row], self.flags[row] = length, head, back, flags
        self.lengths.change(1, length, head, flags)
        self.marks |= flags
        self.end = max(self.end, row + 1)

    @property
    def rows(self) -> Rows:
        """Its columns as lists, up to the last row that there is."""
        if self._rows is None:
            end = self.end
            columns = self.length, self.head, self.flags, self.earlier, self.later
            length, head, flags, earlier, later = (each[:end].tolist() for each in columns)
            self._rows = Rows(
                [each * self.slope + LEAST_AGAINST for each in length],
                head,
                flags,
                [min(row, end) for row in earlier],
                [min(row, end) for row in later],
            )
        return self._rows

    @property
    def listed(self) -> int:
        """How many rows it has as lists."""
        return 0 if self._rows is None else self.end

    def numbers(self, rows: Iterable[int]) -> list[int]:
        """Returns the numbers of the messages in some rows."""
        seqs = self.seqs.data
        return [seqs[row] for row in rows]

    def rows_of(self, seqs: range) -> tuple[int, int]:
        """Returns the first row of some numbers, and the first one behind them."""
        return self._first_row(seqs.start), self._first_row(seqs.stop)

    def _first_row(self, seq: int) -> int:
        """Returns the first row of a number or of greater ones."""
        place = self.places.get(chunk_of(seq))
        return (
            bisect_left([*self.places], chunk_of(seq)) * CHUNK
            if place is None
            else place * CHUNK + seq % CHUNK
        )

    def _weigh(self) -> None:
        """Takes the measures that hold for all rows."""
        count = max(self.lengths.count, 1)
        mean, head_mean = max(self.lengths.length / count, 1.0), max(self.lengths.head / count, 1.0)
        self.slope, self.head_slope, self._rows = _K1 * _B / mean, _K1 * _B / head_mean, None
        self.user_weight = self.lengths.user_weight()

    def _row_of(self, seq: int) -> int:
        """Returns the row of a number; the number of rows where its chunk has none."""
        place = self.places.get(chunk_of(seq))
        return len(self.seqs) if place is None else place * CHUNK + seq % CHUNK

    def _link_one(self, row: int, seq: int) -> None:
        """Finds the neighbours of a row that was empty. Of several behind it, the last one counts."""
        none, back = len(self.seqs), int(self.back[row])
        if back:
            before = self._row_of(seq - back)
            if before < none and self.flags[before] & PRESENT:
                self.earlier[row] = before
                if not row < self.later[before] < none:
                    self.later[before] = row
            else:
                self.waiting[seq - back] = (*self.waiting.get(seq - back, ()), row)
        behind = self.waiting.pop(seq, ())
        for each in behind:
            self.earlier[each] = row
        if behind:
            self.later[row] = max(behind)

    def _link(self) -> None:
        """Finds the neighbours of all rows."""
        import numpy as np

        linked = self.back.nonzero()[0]
        wanted = self.seqs[linked] - self.back[linked]
        if self.seqs[-1] - self.seqs[0] < len(self.seqs):
            before = np.maximum(wanted - self.seqs[0], 0)
        else:
            # Chunks are missing in between, so that a row is not found by counting.
            before = np.minimum(self.seqs.searchsorted(wanted), len(self.seqs) - 1)
        is_there = (self.seqs[before] == wanted) & ((self.flags[before] & PRESENT) > 0)
        self.earlier = np.full(len(self.seqs), len(self.seqs), np.int64)
        self.later = self.earlier.copy()
        self.earlier[linked[is_there]] = before[is_there]
        self.later[before[is_there]] = linked[is_there]
        self.waiting = {}
        for row, seq in zip(linked[~is_there].tolist(), wanted[~is_there].tolist(), strict=True):
            self.waiting[seq] = (*self.waiting.get(seq, ()), row)
