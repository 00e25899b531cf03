"""The packed search index: one blob for every 64 messages of an agent, ranked by BM25 over that agent alone.

Pure: bytes and values in, bytes and values out; both stores keep the blobs as they are. Words appear only as
32-bit hashes keyed with the agent's secret, so a blob says nothing without it and two agents share no hash.

A blob (little endian; `m` entries, in columns, which numpy searches in place):

    magic 2s, version u16, chunk u32, m u32
    64 documents, by slot:   length u16, back u16, flags u8, head u8
    entries, by hash:        hash u32[m], place u8[m] (slot; bit 6: in the head), frequency u8[m]

A message's neighbours in its conversation count for it at half weight. They are not copied into it: `back` says
how far before it its predecessor is, and a query passes the hits in the head (the first words) of a message on to
both sides. So a message's words lie in one place, and forgetting it needs nothing but its own chunk.
"""

from __future__ import annotations

import math
import re
import struct
import threading
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import Stemmer  # type: ignore[import-not-found, unused-ignore]

from storage.value import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CHUNK",
    "CorruptIndex",
    "Document",
    "Hit",
    "Near",
    "chunk_of",
    "clear_caches",
    "encode",
    "forget",
    "merge",
    "preload",
    "rank",
    "seqs_of",
    "words_of",
]

CHUNK = 64  # messages a blob; a slot must fit into 6 bits

_K1 = 1.2
_B = 0.75
_NEIGHBOUR = 0.5  # weight of a hit in the neighbouring turn
_HEAD_CHARS = (
    200  # what of a turn counts for its neighbours: a whole long one ruins BM25, its beginning does not
)
_QUERY_WORDS = 256  # distinct words of a query that are looked up
_QUERY_TERMS = 64  # of them, the rarest ones that are scored; a question has about 7

# When nobody asked: over 240 questions of LongMemEval (550 turns each) every one's best hit held 0.3 of the query's
# weight or more, and hits below a fifth of the best one's score held 0.2% of the evidence and half of the text.
_LEAST_BEST_SHARE = 0.25
_LEAST_SHARE = 0.1
_LEAST_RELATIVE = 0.2

# A word that most of few messages have is what they are about, and not as common as it would be in many: its weight is
# reckoned as if there were this many. Measured with histories of 24 messages: evidence in the note from 84.7 to 89.6%,
# of 46: 88.9 to 91.2%; questions about something else that get a note: from 31 to 37% and from 54 to 60%.
_LEAST_SAMPLE = 200

# Vectors, where there are any, in standard deviations. Measured on LongMemEval: from nothing to 2 as the least that
# counts without a word of the query, evidence found differs by 0.3 points.
_NEAR_ENOUGH = 1.5
# How far beyond the usual a message has to be that is told though hardly a word of the query was ever said: 3, and 1
# more for ten times as many messages, among which chance finds nearer ones. Measured with 10 to 550 messages: 84 to 69%
# of questions have one, and of small talk and errands, which nobody wants notes for, 1 to 5%.
_BEYOND_ALONE = 3.0
_DOCUMENT_TERMS = 4_000  # distinct terms kept of one document; a page of prose has about 250
_DOCUMENT_CHARS = 200_000
_WORD_CHARS = 40  # longer ones are hashes and the like, which come once and are not remembered

_MAGIC = b"mt"
_VERSION = 1
_HEADER = struct.Struct("<2sHII")
_COLUMNS = [("length", "<u2"), ("back", "<u2"), ("flags", "u1"), ("head", "u1")]
_TABLE_BYTES = CHUNK * 6
_PREFIX = _HEADER.size + _TABLE_BYTES
_ENTRY_BYTES = 6
_SLOT, _IN_HEAD = 0x3F, 0x40  # of an entry's place
_USER, _PRESENT = 1, 2  # of a document's flags


class CorruptIndex(ValueError):
    """These bytes are no blob of this index. The remedy is to encode the chunk's messages again."""


@dataclass(frozen=True, slots=True)
class Document:
    """One message as the index reads it.

    previous: seq of the turn before it in its conversation, if that is (or will be) indexed too.
    speaker: a name, where the client gave one. at: seconds since the epoch.
    """

    seq: int
    role: str
    text: str
    at: float
    speaker: str | None = None
    previous: int | None = None


