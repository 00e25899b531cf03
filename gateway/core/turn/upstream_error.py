"""Reads the errors that upstreams report, each in its own form, into OpenAI's error object, and judges them."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

import orjson

from adapters.json_escapes import read_json
from adapters.types import Event, Json
from gateway.core.finish_reasons import read_finish_reason
from gateway.core.json_limits import is_too_deep
from gateway.core.turn.context_length import CAUSE_CHARS, context_from_error, is_too_long
from gateway.errors import UpstreamBroke, UpstreamRefused

# Status by OpenAI's codes and types, by Anthropic's types, and by the names of HTTP errors that vLLM gives.
_NAMES: Final = {
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
_STATUSES: Final = {name: status for status, names in _NAMES.items() for name in names.split()}

# The last event of a response that has failed, and the codes of failures that its request has not caused.
RESPONSE_FAILED: Final = "response.failed"
_PROVIDERS_FAULTS: Final = ("server_error", "vector_store_timeout")
# Refusals that another moment, key, account or model may mend.
_MENDABLE: Final = frozenset((401, 402, 404, 407, 408, 409, 425, 429))
# A 400 that is about the key or the account: Claude's without credit or over a limit, Gemini's with a wrong key or from
# a country that it does not serve.
_ACCOUNT_WORDS: Final = re.compile(
    r"credit balance|usage limit|spending limit|billing|quota|api key|location is not supported", re.I
)
# A 403 that is about the text (OpenRouter, xAI); any other is about rights or credit.
_FILTER_WORDS: Final = re.compile(r"flagged|moderat|violat|safety|filter", re.I)
# A 400 of a filter, in the words of OpenAI, Azure, Claude, DeepSeek, Kimi, GLM, Qwen and MiniMax.
_FILTERED: Final = re.compile(
    r"content.?(?:filter|policy|management|exists risk)|filtered|flagged|moderat|violat|safety|unsafe|high risk"
    r"|sensitive|inspection|inappropriate|prohibited|usage polic|guardrail|违规|敏感|不安全",
    re.I,
)
# A 400 about an address that the upstream was to read, in the words of OpenAI, Claude, Gemini, Mistral, Groq and vLLM.
_FETCHES: Final = r"\b(?:download|fetch|retriev|load|access)\w*"
_THINGS: Final = r"(?:image|picture|video|url|file|media|document|https?:)"
_UNREACHABLE: Final = re.compile(
    rf"{_FETCHES}.{{0,60}}{_THINGS}|{_THINGS}.{{0,80}}{_FETCHES}|fetch content|invalid_image_url", re.I
)
# The field with which a reply ends, and the most bytes of a reply that has nothing else; the latter is not measured.
_FINISHED: Final = re.compile(rb'"finish_reason"\s*:\s*"([^"\\]*)"')
_MAX_VERDICT_BYTES: Final = 4096
# The bytes that are read of an error, since some repeat the whole request.
ERROR_BYTES: Final = 64 * 1024
# A chunk or a completion has it, and errors do not.
_CHOICES: Final = re.compile(rb'"choices"\s*:\s*\[\s*[^\]\s]')
# Codes that are no error's, in bodies that have a code whatever they are.
_SUCCESS_CODES: Final = (None, "", 0, "0", 200, "200")
# MiniMax's codes by the status that they mean; any other is a 500. (platform.minimax.io/docs/api-reference/errorcode)
_MINIMAX_CODES: Final = {
    400: (1026, 1027, 1042, 2013),
    401: (1004, 2049),
    402: (1008,),
    429: (1002, 1039, 1041, 2045, 2056),
}
_MINIMAX_STATUSES: Final = {code: status for status, codes in _MINIMAX_CODES.items() for code in codes}


def is_for_good(status: int, body: bytes) -> bool:
    """Returns whether an upstream refuses what went in for what it is, and so would refuse it again.

    An error that names a context length is not for good: the next prompt is cut to that length. One that names none is,
    since the next prompt would be as long. Under a 200 the error itself shows what it is.
    """
    if status < 400:
        status = _status_of(read_error_object(status, body))
    if not 400 <= status < 500 or status in _MENDABLE or is_about_account(status, body):
        return False
    return context_from_error(body[:ERROR_BYTES].decode("utf-8", "replace")) is None


def is_about_account(status: int, body: bytes) -> bool:
    """Returns whether a 400 or 403 is about the key or the account of the gateway, and not about what went in."""
    error = _error_in_body(body) if status in (400, 403) else None
    if error is None:
        return False
    if status == 403:
        return not _FILTER_WORDS.search(str(error))
    return bool(_ACCOUNT_WORDS.search(error["message"][:CAUSE_CHARS]))


class RefusedContent(Enum):
    """The part of a request's messages that an upstream refuses."""

    # What they say: a filter's verdict.
    FILTERED = "filtered"
    # An address in them from which nothing can be fetched.
    UNREACHABLE = "unreachable"


