"""The form of an error in the Responses API: a body as in all of OpenAI's API, and an event that contains its type."""

from __future__ import annotations

from typing import Any, Final

import orjson

from adapters.types import Json
from gateway.core.json_limits import is_too_deep
from gateway.core.turn.upstream_error import make_openai_error_of_reply, parse_error_body
from gateway.dialects.chat.errors import ChatErrors
from gateway.dialects.event_stream import encode_typed_event
from gateway.dialects.field_names import FieldNames
from gateway.errors import GatewayError

# The codes of a response's error, by the code, type or status of an upstream's error; any other is `server_error`.
_RESPONSE_CODES: Final = {
    "invalid_prompt": "invalid_prompt",
    "rate_limit_exceeded": "rate_limit_exceeded",
    "rate_limit_error": "rate_limit_exceeded",
    "429": "rate_limit_exceeded",
}
FIELD_NAMES: Final = FieldNames(
    {
        "max_completion_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
        "verbosity": "text.verbosity",
    },
    messages="input",
    schema="parameters",
    words=("verbosity",),
)


class ResponsesErrors(ChatErrors):
    """The `ErrorForm` of the Responses API."""

    def render_event(self, error: GatewayError) -> bytes:
        # The number of earlier events is not known here; typed clients demand a number.
        fields = make_error_fields(error.message, error.code, error.kind, error.param)
        return encode_typed_event("error", {**fields, "sequence_number": 0})


def translate_error(body: bytes) -> bytes | None:
    """Returns the body of an upstream's error with the names of the Responses API.

    None: the body is no error, or is nested too deeply to be written again.
    """
    json = parse_error_body(body)
    if json is None or json.get("choices"):  # a completion under a status of failure
        return None
    error = json.get("error")
    # Some servers put the error's fields into the body itself.
    fields = error if isinstance(error, dict) else json
    for key, translate in (
        ("message", FIELD_NAMES.translate_sentence),
        ("param", FIELD_NAMES.translate_path),
    ):
        if isinstance(fields.get(key), str):
            fields[key] = translate(fields[key])
    return None if is_too_deep(json) else orjson.dumps(json)


def render_upstream_error(status: int, body: bytes) -> bytes:
    """Returns the body of an upstream's error as `translate_error` does, or names the status of an unreadable one."""
    return translate_error(body) or orjson.dumps({"error": make_openai_error_of_reply(status, body)})


def make_response_error(message: str, code: str | None) -> Json:
    """Returns the error of a response that has failed. code: an upstream's code, type or status."""
    return {"code": _RESPONSE_CODES.get(code or "", "server_error"), "message": message}


def make_error_fields(message: str, code: str | None, error_type: str, param: Any) -> Json:
    """Returns the fields of an event of the type `error`."""
    fields = {"code": code or error_type, "message": message, "param": param}
    # OpenAI's reference has these fields in the event itself. OpenAI sends them in `error`, and its SDKs raise that.
    return {**fields, "error": {"type": error_type, **fields}}
