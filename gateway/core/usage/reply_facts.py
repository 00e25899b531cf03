"""The facts about a reply that a trace shows: its id, the model that answered, why it ended. None of its content.

The facts are read from the first and last pieces of a reply that has passed, in any of the dialects. The reported
tokens are read by reported.py, whether the reply is traced or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from adapters.types import Event
from gateway.core.usage.gen_ai import FINISH_REASONS, MODEL_CHARS, OTHER

# A piece of a reply as it passes: bytes of whole events or of a whole body, or events that were decoded.
Piece = bytes | Sequence[Event]
# Larger events and bodies are not decoded: an ending is small, and a large body costs more than its facts are worth.
_READ_BYTES: Final = 64 * 1024
# The beginning of a body. Upstreams send blank lines before it, to keep the connection open while a model works.
_OBJECT_BEGIN: Final = re.compile(rb"\s*\{")
# The ids that upstreams make have no blanks, and no letters beyond ASCII.
_ID: Final = re.compile(r"[\w.:/-]{1,128}", re.ASCII)
# The field with the reason for which a reply ended.
_END_FIELD: Final = re.compile(rb'(?:finish_reason|stop_reason|status)"\s*:\s*"')


class ReplyFacts(NamedTuple):
    """The facts of one reply, as far as its upstream named them; "" and (): not named."""

    # The id of the reply.
    id: str = ""
    # The model that made the reply.
    model: str = ""
    # The reasons for which its choices ended.
    finish_reasons: tuple[str, ...] = ()


NO_FACTS: Final = ReplyFacts()


class _End(Struct):
    """The end of a choice, or Anthropic's `delta` of a message."""

    finish_reason: Any = None
    stop_reason: Any = None


class _InnerReply(Struct):
    """The reply within an event: `message` of Anthropic's streams, `response` of the Responses API."""

    id: Any = None
    model: Any = None
    status: Any = None


class _KnownFields(Struct):
    """A chunk, an event or a body of one of the dialects; msgspec skips the fields that are not here."""

    id: Any = None
    model: Any = None
    object: Any = None
    status: Any = None
    choices: list[_End] | None = None
    delta: _End | str | None = None
    stop_reason: Any = None
    message: _InnerReply | None = None
    response: _InnerReply | None = None


_DECODER: Final = msgspec.json.Decoder(_KnownFields)


def read_facts(pieces: Iterable[Piece]) -> ReplyFacts:
    """Returns the facts in some pieces of a reply. pieces: the first piece, then the last pieces in their order."""
    reply_id = ""
    model = ""
    reasons: list[str] = []
    for fields in _decode_fields(pieces):
        reply = fields.response or fields.message or fields
        if not reply_id and isinstance(reply.id, str) and _ID.fullmatch(reply.id):
            reply_id = reply.id
        if not model and isinstance(reply.model, str):
            model = reply.model[:MODEL_CHARS]
        reasons += _list_reasons(fields)
    return ReplyFacts(reply_id, model, tuple(reasons))


def _list_reasons(fields: _KnownFields) -> Iterator[str]:
    """Yields the reasons for which a reply ended: one of FINISH_REASONS as it came, any other as OTHER."""
    reasons = [fields.stop_reason, *(choice.finish_reason for choice in fields.choices or ())]
    if isinstance(fields.delta, _End):
        reasons.append(fields.delta.stop_reason)
    for response in (fields.response, fields if fields.object == "response" else None):
        if response is not None and response.status in ("completed", "incomplete", "failed", "cancelled"):
            reasons.append(response.status)
    for reason in reasons:
        if reason is not None:
            yield reason if isinstance(reason, str) and reason in FINISH_REASONS else OTHER


def _decode_fields(pieces: Iterable[Piece]) -> Iterator[_KnownFields]:
    """Yields the known fields of the first JSON of a reply, and of each JSON that ends it."""
    is_first = True
    for piece in pieces:
        for data in _list_json_texts(piece):
            # The first JSON names the id and the model; of all other JSON only the ends of the reply are decoded.
            if len(data) <= _READ_BYTES and (is_first or _END_FIELD.search(data)):
                is_first = False
                try:
                    yield _DECODER.decode(data)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    continue  # audio or text, which have no facts, or nested more deeply than msgspec reads


def _list_json_texts(piece: Piece) -> Iterator[bytes]:
    """Yields the JSON texts in a piece of a reply: events, a body, or the lines of a stream."""
    if not isinstance(piece, bytes):
        yield from (event.data for event in piece if event.data)
    elif _OBJECT_BEGIN.match(piece):
        yield piece
    else:
        yield from (line[5:] for line in piece.splitlines() if line.startswith(b"data:"))
