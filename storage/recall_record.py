"""The record of one recall, and its bytes: numbers alone, so that it holds no words, hashes or names.

    head     version, why, flags, mode, how many hits, status, times, the model's context, how many hits were left out
    numbers  of two bytes each, or of four where one is larger: what was found, parts of the window, times, usage
    columns  of the hits: kind with reason, rank, a byte for each score (255 is the best), tokens, number

A hit that is forgotten later is overwritten in its columns, which stay as long.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from msgspec import Struct

# `any`: a hit whose words were not read is one of these.
KINDS = ("message", "fact", "passage", "any")
# Why a hit stayed out of the note; "": it did not.
REASONS = ("", "weak", "no_room", "shown", "repeats", "muted", "superseded")
WHYS = ("recalled", "nothing_found", "all_shown", "no_room", "late", "failed", "off", "nobody")
PARTS = ("system", "tools", "section", "summary", "history", "note", "message")
NONE_LEFT_OUT = (0,) * (len(REASONS) - 1)
_MODES = ("on", "strict")
_KIND_BITS, _REASON_SHIFT, _FORGOTTEN = 3, 2, 1 << 5
_SELECTION, _MEANING, _STREAMED, _USAGE, _FIRST, _WIDE_NUMBERS, _WIDE_SEQS, _WIDE_TOKENS = (
    1 << n for n in range(8)
)
_VERSION = 1
_MOST_BYTE = 255
_MOST_NUMBER = 0xFFFF_FFFF
# Version, why, flags, mode, how many hits; status; tenths of milliseconds, in all and up to the reply's head; context;
# how many stayed out.
_HEAD = struct.Struct("<5BHIII6B")
_NUMBERS = 14
# The ids that the gateway itself gives to requests: twelve random bytes.
_GATEWAY_ID = re.compile(r"req_[0-9a-f]{24}")
# A longer id is stored as its hash.
_MOST_ID_BYTES = 64
_GATEWAY_MARK, _HASH_MARK = b"\x00", b"\x01"


# By all, by words, by meaning, from 0 to 255, relative to the best of the search.
HitScores = tuple[int, int, int]


def _no_scores() -> list[HitScores]:
    return []


@dataclass(slots=True)
class SearchTrace:
    """How a search came to its hits, for its caller to show why."""

    # Best first; of a selection of the whole memory there are none.
    hits: Sequence[int] = ()
    # Hits that are muted.
    muted: Sequence[int] = ()
    # Vectors counted.
    has_meaning: bool = False
    # Returns the scores of the hits, in their order. It is called where the record is packed, off the loop.
    scores: Callable[[], list[HitScores]] = _no_scores
    # Returns the best, up to a limit, of those that are too weak for a note, with their scores.
    # None: nothing was ranked. It refers to the whole ranking, so that a trace that lives longer must not have it.
    weak: Callable[[int], list[tuple[int, HitScores]]] | None = None


class RecalledEntry(Struct, frozen=True):
    """A hit of a search."""

    # One of KINDS.
    kind: str
    # The number of the message, fact or passage.
    seq: int
    # Its place among all hits.
    rank: int
    # By all, by words and by meaning, from 0 to 1; None: there are no scores.
    score: float | None = None
    words: float | None = None
    meaning: float | None = None
    # Of its text in the note.
    tokens: int = 0
    # One of REASONS; "": it went into the note.
    reason: str = ""
    is_forgotten: bool = False


class RecallRecord(Struct, frozen=True):
    """The note of one recall."""

    # One of WHYS.
    why: str
    # How many hits there were.
    found: int = 0
    # Of those that went into the note.
    recalled_tokens: int = 0
    # The note is a selection of the whole memory, and nothing was searched for.
    is_selection: bool = False
    # Of memory: on or strict.
    mode: str = "on"
    # Of the reply.
    status: int = 200
    is_streamed: bool = False
    # Tokens, in the order of PARTS.
    parts: tuple[int, ...] = (0,) * len(PARTS)
    # The model's window in tokens; None: unknown.
    context: int | None = None
    # How many messages have left the window.
    evicted: int = 0
    # The time that the gateway added, until the reply's head, and in all.
    added_ms: float = 0.0
    first_ms: float | None = None
    ms: float = 0.0
    # Input, output and cached tokens.
    usage: tuple[int, int, int] | None = None
    # How many hits stayed out, in the order of REASONS, from the second on.
    left_out: tuple[int, ...] = NONE_LEFT_OUT
    # By rank: those that went in, and the best of the others.
    entries: tuple[RecalledEntry, ...] = ()


# An entry as it is packed: kind and reason (`code_of`), number, rank, three scores from 0 to 255, tokens. Below, the
# names of their columns.
EntryRow = tuple[int, int, int, int, int, int, int]
_ROW = ("code", "seq", "rank", "score", "words", "meaning", "tokens")


def code_of(kind: str, reason: str) -> int:
    """Returns the byte for the kind of a hit, and for why it stayed out."""
    return KINDS.index(kind) | REASONS.index(reason) << _REASON_SHIFT


def row_of(e: RecalledEntry) -> EntryRow:
    """Returns an entry as it is packed."""
    scores = [int((score or 0.0) * _MOST_BYTE) for score in (e.score, e.words, e.meaning)]
    code = code_of(e.kind, e.reason) | _FORGOTTEN * e.is_forgotten
    return code, e.seq, e.rank, scores[0], scores[1], scores[2], e.tokens


def entry_of(row: EntryRow, *, has_scores: bool, has_meaning: bool) -> RecalledEntry:
    """Returns the entry of a row. has_scores: False in a selection of the whole memory."""
    code, seq, rank, *scores, tokens = row
    score, words, meaning = (value / _MOST_BYTE for value in scores)
    return RecalledEntry(
        KINDS[code & _KIND_BITS],
        seq,
        rank,
        score if has_scores else None,
        words if has_scores else None,
        meaning if has_scores and has_meaning else None,
        tokens,
        REASONS[code >> _REASON_SHIFT & 7],
        bool(code & _FORGOTTEN),
    )


def pack(record: RecallRecord) -> bytes:
    """Returns the bytes of a record."""
    has_meaning = any(e.meaning is not None for e in record.entries)
    return pack_rows(record, [row_of(e) for e in record.entries], has_meaning=has_meaning)


def pack_rows(record: RecallRecord, rows: Sequence[EntryRow], *, has_meaning: bool) -> bytes:
    """Returns the bytes of a record with these entries in the place of its own."""
    rows = rows[:_MOST_BYTE]
    flags, columns = _pack_columns(rows, has_scores=not record.is_selection, has_meaning=has_meaning)
    # An upstream may report any number.
    usage = [min(n, _MOST_NUMBER) for n in record.usage or (0, 0, 0)]
    added = min(int(record.added_ms * 100), _MOST_NUMBER)
    numbers = (record.found, record.recalled_tokens, *record.parts, record.evicted, added, *usage)
    is_wide = max(numbers) > 0xFFFF
    flags |= (
        _SELECTION * record.is_selection
        | _MEANING * has_meaning
        | _STREAMED * record.is_streamed
        | _USAGE * (record.usage is not None)
        | _FIRST * (record.first_ms is not None)
        | _WIDE_NUMBERS * is_wide
    )
    head = _HEAD.pack(
        _VERSION,
        WHYS.index(record.why),
        flags,
        _MODES.index(record.mode),
        len(rows),
        record.status,
        min(ceil(record.ms * 10), _MOST_NUMBER),
        min(ceil((record.first_ms or 0.0) * 10), _MOST_NUMBER),
        min(record.context or 0, _MOST_NUMBER),
        *[min(n, _MOST_BYTE) for n in record.left_out],
    )
    return head + struct.pack(f"<{_NUMBERS}{'I' if is_wide else 'H'}", *numbers) + columns


def _pack_columns(rows: Sequence[EntryRow], *, has_scores: bool, has_meaning: bool) -> tuple[int, bytes]:
    """Returns the columns of these entries, and the flags that say how wide they are. has_scores: as for `entry_of`."""
    if not rows:
        return 0, b""
    codes, seqs, ranks, scores, words, meanings, tokens = zip(*rows, strict=True)
    has_wide_seqs, has_wide_tokens = max(seqs) > 0xFFFF, max(tokens) > _MOST_BYTE
    parts = [bytes(codes), bytes([min(rank, _MOST_BYTE) for rank in ranks])]
    if has_scores:
        parts += [bytes(scores), bytes(words)]
        if has_meaning:
            parts.append(bytes(meanings))
    parts.append(struct.pack(f"<{len(rows)}{'H' if has_wide_tokens else 'B'}", *tokens))
    parts.append(struct.pack(f"<{len(rows)}{'I' if has_wide_seqs else 'H'}", *seqs))
    return _WIDE_SEQS * has_wide_seqs | _WIDE_TOKENS * has_wide_tokens, b"".join(parts)


def unpack(data: bytes) -> RecallRecord:
    """Returns the record of these bytes. Raises: ValueError: they are damaged, or of a later version."""
    return _unpack(data)[0]


def overwrite_forgotten(data: bytes, exists: Callable[[str, int], bool]) -> bytes:
    """Returns a record's bytes with the hits overwritten that do not exist any more. The length stays.

    exists: whether there still is a text, by its kind and number.
    Raises: ValueError: the bytes are damaged, or of a later version.
    """
    record, columns = _unpack(data)
    out = bytearray(data)
    for n, e in enumerate(record.entries):
        if not e.is_forgotten and not exists(e.kind, e.seq):
            for name, start, width in columns:
                at = start + n * width
                if name == "code":
                    out[at] |= _FORGOTTEN
                elif name != "rank":
                    out[at : at + width] = bytes(width)
    return bytes(out)


def hits_in(data: bytes) -> Sequence[tuple[str, int]]:
    """Returns the kind and number of each hit that is not forgotten. Raises: ValueError."""
    return [(e.kind, e.seq) for e in unpack(data).entries if not e.is_forgotten]


def _unpack(data: bytes) -> tuple[RecallRecord, Sequence[tuple[str, int, int]]]:
    """Returns the record, and of each column its name, where it begins, and how wide its values are."""
    try:
        version, why, flags, mode, count, status, ms, first, context, *left_out = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise ValueError("the record of a recall is of another version")
        kind = "I" if flags & _WIDE_NUMBERS else "H"
        numbers = struct.unpack_from(f"<{_NUMBERS}{kind}", data, _HEAD.size)
        at = _HEAD.size + struct.calcsize(f"<{_NUMBERS}{kind}")
        columns: list[tuple[str, int, int]] = []
        values: dict[str, tuple[int, ...]] = {}
        for name, kind in _columns(flags):
            width = struct.calcsize(f"<{kind}")
            columns.append((name, at, width))
            values[name] = struct.unpack_from(f"<{count}{kind}", data, at)
            at += count * width
        has_scores, has_meaning = not flags & _SELECTION, bool(flags & _MEANING)
        no_values = (0,) * count
        rows = zip(*(values.get(name, no_values) for name in _ROW), strict=True)
        entries = tuple(entry_of(row, has_scores=has_scores, has_meaning=has_meaning) for row in rows)
        found, tokens, *rest = numbers
        parts, (evicted, added, *usage) = rest[: len(PARTS)], rest[len(PARTS) :]
        record = RecallRecord(
            why=WHYS[why],
            found=found,
            recalled_tokens=tokens,
            is_selection=bool(flags & _SELECTION),
            mode=_MODES[mode],
            status=status,
            is_streamed=bool(flags & _STREAMED),
            parts=tuple(parts),
            context=context or None,
            evicted=evicted,
            added_ms=added / 100,
            first_ms=first / 10 if flags & _FIRST else None,
            ms=ms / 10,
            usage=(usage[0], usage[1], usage[2]) if flags & _USAGE else None,
            left_out=tuple(left_out),
            entries=entries,
        )
    except (struct.error, IndexError):
        raise ValueError("the record of a recall is damaged") from None
    return record, columns


def _columns(flags: int) -> list[tuple[str, str]]:
    """Returns the columns of a record in their order, each with the kind of its values."""
    found = [("code", "B"), ("rank", "B")]
    if not flags & _SELECTION:
        found += [("score", "B"), ("words", "B")]
        if flags & _MEANING:
            found.append(("meaning", "B"))
    found.append(("tokens", "H" if flags & _WIDE_TOKENS else "B"))
    found.append(("seq", "I" if flags & _WIDE_SEQS else "H"))
    return found


def pack_request(id: str) -> bytes:
    """Returns the id of a request as it is stored, in which it can be looked up."""
    if _GATEWAY_ID.fullmatch(id):
        return _GATEWAY_MARK + bytes.fromhex(id[4:])
    raw = id.encode("utf-8", "replace")
    return raw if len(raw) <= _MOST_ID_BYTES else _HASH_MARK + blake2b(raw, digest_size=16).digest()


def unpack_request(stored: bytes) -> str | None:
    """Returns the id of a request; None: it was too long to be stored."""
    if stored[:1] == _GATEWAY_MARK:
        return f"req_{stored[1:].hex()}"
    return None if stored[:1] == _HASH_MARK else stored.decode("utf-8", "replace")
