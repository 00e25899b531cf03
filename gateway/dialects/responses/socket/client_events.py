"""The messages of a client: `response.create` with a request, `response.cancel` and `response.steer`.

(developers.openai.com/api/docs/guides/websocket-mode)
"""

from __future__ import annotations

from typing import Final

import orjson
from msgspec import Struct

from gateway.core.json_limits import check_values
from gateway.dialects.fields import (
    make_unknown_value_error,
    make_wrong_type_error,
)
from gateway.dialects.responses.members import NOT_READABLE, decode_members
from gateway.errors import BadRequest

# The most characters of an id. Ids of OpenAI and of the gateway have fewer than 100.
_MAX_ID_CHARS: Final = 256
# The fields of `response.create` that are no fields of the request.
_ENVELOPE_FIELDS: Final = frozenset(("type", "event_id", "stream_id", "generate"))


class CreateEvent(Struct, frozen=True):
    """`response.create`: a request for a response."""

    # The id of the stream. Responses of one stream come one after another; None: the stream without an id.
    stream_id: str | None
    # The fields of the request, each value as it is written.
    fields: dict[str, bytes]
    # The id of the response that this response continues (`previous_response_id`); None: it continues no response.
    previous_id: str | None
    # True if the model makes the response; False (`generate: false`): the response is empty.
    is_generated: bool


class CancelEvent(Struct, frozen=True):
    """`response.cancel`."""

    # The id of the stream, as in `CreateEvent`.
    stream_id: str | None
    # The id of the response to cancel; None: the response of the stream that is under way.
    response_id: str | None


class SteerEvent(Struct, frozen=True):
    """`response.steer`."""

    # The fields of the event, each value as it is written. The refusal repeats some of them.
    fields: dict[str, bytes]


ClientEvent = CreateEvent | CancelEvent | SteerEvent


def read_client_event(data: bytes) -> ClientEvent:
    """Reads a message of a client. Raises: BadRequest, BodyTooLarge."""
    check_values(data)
    try:
        fields = decode_members(data)
        event_type, stream_id = _read_text(fields, "type"), _read_text(fields, "stream_id")
        if stream_id is not None and len(stream_id) > _MAX_ID_CHARS:
            raise BadRequest(
                f"Invalid 'stream_id': longer than {_MAX_ID_CHARS} characters.", param="stream_id"
            )
        if event_type == "response.create":
            return _read_create(fields, stream_id)
        if event_type == "response.cancel":
            return CancelEvent(stream_id, _read_text(fields, "response_id"))
        if event_type == "response.steer":
            return SteerEvent(fields)
    except (*NOT_READABLE, orjson.JSONDecodeError) as error:
        raise BadRequest(f"We could not parse the JSON of your message: {error}") from error
    raise make_unknown_value_error(
        "type", event_type, "'response.create', 'response.cancel', and 'response.steer'"
    )


def _read_create(fields: dict[str, bytes], stream_id: str | None) -> CreateEvent:
    """Returns the event that asks for a response. Raises: BadRequest."""
    if fields.get("background") == b"true":
        raise BadRequest("`background` is not supported over a WebSocket.", param="background")
    generate_json = fields.get("generate", b"null")
    if generate_json not in (b"true", b"false", b"null"):
        raise make_wrong_type_error("generate", "a boolean", orjson.loads(generate_json))
    input_json = fields.get("input", b"null")
    if not input_json.startswith((b'"', b"[", b"null")):
        raise make_wrong_type_error("input", "a string or an array", orjson.loads(input_json))
    request_fields = {key: value for key, value in fields.items() if key not in _ENVELOPE_FIELDS}
    return CreateEvent(
        stream_id=stream_id,
        fields=request_fields,
        previous_id=_read_text(fields, "previous_response_id"),
        is_generated=generate_json != b"false",
    )


def _read_text(fields: dict[str, bytes], key: str) -> str | None:
    """Returns the text of a field; None: the field is missing or null. Raises: BadRequest: it is no text."""
    value = orjson.loads(fields.get(key, b"null"))
    if value is not None and not isinstance(value, str):
        raise make_wrong_type_error(key, "a string", value)
    return value
