"""The packed search index: one blob for every 64 messages of an agent, ranked by BM25 over that agent alone.

Pure: bytes and values in, bytes and values out; both stores keep the blobs as they are. Words appear only as
32-bit hashes keyed with the agent's secret, so a blob says nothing without it and two agents share no hash.

A blob (little endian; `n` documents, `m` entries, columns rather than rows, which numpy reads in place):

    magic 2s, version u8, n u8, chunk u32, m u32
    documents, by slot:   length u16[n], back u16[n], slot u8[n], flags u8[n], head u8[n]
    entries, by hash:     hash u32[m], place u8[m] (slot, and bit 6: in the head), frequency u8[m]

A message's neighbours in its conversation count for it at half weight. They are not copied into it: `back` says
how far before it its predecessor is, and a query passes the hits in the head (the first words) of a message on to
both sides. So a message's words lie in one place, and forgetting it needs nothing but its own chunk.
"""

from __future__ import annotations

import re
import struct
import threading
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import Stemmer  # type: ignore[import-not-found, unused-ignore]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CHUNK",
    "CorruptIndex",
    "Document",
    "Hit",
    "chunk_of",
    "decode_seqs",
    "encode",
    "forget",
    "merge",
    "preload",
    "rank",
    "words_of",
]

CHUNK = 64  # messages a blob; a slot must fit into 6 bits

_K1 = 1.2
_B = 0.75
_NEIGHBOUR = 0.5  # weight of a hit in the neighbouring turn
_HEAD_CHARS = (
    200  # what of a turn counts for its neighbours: a whole long one ruins BM25, its beginning does not
)
_RRF = 60.0  # reciprocal rank fusion; the usual constant (Cormack et al. 2009)
_QUERY_TERMS = 64
_DOCUMENT_TERMS = 4_000  # distinct terms kept of one document; a page of prose has about 250
_DOCUMENT_CHARS = 200_000

_MAGIC = b"mt"
_VERSION = 1
_HEADER = struct.Struct("<2sBBII")
_DOC_BYTES = 7
_DOC_COLUMNS = ((0, 2, "<u2"), (2, 4, "<u2"), (4, 5, "u1"), (5, 6, "u1"), (6, 7, "u1"))
_ENTRY_BYTES = 6
_IN_HEAD = 0x40
_USER = 1


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


@dataclass(frozen=True, slots=True)
class Hit:
    """score: fused, comparable within one answer only. share: of the query's weight, what this turn holds, 0 to 1."""

    seq: int
    score: float
    share: float


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
    terms: list[str] = []
    for word in found:
        terms += _terms_of_word(word) if len(word) <= 40 else _split(word)
    return terms


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


def _date_words(at: float) -> str:
    """Year, month, day and weekday as a person would ask for them; nothing for a time no calendar has."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y %B %d %A").replace(" 0", " ")
    except (OverflowError, OSError, ValueError):
        return ""


@dataclass(frozen=True, slots=True)
class _Counted:
    """A document's terms, counted. length: terms in all; head: those in its beginning."""

    frequency: dict[str, int]
    head: frozenset[str]
    length: int
    head_length: int


def _count(document: Document) -> _Counted:
    text = document.text[:_DOCUMENT_CHARS]
    head = words_of(text[:_HEAD_CHARS])
    words = head if len(text) <= _HEAD_CHARS else words_of(text)
    frame = words_of(f"{_date_words(document.at)} {document.speaker or ''}")
    frequency: dict[str, int] = {}
    for word in frame:
        frequency[word] = 1
    for word in words:
        frequency[word] = frequency.get(word, 0) + 1
    if len(frequency) > _DOCUMENT_TERMS:
        frequency = dict(list(frequency.items())[:_DOCUMENT_TERMS])
    return _Counted(frequency, frozenset(head), len(words) + len(frame), len(head))


# --- blobs --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Blob:
    """A blob taken apart for rewriting. documents: slot -> (length, back, flags, head)."""

    chunk: int
    documents: dict[int, tuple[int, int, int, int]]
    entries: list[tuple[int, int, int]]


def encode(documents: Iterable[Document], secret: bytes) -> dict[int, bytes]:
    """Blobs by chunk; add one to what the chunk already has with `merge`.

    secret: the agent's, at most 64 bytes.
    """
    blobs: dict[int, _Blob] = {}
    hashes: dict[str, int] = {}
    for document in documents:
        chunk, slot = divmod(document.seq, CHUNK)
        blob = blobs.get(chunk)
        if blob is None:
            blob = blobs[chunk] = _Blob(chunk, {}, [])
        counted = _count(document)
        back = document.seq - document.previous if document.previous is not None else 0
        blob.documents[slot] = (
            min(counted.length, 0xFFFF),
            back if 0 < back <= 0xFFFF else 0,
            _USER if document.role == "user" else 0,
            min(counted.head_length, 0xFF),
        )
        for term, frequency in counted.frequency.items():
            value = hashes.get(term)
            if value is None:
                value = hashes[term] = _hash(term, secret)
            place = slot | _IN_HEAD if term in counted.head else slot
            blob.entries.append((value, place, min(frequency, 0xFF)))
    return {chunk: _pack(blob) for chunk, blob in blobs.items()}


