"""The record of one recall, and its bytes: numbers alone, so that it holds no words, hashes or names.

    head     version, outcome, flags, mode, how many hits, status, times, context window, how many hits stayed out
    numbers  of two bytes each, or of four where one is larger: what was found, parts of the window, times, usage
    columns  of the hits: kind with reason, rank, a byte for each score (255 is the best), tokens, number

A hit that is forgotten later is overwritten in its columns, which stay as long.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import ceil
from typing import Literal, NamedTuple, get_args

from msgspec import Struct

# The kind of a hit. `any`: the kind is not known, since the text was not read.
HitKind = Literal["message", "fact", "passage", "any"]
# The reason for which a hit stayed out of the note, in this order: its score was too low; the note was full; the
# conversation or an earlier note shows the hit; a chosen hit repeats it; it is muted; another fact has replaced it.
LeftOutReason = Literal["weak", "no_room", "shown", "repeats", "muted", "superseded"]
# How the search for memory ended. `off`, `nobody`: there was no search.
RecallOutcome = Literal[
    "recalled", "nothing_found", "all_shown", "no_room", "late", "failed", "off", "nobody"
]
PromptPart = Literal["system", "tools", "section", "summary", "history", "note", "message"]
# The values in the order of their codes in the bytes of a record. For a hit in the note the reason is "".
KINDS: tuple[HitKind, ...] = get_args(HitKind)
LEFT_OUT_REASONS: tuple[LeftOutReason, ...] = get_args(LeftOutReason)
REASONS: tuple[Literal[""] | LeftOutReason, ...] = ("", *LEFT_OUT_REASONS)
_OUTCOMES: tuple[RecallOutcome, ...] = get_args(RecallOutcome)
PROMPT_PARTS: tuple[PromptPart, ...] = get_args(PromptPart)
_NONE_LEFT_OUT = (0,) * len(LEFT_OUT_REASONS)
_MODES = ("on", "strict")
# The code of an entry: two bits for its kind, three for its reason, and one if the hit is forgotten.
_KIND_MASK = 0b11
_REASON_SHIFT = 2
_REASON_MASK = 0b111
_FORGOTTEN = 1 << 5
# The flags of a record: the note is a selection; there are scores by meaning; the reply is streamed; the record has the
# usage of tokens, and the time of the reply's head.
_IS_SELECTION = 1 << 0
_HAS_MEANING = 1 << 1
_IS_STREAMED = 1 << 2
_HAS_USAGE = 1 << 3
_HAS_FIRST = 1 << 4
# Flags of wide columns: numbers take four bytes each instead of two, the hits' numbers too, and their tokens two
# instead of one.
_WIDE_NUMBERS = 1 << 5
_WIDE_SEQS = 1 << 6
_WIDE_TOKENS = 1 << 7
# The version of the form of records.
_VERSION = 1
# The largest numbers of one byte, of two and of four.
_MAX_BYTE = 0xFF
_MAX_SHORT = 0xFFFF
_MAX_NUMBER = 0xFFFF_FFFF
# Version, outcome, flags, mode, how many hits; status; tenths of milliseconds, in all and up to the head of the reply;
# context window; how many stayed out.
_HEAD = struct.Struct("<5BHIII6B")
# What was found, recalled tokens, seven parts of the window, evicted, added hundredths of milliseconds, three of usage.
_SHORT_NUMBERS = struct.Struct("<14H")
_LONG_NUMBERS = struct.Struct("<14I")
# The ids that the gateway itself gives to requests: twelve random bytes.
_GATEWAY_ID = re.compile(r"req_[0-9a-f]{24}")
# A longer id is stored as its hash.
_MAX_ID_BYTES = 64
# The first byte of an id that the gateway gave, and of the hash of an id.
_GATEWAY_MARK = b"\x00"
_HASH_MARK = b"\x01"


class RecalledEntry(Struct, frozen=True):
    """A hit of a search."""

    # The kind of the hit.
    kind: HitKind
    # The number of the message, fact or passage.
    seq: int
    # The hit's rank among all hits, from 1 on.
    rank: int
    # The score by words and meaning together, from 0 to 1; None: there are no scores.
    score: float | None = None
    # The score by words alone, from 0 to 1; None: there are no scores.
    words: float | None = None
    # The score by meaning alone, from 0 to 1; None: there are no scores.
    meaning: float | None = None
    # The tokens that the hit's text takes in the note.
    tokens: int = 0
    # The reason for which the hit stayed out of the note; "": the note has it.
    reason: Literal[""] | LeftOutReason = ""
    # True if the hit was forgotten since, so that its number names nothing.
    is_forgotten: bool = False


class RecallRecord(Struct, frozen=True):
    """The outcome of one recall, and the request that it was for."""

    # The outcome of the recall.
    outcome: RecallOutcome
    # The number of hits: those in the note, and those that `left_out` counts.
    found: int = 0
    # The tokens of the hits that went into the note.
    recalled_tokens: int = 0
    # True if the note is a selection of the whole memory, and nothing was searched for.
    is_selection: bool = False
    # The mode of memory: on or strict.
    mode: str = "on"
    # The status of the reply.
    status: int = 200
    # True if the reply was a stream.
    is_streamed: bool = False
    # The tokens of each part of the prompt, in the order of PROMPT_PARTS.
    part_tokens: tuple[int, ...] = (0,) * len(PROMPT_PARTS)
    # The model's window in tokens; None: unknown.
    context_window: int | None = None
    # The tokens of the messages that have left the window.
    evicted_tokens: int = 0
    # The time that the gateway added to the request.
    added_ms: float = 0.0
    # The time from the request to the reply's head; None: there was no reply.
    first_ms: float | None = None
    # The time from the request to the end of the reply.
    ms: float = 0.0
    # The input, output and cached tokens of the request; None: they are not known.
    usage: tuple[int, int, int] | None = None
    # The number of hits that stayed out for each of LEFT_OUT_REASONS. Hits too weak for the ranking are
    # counted only if they are in `entries`.
    left_out: tuple[int, ...] = _NONE_LEFT_OUT
    # The hits that went into the note, and the best of the others, by rank.
    entries: tuple[RecalledEntry, ...] = ()


# An entry as it is packed: rank, kind and reason (`pack_code`), three scores from 0 to 255, tokens, number. A plain
# tuple is made in an eighth of the time of a named one, and each turn makes some.
EntryRow = tuple[int, int, int, int, int, int, int]
_ROW_FIELDS = ("rank", "code", "score", "words", "meaning", "tokens", "seq")


def pack_code(kind: str, reason: str) -> int:
    """Returns the byte for the kind of a hit, and for why it stayed out."""
    return KINDS.index(kind) | (REASONS.index(reason) << _REASON_SHIFT)


def _pack_entry(entry: RecalledEntry) -> EntryRow:
    """Returns an entry as it is packed."""
    scores = (entry.score, entry.words, entry.meaning)
    score, words, meaning = (int((value or 0.0) * _MAX_BYTE) for value in scores)
    code = pack_code(entry.kind, entry.reason) | _FORGOTTEN * entry.is_forgotten
    return entry.rank, code, score, words, meaning, entry.tokens, entry.seq


def unpack_entry(row: EntryRow, *, has_scores: bool, has_meaning: bool) -> RecalledEntry:
    """Returns the entry of a row. has_scores: False for a selection of the whole memory, which was not ranked."""
    rank, code, score, words, meaning, tokens, seq = row
    return RecalledEntry(
        kind=KINDS[code & _KIND_MASK],
        seq=seq,
        rank=rank,
        score=score / _MAX_BYTE if has_scores else None,
        words=words / _MAX_BYTE if has_scores else None,
        meaning=meaning / _MAX_BYTE if has_scores and has_meaning else None,
        tokens=tokens,
        reason=REASONS[(code >> _REASON_SHIFT) & _REASON_MASK],
        is_forgotten=bool(code & _FORGOTTEN),
    )


def pack(record: RecallRecord) -> bytes:
    """Returns the bytes of a record."""
    has_meaning = any(entry.meaning is not None for entry in record.entries)
    return pack_rows(record, [_pack_entry(entry) for entry in record.entries], has_meaning=has_meaning)


def pack_rows(record: RecallRecord, rows: Sequence[EntryRow], *, has_meaning: bool) -> bytes:
    """Returns the bytes of a record with these entries in place of the record's."""
    rows = rows[:_MAX_BYTE]
    columns = [*zip(*rows, strict=True)] or [()] * len(_ROW_FIELDS)
    ranks, *_, tokens, seqs = columns
    # An upstream may report any number.
    usage = [min(count, _MAX_NUMBER) for count in record.usage or (0, 0, 0)]
    added_hundredths = min(int(record.added_ms * 100), _MAX_NUMBER)
    numbers = (
        record.found,
        record.recalled_tokens,
        *record.part_tokens,
        record.evicted_tokens,
        added_hundredths,
        *usage,
    )
    flags = (
        _IS_SELECTION * record.is_selection
        | _HAS_MEANING * has_meaning
        | _IS_STREAMED * record.is_streamed
        | _HAS_USAGE * (record.usage is not None)
        | _HAS_FIRST * (record.first_ms is not None)
        | _WIDE_NUMBERS * (max(numbers) > _MAX_SHORT)
        | _WIDE_SEQS * (max(seqs, default=0) > _MAX_SHORT)
        | _WIDE_TOKENS * (max(tokens, default=0) > _MAX_BYTE)
    )
    head = _pack_head(record, flags, len(rows))
    if not rows:
        return head + _choose_numbers_struct(flags).pack(*numbers)
    values = dict(zip(_ROW_FIELDS, columns, strict=True))
    if max(ranks) > _MAX_BYTE:
        values["rank"] = tuple(min(rank, _MAX_BYTE) for rank in ranks)
    packed = [column.struct.pack(*values[column.name]) for column in _list_columns(flags, len(rows))]
    return b"".join((head, _choose_numbers_struct(flags).pack(*numbers), *packed))


