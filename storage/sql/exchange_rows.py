"""The rows of exchanges: how an exchange is written to the columns of its row, and made again of a row that was read.

A row that is read has the columns of the piece `{skeleton}` (pieces.sql). Statements that read content as well have its
three columns first: input, shown reply, full reply.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from storage.database import Row
from storage.records import Atom, EvictedPart, Exchange, ExchangeState, make_message_key

# The bytes of an atom: a kind and 11 of a digest. The digest of a message's media has 11.
ATOM_BYTES = 12
_MEDIA_BYTES = 11

# Notes of fewer bytes are not deflated: they gain too little.
_MIN_DEFLATED_BYTES = 200
# The first byte of zlib's output; JSON begins with a brace.
_ZLIB_BYTE = b"x"
# Level 6 makes notes of scripts/bench size 0.38 times as large in 21 us, level 1 0.40 times in 16 us. Either is read in
# 6 us. A dictionary of the words around quotations gains another tenth, and could not be changed any more.
_ZLIB_LEVEL = 6

_STATES = {str(state): state for state in ExchangeState}
_NO_REDACTIONS: frozenset[int] = frozenset()


# -- bytes of a column


def pack_inputs(inputs: Sequence[Sequence[Atom]]) -> bytes:
    """Packs the atoms of messages: for each message their number, in two bytes, and then the atoms."""
    return b"".join([len(atoms).to_bytes(2, "big") + b"".join(atoms) for atoms in inputs])


def unpack_inputs(data: bytes) -> tuple[tuple[Atom, ...], ...]:
    """Returns the atoms of each message."""
    if len(data) == 2 + ATOM_BYTES and data[1]:  # one message of one atom, as nearly always
        return ((data[2:],),)
    inputs = []
    offset = 0
    while offset < len(data):
        end = offset + 2 + ATOM_BYTES * int.from_bytes(data[offset : offset + 2], "big")
        inputs.append(_unpack_atoms(data[offset + 2 : end]))
        offset = end
    return tuple(inputs)


def _unpack_atoms(data: bytes) -> tuple[Atom, ...]:
    """Returns the atoms of one message, or of a reply."""
    return tuple([data[i : i + ATOM_BYTES] for i in range(0, len(data), ATOM_BYTES)])


def _pack_media(media: Sequence[bytes]) -> bytes:
    """Packs the digests of messages' media: for each message a byte, 1 if it has media, and then the digest."""
    return b"".join([b"\x01" + digest if digest else b"\x00" for digest in media])


def _unpack_media(data: bytes) -> tuple[bytes, ...]:
    if data == b"\x00":  # one message without any, as nearly always
        return (b"",)
    media = []
    offset = 0
    while offset < len(data):
        size = _MEDIA_BYTES if data[offset] else 0
        media.append(data[offset + 1 : offset + 1 + size])
        offset += 1 + size
    return tuple(media)


def pack_notes(notes: Mapping[int, str]) -> bytes | None:
    """Packs notes as JSON, deflated if that is shorter, since notes quote people at length."""
    if not notes:
        return None
    data = orjson.dumps(notes, option=orjson.OPT_NON_STR_KEYS)
    return data if len(data) < _MIN_DEFLATED_BYTES else min(zlib.compress(data, _ZLIB_LEVEL), data, key=len)


def unpack_notes(data: bytes | None) -> dict[int, str]:
    """Returns notes, each with the text that was packed. Raises: ValueError if they are damaged."""
    if not data:
        return {}
    if data[:1] == _ZLIB_BYTE:
        try:
            data = zlib.decompress(data)
        except zlib.error as error:
            raise ValueError("the notes of an exchange are damaged") from error
    return {int(index): note for index, note in orjson.loads(data).items()}


# -- rows to records


def make_exchange(
    row: Row, input_: bytes | None = None, shown_reply: bytes | None = None, full_reply: bytes | None = None
) -> Exchange:
    """Makes an exchange of a row that begins with the columns of `{skeleton}`."""
    (
        exchange_row, conversation_row, parent, depth, seq, offset, length, begun, touched, ended, stopped,
        state, superseded, continued, active, edits, merged, size, head, evicted, prior, section,
        path_hash, reply_key, redactions, inputs, media, reply, notes, run, opaque, model, hidden, *_,
    ) = row  # fmt: skip
    # The fields are given by position: keywords cost half as much again, and a long conversation has hundreds of rows.
    return Exchange(
        exchange_row,
        conversation_row,
        parent,
        depth,
        offset,
        unpack_inputs(inputs),
        _unpack_media(media),
        None if reply is None else _unpack_atoms(reply),
        path_hash,
        reply_key,
        begun,
        touched,
        ended,
        size,
        length,
        bool(active),
        seq,
        run,
        prior,
        unpack_notes(notes),
        section,
        bool(edits),
        EvictedPart(*orjson.loads(evicted)) if evicted else None,
        input_,
        shown_reply,
        full_reply,
        bool(hidden),
        bool(opaque),
        model,
        stopped,
        head,
        frozenset(orjson.loads(redactions)) if redactions else _NO_REDACTIONS,
        _STATES[state],
        bool(superseded),
        bool(continued),
        merged,
    )