class Hit(NamedTuple):  # not a dataclass: fifty of those would take a third of a small query's time
    """One message found.

    score: to compare within one answer. share: what part of the query's weight it and its neighbours hold, 0 to 1.
    """

    seq: int
    score: float
    share: float


@frozen
class Near:
    """Messages by how near their vectors are to the query's (storage/search/vectors.py).

    outstanding: standard deviations above the mean of all that have a vector. beyond: of texts that have nothing to do
    with the query, above the higher of the two means; zeros where that is not known.
    """

    seqs: NDArray[np.int64]
    outstanding: NDArray[np.float64]
    beyond: NDArray[np.float64]


def clear_caches() -> None:
    """What is remembered between queries: words of messages, among them such as were forgotten."""
    _terms_of_word.cache_clear()
    _count.cache_clear()
    _lay_out_again.cache_clear()


def chunk_of(seq: int) -> int:
    return seq // CHUNK


# --- words --------------------------------------------------------------------------------

# `\w` leaves out the vowel signs and tone marks of many scripts, which would cut their words to pieces.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u0900-\u0963\u0966-\u0dff\u0e00-\u0e4e\u0e50-\u0ece\u1000-\u1049\u1780-\u17d3\u3099\u309a"
)
_WORD = re.compile(rf"[\w{_MARKS}]+(?:['’][\w{_MARKS}]+)*")
_ASCII_WORD = re.compile(r"[a-z0-9_]+(?:'[a-z0-9_]+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Scripts written without spaces, and Hangul, whose words carry their particles.
_UNSPACED = re.compile(
    f"([{_HAN}\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uac00-\ud7af]+)"
)
_IS_HAN = re.compile(f"[{_HAN}]")
_ACCENT = re.compile("[\u0300-\u036f]")

# Function words of English, which make up 40% of a text and decide nothing. Not in it: `may` and `will`, a month
# and a name.
_FUNCTION_WORDS = """
a about after all also am an and any are as at be because been before being but by can could did do
does doing don down for from had has have having he her here hers him his how i if in into is it its
itself just me more most my myself no nor not of off on once only or other our ours out over own
please s same she should so some such t than that the their theirs them then there these they this
those through to too under until up us very was we were what when where which while who whom why
with would you your yours yourself d ll m re ve
"""
_STOP = frozenset(_FUNCTION_WORDS.split())

# A message of these alone is no question (stems, as `words_of` gives them).
_COURTESY_WORDS = """
hi hello hey thank thanks thx ok okay ye yes yeah yep no nope sure great good nice cool fine perfect awesom right
morn afternoon even night bye goodby sorri welcom continu go ahead next tell say help someth anyth lol wow
"""
_COURTESY = frozenset(_COURTESY_WORDS.split())

# By the first letter's script; Latin letters default to English, since one message seldom says its language.
_STEMMERS = (
    (0x0370, 0x03FF, "greek"),
    (0x0400, 0x052F, "russian"),
    (0x0530, 0x058F, "armenian"),
    (0x0600, 0x06FF, "arabic"),
    (0x0900, 0x097F, "hindi"),
    (0x0B80, 0x0BFF, "tamil"),
)


class _Stemmers(threading.local):
    """Snowball stemmers are not for two threads at once; their own cache is off since `_terms_of_word` has one."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def stem(self, word: str, language: str) -> str:
        stemmer = self.known.get(language)
        if stemmer is None:
            stemmer = self.known[language] = Stemmer.Stemmer(language, 0)
        stem: str = stemmer.stemWord(word)
        return stem


_stemmers = _Stemmers()


def words_of(text: str) -> list[str]:
    """The terms of a text in order: folded, stemmed, without function words; numbers and identifiers are kept."""
    if text.isascii():
        text = text.lower()
        found = _ASCII_WORD.findall(_THOUSANDS.sub("", text) if "," in text else text)
    else:
        text = unicodedata.normalize("NFKC", text.casefold())
        found = _WORD.findall(_THOUSANDS.sub("", text) if "," in text else text)
    if max(map(len, found), default=0) <= _WORD_CHARS:
        return list(chain.from_iterable(map(_terms_of_word, found)))
    return [t for word in found for t in (_terms_of_word if len(word) <= _WORD_CHARS else _split)(word)]


@lru_cache(maxsize=1 << 14)  # common words: 16,000 take about 3 MB and cover nearly all of a text
def _terms_of_word(word: str) -> tuple[str, ...]:
    return tuple(_split(word))


def _split(word: str) -> list[str]:
    if word.isascii():
        parts = _split_ascii(word)
        return [word, *parts] if "_" in word.strip("_") and len(word) <= 64 else parts
    terms: list[str] = []
    for index, run in enumerate(_UNSPACED.split(word)):
        if not run:
            continue
        if index % 2:
            terms += [a + b for a, b in pairwise(run)] if len(run) > 1 else [run]
            if len(run) > 1:  # a word of one character is common in Chinese and must be found inside a run
                terms += _IS_HAN.findall(run)
        else:
            terms += _split_spaced(run)
    return terms


def _split_ascii(word: str) -> list[str]:
    terms = []
    for part in word.split("_"):
        base = part.partition("'")[0]
        if base and base not in _STOP:
            terms.append(_stemmers.stem(base, "english") if base.isalpha() else base[:64])
    return terms


def _split_spaced(run: str) -> list[str]:
    script = ord(run[0])
    for first, last, language in _STEMMERS:
        if first <= script <= last:
            base = run.replace("’", "'").partition("'")[0]
            return [_fold(_stemmers.stem(base, language))] if base else []
    folded = _fold(run.replace("’", "'"))
    return _split_ascii(folded) if folded.isascii() else [part[:64] for part in folded.split("_") if part]


def _fold(word: str) -> str:
    """Without accents; marks of other ranges (Hangul, kana, vowel signs) belong to their letters and stay."""
    return unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFKD", word)))


def _frame_of(document: Document) -> list[str]:
    """What is said of a message beside its text: when and by whom."""
    dated = _date_words(int(document.at // 86_400)) if math.isfinite(document.at) else ()
    return [*dated, *words_of(document.speaker or "")]


@lru_cache(maxsize=512)
def _date_words(day: int) -> tuple[str, ...]:
    """Year, month, day and weekday as a person would ask for them; nothing for a time no calendar has."""
    try:
        date = datetime.fromtimestamp(day * 86_400, UTC)
    except (OverflowError, OSError, ValueError):
        return ()
    return tuple(words_of(date.strftime("%Y %B %d %A").replace(" 0", " ")))


@frozen
class _Counted:
    """A document's terms, counted. length: terms in all; head: those in its beginning."""

    frequency: dict[str, int]
    head: frozenset[str]
    length: int
    head_length: int


@lru_cache(
    maxsize=1024
)  # the last messages of a memory are not indexed yet and are read by query after query
def _count(document: Document) -> _Counted:
    text = document.text[:_DOCUMENT_CHARS]
    cut = text.rfind(" ", 0, _HEAD_CHARS) + 1 if len(text) > _HEAD_CHARS else len(text)
    head = words_of(text[: cut or _HEAD_CHARS])
    words = [*head, *words_of(text[cut:])] if cut else words_of(text)
    frame = _frame_of(document)
    frequency = Counter(dict.fromkeys(frame, 1))
    frequency.update(words)
    if len(frequency) > _DOCUMENT_TERMS:
        frequency = Counter(dict(list(frequency.items())[:_DOCUMENT_TERMS]))
    return _Counted(frequency, frozenset(head), len(words) + len(frame), len(head))


# --- blobs --------------------------------------------------------------------------------


@frozen
class _Blob:
    """A blob taken apart. documents: 64 rows of `_COLUMNS`; places, frequencies: beside the hashes."""

    chunk: int
    documents: NDArray[Any]
    hashes: NDArray[np.uint32]
    places: NDArray[np.uint8]
    frequencies: NDArray[np.uint8]


# numpy is imported in the functions that need it: it costs 0.1 s and 20 MB, and without memory nobody asks for it.


@cache
def _document_type() -> np.dtype[Any]:
    import numpy as np

    return np.dtype(_COLUMNS)


def encode(documents: Iterable[Document], secret: bytes) -> dict[int, bytes]:
    """Blobs by chunk; add one to what the chunk already has with `merge`.

    secret: the agent's, at most 64 bytes.
    """
    import numpy as np

    by_chunk: dict[int, dict[int, Document]] = {}
    for document in documents:
        by_chunk.setdefault(chunk_of(document.seq), {})[document.seq % CHUNK] = document
    counted = {document: _count(document) for rows in by_chunk.values() for document in rows.values()}
    hashes = _hashes(chain.from_iterable(each.frequency for each in counted.values()), secret)
    blobs = {}
    for chunk, rows in by_chunk.items():
        table = np.zeros(CHUNK, _document_type())
        values, places, frequencies = list[int](), bytearray(), bytearray()
        for slot, document in rows.items():
            found = counted[document]
            table[slot] = _row(document, found)
            values += [hashes[term] for term in found.frequency]
            places += bytes([slot | _IN_HEAD if term in found.head else slot for term in found.frequency])
            frequencies += bytes([f if f < 0xFF else 0xFF for f in found.frequency.values()])
        columns = (
            np.array(values, "<u4"),
            np.frombuffer(places, np.uint8),
            np.frombuffer(frequencies, np.uint8),
        )
        blobs[chunk] = _pack(_Blob(chunk, table, *columns))
    return blobs


def merge(old: bytes | None, new: bytes) -> bytes:
    """One blob of both; where both have a message, only the new one's words count. Raises: CorruptIndex."""
    import numpy as np

    if not old:
        return new
    added = _unpack(new)
    kept = _without(_unpack(old), (added.documents["flags"] & _PRESENT) > 0)
    if kept.chunk != added.chunk:
        raise CorruptIndex(f"chunks {kept.chunk} and {added.chunk} are not the same")
    return _pack(
        _Blob(
            kept.chunk,
            np.where(added.documents["flags"] & _PRESENT, added.documents, kept.documents),
            np.concatenate((kept.hashes, added.hashes)),
            np.concatenate((kept.places, added.places)),
            np.concatenate((kept.frequencies, added.frequencies)),
        )
    )


def forget(blob: bytes, seqs: Collection[int]) -> bytes:
    """The blob without these messages, empty when none is left. Raises: CorruptIndex.

    Seqs of other chunks are ignored.
    """
    if not blob:  # what an earlier call left of it
        return blob
    import numpy as np

    old = _unpack(blob)
    gone = np.zeros(CHUNK, bool)
    gone[[seq % CHUNK for seq in seqs if chunk_of(seq) == old.chunk]] = True
    left = _without(old, gone)
    return _pack(left) if left.documents["flags"].any() else b""


def seqs_of(blob: bytes) -> list[int]:
    """Which messages the blob holds, ascending. Raises: CorruptIndex."""
    old = _unpack(blob)
    return [
        old.chunk * CHUNK + slot
        for slot, flags in enumerate(old.documents["flags"].tolist())
        if flags & _PRESENT
    ]


def _hashes(terms: Iterable[str], secret: bytes) -> dict[str, int]:
    """By term. Never the largest number, so that the next one always exists (`_occurrences` searches for both)."""
    keyed = blake2b(digest_size=4, key=secret)
    found: dict[str, int] = {}
    for term in terms:
        if term not in found:
            hasher = keyed.copy()
            hasher.update(term.encode("utf-8", "surrogatepass"))
            found[term] = min(int.from_bytes(hasher.digest(), "little"), 0xFFFFFFFE)
    return found


def _row(document: Document, counted: _Counted) -> tuple[int, int, int, int]:
    """A row of `_COLUMNS`."""
    back = 0 if document.previous is None else document.seq - document.previous
    flags = _PRESENT | (_USER if document.role == "user" else 0)
    return (
        min(counted.length, 0xFFFF),
        back if 0 < back <= 0xFFFF else 0,
        flags,
        min(counted.head_length, 0xFF),
    )


def _without(blob: _Blob, gone: NDArray[np.bool_]) -> _Blob:
    import numpy as np

    documents = np.where(gone, np.zeros((), _document_type()), blob.documents)
    stays = ~gone[blob.places & _SLOT]
    return _Blob(blob.chunk, documents, blob.hashes[stays], blob.places[stays], blob.frequencies[stays])


def _pack(blob: _Blob) -> bytes:
    import numpy as np

    order = np.lexsort((blob.places, blob.hashes))
    columns = (blob.hashes[order], blob.places[order], blob.frequencies[order])
    header = _HEADER.pack(_MAGIC, _VERSION, blob.chunk, len(order))
    return b"".join((header, blob.documents.tobytes(), *(column.tobytes() for column in columns)))


def _open(blob: bytes) -> tuple[int, int, bytes]:
    """Chunk, number of entries and the blob itself, if its outline is right. Raises: CorruptIndex."""
    if len(blob) < _PREFIX:
        raise CorruptIndex(f"{len(blob)} bytes are too few for a search blob")
    magic, version, chunk, m = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptIndex(f"a search blob begins with {_MAGIC!r} {_VERSION}, not {magic!r} {version}")
    if len(blob) != _PREFIX + m * _ENTRY_BYTES:
        raise CorruptIndex(f"{len(blob)} bytes do not make {m} entries")
    return chunk, m, blob


def _unpack(blob: bytes) -> _Blob:
    import numpy as np

    chunk, m, _ = _open(blob)
    documents = np.frombuffer(blob, _document_type(), CHUNK, _HEADER.size)
    hashes = np.frombuffer(blob, "<u4", m, _PREFIX)
    places = np.frombuffer(blob, np.uint8, m, _PREFIX + 4 * m)
    frequencies = np.frombuffer(blob, np.uint8, m, _PREFIX + 5 * m)
    if (hashes[1:] < hashes[:-1]).any():
        raise CorruptIndex("the entries are out of order")
    if not (documents["flags"][places & _SLOT] & _PRESENT).all():
        raise CorruptIndex("an entry belongs to no document")
    return _Blob(chunk, documents, hashes, places, frequencies)


# --- ranking --------------------------------------------------------------------------------


def preload() -> None:
    """Import numpy now (0.1 s) instead of in the first query; meant for a thread beside the start."""
    import numpy  # noqa: F401


def rank(
    blobs: Iterable[bytes],
    query: str,
    secret: bytes,
    *,
    tail: Sequence[Document] = (),
    skip: range = range(0),
    limit: int = 50,
    only_strong: bool = False,
    near: Near | None = None,
) -> list[Hit]:
    """The messages that answer the query, best first.

    Two rankings, of all turns and of the user's alone, each relative to its best, are added: long turns of the
    assistant would win most places by their mere number of words, yet some things only the assistant said.
    near: two more, by vectors; messages without one have the others. (Weights other than 1 gained nothing that held
    on both halves of the questions. Without the one of the user's turns 3 points were lost at 1,000 tokens.)
    blobs: all of the agent's; empty ones are skipped.
    skip: messages that count for the statistics and are not wanted.
    tail: messages not indexed yet; where a blob has one of them too, the tail's text counts.
    only_strong: for what nobody asked for. Without hits that hold a good part of the query nothing is returned, and
    small talk finds nothing. A search tool leaves it off. Raises: CorruptIndex.
    """
    terms = list(dict.fromkeys(words_of(query)))[:_QUERY_WORDS]
    opened = sorted(_open(blob) for blob in blobs if blob)
    if not terms or not (opened or tail) or (only_strong and _COURTESY.issuperset(terms)):
        return []
    found = _find(opened, tail, terms, secret)
    if not len(found.row) and near is None:
        return []
    return _fuse(found, skip, limit, only_strong, near)


_Opened = tuple[int, int, bytes]  # chunk, number of entries, the blob


@frozen
class _IndexLayout:
    """Every document as a row: 64 rows a chunk, in the order of the chunks. What is known before there is a query.

    first_rows: of the opened blobs, by number. present, user, lengths, heads, back: by row. earlier, later: rows of
    neighbours, -1: none.
    """

    first_rows: NDArray[np.int64]
    seqs: NDArray[np.int64]
    present: NDArray[np.bool_]
    user: NDArray[np.bool_]
    lengths: NDArray[np.float64]
    heads: NDArray[np.float64]
    back: NDArray[np.int64]
    earlier: NDArray[np.int64]
    later: NDArray[np.int64]


@frozen
class _Found:
    """Every occurrence of a query term: row, term, frequency, in_head (one for each document and term)."""

    layout: _IndexLayout
    terms: int
    row: NDArray[np.int64]
    term: NDArray[np.int64]
    frequency: NDArray[np.int64]
    in_head: NDArray[np.bool_]


_CACHED_BYTES = 128 * 1024  # a larger index takes longer to rank than to lay out


@lru_cache(maxsize=256)  # a person's index changes once in a dozen messages, and each of them is a query
def _lay_out_again(opened: tuple[_Opened, ...], more: tuple[int, ...]) -> _IndexLayout:
    return _lay_out(opened, more)


def _lay_out(opened: Sequence[_Opened], more: Collection[int]) -> _IndexLayout:
    """more: chunks that get rows as well."""
    import numpy as np

    chunks = sorted({chunk for chunk, _, _ in opened}.union(more))
    first_row = {chunk: place * CHUNK for place, chunk in enumerate(chunks)}
    seqs = (np.array(chunks, np.int64)[:, None] * CHUNK + np.arange(CHUNK)).ravel()
    table = np.zeros((len(chunks), CHUNK), _document_type())
    first_rows = np.array([first_row[chunk] for chunk, _, _ in opened], np.int64)
    if opened:
        joined = b"".join([blob[_HEADER.size : _PREFIX] for _, _, blob in opened])
        table[first_rows // CHUNK] = np.frombuffer(joined, _document_type()).reshape(-1, CHUNK)
    documents = table.ravel()
    flags = documents["flags"]
    present = (flags & _PRESENT) > 0
    back = documents["back"].astype(np.int64)
    earlier, later = _neighbours(seqs, present, back)
    return _IndexLayout(
        first_rows=first_rows,
        seqs=seqs,
        present=present,
        user=present & ((flags & _USER) > 0),
        lengths=documents["length"].astype(np.float64),
        heads=documents["head"].astype(np.float64),
        back=back,
        earlier=earlier,
        later=later,
    )


def _lay_over(layout: _IndexLayout, rows: NDArray[np.int64], tail: Sequence[Document]) -> _IndexLayout:
    """With messages that no blob has yet in their rows."""
    import numpy as np

    lengths, back, flags, heads = np.array([_row(each, _count(each)) for each in tail], np.int64).T
    present, new_back = layout.present.copy(), _put(layout.back, rows, back)
    present[rows] = True
    earlier, later = _neighbours(layout.seqs, present, new_back)
    return replace(
        layout,
        present=present,
        user=_put(layout.user, rows, (flags & _USER) > 0),
        lengths=_put(layout.lengths, rows, lengths),
        heads=_put(layout.heads, rows, heads),
        back=new_back,
        earlier=earlier,
        later=later,
    )


def _put(column: NDArray[Any], rows: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
    changed = column.copy()
    changed[rows] = values
    return changed


def _neighbours(
    seqs: NDArray[np.int64], present: NDArray[np.bool_], back: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each row those of the message before it and of the one behind it; -1: none."""
    import numpy as np

    linked = ((back > 0) & present).nonzero()[0]
    target = seqs[linked] - back[linked]
    if seqs[-1] - seqs[0] < len(seqs):
        target_row = np.maximum(target - seqs[0], 0)
    else:  # chunks are missing in between
        target_row = np.minimum(seqs.searchsorted(target), len(seqs) - 1)
    right = (seqs[target_row] == target) & present[target_row]
    linked, target_row = linked[right], target_row[right]
    earlier = np.full(len(seqs), -1, np.int64)
    later = earlier.copy()
    earlier[linked] = target_row
    later[target_row] = linked
    return earlier, later


def _find(opened: Sequence[_Opened], tail: Sequence[Document], terms: Sequence[str], secret: bytes) -> _Found:
    import numpy as np

    is_small = sum(len(blob) for _, _, blob in opened) <= _CACHED_BYTES
    more = sorted({chunk_of(document.seq) for document in tail}.difference(chunk for chunk, _, _ in opened))
    layout = _lay_out_again(tuple(opened), tuple(more)) if is_small else _lay_out(opened, more)
    row, term, frequency, in_head = _occurrences(opened, layout.first_rows, _hashes(terms, secret).values())
    stays = layout.present[row]  # always true but for a damaged blob
    if tail:
        replaced = layout.seqs.searchsorted([document.seq for document in tail])  # rows are in this order
        layout = _lay_over(layout, replaced, tail)
        is_replaced = np.zeros(len(layout.seqs), bool)
        is_replaced[replaced] = True
        stays &= ~is_replaced[row]
    if not stays.all():
        row, term, frequency, in_head = row[stays], term[stays], frequency[stays], in_head[stays]
    if tail:
        row, term, frequency, in_head = _with_tail(tail, replaced, terms, (row, term, frequency, in_head))
    if len(terms) > _QUERY_TERMS:
        rarest = np.bincount(term, minlength=len(terms)).argsort(kind="stable")
        rarest = rarest[np.isin(rarest, term)][:_QUERY_TERMS]
        stays = np.isin(term, rarest)
        row, term, frequency, in_head = row[stays], term[stays], frequency[stays], in_head[stays]
    return _Found(layout, len(terms), row, term, frequency, in_head)


_Occurrences = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.bool_]"]


def _with_tail(
    tail: Sequence[Document], rows: NDArray[np.int64], terms: Sequence[str], found: _Occurrences
) -> _Occurrences:
    """The occurrences with those in messages that no blob has yet. rows: the messages' own."""
    import numpy as np

    number_of = {term: number for number, term in enumerate(terms)}
    added = list[tuple[int, int, int, bool]]()
    for at, document in zip(rows.tolist(), tail, strict=True):
        counted = _count(document)
        added += [
            (at, number_of[word], counted.frequency[word], word in counted.head)
            for word in number_of.keys() & counted.frequency.keys()
        ]
    if not added:
        return found
    more = np.array(added, np.int64)
    row, term, frequency, in_head = found
    return (
        np.concatenate((row, more[:, 0])),
        np.concatenate((term, more[:, 1])),
        np.concatenate((frequency, more[:, 2])),
        np.concatenate((in_head, more[:, 3] > 0)),
    )


def _occurrences(
    opened: Sequence[_Opened], first_rows: NDArray[np.int64], hashes: Collection[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Rows, terms, frequencies and head marks of all entries with one of these hashes."""
    import numpy as np

    if not opened:
        none = np.empty(0, np.int64)
        return none, none, none, none > 0
    k = len(hashes)
    keys = np.array([*hashes, *(value + 1 for value in hashes)], "<u4")
    bounds = np.empty((len(opened), 2 * k), np.int64)
    for number, (_, m, blob) in enumerate(opened):
        bounds[number] = np.frombuffer(blob, "<u4", m, _PREFIX).searchsorted(keys)
    low = bounds[:, :k].ravel()
    counts = np.maximum(bounds[:, k:].ravel() - low, 0)  # negative only where a damaged blob is out of order
    ends = counts.cumsum()
    group = np.arange(len(counts)).repeat(counts)
    blob_number, term = np.divmod(group, k)
    within = np.arange(ends[-1]) + (low - ends + counts)[group]
    sizes = np.array([m for _, m, _ in opened], np.int64)
    joined = np.frombuffer(b"".join([memoryview(blob)[_PREFIX + 4 * m :] for _, m, blob in opened]), np.uint8)
    at = within + (2 * (sizes.cumsum() - sizes))[blob_number]
    place = joined[at]
    frequency = joined[at + sizes[blob_number]].astype(np.int64)
    return first_rows[blob_number] + (place & _SLOT), term, frequency, (place & _IN_HEAD) > 0


def _score(found: _Found) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """BM25 of every row by the statistics of all of them, and its share of the query's weight."""
    import numpy as np

    layout = found.layout
    total = len(layout.present)
    documents = int(layout.present.sum())
    df = np.bincount(found.term, minlength=found.terms)
    sample = max(documents, _LEAST_SAMPLE)
    idf = np.log1p(np.maximum(sample - df + 0.5, 0.0) / (df + 0.5))
    length = _K1 * (1 - _B + _B * layout.lengths / max(float(layout.lengths.sum()) / documents, 1.0))
    row, weight, f = found.row, idf[found.term], found.frequency
    score = np.bincount(row, weight * f * (_K1 + 1) / (f + length[row]), total).astype(np.float64, copy=False)
    share = np.bincount(row, weight, total).astype(np.float64, copy=False)

    source, weight = row[found.in_head], weight[found.in_head] * _NEIGHBOUR
    head = _K1 * (1 - _B + _B * layout.heads / max(float(layout.heads.sum()) / documents, 1.0))
    gain = weight * (_K1 + 1) / (1 + head[source])
    for neighbour in (layout.earlier, layout.later):
        to = neighbour[source]
        has = to >= 0
        score += np.bincount(to[has], gain[has], total)
        share += np.bincount(to[has], weight[has], total)
    score[~layout.present] = 0.0
    # A word never heard counts like one heard once; else, with few messages, it would outweigh all that was found.
    unseen_as_rare = np.minimum(idf, np.log1p((sample - 0.5) / 1.5))
    return score, np.minimum(share / max(float(unseen_as_rare.sum()), 1e-9), 1.0)


def _fuse(found: _Found, skip: range, limit: int, only_strong: bool, near: Near | None) -> list[Hit]:
    import numpy as np

    score, share = _score(found)
    outstanding = beyond = None
    if near is not None:
        outstanding = np.maximum(_by_row(found.layout, near.seqs, near.outstanding), 0.0)
        beyond = _by_row(found.layout, near.seqs, near.beyond)
    if skip:
        unwanted = (found.layout.seqs >= skip.start) & (found.layout.seqs < skip.stop)
        score[unwanted] = share[unwanted] = 0.0
        if outstanding is not None and beyond is not None:
            outstanding[unwanted] = beyond[unwanted] = 0.0
    best, nearest = float(score.max()), 0.0 if outstanding is None else float(outstanding.max())
    is_alone = only_strong and (not best > 0 or share.max() < _LEAST_BEST_SHARE)  # words tell nothing
    far = None
    if is_alone:
        if near is None or beyond is None:
            return []
        far = beyond >= _BEYOND_ALONE + math.log10(len(near.seqs))
        if not far.any():
            return []
    if not best > 0 and not nearest > 0:
        return []
    fused = _relative(score, found.layout.user)
    weak = share < _LEAST_SHARE
    if outstanding is not None:
        fused += _relative(outstanding, found.layout.user)
        weak &= outstanding < _NEAR_ENOUGH
    if far is not None:
        weak = ~far
    if only_strong:
        fused[weak | (fused < _LEAST_RELATIVE * fused.max())] = 0.0
    rows = _best(fused, limit)
    return list(map(Hit, found.layout.seqs[rows].tolist(), fused[rows].tolist(), share[rows].tolist()))


def _relative(score: NDArray[np.float64], user: NDArray[np.bool_]) -> NDArray[np.float64]:
    """To the best of all turns, and for the user's to the best of those as well."""
    import numpy as np

    of_user = np.where(user, score, 0.0)
    relative: NDArray[np.float64] = score / (float(score.max()) or 1.0) + of_user / (
        float(of_user.max()) or 1.0
    )
    return relative


def _by_row(
    layout: _IndexLayout, seqs: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The values in their rows, 0 in the others. What the index does not know is left out."""
    import numpy as np

    found = np.zeros(len(layout.seqs))
    row = np.minimum(layout.seqs.searchsorted(seqs), len(layout.seqs) - 1)
    known = (layout.seqs[row] == seqs) & layout.present[row]
    found[row[known]] = values[known]
    return found


def _best(score: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Rows with a score, best first; of equals the newer one."""
    import numpy as np

    rows = np.flatnonzero(score > 0)
    if len(rows) > limit:
        least = np.partition(score[rows], len(rows) - limit)[len(rows) - limit]
        rows = rows[score[rows] >= least]
    return rows[np.lexsort((-rows, -score[rows]))[:limit]]