def _pack_head(record: RecallRecord, flags: int, count: int) -> bytes:
    """Returns the head of a record. count: the number of its entries."""
    return _HEAD.pack(
        _VERSION,
        _OUTCOMES.index(record.outcome),
        flags,
        _MODES.index(record.mode),
        count,
        record.status,
        min(ceil(record.ms * 10), _MAX_NUMBER),
        min(ceil((record.first_ms or 0.0) * 10), _MAX_NUMBER),
        min(record.context_window or 0, _MAX_NUMBER),
        *[min(number, _MAX_BYTE) for number in record.left_out],
    )


def unpack(data: bytes, *, reads_entries: bool = True) -> RecallRecord:
    """Returns the record of these bytes. Raises: ValueError if they are damaged, or of a later version.

    reads_entries: False for a list of many records: the record has no entries, and takes a third of the time.
    """
    try:
        outcome, flags, mode, count, status, *numbers = _unpack_head(data)
        total_tenths, first_tenths, context_window, *left_out = numbers
        found, recalled_tokens, *numbers = _choose_numbers_struct(flags).unpack_from(data, _HEAD.size)
        part_tokens, numbers = numbers[: len(PROMPT_PARTS)], numbers[len(PROMPT_PARTS) :]
        evicted_tokens, added_hundredths, *usage = numbers
        return RecallRecord(
            outcome=_OUTCOMES[outcome],
            found=found,
            recalled_tokens=recalled_tokens,
            is_selection=bool(flags & _IS_SELECTION),
            mode=_MODES[mode],
            status=status,
            is_streamed=bool(flags & _IS_STREAMED),
            part_tokens=tuple(part_tokens),
            context_window=context_window or None,
            evicted_tokens=evicted_tokens,
            added_ms=added_hundredths / 100,
            first_ms=first_tenths / 10 if flags & _HAS_FIRST else None,
            ms=total_tenths / 10,
            usage=(usage[0], usage[1], usage[2]) if flags & _HAS_USAGE else None,
            left_out=tuple(left_out),
            entries=_unpack_entries(data, flags, count) if reads_entries else (),
        )
    except (struct.error, IndexError):
        raise ValueError("the record of a recall is damaged") from None


