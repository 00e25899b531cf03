"""The messages of a client: `response.create` with the fields of a request, and two about a response under way.

(developers.openai.com/api/docs/guides/websocket-mode)
"""

from __future__ import annotations

from typing import Final

import orjson
from msgspec import Struct

from gateway.core.json_limits import check_values
from gateway.dialects.fields import missing_field, wrong_type
from gateway.dialects.responses.members import NOT_READABLE, decode_members
from gateway.errors import BadRequest

_LONGEST_ID: Final = 256  # characters; ids of OpenAI and of the gateway have fewer than 100
# The fields of an event that are no part of the request in it.
_ENVELOPE: Final = frozenset(("type", "event_id", "stream_id", "generate"))


class Create(Struct, frozen=True):
    """`response.create`."""

    # Responses of one stream come one after another; so do those without a stream (None).
    stream_id: str | None
    # The fields of the request, each value as it is written.
    fields: dict[str, bytes]
    # The id of the response that this one continues (`previous_response_id`); None: it continues none.
    previous: str | None
    # The model is to answer.
    is_generated: bool


class Cancel(Struct, frozen=True):
    """`response.cancel`."""

    stream_id: str | None
    # The id of the response to cancel; None: the one under way.
    response: str | None


class Steer(Struct, frozen=True):
    """`response.steer`."""

    # What it asks for, each value as it is written. It is sent back.
    fields: dict[str, bytes]


ClientEvent = Create | Cancel | Steer


def read_client_event(data: bytes) -> ClientEvent:
    """Reads a message of a client. Raises: BadRequest, BodyTooLarge."""
    check_values(data)
    try:
        fields = decode_members(data)
        kind, stream_id = text_of(fields, "type"), text_of(fields, "stream_id")
        if stream_id is not None and len(stream_id) > _LONGEST_ID:
            raise BadRequest(f"Invalid 'stream_id': longer than {_LONGEST_ID} characters.", param="stream_id")
        if kind == "response.create":
            return _read_create(fields, stream_id)
        if kind == "response.cancel":
            return Cancel(stream_id, text_of(fields, "response_id"))
        if kind == "response.steer":
            return Steer(fields)
    except (*NOT_READABLE, orjson.JSONDecodeError) as error:
        raise BadRequest(f"We could not parse the JSON of your message: {error}") from error
    if kind is None:
        raise missing_field("type")
    raise BadRequest(
        f"Invalid value: {kind[:60]!r}. Supported events are 'response.create', 'response.cancel' and "
        "'response.steer'.",
        param="type",
        code="invalid_value",
    )


def _read_create(fields: dict[str, bytes], stream_id: str | None) -> Create:
    if fields.get("background") == b"true":
        raise BadRequest("`background` is not supported over a WebSocket.", param="background")
    generate = fields.get("generate", b"null")
    if generate not in (b"true", b"false", b"null"):
        raise wrong_type("generate", "a boolean", orjson.loads(generate))
    input = fields.get("input", b"null")
    if not input.startswith((b'"', b"[", b"null")):
        raise wrong_type("input", "a string or an array", orjson.loads(input))
    request_fields = {key: value for key, value in fields.items() if key not in _ENVELOPE}
    return Create(stream_id, request_fields, text_of(fields, "previous_response_id"), generate != b"false")


def text_of(fields: dict[str, bytes], key: str) -> str | None:
    """Returns the value of a field that may be missing. Raises: BadRequest: it is no text."""
    value = orjson.loads(fields.get(key, b"null"))
    if value is not None and not isinstance(value, str):
        raise wrong_type(key, "a string", value)
    return value
