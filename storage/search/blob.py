"""Encodes, merges and reads the packed search index: one blob for every 64 messages of an agent.

Pure: bytes and values in, bytes and values out. The store writes the blobs as they are. Words appear only as 32-bit
hashes keyed with the agent's secret, so a blob reveals nothing without it, and two agents share no hash.

A blob (little endian; `m` entries, in columns, which numpy searches in place):

    magic 2s, version u8, terms_version u8, chunk u32, m u32
    64 documents, by slot:   length u16, previous_distance u16, flags u8, head_length u8
    entries, by hash:        hash u32[m], marked_slot u8[m] (bit 6: in the head; bit 7: a name), frequency u8[m]

The messages around a message count for it as well, less the further away they are. Their words are not copied:
`previous_distance` is how far before a message its predecessor is, and a query passes the hits in the head (the first
words) of a message on to both sides. So a message's words lie in one place, and forgetting a message changes its own
chunk alone.

`terms_version` is the version of storage/search/tokens.py. Queries read blobs of any version. When something is added,
a blob of an earlier version is made again; one of a later version, which a newer program has written, is added to as
it is and bears this program's version afterwards.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from storage.search.document import (
    FREQUENCY,
    HEAD,
    NAME,
    PRESENT,
    CountedDocument,
    Document,
    count_terms,
    mark_names,
)
from storage.search.tokens import VERSION as TERMS_VERSION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Messages in a blob. A slot must fit into 6 bits.
SLOT_BITS = 6
CHUNK = 1 << SLOT_BITS

# No term has this hash.
_NO_TERM = 0xFFFFFFFF
_MAGIC = b"mt"
_VERSION = 1
_HEADER = struct.Struct("<2sBBII")
# The columns of the table of documents.
_COLUMNS = [("length", "<u2"), ("previous_distance", "<u2"), ("flags", "u1"), ("head_length", "u1")]
_TABLE_ROW_BYTES = 6
# The table of a chunk without documents.
EMPTY_TABLE = bytes(CHUNK * _TABLE_ROW_BYTES)
# The offset of `terms_version` in a blob, in bytes.
_TERMS_VERSION_OFFSET = 3
# The bytes before the entries.
_PREFIX = _HEADER.size + len(EMPTY_TABLE)
# The bytes of a hash.
HASH_BYTES = 4
_ENTRY_BYTES = HASH_BYTES + 2
# The bits of a marked slot that are the slot. The marks are to the left of them, and in a counted term so many bits
# further to the left.
SLOT = CHUNK - 1
MARKS_SHIFT = 2


class CorruptIndex(ValueError):
    """These bytes are no blob of this index. The remedy is to encode the chunk's messages again."""


def compute_chunk(seq: int) -> int:
    """Returns the number of the chunk that a message belongs to."""
    return seq // CHUNK


def group_by_chunk(seqs: Iterable[int]) -> dict[int, list[int]]:
    """Returns the messages of each chunk."""
    chunks: dict[int, list[int]] = {}
    for seq in seqs:
        chunks.setdefault(compute_chunk(seq), []).append(seq)
    return chunks


class _Blob(Struct, frozen=True):
    """The columns of a blob, as numpy arrays."""

    # The number of the chunk.
    chunk: int
    # The 64 rows of documents, with the columns of `_COLUMNS`.
    documents: NDArray[Any]
    # The hash of each entry's term.
    hashes: NDArray[np.uint32]
    # The slot of each entry's message, with marks.
    marked_slots: NDArray[np.uint8]
    # The number of times that each entry's term occurs.
    frequencies: NDArray[np.uint8]
    # The version of the terms (`TERMS_VERSION`) with which the blob was written.
    terms_version: int = TERMS_VERSION


# numpy is imported in the functions that need it: it costs 0.1 s and 20 MB, and without memory it is not needed.


@cache
def make_document_type() -> np.dtype[Any]:
    """Returns the type of a document's row in a numpy array."""
    import numpy as np

    return np.dtype(_COLUMNS)


