"""The longest common subsequence (LCS) of a list and a path, both as atoms."""

from __future__ import annotations

from collections.abc import Sequence

from storage.records import Atom

# The most atoms of each side that one table compares, about 32 turns with tools.
LCS_ATOMS = 160

# Indices in the list and in the path.
Pairs = list[tuple[int, int]]


def lcs(a: Sequence[Atom], b: Sequence[Atom], tables: int = 1) -> Pairs:
    """Returns the pairs of a longest common subsequence, as late as possible in both, the last pair first.

    Common ends are paired directly. Of the rest the last atoms are compared in a table, then those before them in the
    same way, which bounds the cost; atoms before the last table stay unpaired.

    tables: the most tables.
    """
    pairs: Pairs = []
    n, m = _pair_ends(a, b, len(a), len(b), pairs)
    for _ in range(tables):
        if not n or not m:
            break
        n, m = _pair_ends(a, b, *_pair_last(a, b, n, m, pairs), pairs)
    return pairs


def _pair_ends(a: Sequence[Atom], b: Sequence[Atom], n: int, m: int, pairs: Pairs) -> tuple[int, int]:
    """Pairs the common end of the first n and the first m atoms. Returns how many atoms of each are before it."""
    while n and m and a[n - 1] == b[m - 1]:
        n, m = n - 1, m - 1
        pairs.append((n, m))
    return n, m


def _pair_last(a: Sequence[Atom], b: Sequence[Atom], n: int, m: int, pairs: Pairs) -> tuple[int, int]:
    """Pairs the last of the first n and the first m atoms, in a table. Returns how many of each come before these."""
    low_a, low_b = max(0, n - LCS_ATOMS), max(0, m - LCS_ATOMS)
    rows, columns = n - low_a, m - low_b
    # Hyyrö 2004, "Bit-parallel LCS-length computation revisited": a row of the table is one number. A bit that is not
    # set means that the length grows in its column.
    occurrences: dict[Atom, int] = {}  # the columns with an atom
    for j in range(columns):
        occurrences[b[low_b + j]] = occurrences.get(b[low_b + j], 0) | 1 << j
    all_columns = (1 << columns) - 1
    table = [all_columns]
    for i in range(rows):
        row = table[-1]
        matches = row & occurrences.get(a[low_a + i], 0)
        table.append((row + matches | row - matches) & all_columns)

    def length(i: int, j: int) -> int:
        """Returns the LCS length of the first i and the first j atoms: the zeros among the first j bits of row i."""
        return j - (table[i] & (1 << j) - 1).bit_count()

    # Walked backwards. Where both ways are equally long, the step is taken in b, which pairs as late as possible.
    i, j = rows, columns
    while i and j:
        if a[low_a + i - 1] == b[low_b + j - 1]:
            i, j = i - 1, j - 1
            pairs.append((low_a + i, low_b + j))
        elif length(i - 1, j) > length(i, j - 1):
            i -= 1
        else:
            j -= 1
    return low_a + i, low_b + j