def refused_content(status: int, body: bytes) -> RefusedContent | None:
    """Returns what of the messages an error refuses; None: something else, as far as its words show."""
    if status not in (400, 403, 422, 451) or is_about_account(status, body):
        return None
    error = _error_in_body(body)
    if error is None:
        return None
    if status == 403:
        return RefusedContent.FILTERED
    named = (error.get(key) for key in ("code", "type", "innererror"))
    cause = f"{error['message'][:CAUSE_CHARS]} {' '.join(map(str, named))}"
    # An address may have any word in it.
    if _UNREACHABLE.search(cause):
        return RefusedContent.UNREACHABLE
    return RefusedContent.FILTERED if _FILTERED.search(cause) else None


def refuses_input(begin: bytes) -> bool:
    """Returns whether a successful reply is nothing but a filter's verdict on the request, as Gemini has it.

    begin: its first event's data, or its body.
    """
    found = None if len(begin) > _MAX_VERDICT_BYTES else _FINISHED.search(begin)
    if found is None or read_finish_reason(found[1].decode("utf-8", "replace")) != "content_filter":
        return False
    parsed, _ = read_json(begin)
    choices = parsed.get("choices") if isinstance(parsed, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not choice.get("finish_reason"):
        return False
    message = choice.get("message") or choice.get("delta") or {}
    return isinstance(message, dict) and not any(map(message.get, ("content", "refusal", "tool_calls")))


def decode_error(body: bytes) -> Json | None:
    """Returns the object of an error's body, which Google's endpoint puts into a list; None: there is none."""
    parsed, _ = read_json(body)
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    return parsed if isinstance(parsed, dict) else None


def _error_in_body(body: bytes) -> Json | None:
    """Returns the error in an error's body, in OpenAI's form; None: there is none."""
    parsed = decode_error(body)
    return None if parsed is None else error_in(parsed)


def error_in(chunk: Json, name: str | None = None) -> Json | None:
    """Returns the error that a chunk or a body is, in OpenAI's form; None if it is none.

    Known forms: {"error": {...}}, {"error": "text"}, {"object": "error", "message": ...}, {"code": ..., "msg": ...},
    {"base_resp": {"status_code": ..., "status_msg": ...}}, and anything under `event: error`.
    """
    error = chunk.get("error") or _error_without_name(chunk)
    # vLLM's older errors, and whatever comes as an event named so, are the error themselves.
    if not error:
        if chunk.get("object") != "error" and name != "error":
            return None
        error = chunk
    if not isinstance(error, dict):
        error = {"message": error, "code": chunk.get("code")}  # xAI puts the code next to the text
    # What is nested too deeply could not be written again.
    fields = {key: value for key, value in error.items() if not is_too_deep(value)}
    shaped = {"message": "", "type": "upstream_error", "param": None, "code": None, **fields}
    message = shaped["message"]
    if not isinstance(message, str) or not message:  # Mistral's message may be an object
        shaped["message"] = orjson.dumps(message).decode() if message else "The upstream reported an error"
    return shaped


def _error_without_name(fields: Json) -> Json | None:
    """Returns the error that a chunk or a body is by its code alone, as of MiniMax, GLM and Qwen; None: it is none."""
    if fields.get("choices"):
        return None
    base = fields.get("base_resp")
    code = base.get("status_code") if isinstance(base, dict) else None
    if isinstance(base, dict) and isinstance(code, int) and code:
        status = _MINIMAX_STATUSES.get(code, 500)
        return {"message": base.get("status_msg"), "code": code, "status": status}
    message = fields.get("msg") or fields.get("message")
    if not isinstance(message, str) or fields.get("code") in _SUCCESS_CODES:
        return None
    return {**fields, "message": message}


def refusal_in_event(first: Event) -> tuple[int, bytes] | None:
    """Returns status and body of the error with which a stream begins; None: it begins with something else.

    Some upstreams send an error with a 200: Anthropic when overloaded, OpenRouter for the upstream it chose, vLLM.
    """
    data = first.data
    # Nearly every stream begins with a chunk that has no such word, and is not parsed for it.
    if data is None or (first.name != "error" and b"error" not in data and not _may_be_error(data)):
        return None
    error = _error_in_data(data, first.name)
    return None if error is None else (_status_of(error), orjson.dumps({"error": error}))


def _may_be_error(data: bytes) -> bool:
    """Returns whether JSON without the word may be an error all the same."""
    return len(data) <= ERROR_BYTES and _CHOICES.search(data) is None


def _error_in_data(data: bytes, name: str | None) -> Json | None:
    """Returns the error that the data of an event is; None: it is something else. name: of the event."""
    chunk, _ = read_json(data)
    return error_in(chunk, name) if isinstance(chunk, dict) else None


def _error_of_response(data: bytes) -> Json | None:
    """Returns the error of a response that has failed by a fault of its provider; None: by its request."""
    chunk, _ = read_json(data)
    response = chunk.get("response") if isinstance(chunk, dict) else None
    error = error_in(response) if isinstance(response, dict) else None
    return error if error is not None and error["code"] in _PROVIDERS_FAULTS else None


def error_of_stream(events: bytes) -> UpstreamBroke | None:
    """Returns the first error among the events of a stream; None: there is none. events: each of them whole."""
    name = None
    # Nearly no read has such a word. (`in` takes twice as long, since bytes may also be asked for an integer.)
    for line in events.splitlines() if events.find(b"error") >= 0 else ():
        key, _, value = line.partition(b":")
        if key == b"event":
            name = value.strip().decode("utf-8", "replace")
        elif key == b"data":
            error = _error_of_response(value) if name == RESPONSE_FAILED else _error_in_data(value, name)
            if error is not None:
                return make_stream_error(error)
        elif not line:
            name = None
    return None


def make_stream_error(error: Json) -> UpstreamBroke:
    """Returns the error of a stream that has one among its events. error: in OpenAI's form."""
    kind = UpstreamRefused if _status_of(error) < 500 else UpstreamBroke
    return kind(f"The upstream's stream has an error: {error.get('message') or ''}")


def refusal_in_body(body: bytes) -> tuple[int, bytes] | None:
    """Returns status and body of the error that a whole chat completion is; None: it is something else.

    OpenRouter answers so when its upstream fails after the status has left. Its body stays as it came, as far as
    clients of OpenAI's find the error in it.
    """
    if not _may_be_error(body):
        return None
    parsed, _ = read_json(body)
    error = error_in(parsed) if isinstance(parsed, dict) else None
    if error is None:
        return None
    is_named = bool(parsed.get("error")) or parsed.get("object") == "error"
    return _status_of(error), body if is_named else orjson.dumps({"error": error})


def _status_of(error: Json) -> int:
    """Returns the HTTP status that an error claims, by number or by name."""
    for code in (error.get("code"), error.get("status"), error.get("type")):
        # A number may come as a number or as its digits; a name in the spelling of any upstream.
        number = int(code) if isinstance(code, str) and len(code) == 3 and code.isdecimal() else code
        if isinstance(number, int) and 400 <= number < 600:
            return number
        if isinstance(code, str) and code.lower() in _STATUSES:
            return _STATUSES[code.lower()]
    # LM Studio's about the length has neither, in a stream.
    message = str(error.get("message") or "")
    return 400 if is_too_long(error) or context_from_error(message) is not None else 500


def read_error_object(status: int, body: bytes) -> Json:
    """Returns OpenAI's error object for an upstream's error, or for a reply that is no chat completion."""
    error = _error_in_body(body)
    if error is None:
        message = f"The upstream's answer (status {status}) was neither a chat completion nor a known error"
        error = {"message": message, "type": "upstream_error", "param": None, "code": None}
        if status < 400:
            error["code"] = "upstream_broke"
    if error.get("code") is None:
        error["code"] = status
    return error


def exceeds_context(body: bytes, request: bytes = b"") -> bool:
    """Returns whether by an error a request is too long for the model, whether it names a length or not.

    request: the JSON it is about, as for `context_from_error`.
    """
    error = _error_in_body(body)
    return error is not None and is_too_long(error, request)
