"""The rows of an index: 64 for each chunk that has rows, in the order of the chunks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from storage.search.blob import CHUNK

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ChunkRows:
    """The chunks that have rows. Finds the row of a message's number."""

    __slots__ = ("chunks", "positions")

    def __init__(self) -> None:
        # The numbers of the chunks, ascending. The list is replaced, never changed.
        self.chunks: Sequence[int] = []
        # The position in `chunks` of each chunk.
        self.positions: dict[int, int] = {}

    def insert(self, new_chunks: Collection[int]) -> Sequence[int]:
        """Gives rows to chunks. Returns the new positions of the chunks that had rows before.

        new_chunks: at least one chunk; none of them has rows yet.
        """
        old_chunks = self.chunks
        old_count = len(old_chunks)
        ordered = sorted(new_chunks)
        if not old_chunks or old_chunks[-1] < ordered[0]:
            self.positions.update(zip(ordered, range(old_count, old_count + len(ordered)), strict=True))
            self.chunks = [*old_chunks, *ordered]
            return range(old_count)
        self.chunks = sorted([*old_chunks, *ordered])
        self.positions = {chunk: position for position, chunk in enumerate(self.chunks)}
        return [self.positions[chunk] for chunk in old_chunks]

    def compute_row(self, seq: int) -> int:
        """Returns the row of a number; -1: the chunk of the number has no rows."""
        position = self.positions.get(seq // CHUNK)
        return -1 if position is None else position * CHUNK + seq % CHUNK

    def find_rows(self, seqs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows of numbers; -1: the chunk of a number has no rows."""
        import numpy as np

        if self.is_gapless:
            rows = seqs - self.chunks[0] * CHUNK
            return np.where((rows >= 0) & (rows < CHUNK * len(self.chunks)), rows, -1)
        chunks = np.array(self.chunks, np.int64)
        chunk_of_seq = seqs // CHUNK
        position = np.minimum(chunks.searchsorted(chunk_of_seq), len(chunks) - 1)
        return np.where(chunks[position] == chunk_of_seq, position * CHUNK + seqs % CHUNK, -1)

    def make_range(self, seqs: range) -> range:
        """Returns the rows of the numbers in a range."""
        return (
            range(self._compute_first_row(seqs.start), self._compute_first_row(seqs.stop)) if seqs else seqs
        )

    def _compute_first_row(self, seq: int) -> int:
        """Returns the row of the smallest number from `seq` on that has a row."""
        position = bisect_left(self.chunks, seq // CHUNK)
        return position * CHUNK + (seq % CHUNK if seq // CHUNK in self.positions else 0)

    @property
    def is_gapless(self) -> bool:
        """True if each chunk between the first and the last one has rows."""
        return bool(self.chunks) and self.chunks[-1] - self.chunks[0] == len(self.chunks) - 1


def list_seqs(rows: Iterable[int], chunks: Sequence[int]) -> list[int]:
    """Returns the numbers of the messages in some rows. chunks: the chunks that have rows, in order."""
    return [chunks[row // CHUNK] * CHUNK + row % CHUNK for row in rows]
