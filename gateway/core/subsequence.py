"""Compares two sequences: their common beginning, and the longest common subsequence (LCS) of a list and a path."""

from __future__ import annotations

from collections.abc import Sequence

from storage.records import Atom

# The most atoms of each side that one table compares, about 32 turns with tools.
LCS_ATOMS = 160

# Pairs of an index in the list and an index in the path.
Pairs = list[tuple[int, int]]


def pair_lcs(a: Sequence[Atom], b: Sequence[Atom], max_tables: int = 1) -> Pairs:
    """Returns the pairs of a longest common subsequence, as late as possible in both, the last pair first.

    Common ends are paired directly. Then the last atoms of the rest are compared in a table, and the atoms before these
    in the same way, which bounds the cost; atoms before the last table stay unpaired.

    max_tables: the most tables.
    """
    pairing = _Pairing(a, b)
    pairing.pair_common_end()
    for _ in range(max_tables):
        if pairing.is_over:
            break
        pairing.pair_last_atoms()
        pairing.pair_common_end()
    return pairing.pairs


def count_common_beginning(a: Sequence[object], b: Sequence[object]) -> int:
    """Returns the number of items that two sequences have in common from the first item on."""
    pairs = zip(a, b, strict=False)
    return next((n for n, (left, right) in enumerate(pairs) if left != right), min(len(a), len(b)))


class _Pairing:
    """Pairs two sequences from their ends on."""

    def __init__(self, a: Sequence[Atom], b: Sequence[Atom]) -> None:
        # The pairs of equal atoms so far, the last first.
        self.pairs: Pairs = []
        self._a = a
        self._b = b
        # The number of the first atoms of a that are still to be paired.
        self._n = len(a)
        # The number of the first atoms of b that are still to be paired.
        self._m = len(b)

    @property
    def is_over(self) -> bool:
        return not (self._n and self._m)

    def pair_common_end(self) -> None:
        """Pairs the atoms of the common end of both."""
        a = self._a
        b = self._b
        n = self._n
        m = self._m
        while n and m and a[n - 1] == b[m - 1]:
            n, m = n - 1, m - 1
            self.pairs.append((n, m))
        self._n, self._m = n, m

    def pair_last_atoms(self) -> None:
        """Pairs the last `LCS_ATOMS` of both, in a table of the LCS lengths of their beginnings."""
        a, b = self._a, self._b
        low_a, low_b = max(0, self._n - LCS_ATOMS), max(0, self._m - LCS_ATOMS)
        rows, columns = self._n - low_a, self._m - low_b
        # Hyyrö 2004, "Bit-parallel LCS-length computation revisited": a row of the table is one number. A bit that is
        # not set means that the length grows in its column.
        # The columns with an atom, as bits.
        occurrences: dict[Atom, int] = {}
        for j in range(columns):
            occurrences[b[low_b + j]] = occurrences.get(b[low_b + j], 0) | 1 << j
        all_columns = (1 << columns) - 1
        table = [all_columns]
        for i in range(rows):
            row = table[-1]
            matches = row & occurrences.get(a[low_a + i], 0)
            table.append((row + matches | row - matches) & all_columns)

        def measure_length(i: int, j: int) -> int:
            """Returns the LCS length of the first i and j atoms: the zeros among the first j bits of row i."""
            return j - (table[i] & (1 << j) - 1).bit_count()

        # Walked backwards. Where both ways are equally long, the step is taken in b, which pairs as late as possible.
        i, j = rows, columns
        while i and j:
            if a[low_a + i - 1] == b[low_b + j - 1]:
                i, j = i - 1, j - 1
                self.pairs.append((low_a + i, low_b + j))
            elif measure_length(i - 1, j) > measure_length(i, j - 1):
                i -= 1
            else:
                j -= 1
        self._n, self._m = low_a + i, low_b + j