def merge(old: bytes | None, new: bytes) -> bytes:
    """One blob of both; where both have a message, the new one's entries count. Raises: CorruptIndex."""
    if not old:
        return new
    blob, added = _unpack(old), _unpack(new)
    if blob.chunk != added.chunk:
        raise CorruptIndex(f"chunks {blob.chunk} and {added.chunk} are not the same")
    kept = [entry for entry in blob.entries if entry[1] & 0x3F not in added.documents]
    return _pack(_Blob(blob.chunk, blob.documents | added.documents, kept + added.entries))


def forget(blob: bytes, seqs: Collection[int]) -> bytes:
    """The blob without these messages, empty when none is left. Raises: CorruptIndex.

    Seqs of other chunks are ignored.
    """
    old = _unpack(blob)
    slots = {seq % CHUNK for seq in seqs if chunk_of(seq) == old.chunk}
    documents = {slot: row for slot, row in old.documents.items() if slot not in slots}
    if not documents:
        return b""
    return _pack(
        _Blob(old.chunk, documents, [entry for entry in old.entries if entry[1] & 0x3F in documents])
    )


def decode_seqs(blob: bytes) -> list[int]:
    """Which messages the blob holds, ascending. Raises: CorruptIndex."""
    old = _unpack(blob)
    return [old.chunk * CHUNK + slot for slot in sorted(old.documents)]


def _hash(term: str, secret: bytes) -> int:
    """Never the largest number, so that the next one always exists (`_find` searches for both)."""
    digest = blake2b(term.encode("utf-8", "surrogatepass"), digest_size=4, key=secret).digest()
    return min(int.from_bytes(digest, "little"), 0xFFFFFFFE)


def _pack(blob: _Blob) -> bytes:
    rows = sorted(blob.documents.items())
    entries = sorted(blob.entries)
    n, m = len(rows), len(entries)
    return b"".join(
        (
            _HEADER.pack(_MAGIC, _VERSION, n, blob.chunk, m),
            struct.pack(f"<{n}H", *(row[0] for _, row in rows)),
            struct.pack(f"<{n}H", *(row[1] for _, row in rows)),
            bytes(slot for slot, _ in rows),
            bytes(row[2] for _, row in rows),
            bytes(row[3] for _, row in rows),
            struct.pack(f"<{m}I", *(entry[0] for entry in entries)),
            bytes([entry[1] for entry in entries]),
            bytes([entry[2] for entry in entries]),
        )
    )


def _open(blob: bytes) -> tuple[int, int, int]:
    """Chunk and counts of documents and entries of a blob whose outline is right. Raises: CorruptIndex."""
    if len(blob) < _HEADER.size:
        raise CorruptIndex(f"{len(blob)} bytes are too few for a search blob")
    magic, version, n, chunk, m = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptIndex(f"a search blob begins with {_MAGIC!r} {_VERSION}, not {magic!r} {version}")
    if n > CHUNK or len(blob) != _HEADER.size + n * _DOC_BYTES + m * _ENTRY_BYTES:
        raise CorruptIndex(f"{len(blob)} bytes do not make {n} documents and {m} entries")
    return chunk, n, m


def _unpack(blob: bytes) -> _Blob:
    chunk, n, m = _open(blob)
    at = _HEADER.size
    lengths, backs = struct.unpack_from(f"<{n}H", blob, at), struct.unpack_from(f"<{n}H", blob, at + 2 * n)
    slots, flags, heads = (blob[at + k * n : at + (k + 1) * n] for k in (4, 5, 6))
    if any(slot >= CHUNK for slot in slots) or len(set(slots)) != n:
        raise CorruptIndex("a document's slot is out of range or taken twice")
    documents = {s: (lengths[i], backs[i], flags[i], heads[i]) for i, s in enumerate(slots)}
    at += n * _DOC_BYTES
    hashes = struct.unpack_from(f"<{m}I", blob, at)
    entries = list(zip(hashes, blob[at + 4 * m : at + 5 * m], blob[at + 5 * m :], strict=True))
    if any(place & 0x3F not in documents for _, place, _ in entries):
        raise CorruptIndex("an entry belongs to no document")
    return _Blob(chunk, documents, entries)


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
    limit: int = 50,
    least_share: float = 0.0,
) -> list[Hit]:
    """The messages that answer the query, best first.

    Two rankings by BM25, of the user's turns alone and of all turns, each with its own statistics, are fused.
    blobs: all of the agent's; empty ones are skipped.
    tail: messages that are not indexed yet; where a blob has one of them too, the tail's text counts.
    least_share: hits whose share is smaller are left out. Raises: CorruptIndex.
    """
    terms = list(dict.fromkeys(words_of(query)))[: _QUERY_TERMS * 4]
    opened = sorted(((*_open(blob), blob) for blob in blobs if blob), key=lambda row: row[0])
    if not terms or not (opened or tail):
        return []
    found = _find(opened, tail, terms, secret)
    return _fuse(found, limit, least_share)


