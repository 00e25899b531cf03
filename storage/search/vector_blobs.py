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
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from storage.records import Vector, VectorSimilarities
from storage.search.blob import CHUNK, CorruptIndex, compute_chunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The header of a blob: magic and version, then chunk, dimension and count. A vector is numbers of 32 bits.
_MAGIC = b"mv"
_VERSION = 1
_HEADER = struct.Struct("<2sHIII")
_NUMBER_BYTES = 4


class VectorRows(Struct, frozen=True):
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
    def size_bytes(self) -> int:
        """The memory that the arrays take, in bytes."""
        return int(self.numbers.nbytes + self.seqs.nbytes)

    def slice_rows(self, start: int, end: int) -> VectorRows:
        """Returns the rows from `start` to before `end`, as views."""
        return VectorRows(self.seqs[start:end], self.numbers[start:end])


def read_vectors(blob: bytes) -> VectorRows:
    """Returns the vectors of a blob. Raises: CorruptIndex."""
    import numpy as np

    outline = _read_outline(blob)
    numbers = np.frombuffer(blob, "<f4", offset=outline.start).reshape(len(outline.slots), outline.dimension)
    seqs = np.frombuffer(outline.slots, np.uint8).astype(np.int64) + outline.chunk * CHUNK
    return VectorRows(seqs, numbers)


class JoinedVectors(Struct, frozen=True):
    """All vectors of an agent in one array, which is compared twice as fast."""

    # The numbers of the messages, and their vectors.
    rows: VectorRows
    # The similarity of each row to the mean of all rows: the part that is common to any question to this memory.
    mean_similarity: NDArray[np.float64]

    @property
    def size_bytes(self) -> int:
        """The memory that the arrays take, in bytes."""
        return int(self.rows.size_bytes + self.mean_similarity.nbytes)


def join(chunks: Sequence[VectorRows]) -> JoinedVectors:
    """Returns the vectors of all chunks. chunks: at least one chunk; all have one dimension."""
    import numpy as np

    numbers = np.concatenate([chunk.numbers for chunk in chunks])
    mean = numbers.mean(0) if len(numbers) else np.zeros(numbers.shape[1], np.float32)
    rows = VectorRows(np.concatenate([chunk.seqs for chunk in chunks]), numbers)
    return JoinedVectors(rows, _measure_similarity(numbers, mean))


def _measure_similarity(numbers: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the product of each row with a vector."""
    import numpy as np

    # Not `@`: its library wakes a thread for each core, which on a busy machine takes ten times as long
    # (measured with 10,000 vectors: 8 ms of processor time against 0.4).
    similarity: NDArray[np.float64] = np.einsum("ij,j->i", numbers, vector).astype(np.float64)
    return similarity


def merge(blob: bytes | None, vectors: Mapping[int, bytes]) -> bytes:
    """Returns the blob with these vectors in place of those that it has of the same messages.

    Of a blob with vectors of another dimension nothing stays.

    vectors: the vectors by the numbers of their messages, which are all of the blob's chunk.

    Raises: CorruptIndex.
    """
    seq, vector = next(iter(vectors.items()))
    by_slot: dict[int, bytes] = {}
    if blob is not None and _read_outline(blob).vector_bytes == len(vector):
        by_slot = _read_vectors(blob)
    by_slot.update({seq % CHUNK: data for seq, data in vectors.items()})
    return _pack(compute_chunk(seq), len(vector), by_slot)


def forget(blob: bytes, seqs: Collection[int]) -> bytes:
    """Returns the blob without these messages, empty when none is left. Seqs of other chunks are ignored.

    Raises: CorruptIndex.
    """
    outline = _read_outline(blob)
    erased = {seq % CHUNK for seq in seqs if compute_chunk(seq) == outline.chunk}
    remaining = {slot: data for slot, data in _read_vectors(blob).items() if slot not in erased}
    return _pack(outline.chunk, outline.vector_bytes, remaining) if remaining else b""


def compare(joined: JoinedVectors, query: Vector) -> VectorSimilarities | None:
    """Returns how near each message is to a query; None: there are no vectors, or they have another dimension.

    The part that is common to all messages is subtracted: some texts are near to every question ("That sounds
    amazing. What happened then?"), and a long memory has many of these.
    """
    import numpy as np

    query_numbers = np.frombuffer(query.data, "<f4")
    if not len(joined.rows) or joined.rows.dimension != len(query_numbers):
        return None
    similarity = _measure_similarity(joined.rows.numbers, query_numbers)
    beyond = np.zeros_like(similarity)
    if query.spread > 0:
        # A memory in another language than the texts of the baseline, or about one subject, is as a whole more like its
        # questions, and its messages differ more. The deviation is of those below the mean: hits stand out above it.
        mean = float(similarity.mean())
        below = similarity[similarity <= mean] - mean
        spread = max(query.spread, float(np.sqrt((below * below).mean())))
        beyond = (similarity - max(query.baseline, mean)) / spread
    return VectorSimilarities(joined.rows.seqs, similarity - joined.mean_similarity, beyond)


class _Outline(NamedTuple):
    """The head of a blob: all but the numbers of its vectors."""

    # The number of the chunk.
    chunk: int
    # The dimension of the vectors.
    dimension: int
    # The slot of each vector, one a byte.
    slots: bytes
    # The offset at which the numbers begin in the blob.
    start: int

    @property
    def vector_bytes(self) -> int:
        """The bytes of one vector."""
        return self.dimension * _NUMBER_BYTES


def _read_outline(blob: bytes) -> _Outline:
    """Returns the outline of a blob once it is checked. Raises: CorruptIndex."""
    if len(blob) < _HEADER.size:
        raise CorruptIndex(f"{len(blob)} bytes are too few for a blob of vectors")
    magic, version, chunk, dimension, count = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptIndex(f"a blob of vectors begins with {_MAGIC!r} {_VERSION}, not {magic!r} {version}")
    start = _HEADER.size + count + -count % 4
    slots = blob[_HEADER.size : _HEADER.size + count]
    if len(blob) != start + count * dimension * _NUMBER_BYTES or any(slot >= CHUNK for slot in slots):
        raise CorruptIndex(f"{len(blob)} bytes do not make {count} vectors of {dimension} numbers")
    return _Outline(chunk, dimension, slots, start)


def _read_vectors(blob: bytes) -> dict[int, bytes]:
    """Returns the bytes of each vector by slot. Raises: CorruptIndex."""
    outline = _read_outline(blob)
    numbers = blob[outline.start :]
    size = outline.vector_bytes
    return {slot: numbers[index * size : (index + 1) * size] for index, slot in enumerate(outline.slots)}


def _pack(chunk: int, vector_bytes: int, vectors: Mapping[int, bytes]) -> bytes:
    """Returns the blob of these vectors, by slot. vector_bytes: the size of one vector."""
    slots = sorted(vectors)
    count = len(slots)
    header = _HEADER.pack(_MAGIC, _VERSION, chunk, vector_bytes // _NUMBER_BYTES, count)
    return b"".join((header, bytes(slots), bytes(-count % 4), *(vectors[slot] for slot in slots)))
