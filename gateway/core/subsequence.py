"""The longest common subsequence of a list and a path, both as atoms."""

from __future__ import annotations

from collections.abc import Sequence

from storage.records import Atom

LCS_ATOMS = 160  # so many atoms are compared at most in one table, about 32 turns with tools

Pairs = list[tuple[int, int]]


def lcs(a: Sequence[Atom], b: Sequence[Atom], tables: int = 1) -> Pairs:
    """Returns the pairs of a longest common subsequence, as late as possible in both, the last pair first.

    Common ends are paired directly; of what is left only the last atoms are compared, in a table, then what is in front
    of these in the same way. So the cost is bounded. tables: so many at most.
    """
    found: Pairs = []
    n, m = _pair_ends(a, b, len(a), len(b), found)
    for _ in range(tables):
        if not n or not m:
            break
        n, m = _pair_ends(a, b, *_pair_last(a, b, n, m, found), found)
    return found


def _pair_ends(a: Sequence[Atom], b: Sequence[Atom], n: int, m: int, pairs: Pairs) -> tuple[int, int]:
    """Pairs what the first n and the first m atoms have in common at their ends. Returns how many are left of each."""
    while n and m and a[n - 1] == b[m - 1]:
        n, m = n - 1, m - 1
        pairs.append((n, m))
    return n, m


def _pair_last(a: Sequence[Atom], b: Sequence[Atom], n: int, m: int, pairs: Pairs) -> tuple[int, int]:
    """Pairs the last of the first n and of the first m atoms. Returns how many are left there."""
    low_a, low_b = max(0, n - LCS_ATOMS), max(0, m - LCS_ATOMS)
    rows, columns = n - low_a, m - low_b
    # Hyyrö 2004, "Bit-parallel LCS-length computation revisited": a row of the table is one number, in which a bit
    # that is not set says that the length grows in its column.
    places: dict[Atom, int] = {}
    for j in range(columns):
        places[b[low_b + j]] = places.get(b[low_b + j], 0) | 1 << j
    every = (1 << columns) - 1
    table = [every]
    for i in range(rows):
        above = table[-1]
        both = above & places.get(a[low_a + i], 0)
        table.append((above + both | above - both) & every)

    def length(i: int, j: int) -> int:
        """The length for the first i and the first j atoms: the zeros among the first j bits of row i."""
        return j - (table[i] & (1 << j) - 1).bit_count()

    # Walked backwards; where both ways are equally long, b gives way, which pairs as late as possible.
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
