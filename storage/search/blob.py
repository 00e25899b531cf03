"""The packed search index: one blob for every 64 messages of an agent.

Pure: bytes and values in, bytes and values out; the store keeps the blobs as they are. Words appear only as
32-bit hashes keyed with the agent's secret, so a blob reveals nothing without it and two agents share no hash.

A blob (little endian; `m` entries, in columns, which numpy searches in place):

    magic 2s, version u8, terms_version u8, chunk u32, m u32
    64 documents, by slot:   length u16, back u16, flags u8, head u8
    entries, by hash:        hash u32[m], place u8[m] (slot; bit 6: in the head; bit 7: a name), frequency u8[m]

What stands around a message in its conversation counts for it as well, the less the further away. It is not copied into
it: `back` notes how far before it its predecessor is, and a query passes the hits in the head (the first words) of a
message on to both sides. So a message's words lie in one place, and forgetting it needs nothing but its own chunk.

`terms_version` is the version of storage/search/tokens.py. Queries read blobs of any version. When something is added,
a blob of an earlier version is made again; one of a later version, which a newer program has written, is added to as
it is and bears this program's version afterwards.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from msgspec import Struct

from storage.search.common import lacks_content
from storage.search.tokens import VERSION as TERMS_VERSION
from storage.search.tokens import date_words, is_long, names_in, parts_of, split_words, terms_of, words_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Messages in a blob. A slot must fit into 6 bits.
CHUNK = 64

# Characters of a turn that count for its neighbours: a whole long turn ruins BM25, its beginning does not.
_HEAD_CHARS = 200
# Distinct terms stored of one document; a page of prose has about 250.
_DOCUMENT_TERMS = 4_000
_DOCUMENT_CHARS = 200_000

# A text with fewer terms than this share of its words counts as English, which writes hardly any compound as one word:
# its long words are not split into parts. Function words are no terms: 28 to 66% of English words, up to 20% of other
# languages'. With parts, 29 and 25% of the requests in scripts/talk/kinds.py that need no note got one, not 21 and 12%.
_ENGLISH_TERM_SHARE = 0.75

# A text with no sentence but questions, or one that only repeats a question. Longer ones also state something.
_ENDS_WITH_QUESTION = re.compile(r"[?？؟]\W*\Z")
_STATEMENT_END = re.compile(r"[.!。！](?:\s|(?<=[。！]))")
_QUESTION_CHARS = 500
# A text of more terms has content.
_SLIGHT_TERMS = 8

_NO_HASH = 0xFFFFFFFF
_MAGIC = b"mt"
_VERSION = 1
_HEADER = struct.Struct("<2sBBII")
_COLUMNS = [("length", "<u2"), ("back", "<u2"), ("flags", "u1"), ("head", "u1")]
_ROW_BYTES = 6
EMPTY_TABLE = bytes(CHUNK * _ROW_BYTES)
_TERMS_VERSION_AT = 3
_PREFIX = _HEADER.size + len(EMPTY_TABLE)
_ENTRY_BYTES = 6
# An entry's place: its document's slot, and two marks.
SLOT = 0x3F
_IN_HEAD = 0x40
_NAMED = 0x80
# A counted term: its frequency, and the same marks two bits further to the left.
FREQUENCY = 0xFF
MARKS_SHIFT = 2
HEAD = _IN_HEAD << MARKS_SHIFT
NAME = _NAMED << MARKS_SHIFT
# An occurrence of a term, as queries see it, has its document's row to the left of these bits.
ROW_SHIFT = 10
NO_ROW = (1 << ROW_SHIFT) - 1
# Bits of a document's flags: it only asks; its words are what people say all the time.
USER, PRESENT, ASKS, SLIGHT = 1, 2, 4, 8


class CorruptIndex(ValueError):
    """These bytes are no blob of this index. The remedy is to encode the chunk's messages again."""


