"""The messages to a client: the events of a stream, each as one, and errors in a form of their own.

(developers.openai.com/api/docs/guides/websocket-mode)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final
from uuid import uuid4

import msgspec
import orjson

from adapters.types import Json
from gateway.dialects.responses.errors import ResponsesErrors
from gateway.dialects.responses.parse import ECHOED
from gateway.dialects.responses.socket.client import Create, Steer
from gateway.errors import GatewayError

BEGUN: Final = "response.created"
ERROR: Final = "error"
# Behind which nothing comes, and what those of them tell that can be gone on from.
ENDS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", ERROR))
GOOD_ENDS: Final = frozenset(("response.completed", "response.incomplete"))


class _Head(msgspec.Struct):
    type: str | None = None
    response: msgspec.Raw = msgspec.Raw(b"{}")


_decoder = msgspec.json.Decoder(_Head)
_errors = ResponsesErrors()


def kind_of(name: str | None, data: bytes) -> str:
    """Returns the type of an event of a stream, which its name mostly says."""
    if name is not None and (name.startswith("response.") or name == "error"):
        return name
    try:
        return _decoder.decode(data).type or ""
    except msgspec.DecodeError:
        return ""


def response_in(data: bytes) -> bytes:
    """Returns the response that an event tells of; b"{}": none."""
    try:
        return bytes(_decoder.decode(data).response) or b"{}"
    except msgspec.DecodeError:
        return b"{}"


def id_of(response: bytes) -> str | None:
    id = _object(response).get("id")
    return id if isinstance(id, str) else None


def in_lane(data: bytes, lane: str | None) -> bytes:
    """Returns an event as it stands in its lane."""
    if lane is None or not data.endswith(b"}"):
        return data
    return data[:-1] + b',"stream_id":%b}' % orjson.dumps(lane)


def broken_off(data: bytes) -> bytes:
    """Returns a stream's event of the type `error`. Its fields stand in the event itself there, and in `error` here."""
    said = _object(data)
    inner = said.get("error")
    error = {key: said.get(key) for key in ("code", "message", "param")}
    error = {"type": "server_error", **error, **(inner if isinstance(inner, dict) else {})}
    return orjson.dumps({"type": ERROR, "error": error, "sequence_number": said.get("sequence_number", 0)})


def refused(status: int, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Returns the event for a request that an error answers. headers: what they say of when to try again."""
    said = _object(body).get("error")
    error = said if isinstance(said, dict) else {"message": said or f"The reply has the status {status}."}
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"type": kind, "code": None, "param": None, **error}
    if headers:
        error["headers"] = headers
    return orjson.dumps({"type": ERROR, "status": status, "error": error})


def failed(error: GatewayError) -> bytes:
    """Returns the event for an error of the gateway's."""
    return refused(error.status, _errors.body(error), {})


def _object(body: bytes) -> Json:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def cancelled(begun: bytes, sequence_number: int) -> bytes:
    """Returns the end of a response that its client has cancelled. begun: the response as it was told of at first."""
    response = {**_object(begun), "status": "cancelled"}
    return _event("response.incomplete", response, sequence_number)


def prepared(create: Create) -> tuple[bytes, bytes]:
    """Returns beginning and end of a response that is not generated (`generate: false`), which can be gone on from."""
    said = {key: orjson.loads(create.fields[key]) for key in ECHOED if key in create.fields}
    now = int(time.time())
    response: Json = {
        **ECHOED,
        **{key: value for key, value in said.items() if value is not None},
        "id": f"resp_{uuid4().hex}",
        "object": "response",
        "created_at": now,
        "error": None,
        "incomplete_details": None,
        "model": orjson.loads(create.fields.get("model", b"null")),
        "output": [],
        "usage": None,
        "store": False,
    }
    done = {**response, "status": "completed", "completed_at": now}
    begun = _event(BEGUN, {**response, "status": "in_progress"}, 0)
    return begun, _event("response.completed", done, 1)


def not_steered(steer: Steer) -> bytes:
    """Returns the answer to `response.steer`: its input was not taken."""
    error = {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "This gateway does not steer a response under way. Cancel it, and send another request.",
    }
    asked = {key: steer.asked.get(key) for key in ("input", "previous_response_id")}
    return orjson.dumps(
        {"type": "response.steer.failed", "error": error, "steer": asked, "sequence_number": 0}
    )


def _event(kind: str, response: Json, sequence_number: int) -> bytes:
    return orjson.dumps({"type": kind, "response": response, "sequence_number": sequence_number})