def make_exchange_with_content(row: Row) -> Exchange:
    """Makes an exchange of a row of (input, shown reply, full reply, `{skeleton}`)."""
    return make_exchange(row[3:], *row[:3])


def make_exchanges(rows: Iterable[Sequence[Any]]) -> list[Exchange]:
    """Makes exchanges of rows of `{skeleton}`."""
    return [make_exchange(row) for row in rows]


class ShownExchange(NamedTuple):
    """An exchange as searches and lists of its shown messages need it."""

    # With the fields that decide which of its messages are shown, and without its place on a path.
    exchange: Exchange

    # True: another conversation opened with the same prefix.
    prefix_is_shared: bool
    # The number of the message before it; None: there is none.
    previous_seq: int | None


def make_shown_exchanges(rows: Iterable[Sequence[Any]]) -> list[ShownExchange]:
    """Makes exchanges of rows of `{shown}`."""
    return [_make_shown_exchange(row) for row in rows]


def _make_shown_exchange(row: Sequence[Any]) -> ShownExchange:
    """Returns the record of a row of `{shown}`."""
    (
        input_, shown_reply, prefix_is_shared, previous_seq, exchange_row, conversation, seq, begun, touched, ended,
        stopped, state, active, continued, prefix_length, redactions, inputs, reply, *_,
    ) = row  # fmt: skip
    exchange = Exchange(
        exchange_row,
        conversation,
        parent=None,
        depth=0,
        offset=0,
        inputs=unpack_inputs(inputs),
        media=(),
        reply=None if reply is None else _unpack_atoms(reply),
        path_hash=b"",
        reply_key=None,
        begun=begun,
        touched=touched,
        ended=ended,
        stopped=stopped,
        seq=seq,
        state=_STATES[state],
        active=bool(active),
        continued=bool(continued),
        prefix_length=prefix_length,
        redactions=frozenset(orjson.loads(redactions)) if redactions else _NO_REDACTIONS,
        input=input_,
        shown_reply=shown_reply,
    )
    return ShownExchange(exchange, bool(prefix_is_shared), previous_seq)


def is_step(exchange: Exchange) -> bool:
    """Returns whether an exchange is a step of a run: its reply goes upstream as it is, without hidden rounds.

    Its calls stay with it: their results are messages of their own, which no provider takes without them.
    """
    return exchange.full_reply is not None and bool(orjson.loads(exchange.full_reply).get("step"))


# -- records to rows


def make_row_values(exchange: Exchange) -> list[Any]:
    """Returns the values of a row in the order of `{columns}`: booleans as numbers, which sqlite3 need not adapt."""
    return [
        exchange.conversation_row,
        exchange.parent,
        exchange.depth,
        len(exchange.inputs) + 1,
        exchange.offset,
        exchange.length,
        exchange.begun,
        exchange.touched,
        exchange.ended,
        exchange.stopped,
        str(exchange.state),
        +exchange.superseded,
        +exchange.continued,
        +exchange.active,
        +exchange.edits,
        +exchange.has_additions,
        +exchange.opaque,
        exchange.model,
        exchange.merged,
        exchange.size,
        exchange.prefix_length,
        orjson.dumps(list(exchange.evicted)) if exchange.evicted else None,
        exchange.prior,
        exchange.section,
        exchange.path_hash,
        exchange.reply_key,
        make_message_key(exchange.inputs[-1]) if exchange.inputs else None,
        orjson.dumps(sorted(exchange.redactions)) if exchange.redactions else None,
        pack_inputs(exchange.inputs),
        _pack_media(exchange.media),
        None if exchange.reply is None else b"".join(exchange.reply),
        pack_notes(exchange.notes),
        exchange.input,
        exchange.shown_reply,
        exchange.full_reply,
    ]


def update_values(exchange: Exchange, *, is_whole: bool = False) -> list[Any]:
    """Returns the values of the statement `exchange_update`, up to the exchange's id."""
    return [*make_row_values(exchange), int(exchange.has_full_reply), int(not is_whole)]
