"""The messages of a stored exchange as they are shown: each with its number, its state, its calls and its note.

Texts are cut, so that a page has a bound. A line stands for each image or sound.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.private import find_author
from gateway.core.conversation.wire_message import (
    WireMessage,
    find_callee,
    list_shown_media,
    read_call_id,
    read_result_id,
    read_text,
)
from gateway.run.admin.records.memory_records import MessageRecord, ShownCall
from storage.records import REPLY, Exchange, ExchangeState

# The characters that are shown of a text.
TEXT_CHARS = 4_000
# The characters that are shown of a tool's arguments, and of its result.
TOOL_CHARS = 1_000
_State = Literal["standing", "superseded", "cancelled", "off", "forgotten"]
# The bytes of a megabyte, as file managers count.
_MEGABYTE = 1_000_000


def make_message_records(
    exchange: Exchange, request: str | None, *, is_whole: bool = False
) -> list[MessageRecord]:
    """Returns the messages of an exchange, in order.

    An exchange that is off the record, or was forgotten whole, is one record without text.

    exchange: the exchange, with its content.
    request: the id of the request that the exchange answered; None: not known.
    is_whole: True: no text is cut.
    """
    if is_tombstone(exchange):
        state: _State = "off" if exchange.state is ExchangeState.OFF else "forgotten"
        if not exchange.inputs and exchange.reply is None:
            return []
        record = _make_record_without_text(exchange, exchange.seq, "", exchange.begun, state)
        return [replace(record, last_seq=get_last_seq(exchange))]
    records = _make_input_records(exchange, is_whole=is_whole)
    reply = _make_reply_record(exchange, request, is_whole=is_whole)
    if reply is not None:
        records.append(reply)
    return records


def get_last_seq(exchange: Exchange) -> int | UnsetType:
    """Returns the number of an exchange's last message. Returns UNSET if the exchange is a question and its reply."""
    return exchange.reply_seq - (exchange.reply is None) if len(exchange.inputs) > 1 else UNSET


def _render_readable_text(message: WireMessage) -> str:
    """Returns the text of a message, with a line for each image or sound."""
    lines = [read_text(message)] if read_text(message) else []
    return "\n".join([*lines, *map(_render_media, list_shown_media(message))])


def _make_input_records(exchange: Exchange, *, is_whole: bool) -> list[MessageRecord]:
    """Returns the records of the client's messages."""
    inputs: list[WireMessage] = orjson.loads(exchange.input or b"[]")
    records: list[MessageRecord] = []
    for index, message in enumerate(inputs):
        seq = exchange.seq + index
        if index in exchange.redactions:
            records.append(
                _make_record_without_text(exchange, seq, _read_role(message), exchange.begun, "forgotten")
            )
        else:
            record = _make_record(exchange, seq, message, exchange.begun, is_whole=is_whole)
            records.append(replace(record, note=exchange.notes.get(index) or None))
    return records


def _make_reply_record(exchange: Exchange, request: str | None, *, is_whole: bool) -> MessageRecord | None:
    """Returns the record of the reply, with the calls of its hidden rounds; None: the exchange has no reply."""
    seq = exchange.reply_seq
    at = exchange.ended or exchange.begun
    reply = None if exchange.shown_reply is None else orjson.loads(exchange.shown_reply)
    if REPLY in exchange.redactions:
        role = "assistant" if reply is None else _read_role(reply)
        return _make_record_without_text(exchange, seq, role, at, "forgotten")
    if reply is None:
        return None
    full_reply = orjson.loads(exchange.full_reply) if exchange.full_reply else {}
    record = _make_record(exchange, seq, reply, at, is_whole=is_whole)
    calls = _list_reply_calls(full_reply.get("messages") or (), is_whole=is_whole)
    return replace(record, rounds=calls or record.rounds, request=request)


def _make_record_without_text(
    exchange: Exchange, seq: int, role: str, at: float, state: _State
) -> MessageRecord:
    return MessageRecord(
        seq=seq, exchange=exchange.seq, role=role, speaker=None, at=at, text=None, state=state
    )


def _make_record(
    exchange: Exchange, seq: int, message: WireMessage, at: float, *, is_whole: bool
) -> MessageRecord:
    """Returns the record of a message with text, and with the calls that the message itself has."""
    text = _render_readable_text(message)
    return MessageRecord(
        seq=seq,
        exchange=exchange.seq,
        role=_read_role(message),
        speaker=find_author(message) or None,
        at=at,
        text=text if is_whole else shorten(text, TEXT_CHARS),
        state=_get_state(exchange),
        images=sum("image" in str(part.get("type")) for part in list_shown_media(message)),
        rounds=_make_shown_calls(message, {}, is_whole=is_whole),
    )


def _read_role(message: WireMessage) -> str:
    return str(message.get("role") or "")


def _get_state(exchange: Exchange) -> _State:
    if exchange.state is ExchangeState.CANCELLED:
        return "cancelled"
    return "standing" if exchange.active or exchange.state is ExchangeState.OPEN else "superseded"


def _list_reply_calls(messages: Sequence[Mapping[str, Any]], *, is_whole: bool) -> tuple[ShownCall, ...]:
    """Returns the calls of a reply as its upstream saw it, with the results of the gateway's own tools."""
    results = {
        read_result_id(message): read_text(message) for message in messages if message.get("role") == "tool"
    }
    return tuple(
        each for message in messages for each in _make_shown_calls(message, results, is_whole=is_whole)
    )


def _make_shown_calls(
    message: Mapping[str, Any], results: Mapping[str, str], *, is_whole: bool
) -> tuple[ShownCall, ...]:
    """Returns the calls of a message. results: the texts of the calls' results, by the ids of the calls."""
    max_chars = sys.maxsize if is_whole else TOOL_CHARS
    shown_calls = []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if (function := find_callee(call)) is not None:
            arguments = shorten(str(function.get("arguments", function.get("input", ""))), max_chars)
            result = shorten(results.get(read_call_id(call), ""), max_chars)
            shown_calls.append(ShownCall(str(function.get("name")), arguments, result))
    return tuple(shown_calls)


def shorten(text: str, max_chars: int) -> str:
    """Returns a text, or its beginning with an ellipsis where it is longer than a number of characters."""
    return text if len(text) <= max_chars else f"{text[:max_chars]}…"


def _render_media(part: Mapping[str, Any]) -> str:
    """Returns what stands for an image or a sound: its kind, and its size if its data was sent along."""
    kind = str(part.get("type") or "part").removeprefix("input_").removesuffix("_url").replace("_", " ")
    size = max((len(text) for text in _list_texts(part)), default=0) * 3 // 4
    if size < 1_000:
        return kind
    return f"{kind}, {size / _MEGABYTE:.1f} MB" if size >= _MEGABYTE // 10 else f"{kind}, {size // 1000} kB"


def _list_texts(value: object) -> list[str]:
    """Returns the texts within a part. The longest of them is its data, if the part has its data."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for each in value.values() for text in _list_texts(each)]
    return []
