"""The form of an error in Anthropic's Messages API: a body with its type, and an `error` event.

(platform.claude.com/docs/en/api/errors)
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import orjson

from adapters.types import Json
from gateway.dialects.event_stream import encode_typed_event
from gateway.dialects.field_names import FieldNames
from gateway.errors import BadRequest, GatewayError

_TYPES_BY_STATUS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_KNOWN_TYPES: Final = frozenset((*_TYPES_BY_STATUS.values(), "api_error"))

# Upstreams name the fields of chat completions in their errors.
FIELD_NAMES: Final = FieldNames(
    {
        "max_completion_tokens": "max_tokens",
        "reasoning_effort": "output_config.effort",
        "response_format": "output_config.format",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "tool_call_id": "tool_use_id",
        "tool_calls": "tool_use",
        "stop": "stop_sequences",
        "user": "metadata.user_id",
    },
    messages="messages",
    schema="input_schema",
    words=("stop", "user"),
)


class MessagesErrors:
    """The `ErrorForm` of the Messages API."""

    id_header: ClassVar[bytes | None] = b"request-id"

    def render_body(self, error: GatewayError) -> bytes:
        return orjson.dumps(_render_error(error))

    def render_event(self, error: GatewayError) -> bytes:
        return encode_typed_event("error", _render_error(error))


def make_error_object(
    status: int, message: str, request_id: str, code: Any, upstream_type: Any = None
) -> Json:
    """Returns the body of an error.

    code: the code of the error; a code that is no text, or empty, is left out.
    upstream_type: the type that the upstream gives the error. If it is not Anthropic's, the status decides the type.
    """
    is_known = isinstance(upstream_type, str) and upstream_type in _KNOWN_TYPES
    error: Json = {"type": upstream_type if is_known else _choose_error_type(status), "message": message}
    if isinstance(code, str) and code:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error, "request_id": request_id or None}


def _choose_error_type(status: int) -> str:
    """Returns the type of an error with this status."""
    return _TYPES_BY_STATUS.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")


def make_field_error(path: str, why: str) -> BadRequest:
    """Returns the error about a field of a request. path: the field's path, such as `messages.0.content`."""
    return BadRequest(f"{path}: {why}", param=path)


def make_untranslatable_error(path: str) -> BadRequest:
    """Returns the error about a field without a place in chat completions, which begins as in Anthropic's API."""
    return make_field_error(
        path,
        "Extra inputs are not permitted. The gateway answers this model by way of chat completions, which have no "
        "place for it.",
    )


def _render_error(error: GatewayError) -> Json:
    return make_error_object(error.status, error.message, error.request_id, code=error.code)
