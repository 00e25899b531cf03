"""The facts about a reply that a trace shows: its id, the model that answered, why it ended. None of its content.

They are read from the first and last pieces of a reply as it passes, in any of the dialects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from adapters.types import Event
from gateway.core.usage.gen_ai import FINISH_REASONS, OTHER

# A piece of a reply as it passes: bytes of whole events or of a whole body, or events that were decoded.
Piece = bytes | Sequence[Event]
# Larger events and bodies are not decoded: an ending is small, and a large body costs more than its facts are worth.
_READ_BYTES: Final = 64 * 1024
# As upstreams make ids: no blanks, no letters beyond ASCII.
_ID: Final = re.compile(r"[\w.:/-]{1,128}", re.ASCII)
_MODEL_CHARS: Final = 128
_ENDING: Final = re.compile(rb'(?:finish_reason|stop_reason|status)"\s*:\s*"')


class ReplyFacts(NamedTuple):
    """The facts of one reply, as far as its upstream named them."""

    id: str = ""
    model: str = ""
    finish_reasons: tuple[str, ...] = ()


NO_FACTS: Final = ReplyFacts()


class _Ending(Struct):
    """The end of a choice, or Anthropic's `delta` of a message."""

    finish_reason: Any = None
    stop_reason: Any = None


class _InnerReply(Struct):
    """The reply within an event: `message` of Anthropic's streams, `response` of the Responses API."""

    id: Any = None
    model: Any = None
    status: Any = None


class _Piece(Struct):
    """A chunk, an event or a body of one of the dialects; msgspec skips the fields that are not here."""

    id: Any = None
    model: Any = None
    object: Any = None
    status: Any = None
    choices: list[_Ending] | None = None
    delta: _Ending | str | None = None
    stop_reason: Any = None
    message: _InnerReply | None = None
    response: _InnerReply | None = None


_DECODER: Final = msgspec.json.Decoder(_Piece)


def facts_of(pieces: Iterable[Piece]) -> ReplyFacts:
    """Returns the facts in some pieces of a reply. pieces: the first one, then the last ones in their order."""
    id = model = ""
    reasons: list[str] = []
    for found in _decoded(pieces):
        inner = found.response or found.message
        named = found if inner is None else inner
        if not id and isinstance(named.id, str) and _ID.fullmatch(named.id):
            id = named.id
        if not model and isinstance(named.model, str):
            model = named.model[:_MODEL_CHARS]
        reasons += _reasons(found)
    return ReplyFacts(id, model, tuple(reasons))


def _reasons(found: _Piece) -> Iterator[str]:
    given = [found.stop_reason, *(each.finish_reason for each in found.choices or ())]
    if isinstance(found.delta, _Ending):
        given.append(found.delta.stop_reason)
    for response in (found.response, found if found.object == "response" else None):
        if response is not None and response.status in ("completed", "incomplete", "failed", "cancelled"):
            given.append(response.status)
    for reason in given:
        if reason is not None:
            yield reason if isinstance(reason, str) and reason in FINISH_REASONS else OTHER


def _decoded(pieces: Iterable[Piece]) -> Iterator[_Piece]:
    is_first = True
    for piece in pieces:
        for data in _json_texts(piece):
            # The first names the id and the model; of the others only those that end the reply are decoded.
            if len(data) <= _READ_BYTES and (is_first or _ENDING.search(data)):
                is_first = False
                try:
                    yield _DECODER.decode(data)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    continue  # audio or text, which have no facts, or nested more deeply than msgspec reads


def _json_texts(piece: Piece) -> Iterator[bytes]:
    if not isinstance(piece, bytes):
        yield from (event.data for event in piece if event.data)
    elif piece[:1] == b"{":
        yield piece
    else:
        yield from (line[5:] for line in piece.splitlines() if line.startswith(b"data:"))