def encode(
    documents: Iterable[Document],
    secret: bytes,
    counted: Mapping[Document, CountedDocument] = MappingProxyType({}),
) -> dict[int, bytes]:
    """Returns the blobs of documents by their chunks. `merge` adds such a blob to the chunk's stored blob.

    secret: the secret of the agent, at most 64 bytes.
    counted: the documents that were counted before, with the marks of names. Other documents are counted here.
    """
    import numpy as np

    # The messages by chunk and slot.
    chunks: dict[int, dict[int, CountedDocument]] = {}
    for document in documents:
        message = counted.get(document) or mark_names(count_terms(document), document)
        chunks.setdefault(compute_chunk(document.seq), {})[document.seq % CHUNK] = message
    hashes = hash_terms(
        (term for slots in chunks.values() for message in slots.values() for term in message.terms), secret
    )
    blobs = {}
    for chunk, slots in chunks.items():
        table = np.zeros(CHUNK, make_document_type())
        marked_slots = bytearray()
        frequencies = bytearray()
        chunk_hashes: list[int] = []
        for slot, message in slots.items():
            table[slot] = message.row
            chunk_hashes += [hashes[term] for term in message.terms]
            terms = message.terms.values()
            marked_slots += bytes([slot | (term & (HEAD | NAME)) >> MARKS_SHIFT for term in terms])
            frequencies += bytes([term & FREQUENCY for term in terms])
        columns = (
            np.array(chunk_hashes, "<u4"),
            np.frombuffer(marked_slots, np.uint8),
            np.frombuffer(frequencies, np.uint8),
        )
        blobs[chunk] = _pack(_Blob(chunk, table, *columns))
    return blobs


def check_can_add(blob: bytes, chunk: int) -> None:
    """Checks that messages can be added to a chunk's blob. Raises: CorruptIndex."""
    if blob and _unpack_current(blob).chunk != chunk:
        raise CorruptIndex(f"this is not chunk {chunk}")


def merge(stored_blob: bytes | None, added_blob: bytes) -> bytes:
    """Returns one blob of both. If both have a message, only the words of the added blob count.

    Raises: CorruptIndex, also if the terms of the stored blob are of an earlier version.
    """
    import numpy as np

    if not stored_blob:
        return added_blob
    added = _unpack(added_blob)
    is_added = (added.documents["flags"] & PRESENT) > 0
    stored = _remove_messages(_unpack_current(stored_blob), is_added)
    if stored.chunk != added.chunk:
        raise CorruptIndex(f"chunks {stored.chunk} and {added.chunk} are not the same")
    return _pack(
        _Blob(
            stored.chunk,
            np.where(is_added, added.documents, stored.documents),
            np.concatenate((stored.hashes, added.hashes)),
            np.concatenate((stored.marked_slots, added.marked_slots)),
            np.concatenate((stored.frequencies, added.frequencies)),
        )
    )


def forget(blob: bytes, seqs: Collection[int]) -> bytes:
    """Returns the blob without these messages; b"": no message is left. Numbers of other chunks are ignored.

    Raises: CorruptIndex.
    """
    # An earlier call may have left nothing of it.
    if not blob:
        return blob
    import numpy as np

    unpacked = _unpack(blob)
    is_forgotten = np.zeros(CHUNK, bool)
    is_forgotten[[seq % CHUNK for seq in seqs if compute_chunk(seq) == unpacked.chunk]] = True
    remaining = _remove_messages(unpacked, is_forgotten)
    return _pack(remaining) if remaining.documents["flags"].any() else b""


def hash_terms(terms: Iterable[str], secret: bytes) -> dict[str, int]:
    """Returns the hash of each term.

    No hash is the largest number, so `hash + 1` always exists: a search finds the entries of a hash by both numbers.
    """
    new_hasher = blake2b(digest_size=HASH_BYTES, key=secret).copy
    distinct_terms = dict.fromkeys(terms)
    digests = []
    for term in distinct_terms:
        hasher = new_hasher()
        hasher.update(term.encode("utf-8", "surrogatepass"))
        digests.append(hasher.digest())
    hashes = struct.unpack(f"<{len(digests)}I", b"".join(digests))
    return {term: min(value, _NO_TERM - 1) for term, value in zip(distinct_terms, hashes, strict=True)}


