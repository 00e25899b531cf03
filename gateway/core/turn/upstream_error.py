"""Reads the errors of upstreams, each in its own form, into OpenAI's error object.

`find_openai_error` and `find_choice_error` read a chunk, `find_openai_error_of_body` a body,
`make_openai_error_of_reply` a reply that has failed. `find_error_in_success_body` and `find_error_in_first_event` read
replies under a status of success, `find_stream_exception` the events of a stream that has begun. `read_retry_delay`
reads when to try again. `gateway.core.turn.refusal` judges these errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import orjson

from adapters.json_escapes import read_json
from adapters.types import Event, Json
from gateway.core.json_limits import is_too_deep
from gateway.core.lenient import as_list, as_object, decode_object
from gateway.core.turn.chunks import is_first_choice
from gateway.core.turn.context_length import find_context_length, is_too_long
from gateway.errors import UpstreamRefused, UpstreamReplyBroken

# Status by OpenAI's codes and types, by Anthropic's types, and by the names of HTTP errors that vLLM gives.
_NAMES_BY_STATUS: Final = {
    400: "invalid_request_error badrequesterror context_length_exceeded",
    401: "authentication_error invalid_api_key",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error model_not_found",
    413: "request_too_large",
    429: "rate_limit_error rate_limit_exceeded insufficient_quota",
    504: "timeout_error",
    529: "overloaded_error",
}
_STATUS_BY_NAME: Final = {
    name: status for status, names in _NAMES_BY_STATUS.items() for name in names.split()
}

# The last event of a response that has failed, and the codes of failures that its request has not caused.
RESPONSE_FAILED: Final = "response.failed"
_PROVIDERS_FAULTS: Final = ("server_error", "vector_store_timeout")
# The bytes that are read of an error, since some repeat the whole request.
ERROR_BYTES: Final = 64 * 1024
# Finds the choices of a chunk or a completion, which errors do not have.
_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*\{')
# The message that an error names, in any spelling: "messages[1].role", "messages.[1].role", "messages.1.role".
_MESSAGE_INDEX: Final = re.compile(rb"(\bmessages(?:\.?\[|\.))(\d{1,9})\b")
# Finds the time to wait in an error of Google's. (cloud.google.com/apis/design/errors, google.rpc.RetryInfo)
_RETRY_DELAY: Final = re.compile(rb'"retryDelay"\s*:\s*"(\d{1,9}(?:\.\d{1,9})?)s"')
# The codes of successful replies, of upstreams whose bodies always have a code.
_SUCCESS_CODES: Final = (None, "", 0, "0", 200, "200")
# MiniMax's codes by the status that they mean; any other is a 500. (platform.minimax.io/docs/api-reference/errorcode)
_MINIMAX_CODES_BY_STATUS: Final = {
    400: (1026, 1027, 1042, 2013),
    401: (1004, 2049),
    402: (1008,),
    429: (1002, 1039, 1041, 2045, 2056),
}
_STATUS_BY_MINIMAX_CODE: Final = {
    code: status for status, codes in _MINIMAX_CODES_BY_STATUS.items() for code in codes
}


def find_openai_error(chunk: Json, name: str | None = None) -> Json | None:
    """Returns the error in a chunk or a body, in OpenAI's form; None: no error. name: the name of the chunk's event.

    Known forms: {"error": {...}}, {"error": "text"}, {"object": "error", "message": ...}, {"code": ..., "msg": ...},
    {"base_resp": {"status_code": ..., "status_msg": ...}}, and anything under `event: error`.
    """
    error = chunk.get("error") or _find_error_by_code(chunk)
    # vLLM's older errors, and whatever comes as an event named so, are the error themselves.
    if not error:
        if chunk.get("object") != "error" and name != "error":
            return None
        error = chunk
    if not isinstance(error, dict):
        error = {"message": error, "code": chunk.get("code")}  # xAI puts the code next to the text
    # A value that is nested too deeply could not be written again.
    fields = {key: value for key, value in error.items() if not is_too_deep(value)}
    shaped = {"message": "", "type": "upstream_error", "param": None, "code": None, **fields}
    message = shaped["message"]
    if not isinstance(message, str) or not message:  # Mistral's message may be an object
        shaped["message"] = orjson.dumps(message).decode() if message else "The upstream reported an error"
    return shaped


def find_choice_error(reply: Json) -> Json | None:
    """Returns the error in the first choice of a chunk or a body, in OpenAI's form; None: no error (OpenRouter)."""
    for choice in as_list(reply.get("choices")):
        if is_first_choice(choice) and choice.get("error"):
            return find_openai_error(choice)
    return None


