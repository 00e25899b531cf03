"""The lengths of all documents of an index, as far as scores depend on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.search.document import PRESENT, USER, DocumentRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The parameters of BM25, with the values that are usual: how soon a repeated word stops counting (k1), and how much the
# length of a message lowers its score (b).
_K1 = 1.2
_B = 0.75
# BM25 divides how often a term is in a message by that number plus k1 * (1 - b + b * length / mean length), here called
# the saturation: this is its part without the length, and `Lengths.slope` its growth with each term of the message.
MIN_SATURATION = _K1 * (1 - _B)

# The ranking of the user's turns counts in full if the assistant's turns are 2**3 times as long as the user's, as they
# are in LongMemEval, where a smaller weight found less.
_FULL_WEIGHT_LOG2 = 3


@dataclass(slots=True)
class Lengths:
    """Sums over documents. Lengths are in terms; logarithms have the base 2."""

    # The number of documents.
    count: int = 0
    # The sum of their lengths.
    length: int = 0
    # The number of documents that are messages of the user.
    user_count: int = 0
    # The sum of the logarithms of the lengths of the user's messages.
    user_logs: float = 0.0
    # The sum of the logarithms of the lengths of all other documents.
    other_logs: float = 0.0

    @classmethod
    def sum_rows(cls, length: NDArray[np.uint16], flags: NDArray[np.uint8]) -> Lengths:
        """Returns the sums over some rows; a row without a document has zeros."""
        import numpy as np

        logs = np.log2(length + 1.0)
        user_rows = (flags & USER).nonzero()[0]
        user_logs = float(logs[user_rows].sum())
        count = int(np.count_nonzero(flags & PRESENT))
        return cls(count, int(length.sum()), len(user_rows), user_logs, float(logs.sum()) - user_logs)

    def add(self, document: DocumentRow, sign: int = 1) -> None:
        """Adds a document; with the sign -1 subtracts it."""
        log = math.log2(document.length + 1)
        self.count += sign
        self.length += sign * document.length
        if document.flags & USER:
            self.user_count += sign
            self.user_logs += sign * log
        else:
            self.other_logs += sign * log

    def with_replaced(self, old_sums: Lengths, new_sums: Lengths) -> Lengths:
        """Returns a copy of the sums after a change of some rows.

        old_sums: the sums over these rows before the change.
        new_sums: the sums over these rows after the change.
        """
        count = self.count - old_sums.count + new_sums.count
        if not count:
            return Lengths()
        return Lengths(
            count,
            self.length - old_sums.length + new_sums.length,
            self.user_count - old_sums.user_count + new_sums.user_count,
            self.user_logs - old_sums.user_logs + new_sums.user_logs,
            self.other_logs - old_sums.other_logs + new_sums.other_logs,
        )

    @property
    def slope(self) -> float:
        """The amount that each term of a document adds to the saturation of its terms, next to MIN_SATURATION."""
        return _K1 * _B / max(self.length / max(self.count, 1), 1.0)

    @property
    def user_weight(self) -> float:
        """The weight of the ranking of the user's turns: the greater, the longer the assistant's turns are.

        The typical length is the geometric mean, which a few very long turns do not change much.
        """
        other_count = self.count - self.user_count
        if not self.user_count or not other_count:
            return 0.0
        # Rounded, since sums of the same rows in another order differ by a rounding error, which would decide between
        # equal weights.
        ratio_log2 = round(self.other_logs / other_count - self.user_logs / self.user_count, 9)
        return min(max(ratio_log2 / _FULL_WEIGHT_LOG2, 0.0), 1.0)
