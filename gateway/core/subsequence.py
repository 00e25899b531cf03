"""Compares two sequences: their common beginning, and the longest common subsequence (LCS) of a list and a path."""

from __future__ import annotations

from collections.abc import Sequence

from storage.records import Atom

# The most atoms of each side that one table compares, about 32 turns with tools.
LCS_ATOMS = 160

# Pairs of an index in the list and an index in the path.
Pairs = list[tuple[int, int]]


def pair_lcs(listed: Sequence[Atom], path: Sequence[Atom], max_tables: int = 1) -> Pairs:
    """Returns the pairs of a longest common subsequence, as late as possible in both, the last pair first.

    Common ends are paired directly. Then the last atoms of the rest are compared in a table, and the atoms before these
    in the same way, which bounds the cost; atoms before the last table stay unpaired.

    listed: the atoms of the list.
    path: the atoms of the path.
    max_tables: the most tables.
    """
    pairing = _Pairing(listed, path)
    pairing.pair_common_end()
    for _ in range(max_tables):
        if pairing.is_over:
            break
        pairing.pair_last_atoms()
        pairing.pair_common_end()
    return pairing.pairs


def count_common_beginning(left: Sequence[object], right: Sequence[object]) -> int:
    """Returns the number of items that two sequences have in common from the first item on."""
    pairs = zip(left, right, strict=False)
    shorter_length = min(len(left), len(right))
    return next((n for n, (item, other) in enumerate(pairs) if item != other), shorter_length)


class _Pairing:
    """Pairs the atoms of a list and of a path from their ends on."""

    def __init__(self, listed: Sequence[Atom], path: Sequence[Atom]) -> None:
        # The pairs of equal atoms so far, the last first.
        self.pairs: Pairs = []
        self._listed = listed
        self._path = path
        # The number of the first atoms of the list that are still to be paired.
        self._listed_count = len(listed)
        # The number of the first atoms of the path that are still to be paired.
        self._path_count = len(path)

    @property
    def is_over(self) -> bool:
        return not (self._listed_count and self._path_count)

    def pair_common_end(self) -> None:
        """Pairs the atoms of the common end of both."""
        listed, path = self._listed, self._path
        i, j = self._listed_count, self._path_count
        while i and j and listed[i - 1] == path[j - 1]:
            i, j = i - 1, j - 1
            self.pairs.append((i, j))
        self._listed_count, self._path_count = i, j

    def pair_last_atoms(self) -> None:
        """Pairs the last `LCS_ATOMS` of both, in a table of the LCS lengths of their beginnings."""
        first_row = max(0, self._listed_count - LCS_ATOMS)
        first_column = max(0, self._path_count - LCS_ATOMS)
        row_atoms = self._listed[first_row : self._listed_count]
        column_atoms = self._path[first_column : self._path_count]
        # Hyyrö 2004, "Bit-parallel LCS-length computation revisited": a row of the table is one number. A bit that is
        # not set means that the length grows in its column.
        # The columns with an atom, as bits.
        occurrences: dict[Atom, int] = {}
        for column, atom in enumerate(column_atoms):
            occurrences[atom] = occurrences.get(atom, 0) | 1 << column
        all_columns = (1 << len(column_atoms)) - 1
        table = [all_columns]
        for atom in row_atoms:
            row = table[-1]
            matches = row & occurrences.get(atom, 0)
            table.append((row + matches | row - matches) & all_columns)

        def measure_length(i: int, j: int) -> int:
            """Returns the LCS length of the first i and j atoms: the zeros among the first j bits of row i."""
            return j - (table[i] & (1 << j) - 1).bit_count()

        # Walked backwards. Where both ways are equally long, the step is taken in the path, which pairs as late as
        # possible.
        i, j = len(row_atoms), len(column_atoms)
        while i and j:
            if row_atoms[i - 1] == column_atoms[j - 1]:
                i, j = i - 1, j - 1
                self.pairs.append((first_row + i, first_column + j))
            elif measure_length(i - 1, j) > measure_length(i, j - 1):
                i -= 1
            else:
                j -= 1
        self._listed_count, self._path_count = first_row + i, first_column + j