def _unpack_head(data: bytes) -> Sequence[int]:
    """Returns the fields of the head without the version. Raises: ValueError, struct.error."""
    version, *fields = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise ValueError("the record of a recall is of another version")
    return fields


def _unpack_entries(data: bytes, flags: int, count: int) -> tuple[RecalledEntry, ...]:
    """Returns the entries of a record. count: their number, which the head has."""
    columns = _list_columns(flags, count)
    values = {column.name: column.struct.unpack_from(data, column.start) for column in columns}
    rows = zip(*(values.get(name, (0,) * count) for name in _ROW_FIELDS), strict=True)
    has_scores = not flags & _IS_SELECTION
    has_meaning = bool(flags & _HAS_MEANING)
    return tuple(unpack_entry(row, has_scores=has_scores, has_meaning=has_meaning) for row in rows)


def overwrite_forgotten(data: bytes, exists: Callable[[str, int], bool]) -> bytes:
    """Returns a record's bytes, of the same length, with the hits overwritten that do not exist any more.

    exists: a function that returns whether the text with a kind and a number still exists.

    Raises: ValueError if the bytes are damaged, or of a later version.
    """
    entries = unpack(data).entries
    _, flags, *_ = _unpack_head(data)
    columns = _list_columns(flags, len(entries))
    overwritten = bytearray(data)
    for position, entry in enumerate(entries):
        if not entry.is_forgotten and not exists(entry.kind, entry.seq):
            for column in columns:
                offset = column.start + position * column.width
                if column.name == "code":
                    overwritten[offset] |= _FORGOTTEN
                elif column.name != "rank":
                    overwritten[offset : offset + column.width] = bytes(column.width)
    return bytes(overwritten)


