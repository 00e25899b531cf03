"""Vectors of messages: one blob for every 64 messages of an agent, compared with a query's one by one.

Pure: bytes in, bytes out; the store holds the blobs as they are. Unlike the search index a vector reveals something
without the agent's secret, so the blobs have to be stored where deleted bytes are overwritten.

A blob (little endian; `n` vectors of `d` numbers and of length 1, by slot):

    magic 2s, version u16, chunk u32, d u32, n u32
    slots u8[n], and zeros up to a multiple of 4
    numbers f32[n * d]
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from storage.records import Near, Vector
from storage.search.blob import CHUNK, CorruptIndex, chunk_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAGIC = b"mv"
_VERSION = 1
_HEADER = struct.Struct("<2sHIII")
_NUMBER_BYTES = 4


class Chunk(Struct, frozen=True):
    """The vectors of a blob, or of several one after the other. They are views of the blob's bytes."""

    # The number of each message or fact. Shape [n].
    seqs: NDArray[np.int64]
    # The vectors, one a row. Shape [n, d].
    numbers: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.seqs)

    @property
    def dimension(self) -> int:
        return int(self.numbers.shape[1])

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return int(self.numbers.nbytes + self.seqs.nbytes)

    def part(self, start: int, end: int) -> Chunk:
        """Returns some of its rows, as views."""
        return Chunk(self.seqs[start:end], self.numbers[start:end])


def open_chunk(blob: bytes) -> Chunk:
    """Takes a blob apart. Raises: CorruptIndex."""
    import numpy as np

    chunk, dimension, slots, start = _open(blob)
    numbers = np.frombuffer(blob, "<f4", len(slots) * dimension, start).reshape(len(slots), dimension)
    return Chunk(np.frombuffer(slots, np.uint8).astype(np.int64) + chunk * CHUNK, numbers)


class Joined(Struct, frozen=True):
    """All vectors of an agent in one array, which is compared twice as fast."""

    all: Chunk
    # By row, its similarity to the mean of all: as much as it is like any question that this memory gets.
    common: NDArray[np.float64]

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return int(self.all.size + self.common.nbytes)


def join(chunks: Sequence[Chunk]) -> Joined:
    """Returns the vectors of all chunks. chunks: of one dimension, one at least."""
    import numpy as np

    numbers = np.concatenate([chunk.numbers for chunk in chunks])
    mean = numbers.mean(0) if len(numbers) else np.zeros(numbers.shape[1], np.float32)
    all = Chunk(np.concatenate([chunk.seqs for chunk in chunks]), numbers)
    return Joined(all, _similarity(numbers, mean))


def _similarity(numbers: NDArray[np.float32], to: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    # Not `@`: its library wakes a thread for each core, which on a busy machine takes ten times as long
    # (measured with 10,000 vectors: 8 ms of processor time against 0.4).
    found: NDArray[np.float64] = np.einsum("ij,j->i", numbers, to).astype(np.float64)
    return found


def merge(blob: bytes | None, vectors: Mapping[int, bytes]) -> bytes:
    """Returns the blob with these vectors; one that is there already is replaced, a blob of another dimension dropped.

    vectors: by seq, all of the blob's chunk. Raises: CorruptIndex.
    """
    chunk = chunk_of(next(iter(vectors)))
    found: dict[int, bytes] = {}
    size = len(next(iter(vectors.values())))
    if blob is not None and _open(blob)[1] * _NUMBER_BYTES == size:
        found = _vectors(blob)
    found.update({seq % CHUNK: data for seq, data in vectors.items()})
    return _pack(chunk, size, found)


def forget(blob: bytes, seqs: Collection[int]) -> bytes:
    """Returns the blob without these messages, empty when none is left. Seqs of other chunks are ignored.

    Raises: CorruptIndex.
    """
    chunk, dimension, _, _ = _open(blob)
    erased = {seq % CHUNK for seq in seqs if chunk_of(seq) == chunk}
    remaining = {slot: data for slot, data in _vectors(blob).items() if slot not in erased}
    return _pack(chunk, dimension * _NUMBER_BYTES, remaining) if remaining else b""


def compare(joined: Joined, query: Vector) -> Near | None:
    """Returns how near each message is; None where there is nothing to compare with.

    What a message has in common with all of them is taken off: some texts are near to everything that is asked
    ("That sounds amazing. What happened then?"), and the more was asked before, the more of these there are.
    """
    import numpy as np

    asked = np.frombuffer(query.data, "<f4")
    if not len(joined.all) or joined.all.dimension != len(asked):
        return None
    similarity = _similarity(joined.all.numbers, asked)
    beyond = similarity * 0.0
    if query.spread > 0:
        # A memory in another language than those texts, or of one matter, is as a whole more like its questions, and
        # its messages differ more in that. What stands out is above the mean, so the deviation is of those below.
        mean = float(similarity.mean())
        below = similarity[similarity <= mean] - mean
        spread = max(query.spread, float(np.sqrt((below * below).mean())))
        beyond = (similarity - max(query.baseline, mean)) / spread
    return Near(joined.all.seqs, similarity - joined.common, beyond)


def _open(blob: bytes) -> tuple[int, int, bytes, int]:
    """Returns chunk, dimension, slots, and where the numbers begin. Raises: CorruptIndex."""
    if len(blob) < _HEADER.size:
        raise CorruptIndex(f"{len(blob)} bytes are too few for a blob of vectors")
    magic, version, chunk, dimension, n = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptIndex(f"a blob of vectors begins with {_MAGIC!r} {_VERSION}, not {magic!r} {version}")
    start = _HEADER.size + n + -n % 4
    slots = blob[_HEADER.size : _HEADER.size + n]
    if len(blob) != start + n * dimension * _NUMBER_BYTES or any(slot >= CHUNK for slot in slots):
        raise CorruptIndex(f"{len(blob)} bytes do not make {n} vectors of {dimension} numbers")
    return chunk, dimension, slots, start


def _vectors(blob: bytes) -> dict[int, bytes]:
    """Returns the bytes of each vector by slot. Raises: CorruptIndex."""
    _, dimension, slots, start = _open(blob)
    size = dimension * _NUMBER_BYTES
    return {slot: blob[start + i * size : start + (i + 1) * size] for i, slot in enumerate(slots)}


def _pack(chunk: int, size: int, vectors: Mapping[int, bytes]) -> bytes:
    """Returns the blob of these vectors, by slot. size: of one vector, in bytes."""
    slots = sorted(vectors)
    n = len(slots)
    header = _HEADER.pack(_MAGIC, _VERSION, chunk, size // _NUMBER_BYTES, n)
    return b"".join((header, bytes(slots), bytes(-n % 4), *(vectors[slot] for slot in slots)))