@dataclass(frozen=True, slots=True)
class _Found:
    """Every document as a row (64 rows a chunk, in the order of the chunks) and every occurrence of a query term.

    present, user, lengths, heads, earlier, later: by row; the last two are rows of neighbours, -1: none.
    row, term, frequency, in_head: by occurrence (one for each document and term).
    """

    seqs: NDArray[np.int64]
    present: NDArray[np.bool_]
    user: NDArray[np.bool_]
    lengths: NDArray[np.float64]
    heads: NDArray[np.float64]
    earlier: NDArray[np.int64]
    later: NDArray[np.int64]
    terms: int
    row: NDArray[np.int64]
    term: NDArray[np.int64]
    frequency: NDArray[np.float64]
    in_head: NDArray[np.bool_]


# numpy is imported in the functions that need it: it costs 0.1 s and 20 MB, and without memory nobody asks for it.


def _find(
    opened: Sequence[tuple[int, int, int, bytes]],
    tail: Sequence[Document],
    terms: Sequence[str],
    secret: bytes,
) -> _Found:
    import numpy as np

    chunks = sorted({row[0] for row in opened} | {chunk_of(document.seq) for document in tail})
    place_of = {chunk: place for place, chunk in enumerate(chunks)}
    total = len(chunks) * CHUNK
    chunk_array = np.array(chunks, np.int64)
    seqs = (chunk_array[:, None] * CHUNK + np.arange(CHUNK)).ravel()
    lengths, heads, back = np.zeros(total), np.zeros(total), np.zeros(total, np.int64)
    present, user = np.zeros(total, bool), np.zeros(total, bool)

    first_rows = np.array([place_of[row[0]] * CHUNK for row in opened], np.int64)
    if opened:
        counts = [row[1] for row in opened]
        length, behind, slot, flags, head = (
            np.frombuffer(
                b"".join([blob[_HEADER.size + a * n : _HEADER.size + b * n] for _, n, _, blob in opened]),
                kind,
            )
            for a, b, kind in _DOC_COLUMNS
        )
        rows = np.repeat(first_rows, counts) + (slot & 0x3F)
        present[rows], lengths[rows], back[rows] = True, length, behind
        user[rows], heads[rows] = flags & _USER, head

    counted = [(place_of[chunk_of(d.seq)] * CHUNK + d.seq % CHUNK, d, _count(d)) for d in tail]
    known = {term: number for number, term in enumerate(terms)}
    tail_hits = []
    for at, document, count in counted:
        present[at], lengths[at], heads[at] = True, count.length, count.head_length
        user[at] = document.role == "user"
        back[at] = document.seq - document.previous if document.previous is not None else 0
        for term in known.keys() & count.frequency.keys():
            tail_hits.append((at, known[term], count.frequency[term], term in count.head))

    row, term_numbers, frequency, in_head = _occurrences(
        opened, first_rows, [_hash(t, secret) for t in terms]
    )
    replaced = [at for at, _, _ in counted]
    if replaced:
        stays = ~np.isin(row, replaced)
        row, term_numbers, frequency, in_head = (
            row[stays],
            term_numbers[stays],
            frequency[stays],
            in_head[stays],
        )
        if tail_hits:
            added = np.array(tail_hits, np.int64)
            row = np.concatenate((row, added[:, 0]))
            term_numbers = np.concatenate((term_numbers, added[:, 1]))
            frequency = np.concatenate((frequency, added[:, 2].astype(float)))
            in_head = np.concatenate((in_head, added[:, 3].astype(bool)))

    earlier = np.full(total, -1, np.int64)
    linked = np.flatnonzero(present & (back > 0))
    target = seqs[linked] - back[linked]
    place = (
        chunk_array.searchsorted(target >> 6)
        if chunks[-1] - chunks[0] >= len(chunks)
        else (target >> 6) - chunks[0]
    )
    place = np.clip(place, 0, len(chunks) - 1)
    target_row = place * CHUNK + (target & 0x3F)
    right = (seqs[target_row] == target) & present[target_row]
    earlier[linked[right]] = target_row[right]
    later = np.full(total, -1, np.int64)
    later[target_row[right]] = linked[right]
    return _Found(
        seqs, present, user, lengths, heads, earlier, later, len(terms), row, term_numbers, frequency, in_head
    )


