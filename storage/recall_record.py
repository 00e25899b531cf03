"""The record of one recall, and its bytes: numbers alone, so that it holds no words, hashes or names.

    head     whole numbers, seven bits a byte, the lowest first
    entries  of each hit: a byte with kind, reason and whether it is forgotten; its number; its rank; a byte for each
             score, 255 for the best; its tokens

A hit that is forgotten later is overwritten in place, by as many bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import ceil

from msgspec import Struct

# `any`: a hit whose words were not read is one of these.
KINDS = ("message", "fact", "passage", "any")
# Why a hit stayed out of the note; "": it did not.
REASONS = ("", "weak", "no_room", "shown", "repeats", "muted", "superseded")
WHYS = ("recalled", "nothing_found", "all_shown", "no_room", "late", "failed", "off", "nobody")
PARTS = ("system", "tools", "section", "summary", "history", "note", "message")
NONE_LEFT = (0,) * (len(REASONS) - 1)
_MODES = ("on", "strict")
# The ids that the gateway gives: twelve random bytes.
_OWN = re.compile(r"req_[0-9a-f]{24}")
# A longer id is stored as its hash.
_LONGEST = 64
_OWN_MARK, _HASH_MARK = b"\x00", b"\x01"
_KIND_BITS, _REASON_SHIFT, _FORGOTTEN = 3, 2, 1 << 5
_SELECTION, _MEANING, _STREAMED, _USAGE, _FIRST = 1, 2, 4, 8, 16
_VERSION = 1
_MOST = 255


@dataclass(slots=True)
class SearchTrace:
    """How a search came to its hits, for its caller to show why."""

    # Of each hit, best first: by all, by words, by meaning, from 0 to 1, relative to the best of the search; the last
    # is None without vectors. Of a selection of the whole memory there are none.
    scores: dict[int, tuple[float, float, float | None]] = field(default_factory=dict)
    # Hits that are muted.
    muted: list[int] = field(default_factory=list)
    # Returns the best of those, up to a limit, that are below the line of what is worth saying.
    weak: Callable[[int], Mapping[int, tuple[float, float, float | None]]] = lambda limit: {}


class RecalledEntry(Struct, frozen=True):
    """A hit, by its number. reason: "": it went into the note. Scores are from 0 to 1; None: there are none."""

    kind: str
    seq: int
    rank: int
    score: float | None = None
    words: float | None = None
    meaning: float | None = None
    tokens: int = 0
    reason: str = ""
    is_forgotten: bool = False


class RecallRecord(Struct, frozen=True):
    """The note of one recall."""

    # One of WHYS.
    why: str
    found: int = 0
    recalled_tokens: int = 0
    is_selection: bool = False
    mode: str = "on"
    status: int = 200
    is_streamed: bool = False
    # Tokens, in the order of PARTS.
    parts: tuple[int, ...] = (0,) * len(PARTS)
    context: int | None = None
    evicted: int = 0
    added_ms: float = 0.0
    first_ms: float | None = None
    ms: float = 0.0
    # Input, output and cached tokens.
    usage: tuple[int, int, int] | None = None
    # How many hits stayed out, in the order of REASONS, from the second on.
    left: tuple[int, ...] = NONE_LEFT
    # By rank: those that went in, and the best of the others.
    entries: tuple[RecalledEntry, ...] = ()


def pack(record: RecallRecord) -> bytes:
    """Returns the bytes of a record."""
    has_meaning = any(e.meaning is not None for e in record.entries)
    flags = (
        _SELECTION * record.is_selection
        | _MEANING * has_meaning
        | _STREAMED * record.is_streamed
        | _USAGE * (record.usage is not None)
        | _FIRST * (record.first_ms is not None)
    )
    numbers = [
        _VERSION,
        WHYS.index(record.why),
        flags,
        _MODES.index(record.mode),
        record.status,
        record.found,
        record.recalled_tokens,
        *record.left,
        *record.parts,
        record.context or 0,
        record.evicted,
        int(record.added_ms * 100),
        ceil((record.first_ms or 0.0) * 10),
        ceil(record.ms * 10),
        *(record.usage or ()),
        len(record.entries),
    ]
    out = bytearray()
    for number in numbers:
        _put(out, number)
    for e in record.entries:
        out.append(
            KINDS.index(e.kind) | REASONS.index(e.reason) << _REASON_SHIFT | _FORGOTTEN * e.is_forgotten
        )
        _put(out, e.seq)
        _put(out, e.rank)
        if not record.is_selection:
            out.append(int((e.score or 0.0) * _MOST))
            out.append(int((e.words or 0.0) * _MOST))
            if has_meaning:
                out.append(int((e.meaning or 0.0) * _MOST))
        _put(out, e.tokens)
    return bytes(out)


def unpack(data: bytes) -> RecallRecord:
    """Returns the record of these bytes. Raises: ValueError: they are damaged, or of a later version."""
    record, _ = _unpack(data)
    return record


def without(data: bytes, is_there: Callable[[str, int], bool]) -> bytes:
    """Returns as many bytes, in which the hits that are not there any more are overwritten. Raises: ValueError."""
    record, spans = _unpack(data)
    out = bytearray(data)
    for e, (start, end) in zip(record.entries, spans, strict=True):
        if not e.is_forgotten and not is_there(e.kind, e.seq):
            out[start] |= _FORGOTTEN
            # A zero in as many bytes as the number had, and no scores and tokens.
            at = start + 1
            while out[at] & 0x80:
                out[at] = 0x80
                at += 1
            out[at] = 0
            at += 1
            while out[at] & 0x80:  # its rank stays
                at += 1
            for rest in range(at + 1, end):
                out[rest] &= 0x80
    return bytes(out)


def named(data: bytes) -> Sequence[tuple[str, int]]:
    """Returns the kind and number of each hit that is not forgotten. Raises: ValueError."""
    return [(e.kind, e.seq) for e in unpack(data).entries if not e.is_forgotten]


def _unpack(data: bytes) -> tuple[RecallRecord, Collection[tuple[int, int]]]:
    """Returns the record, and where the entry of each hit lies."""
    reader = _Reader(data)
    try:
        if reader.number() != _VERSION:
            raise ValueError("the record of a recall is of another version")
        why, flags, mode = WHYS[reader.number()], reader.number(), _MODES[reader.number()]
        status, found, tokens = reader.number(), reader.number(), reader.number()
        left = tuple(reader.number() for _ in REASONS[1:])
        parts = tuple(reader.number() for _ in PARTS)
        context, evicted = reader.number() or None, reader.number()
        added, first, ms = reader.number() / 100, reader.number() / 10, reader.number() / 10
        usage = (reader.number(), reader.number(), reader.number()) if flags & _USAGE else None
        entries, spans = [], []
        for _ in range(reader.number()):
            start = reader.at
            entries.append(_entry(reader, flags))
            spans.append((start, reader.at))
    except IndexError:
        raise ValueError("the record of a recall is damaged") from None
    record = RecallRecord(
        why,
        found,
        tokens,
        bool(flags & _SELECTION),
        mode,
        status,
        bool(flags & _STREAMED),
        parts,
        context,
        evicted,
        added,
        first if flags & _FIRST else None,
        ms,
        usage,
        left,
        tuple(entries),
    )
    return record, spans


def _entry(reader: _Reader, flags: int) -> RecalledEntry:
    head, seq, rank = reader.byte(), reader.number(), reader.number()
    score = words = meaning = None
    if not flags & _SELECTION:
        score, words = reader.byte() / _MOST, reader.byte() / _MOST
        meaning = reader.byte() / _MOST if flags & _MEANING else None
    return RecalledEntry(
        KINDS[head & _KIND_BITS],
        seq,
        rank,
        score,
        words,
        meaning,
        reader.number(),
        REASONS[head >> _REASON_SHIFT & 7],
        bool(head & _FORGOTTEN),
    )


class _Reader:
    """Reads numbers. at: the next byte. Raises, by its methods: IndexError: there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def number(self) -> int:
        found = shift = 0
        while (byte := self.byte()) & 0x80:
            found |= (byte & 0x7F) << shift
            shift += 7
        return found | byte << shift


def _put(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def pack_request(id: str) -> bytes:
    """Returns the id of a request as it is stored, in which it can be looked up."""
    if _OWN.fullmatch(id):
        return _OWN_MARK + bytes.fromhex(id[4:])
    raw = id.encode("utf-8", "replace")
    return raw if len(raw) <= _LONGEST else _HASH_MARK + blake2b(raw, digest_size=16).digest()


def unpack_request(stored: bytes) -> str | None:
    """Returns the id of a request; None: it was too long to be stored."""
    if stored[:1] == _OWN_MARK:
        return f"req_{stored[1:].hex()}"
    return None if stored[:1] == _HASH_MARK else stored.decode("utf-8", "replace")
