"""The form of an error in the agents API: `detail` is a sentence or, with status 422, a list that names the fields.

(fastapi.tiangolo.com/tutorial/handling-errors; `letta-client` 1.12 reads this form.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import orjson
from msgspec.structs import replace

from gateway.dialects.event_stream import encode_event
from gateway.errors import CallerError, GatewayError, UpstreamError
from gateway.validation import Fault, list_literal_values

# The most characters of a value or a name that an error repeats.
_MAX_SHOWN_CHARS = 200
# The most characters of an error's sentence, which may list the values that a field takes.
_MAX_SENTENCE_CHARS = 1000


def render_fault(fault: Fault) -> dict[str, Any]:
    """Returns a fault in the form of pydantic's errors, which the client's users know."""
    return {
        "type": fault.kind,
        "loc": [_truncate(key) if isinstance(key, str) else key for key in fault.path],
        "msg": _truncate(fault.message, _MAX_SENTENCE_CHARS),
        "input": _shorten_value(fault.value),
    }


def phrase_fault(fault: Fault) -> Fault:
    """Returns a copy of a fault with pydantic's sentence for its kind, or the fault itself if pydantic has none."""
    if fault.kind == "missing":
        return replace(fault, message="Field required")
    if fault.kind == "extra_forbidden":
        hint = f"; did you mean '{fault.nearest}'?" if fault.nearest else ""
        return replace(fault, message=f"Extra inputs are not permitted{hint}")
    if fault.kind == "enum":
        return replace(fault, message=f"Input should be {_join_values(list_literal_values(fault.expected))}")
    return fault


def name_type(value: Any) -> str:
    """Returns the name of a JSON value's type."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _join_values(values: Sequence[str]) -> str:
    """Returns values as text: 'a', 'b' or 'c'."""
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}" if first else last


def _truncate(text: str, max_chars: int = _MAX_SHOWN_CHARS) -> str:
    return text if len(text) <= max_chars else text[:max_chars] + "…"


def _shorten_value(value: Any) -> Any:
    """Returns a value for an error: a long text is truncated, a long list or object becomes the name of its type."""
    if isinstance(value, str):
        return _truncate(value)
    if isinstance(value, dict | list):
        if len(value) > _MAX_SHOWN_CHARS:
            return name_type(value)
        return value if len(orjson.dumps(value, default=str)) <= _MAX_SHOWN_CHARS else name_type(value)
    return value


class Unprocessable(CallerError):
    """A request with a value that its field does not take."""

    status = 422
    code = "unprocessable"

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{'.'.join(map(str, fault.path))}: {fault.message}", param=str(fault.path[-1]))
        self.fault = fault


class LettaErrors:
    """The `ErrorForm` of the agents API."""

    id_header: ClassVar[bytes | None] = None

    def render_body(self, error: GatewayError) -> bytes:
        return orjson.dumps({"detail": _render_detail(error)})

    def render_event(self, error: GatewayError) -> bytes:
        return make_error_event(error)


def _render_detail(error: GatewayError) -> Any:
    return [render_fault(error.fault)] if isinstance(error, Unprocessable) else error.message


def make_error_event(error: GatewayError, run_id: str | None = None) -> bytes:
    """Returns the event that ends a stream. The client raises it as an error, so no event may follow.

    run_id: the public id of the run; None: the stream is of no run.
    """
    data = {
        "message_type": "error_message",
        "run_id": run_id,
        "error_type": error.code or error.kind,
        "message": error.message,
        "detail": _render_detail(error),
    }
    return encode_event(data, "error")


def make_refused_event(body: bytes) -> bytes:
    """Returns the event with the error of a refusal. body: the body of the refusal."""
    return make_error_event(UpstreamError(str(orjson.loads(body)["detail"])))
