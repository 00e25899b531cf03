"""The errors of the two dialects: Anthropic's in OpenAI's form, and the error of a request without a translation.

Anthropic: {"type": "error", "error": {"type", "message", "details"?: {"error_code"}}, "request_id"}
OpenAI:    {"error": {"message", "type", "param", "code"}}
Type and message stay as they are, and unknown fields of the error stay in it.
"""

from __future__ import annotations

import re

import orjson

from adapters.json_escapes import read_json
from adapters.types import Json

# "temperature: Extra inputs are not permitted". A path such as messages.3.content.0 is no match: it is a path in the
# translated body, which the caller has never seen.
_PARAM = re.compile(r"([A-Za-z_]\w*): ")
# The beginnings of the errors about the context's length: the prompt alone, and the prompt with the reply.
_TOO_LONG_WORDS = ("prompt is too long", "input length and `max_tokens` exceed context limit")


class Untranslatable(Exception):
    """A request has something that the Messages API cannot express.

    message: a sentence for the caller about the thing that cannot be expressed.
    param: the path of the field, as the caller wrote it.
    code: one of OpenAI's error codes.
    """

    def __init__(self, message: str, param: str, code: str = "unsupported_parameter") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def make_body(self) -> Json:
        """Returns the body of the error reply, in OpenAI's form."""
        return make_error_body(self.message, "invalid_request_error", self.param, self.code)


def make_error_body(message: str, error_type: str, param: str | None = None, code: str | None = None) -> Json:
    """Returns the body of an error reply in OpenAI's form."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def translate_error(body: Json) -> Json | None:
    """Returns the error of a body or an event in OpenAI's form; None: there is no error."""
    error = body.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    message = error["message"]
    match = _PARAM.match(message)
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    if code is None and message.startswith(_TOO_LONG_WORDS):
        code = "context_length_exceeded"  # the code that OpenAI's clients look for
    openai_error: Json = {
        "message": message,
        "type": error.get("type") or "api_error",
        "param": match[1] if match and error.get("type") == "invalid_request_error" else None,
        "code": code,
        # The error's own `param` and `code`, which Anthropic's errors have not so far, replace those above.
        **{key: value for key, value in error.items() if key not in ("message", "type")},
    }
    other_fields = {key: value for key, value in body.items() if key not in ("error", "type")}
    return {"error": openai_error, **other_fields}


def find_error_under_success(body: Json) -> Json | None:
    """Returns the error that a server has sent with the status of a success, in OpenAI's form; None: there is none."""
    return translate_error(body) if body.get("type") == "error" else None


def translate_error_body(body: bytes) -> bytes:
    """Returns an error reply's body in OpenAI's form. A body that is not Anthropic's, such as a proxy's page, stays."""
    parsed = read_json(body)[0]
    openai_error = translate_error(parsed) if isinstance(parsed, dict) else None
    try:
        return orjson.dumps(openai_error) if openai_error is not None else body
    except orjson.JSONEncodeError:  # orjson reads 1,024 levels, and writes 254
        return body