def _find_error_by_code(fields: Json) -> Json | None:
    """Returns the error of a chunk or a body that has only a code of it (MiniMax, GLM and Qwen), or None."""
    if fields.get("choices"):
        return None
    base = as_object(fields.get("base_resp"))
    code = base.get("status_code")
    if isinstance(code, int) and code:
        status = _STATUS_BY_MINIMAX_CODE.get(code, 500)
        return {"message": base.get("status_msg"), "code": code, "status": status}
    message = fields.get("msg") or fields.get("message")
    if not isinstance(message, str) or fields.get("code") in _SUCCESS_CODES:
        return None
    return {**fields, "message": message}


def parse_error_body(body: bytes) -> Json | None:
    """Returns the object of an error's body as it came; None: no object. Google's endpoint puts it into a list."""
    parsed, _ = read_json(body)
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    return parsed if isinstance(parsed, dict) else None


def find_openai_error_of_body(body: bytes) -> Json | None:
    """Returns the error in an error's body, in OpenAI's form; None: the body has no known error."""
    parsed = parse_error_body(body)
    return None if parsed is None else find_openai_error(parsed)


def make_openai_error_of_reply(status: int, body: bytes) -> Json:
    """Returns the error of a failed reply in OpenAI's form. A reply without an error object gets one."""
    error = find_openai_error_of_body(body)
    if error is None:
        message = f"The upstream's answer (status {status}) was neither a chat completion nor a known error"
        error = {"message": message, "type": "upstream_error", "param": None, "code": None}
        if status < 400:
            error["code"] = "upstream_broke"
    if error.get("code") is None:
        error["code"] = status
    return error


def with_message_indexes(body: bytes, origins: Sequence[int | None]) -> bytes:
    """Returns an error's body with other indexes of messages. A message without another index keeps its own.

    origins: for each index, the index in its place; None: the message has no other index.
    """

    def replace_index(match: re.Match[bytes]) -> bytes:
        index = int(match[2])
        origin = origins[index] if index < len(origins) else None
        return match[0] if origin is None else match[1] + b"%d" % origin

    return _MESSAGE_INDEX.sub(replace_index, body)


def read_error_status(error: Json) -> int:
    """Returns the HTTP status that an error claims, by number or by name."""
    for code in (error.get("code"), error.get("status"), error.get("type")):
        # A number may come as a number or as its digits; a name in the spelling of any upstream.
        number = int(code) if isinstance(code, str) and len(code) == 3 and code.isdecimal() else code
        if isinstance(number, int) and 400 <= number < 600:
            return number
        if isinstance(code, str) and code.lower() in _STATUS_BY_NAME:
            return _STATUS_BY_NAME[code.lower()]
    # In a stream, LM Studio's error about the length has neither a number nor a name.
    message = str(error.get("message") or "")
    return 400 if is_too_long(error) or find_context_length(message) is not None else 500


# -- errors under a status of success


class RevealedError(NamedTuple):
    """An error that came under a status of success."""

    # The status that the reply should have had.
    status: int
    # The error, as clients of OpenAI's API read it.
    body: bytes
    # The message of the error.
    message: str