def _occurrences(
    opened: Sequence[tuple[int, int, int, bytes]], first_rows: NDArray[np.int64], hashes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Rows, terms, frequencies and head marks of all entries with one of these hashes."""
    import numpy as np

    if not opened:
        none = np.empty(0, np.int64)
        return none, none, np.empty(0), np.empty(0, bool)
    starts = [_HEADER.size + n * _DOC_BYTES for _, n, _, _ in opened]
    sizes = [m for _, _, m, _ in opened]
    pairs = list(zip(opened, starts, strict=True))
    hash_column = np.frombuffer(b"".join([row[3][at : at + 4 * row[2]] for row, at in pairs]), "<u4")
    places = np.frombuffer(
        b"".join([row[3][at + 4 * row[2] : at + 5 * row[2]] for row, at in pairs]), np.uint8
    )
    frequencies = np.frombuffer(b"".join([row[3][at + 5 * row[2] :] for row, at in pairs]), np.uint8)

    k = len(hashes)
    keys = np.array([*hashes, *(value + 1 for value in hashes)], "<u4")
    bounds = np.empty((len(opened), 2 * k), np.int64)
    begin = 0
    for number, size in enumerate(sizes):
        bounds[number] = hash_column[begin : begin + size].searchsorted(keys)
        bounds[number] += begin
        begin += size
    low = bounds[:, :k].ravel()
    counts = np.maximum(bounds[:, k:].ravel() - low, 0)  # negative only where a damaged blob is out of order
    ends = counts.cumsum()
    group = np.repeat(np.arange(len(counts)), counts)
    entry = np.arange(ends[-1]) + (low - ends + counts)[group]
    blob_number, term = np.divmod(group, k)
    place = places[entry]
    row = first_rows[blob_number] + (place & 0x3F)
    return row, term, frequencies[entry].astype(float), (place & _IN_HEAD) > 0


def _score(found: _Found, rows: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """BM25 of these rows with their own statistics, and each row's share of the query's weight."""
    import numpy as np

    total = len(rows)
    documents = int(rows.sum())
    if not documents:
        return np.zeros(total), np.zeros(total)
    inside = rows[found.row]
    df = np.bincount(found.term[inside], minlength=found.terms)
    idf = np.log1p((documents - df + 0.5) / (df + 0.5))
    length = _K1 * (1 - _B + _B * found.lengths / max(found.lengths[rows].mean(), 1.0))
    row, weight, f = found.row[inside], idf[found.term[inside]], found.frequency[inside]
    score = np.bincount(row, weight * f * (_K1 + 1) / (f + length[row]), total)
    share = np.bincount(row, weight, total)

    beginning = found.in_head
    source, weight = found.row[beginning], idf[found.term[beginning]] * _NEIGHBOUR
    head = _K1 * (1 - _B + _B * found.heads / max(found.heads[found.present].mean(), 1.0))
    gain = weight * (_K1 + 1) / (1 + head[source])
    for neighbour in (found.earlier, found.later):
        to = neighbour[source]
        has = to >= 0
        score += np.bincount(to[has], gain[has], total)
        share += np.bincount(to[has], weight[has], total)
    score[~rows] = 0.0
    return score, np.minimum(share / max(float(idf.sum()), 1e-9), 1.0)


def _fuse(found: _Found, limit: int, least_share: float) -> list[Hit]:
    score, share = _score(found, found.present)
    fused: dict[int, float] = {}
    depth = 4 * limit
    for ranking in (_score(found, found.present & found.user)[0], score):
        for position, row in enumerate(_best(ranking, depth), 1):
            fused[row] = fused.get(row, 0.0) + 1.0 / (_RRF + position)
    order = sorted(fused, key=lambda row: (-fused[row], -row))
    hits = [Hit(int(found.seqs[row]), fused[row], float(share[row])) for row in order]
    return [hit for hit in hits if hit.share >= least_share][:limit]


def _best(score: NDArray[np.float64], limit: int) -> list[int]:
    """Rows with a score, best first; of equals the newer one."""
    import numpy as np

    rows = np.flatnonzero(score > 0)
    if len(rows) > limit:
        least = np.partition(score[rows], len(rows) - limit)[len(rows) - limit]
        rows = rows[score[rows] >= least]
    order = np.lexsort((-rows, -score[rows]))[:limit]
    best: list[int] = rows[order].tolist()
    return best