class Indexable(Protocol):
    """The fields of a message that the index reads, as records of the store and `Document` have them."""

    @property
    def seq(self) -> int: ...
    @property
    def role(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def at(self) -> float:
        """Seconds since the epoch."""

    @property
    def speaker(self) -> str | None:
        """A name, where the client gave one."""

    @property
    def previous(self) -> int | None:
        """The seq of the turn before it in its conversation, if that is (or will be) indexed too."""


class Document(Struct, frozen=True):
    """The fields that the index reads, as a key of caches: equal documents have the same terms."""

    seq: int
    role: str
    text: str
    at: float
    speaker: str | None = None
    previous: int | None = None


def chunk_of(seq: int) -> int:
    """Returns the number of the chunk that a message belongs to."""
    return seq // CHUNK


def by_chunk(seqs: Iterable[int]) -> dict[int, list[int]]:
    """Returns the messages of each chunk."""
    found: dict[int, list[int]] = {}
    for seq in seqs:
        found.setdefault(chunk_of(seq), []).append(seq)
    return found


# A message's row of `_COLUMNS`: length, back, flags, head.
DocumentRow = tuple[int, ...]


class Counted(Struct, frozen=True):
    """The terms of a message, counted."""

    # The message's row in the table of its blob.
    row: DocumentRow
    # How often each term occurs, up to 255, with the marks HEAD (it is in the beginning) and NAME (in a name there).
    terms: dict[str, int]


def count_terms(document: Indexable) -> Counted:
    """Returns the terms of a message with its frame, counted, without the marks of its names."""
    text = document.text[:_DOCUMENT_CHARS]
    head_end = _head_end(text)
    all_words = head_words = split_words(text[: head_end or _HEAD_CHARS])
    words = head_terms = terms_of(head_words)
    if head_end < len(text):
        all_words = head_words + split_words(text[head_end:]) if head_end else split_words(text)
        words = terms_of(all_words)
    # The terms of a message besides its text: its date and author.
    frame: Sequence[str] = date_words(int(document.at // 86_400)) if math.isfinite(document.at) else ()
    if document.speaker:
        frame = [*frame, *words_of(document.speaker)]
    terms: dict[str, int] = Counter(chain(dict.fromkeys(frame), words))
    is_english = len(head_terms) < _ENGLISH_TERM_SHARE * len(head_words)
    compounds = [] if is_english else [word for word in dict.fromkeys(all_words) if is_long(word)]
    # Their parts are no words of the text, which is as long as it was.
    for part in islice(parts_of(compounds), _DOCUMENT_TERMS):
        terms.setdefault(part, 1)
    if len(terms) > _DOCUMENT_TERMS:
        terms = dict(islice(terms.items(), _DOCUMENT_TERMS))
    if len(words) >= FREQUENCY:
        terms = {term: min(times, FREQUENCY) for term, times in terms.items()}
    for term in {*head_terms, *parts_of({*head_words}.intersection(compounds))}:
        if term in terms:
            terms[term] |= HEAD
    # Numbers that do not fit count as the largest that does.
    back = 0 if document.previous is None else document.seq - document.previous
    length, head_count = min(len(words) + len(frame), 0xFFFF), min(len(head_terms), 0xFF)
    return Counted(
        (length, back if 0 < back <= 0xFFFF else 0, _flags(document, all_words, words), head_count), terms
    )


def names_of(document: Indexable) -> list[str]:
    """Returns the terms of the names and numbers in the head of a message, sorted."""
    text = document.text[:_DOCUMENT_CHARS]
    return sorted({*names_in(text[: _head_end(text) or _HEAD_CHARS])})


def with_names(counted: Counted, document: Indexable) -> Counted:
    """Returns the terms of a message with the marks of its names, which blobs have."""
    terms = dict(counted.terms)
    for term in names_of(document):
        if term in terms:
            terms[term] |= NAME
    return Counted(counted.row, terms)


def _head_end(text: str) -> int:
    """Returns where the head of a text ends, after a word; 0: it has no spaces, and the head ends within a word."""
    return len(text) if len(text) <= _HEAD_CHARS else text.rfind(" ", 0, _HEAD_CHARS) + 1


def _flags(document: Indexable, words: Sequence[str], terms: Sequence[str]) -> int:
    flags = PRESENT | (USER if document.role == "user" else 0)
    text = document.text[:_DOCUMENT_CHARS].strip()
    if len(text) <= _QUESTION_CHARS:
        asks = _ENDS_WITH_QUESTION.search(text)
        if asks and not _STATEMENT_END.search(text, 0, asks.start()):
            flags |= ASKS
    if len(terms) <= _SLIGHT_TERMS and lacks_content(words, terms):
        flags |= SLIGHT
    return flags


class _Blob(Struct, frozen=True):
    """A blob taken apart."""

    chunk: int
    # 64 rows of `_COLUMNS`.
    documents: NDArray[Any]
    hashes: NDArray[np.uint32]
    # places, frequencies: parallel to the hashes.
    places: NDArray[np.uint8]
    frequencies: NDArray[np.uint8]
    terms_version: int = TERMS_VERSION


# numpy is imported in the functions that need it: it costs 0.1 s and 20 MB, and without memory it is not needed.


@cache
def document_type() -> np.dtype[Any]:
    import numpy as np

    return np.dtype(_COLUMNS)


def encode(
    documents: Iterable[Document], secret: bytes, counted: Mapping[Document, Counted] = MappingProxyType({})
) -> dict[int, bytes]:
    """Returns blobs by chunk; `merge` adds one to what the chunk already has.

    secret: the agent's, at most 64 bytes.
    counted: those with terms that were counted before, with the marks of names.
    """
    import numpy as np

    # Chunk -> slot -> the terms of its message.
    chunks: dict[int, dict[int, Counted]] = {}
    for document in documents:
        found = counted.get(document) or with_names(count_terms(document), document)
        chunks.setdefault(chunk_of(document.seq), {})[document.seq % CHUNK] = found
    hashes = hash_terms(
        (term for slots in chunks.values() for found in slots.values() for term in found.terms), secret
    )
    blobs = {}
    for chunk, slots in chunks.items():
        table = np.zeros(CHUNK, document_type())
        values, places, frequencies = list[int](), bytearray(), bytearray()
        for slot, found in slots.items():
            table[slot] = found.row
            values += [hashes[term] for term in found.terms]
            places += bytes([slot | (each & (HEAD | NAME)) >> MARKS_SHIFT for each in found.terms.values()])
            frequencies += bytes([each & FREQUENCY for each in found.terms.values()])
        columns = (
            np.array(values, "<u4"),
            np.frombuffer(places, np.uint8),
            np.frombuffer(frequencies, np.uint8),
        )
        blobs[chunk] = _pack(_Blob(chunk, table, *columns))
    return blobs


def check_can_add(blob: bytes, chunk: int) -> None:
    """Checks that messages can be added to a chunk's blob. Raises: CorruptIndex."""
    if blob and _unpack_current(blob).chunk != chunk:
        raise CorruptIndex(f"this is not chunk {chunk}")


def merge(old: bytes | None, new: bytes) -> bytes:
    """Returns one blob of both; where both have a message, only the new one's words count.

    Raises: CorruptIndex, also where the old one's terms are of an earlier version.
    """
    import numpy as np

    if not old:
        return new
    added = _unpack(new)
    stored = _without(_unpack_current(old), (added.documents["flags"] & PRESENT) > 0)
    if stored.chunk != added.chunk:
        raise CorruptIndex(f"chunks {stored.chunk} and {added.chunk} are not the same")
    return _pack(
        _Blob(
            stored.chunk,
            np.where(added.documents["flags"] & PRESENT, added.documents, stored.documents),
            np.concatenate((stored.hashes, added.hashes)),
            np.concatenate((stored.places, added.places)),
            np.concatenate((stored.frequencies, added.frequencies)),
        )
    )


def forget(blob: bytes, seqs: Collection[int]) -> bytes:
    """Returns the blob without these messages, empty when none is left. Seqs of other chunks are ignored.

    Raises: CorruptIndex.
    """
    # An earlier call may have left nothing of it.
    if not blob:
        return blob
    import numpy as np

    old = _unpack(blob)
    gone = np.zeros(CHUNK, bool)
    gone[[seq % CHUNK for seq in seqs if chunk_of(seq) == old.chunk]] = True
    kept = _without(old, gone)
    return _pack(kept) if kept.documents["flags"].any() else b""


def hash_terms(terms: Iterable[str], secret: bytes) -> dict[str, int]:
    """Returns the hash of each term.

    No hash is the largest number, so that the next one always exists: ranking searches for both ends of the entries of
    one.
    """
    copy = blake2b(digest_size=4, key=secret).copy
    found = dict.fromkeys(terms, 0)
    digests = []
    for term in found:
        hasher = copy()
        hasher.update(term.encode("utf-8", "surrogatepass"))
        digests.append(hasher.digest())
    values = struct.unpack(f"<{len(digests)}I", b"".join(digests))
    return {
        term: value if value < _NO_HASH else _NO_HASH - 1 for term, value in zip(found, values, strict=True)
    }


def _without(blob: _Blob, gone: NDArray[np.bool_]) -> _Blob:
    import numpy as np

    documents = np.where(gone, np.zeros((), document_type()), blob.documents)
    stays = ~gone[blob.places & SLOT]
    return _Blob(
        blob.chunk,
        documents,
        blob.hashes[stays],
        blob.places[stays],
        blob.frequencies[stays],
        blob.terms_version,
    )


def _pack(blob: _Blob) -> bytes:
    import numpy as np

    order = np.lexsort((blob.places, blob.hashes))
    columns = (blob.hashes[order], blob.places[order], blob.frequencies[order])
    header = _HEADER.pack(_MAGIC, _VERSION, blob.terms_version, blob.chunk, len(order))
    return b"".join((header, blob.documents.tobytes(), *(column.tobytes() for column in columns)))


class OpenBlob(NamedTuple):
    """A blob with a valid outline."""

    chunk: int
    # The number of entries in the blob.
    entries: int
    data: bytes

    @property
    def table(self) -> bytes:
        """The rows of its documents."""
        return self.data[_HEADER.size : _PREFIX]

    @property
    def hashes(self) -> NDArray[np.uint32]:
        import numpy as np

        return np.frombuffer(self.data, "<u4", self.entries, _PREFIX)

    @property
    def columns(self) -> memoryview:
        """Places, then frequencies, one byte each."""
        return memoryview(self.data)[_PREFIX + 4 * self.entries :]


def open_blob(blob: bytes) -> OpenBlob:
    """Returns the blob once its outline is checked, which is all that a query can afford. Raises: CorruptIndex."""
    if len(blob) < _PREFIX:
        raise CorruptIndex(f"{len(blob)} bytes are too few for a search blob")
    magic, version, _, chunk, entries = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptIndex(f"a search blob begins with {_MAGIC!r} {_VERSION}, not {magic!r} {version}")
    if len(blob) != _PREFIX + entries * _ENTRY_BYTES:
        raise CorruptIndex(f"{len(blob)} bytes do not make {entries} entries")
    return OpenBlob(chunk, entries, blob)


def _unpack_current(blob: bytes) -> _Blob:
    found = _unpack(blob)
    if found.terms_version < TERMS_VERSION:
        raise CorruptIndex(f"its terms are of version {found.terms_version}, and not {TERMS_VERSION}")
    return found


def _unpack(blob: bytes) -> _Blob:
    import numpy as np

    chunk, entries, _ = open_blob(blob)
    documents = np.frombuffer(blob, document_type(), CHUNK, _HEADER.size)
    hashes = np.frombuffer(blob, "<u4", entries, _PREFIX)
    places = np.frombuffer(blob, np.uint8, entries, _PREFIX + 4 * entries)
    frequencies = np.frombuffer(blob, np.uint8, entries, _PREFIX + 5 * entries)
    # Who rewrites a blob checks all of it, or damage would be written on.
    if (hashes[1:] < hashes[:-1]).any():
        raise CorruptIndex("the entries are out of order")
    if not (documents["flags"][places & SLOT] & PRESENT).all():
        raise CorruptIndex("an entry belongs to no document")
    return _Blob(chunk, documents, hashes, places, frequencies, terms_version=blob[_TERMS_VERSION_AT])