def read_retry_delay(body: bytes) -> float | None:
    """Returns the seconds to wait that an error names in its body, as Google's does; None: it names none."""
    delay = _RETRY_DELAY.search(body, 0, ERROR_BYTES)
    return float(delay[1]) if delay else None


def find_error_in_success_body(body: bytes) -> RevealedError | None:
    """Returns the error in a whole reply of status 200; None: the reply is no error.

    OpenRouter answers so when its upstream fails after the status has left. Its body stays as it came, as far as
    clients of OpenAI's find the error in it. A body of more than `ERROR_BYTES` is taken for a completion.
    """
    if not _may_be_error(body):
        return None
    parsed, _ = read_json(body)
    error = find_openai_error(parsed) if isinstance(parsed, dict) else None
    if error is None:
        return None
    is_named = bool(parsed.get("error")) or parsed.get("object") == "error"
    shown_body = body if is_named else orjson.dumps({"error": error})
    return RevealedError(read_error_status(error), shown_body, error["message"])


def is_empty_completion(body: bytes) -> bool:
    """Returns whether a whole reply of status 200 to a chat completion is no JSON object, or has no choices.

    An object that has other fields alone is not empty: xAI answers a deferred completion with an id.
    """
    if not _may_be_error(body):
        return False
    parsed, _ = read_json(body)
    return not isinstance(parsed, dict) or not parsed or "choices" in parsed


def find_error_in_first_event(first_event: Event) -> RevealedError | None:
    """Returns the error with which a stream begins; None: the stream does not begin with an error.

    Some upstreams send an error with a 200: Anthropic when overloaded, OpenRouter for the upstream it chose, vLLM.
    """
    data = first_event.data
    # Nearly every stream begins with a chunk of choices, without the word "error": it need not be parsed.
    if data is None or (first_event.name != "error" and b"error" not in data and not _may_be_error(data)):
        return None
    error = _find_openai_error_of_event(data, first_event.name)
    if error is None:
        return None
    return RevealedError(read_error_status(error), orjson.dumps({"error": error}), error["message"])


def _may_be_error(data: bytes) -> bool:
    """Returns whether JSON may be an error, though it may have no word for one: it is short, and has no choices."""
    return len(data) <= ERROR_BYTES and _CHOICES.search(data) is None


def find_stream_exception(events: bytes) -> UpstreamReplyBroken | None:
    """Returns the exception for the first error among events; None: no event is an error. events: whole events."""
    name = None
    # Nearly no read has the word "error". (`in` takes twice as long, since bytes may also be asked for an integer.)
    for line in events.splitlines() if events.find(b"error") >= 0 else ():
        key, _, value = line.partition(b":")
        if key == b"event":
            name = value.strip().decode("utf-8", "replace")
        elif key in (b"data", b"error"):  # `error`: an older llama.cpp
            error = (
                _find_provider_fault(value)
                if name == RESPONSE_FAILED
                else _find_openai_error_of_event(value, "error" if key == b"error" else name)
            )
            if error is not None:
                return make_stream_exception(error)
        elif not line:
            name = None
    return None


def _find_openai_error_of_event(data: bytes, name: str | None) -> Json | None:
    """Returns the error in the data of an event; None: no error. name: the event's name."""
    chunk, _ = read_json(data)
    return find_openai_error(chunk, name) if isinstance(chunk, dict) else None


def _find_provider_fault(data: bytes) -> Json | None:
    """Returns the error of a response that has failed by a fault of its provider; None: the request is at fault."""
    error = find_openai_error(as_object(decode_object(data).get("response")))
    return error if error is not None and error["code"] in _PROVIDERS_FAULTS else None


def make_stream_exception(error: Json) -> UpstreamReplyBroken:
    """Returns the exception for a stream with an error among its events. error: the error in OpenAI's form."""
    kind = UpstreamRefused if read_error_status(error) < 500 else UpstreamReplyBroken
    return kind(f"The upstream's stream has an error: {error.get('message') or ''}")