def read_note_seqs(data: bytes) -> Sequence[int]:
    """Returns the numbers of the hits in the note that are not forgotten. Raises: ValueError."""
    try:
        _, flags, _, count, *_ = _unpack_head(data)
        values = {
            column.name: column.struct.unpack_from(data, column.start)
            for column in _list_columns(flags, count)
            if column.name in ("code", "seq")
        }
    except struct.error:
        raise ValueError("the record of a recall is damaged") from None
    # A hit without a reason is in the note.
    return [
        seq
        for code, seq in zip(values["code"], values["seq"], strict=True)
        if not code & (_FORGOTTEN | _REASON_MASK << _REASON_SHIFT)
    ]


class RecalledHit(NamedTuple):
    """A hit of a search, by its kind and its number."""

    kind: HitKind
    seq: int


def read_hits(data: bytes) -> Sequence[RecalledHit]:
    """Returns the hits that are not forgotten. Raises: ValueError."""
    return [RecalledHit(entry.kind, entry.seq) for entry in unpack(data).entries if not entry.is_forgotten]


def _choose_numbers_struct(flags: int) -> struct.Struct:
    return _LONG_NUMBERS if flags & _WIDE_NUMBERS else _SHORT_NUMBERS


class _Column(NamedTuple):
    """A column of a record, and its place in the record's bytes."""

    # The field of an entry that the column holds: one of _ROW_FIELDS.
    name: str
    # The form in which the column's values are packed.
    struct: struct.Struct
    # The offset of the first value.
    start: int
    # The bytes of a value.
    width: int


@lru_cache(maxsize=256)
def _list_columns(flags: int, count: int) -> list[_Column]:
    """Returns the columns of a record in their order. count: the number of its entries."""
    formats = {"code": "B", "rank": "B"}
    if not flags & _IS_SELECTION:
        formats |= {"score": "B", "words": "B"}
        if flags & _HAS_MEANING:
            formats["meaning"] = "B"
    formats["tokens"] = "H" if flags & _WIDE_TOKENS else "B"
    formats["seq"] = "I" if flags & _WIDE_SEQS else "H"
    columns: list[_Column] = []
    start = _HEAD.size + _choose_numbers_struct(flags).size
    for name, format in formats.items():
        width = struct.calcsize(f"<{format}")
        columns.append(_Column(name, struct.Struct(f"<{count}{format}"), start, width))
        start += count * width
    return columns


def pack_request_id(request_id: str) -> bytes:
    """Returns the form in which the id of a request is stored and looked up."""
    if _GATEWAY_ID.fullmatch(request_id):
        return _GATEWAY_MARK + bytes.fromhex(request_id[4:])
    raw = request_id.encode("utf-8", "replace")
    return raw if len(raw) <= _MAX_ID_BYTES else _HASH_MARK + blake2b(raw, digest_size=16).digest()


def unpack_request_id(stored: bytes) -> str | None:
    """Returns the id of a request; None: the id was too long to be stored."""
    if stored[:1] == _GATEWAY_MARK:
        return f"req_{stored[1:].hex()}"
    return None if stored[:1] == _HASH_MARK else stored.decode("utf-8", "replace")
