"""The messages to a client: each event of a stream is a message, and errors have a form of their own.

(developers.openai.com/api/docs/guides/websocket-mode)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple
from uuid import uuid4

import orjson

from adapters.json_escapes import read_json
from gateway.core.lenient import as_text
from gateway.dialects.responses.errors import ResponsesErrors
from gateway.dialects.responses.event_names import CREATED_EVENT, ERROR_EVENT
from gateway.dialects.responses.members import NOT_READABLE, decode_upstream_members, encode_members
from gateway.dialects.responses.request_fields import ECHO_DEFAULTS
from gateway.dialects.responses.socket.client_events import CreateEvent, SteerEvent
from gateway.errors import GatewayError

_ERROR_FORM = ResponsesErrors()
# Values stay as they are written, since values from elsewhere may be nested more deeply than orjson writes.
_ECHO_DEFAULTS: Final = {key: orjson.dumps(value) for key, value in ECHO_DEFAULTS.items()}


def read_event_type(name: str | None, data: bytes) -> str:
    """Returns the type of an event of a stream, which nearly always is its name."""
    if name is not None and (name.startswith("response.") or name == ERROR_EVENT):
        return name
    return _read_text(data, "type")


def read_response(data: bytes) -> bytes:
    """Returns the response in an event; b"{}": an event without a response."""
    return _decode_members_leniently(data).get("response", b"{}")


def find_response_id(response: bytes) -> str | None:
    """Returns the id of a response; None: the response has no id."""
    return _read_text(response, "id") or None


def with_stream_id(data: bytes, stream_id: str | None) -> bytes:
    """Returns an event of a response with the `stream_id` of its request. stream_id: None: no `stream_id`."""
    if stream_id is None or not data.endswith(b"}"):
        return data
    return data[:-1] + b',"stream_id":%b}' % orjson.dumps(stream_id)


def make_break_event(data: bytes) -> bytes:
    """Returns the message for a stream's event of the type `error`. It has the event's fields below `error`."""
    fields = _decode_members_leniently(data)
    error = {key: fields.get(key, b"null") for key in ("code", "message", "param")}
    error = {"type": b'"server_error"', **error, **_decode_members_leniently(fields.get("error", b""))}
    number = fields.get("sequence_number", b"0")
    return _make_event(ERROR_EVENT, {"error": encode_members(error), "sequence_number": number})


def make_refusal_event(status: int, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Returns the event for a request that is answered by an error.

    body: the body of the error.
    headers: the headers of the answer about the time of another try.
    """
    error_json = _decode_members_leniently(body).get("error", b"null")
    error = _decode_members_leniently(error_json)
    if not error:
        is_text = error_json.startswith(b'"')
        error = {"message": error_json if is_text else orjson.dumps(f"The reply has the status {status}.")}
    error_type = b'"invalid_request_error"' if status < 500 else b'"server_error"'
    error = {"type": error_type, "code": b"null", "param": b"null", **error}
    if headers:
        error["headers"] = orjson.dumps(headers)
    return _make_event(ERROR_EVENT, {"status": b"%d" % status, "error": encode_members(error)})


def make_error_event(error: GatewayError) -> bytes:
    """Returns the event for an error of the gateway's."""
    return make_refusal_event(error.status, _ERROR_FORM.render_body(error), {})


def make_cancelled_event(first_response: bytes, output: bytes, sequence_number: int) -> bytes:
    """Returns the end of a response that its client has cancelled.

    first_response: the response as it began.
    output: the items until the cancellation, as a JSON array.
    """
    response = {**_decode_members_leniently(first_response), "output": output}
    if output == b"[]":
        # Nothing came that could be stored. This connection alone knows the response.
        response["store"] = b"false"
    return _make_response_event("response.incomplete", response, "cancelled", sequence_number)


class EmptyResponse(NamedTuple):
    """The events of a response that is not generated (`generate: false`). A later request can continue it."""

    # The event `response.created`.
    first_event: bytes
    # The event `response.completed`.
    end_event: bytes


def make_ungenerated_response(request: CreateEvent) -> EmptyResponse:
    """Returns the events by which a request is answered that asks for no reply: a response without output."""
    echoed = {
        key: value for key, value in request.fields.items() if key in ECHO_DEFAULTS and value != b"null"
    }
    now_json = b"%d" % time.time()
    response = {
        **_ECHO_DEFAULTS,
        **echoed,
        "id": b'"resp_%b"' % uuid4().hex.encode(),
        "object": b'"response"',
        "created_at": now_json,
        "error": b"null",
        "incomplete_details": b"null",
        "model": request.fields.get("model", b"null"),
        "output": b"[]",
        "usage": b"null",
        "store": b"false",
    }
    completed = {**response, "completed_at": now_json}
    return EmptyResponse(
        first_event=_make_response_event(CREATED_EVENT, response, "in_progress", 0),
        end_event=_make_response_event("response.completed", completed, "completed", 1),
    )


def make_steer_refusal_event(steer: SteerEvent) -> bytes:
    """Returns the answer to `response.steer`, which the gateway does not support."""
    error = {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "This gateway does not steer a response under way. Cancel it, and send another request.",
    }
    steer_fields = {key: steer.fields.get(key, b"null") for key in ("input", "previous_response_id")}
    return _make_event(
        "response.steer.failed",
        {"error": orjson.dumps(error), "steer": encode_members(steer_fields), "sequence_number": b"0"},
    )


def _make_response_event(
    event_type: str, members: Mapping[str, bytes], status: str, sequence_number: int
) -> bytes:
    """Returns an event with a response. members: the members of the response, without its status."""
    response = encode_members({**members, "status": orjson.dumps(status)})
    return _make_event(event_type, {"response": response, "sequence_number": b"%d" % sequence_number})


def _make_event(event_type: str, fields: Mapping[str, bytes]) -> bytes:
    return encode_members({"type": orjson.dumps(event_type), **fields})


def _read_text(data: bytes, key: str) -> str:
    """Returns a member that is a text; "": the object has no such text."""
    return as_text(read_json(_decode_members_leniently(data).get(key, b"null"))[0])


def _decode_members_leniently(data: bytes) -> dict[str, bytes]:
    """Returns the members of an object; empty for bytes that are no object."""
    try:
        return decode_upstream_members(data)
    except NOT_READABLE:
        return {}