def _remove_messages(blob: _Blob, is_removed: NDArray[np.bool_]) -> _Blob:
    """Returns a blob without some of its messages. is_removed: True for the slot of each message that is left out."""
    import numpy as np

    documents = np.where(is_removed, np.zeros((), make_document_type()), blob.documents)
    stays = ~is_removed[blob.marked_slots & SLOT]
    return _Blob(
        chunk=blob.chunk,
        documents=documents,
        hashes=blob.hashes[stays],
        marked_slots=blob.marked_slots[stays],
        frequencies=blob.frequencies[stays],
        terms_version=blob.terms_version,
    )


def _pack(blob: _Blob) -> bytes:
    import numpy as np

    order = np.lexsort((blob.marked_slots, blob.hashes))
    columns = (blob.hashes[order], blob.marked_slots[order], blob.frequencies[order])
    header = _HEADER.pack(_MAGIC, _VERSION, blob.terms_version, blob.chunk, len(order))
    return b"".join((header, blob.documents.tobytes(), *(column.tobytes() for column in columns)))


class OpenBlob(NamedTuple):
    """A blob with a valid outline."""

    # The number of the chunk.
    chunk: int
    # The number of entries in the blob.
    entry_count: int
    # The bytes of the blob.
    data: bytes

    @property
    def table(self) -> bytes:
        """The rows of the documents."""
        return self.data[_HEADER.size : _PREFIX]

    @property
    def hashes(self) -> NDArray[np.uint32]:
        """The hash of each entry's term."""
        import numpy as np

        return np.frombuffer(self.data, "<u4", self.entry_count, _PREFIX)

    def has_all(self, hashes: Sequence[int]) -> bool:
        """Returns whether the blob has all terms, in one message or in several. hashes: the hashes of the terms."""
        import numpy as np

        own_hashes = self.hashes
        term_hashes = np.array(hashes, np.uint32)
        # A blob is sorted by hashes.
        positions = own_hashes.searchsorted(term_hashes)
        is_within = bool((positions < len(own_hashes)).all())
        return is_within and bool((own_hashes[positions] == term_hashes).all())

    @property
    def marked_slots(self) -> NDArray[np.uint8]:
        """The marked slot of each entry."""
        import numpy as np

        return np.frombuffer(self.data, np.uint8, self.entry_count, _PREFIX + HASH_BYTES * self.entry_count)

    @property
    def frequencies(self) -> NDArray[np.uint8]:
        """The frequency of each entry's term."""
        import numpy as np

        return np.frombuffer(
            self.data, np.uint8, self.entry_count, _PREFIX + (HASH_BYTES + 1) * self.entry_count
        )


def open_blob(blob: bytes) -> OpenBlob:
    """Returns a blob after a check of its outline, which is all that a query has time for. Raises: CorruptIndex."""
    if len(blob) < _PREFIX:
        raise CorruptIndex(f"{len(blob)} bytes are too few for a search blob")
    magic, version, _, chunk, entry_count = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptIndex(f"a search blob begins with {_MAGIC!r} {_VERSION}, not {magic!r} {version}")
    if len(blob) != _PREFIX + entry_count * _ENTRY_BYTES:
        raise CorruptIndex(f"{len(blob)} bytes do not make {entry_count} entries")
    return OpenBlob(chunk, entry_count, blob)


def _unpack_current(blob: bytes) -> _Blob:
    """Returns the columns of a blob to which something is added.

    Raises: CorruptIndex, also if its terms are of an earlier version.
    """
    unpacked = _unpack(blob)
    if unpacked.terms_version < TERMS_VERSION:
        raise CorruptIndex(f"its terms are of version {unpacked.terms_version}, and not {TERMS_VERSION}")
    return unpacked


def _unpack(blob: bytes) -> _Blob:
    """Returns the columns of a blob that is rewritten. Raises: CorruptIndex.

    All of the blob is checked, since damage would be written again.
    """
    import numpy as np

    opened = open_blob(blob)
    documents = np.frombuffer(opened.table, make_document_type())
    hashes = opened.hashes
    marked_slots = opened.marked_slots
    if (hashes[1:] < hashes[:-1]).any():
        raise CorruptIndex("the entries are out of order")
    if not (documents["flags"][marked_slots & SLOT] & PRESENT).all():
        raise CorruptIndex("an entry belongs to no document")
    return _Blob(
        opened.chunk,
        documents,
        hashes,
        marked_slots,
        opened.frequencies,
        terms_version=blob[_TERMS_VERSION_OFFSET],
    )
