"""Judges the errors of upstreams: which part of a request they refuse, and whether they would refuse it again."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from adapters.types import ANSWER_FIELDS
from gateway.core.finish_reasons import read_finish_reason
from gateway.core.lenient import as_list, as_object, decode_object
from gateway.core.turn.context_length import CAUSE_CHARS, find_context_length, is_too_long
from gateway.core.turn.upstream_error import (
    ERROR_BYTES,
    find_openai_error_of_body,
    make_openai_error_of_reply,
    read_error_status,
)

# The statuses of refusals that may not come at another time, or with another key, account or model. With 412 Fireworks
# names an account that is suspended.
_PASSING_STATUSES: Final = frozenset((401, 402, 404, 407, 408, 409, 412, 425, 429))
# A 400 that is about the key or the account: Claude's without credit or over a limit, Gemini's with a wrong key or from
# a country that it does not serve, Qwen's with an unpaid bill, Claude's and Groq's of a blocked organization.
_ACCOUNT_WORDS: Final = re.compile(
    r"credit balance|usage limit|spending limit|billing|quota|api key|location is not supported|good standing"
    r"|organization has been (?:disabled|restricted)",
    re.I,
)
# A 403 that is about the text (OpenRouter, xAI); any other is about rights or credit.
_FILTER_WORDS_403: Final = re.compile(r"flagged|moderat|violat|safety|filter", re.I)
# A 400 of a filter, in the words of OpenAI, Azure, Claude, DeepSeek, Kimi, GLM, Qwen and MiniMax.
_FILTER_WORDS_400: Final = re.compile(
    r"content.?(?:filter|policy|management|exists risk)|filtered|flagged|moderat|violat|safety|unsafe|high risk"
    r"|sensitive|inspection|inappropriate|prohibited|usage polic|guardrail|违规|敏感|不安全",
    re.I,
)
# A 400 about an address that the upstream was to read, in the words of OpenAI, Claude, Gemini, Mistral, Groq and vLLM.
_FETCH_WORDS: Final = r"\b(?:download|fetch|retriev|load|access)\w*"
_THING_WORDS: Final = r"(?:image|picture|video|url|file|media|document|https?:)"
_UNREACHABLE_ADDRESS: Final = re.compile(
    rf"{_FETCH_WORDS}.{{0,60}}{_THING_WORDS}|{_THING_WORDS}.{{0,80}}{_FETCH_WORDS}|fetch content|invalid_image_url",
    re.I,
)
# The field with which a reply ends.
_FINISH_REASON: Final = re.compile(rb'"finish_reason"\s*:\s*"([^"\\]*)"')
# The most bytes of a reply that is a verdict alone. Not measured.
_MAX_VERDICT_BYTES: Final = 4096


def is_permanent_refusal(status: int, body: bytes) -> bool:
    """Returns whether an upstream refuses the content of a request, and so would refuse it each time.

    status: the status of the reply. Below 400 the status in the body's error counts.

    A prompt that is too long is refused once if the error names the context's length, since the next prompt is cut to
    that length. If the error names no length, the next prompt would be as long, and refused again.
    """
    if status < 400:
        status = read_error_status(make_openai_error_of_reply(status, body))
    if not 400 <= status < 500 or status in _PASSING_STATUSES or is_account_refusal(status, body):
        return False
    return find_context_length(body[:ERROR_BYTES].decode("utf-8", "replace")) is None


def is_account_refusal(status: int, body: bytes) -> bool:
    """Returns whether a 400 or 403 is about the key or the account of the gateway, and not about the request."""
    error = find_openai_error_of_body(body) if status in (400, 403) else None
    if error is None:
        return False
    if status == 403:
        return not _FILTER_WORDS_403.search(str(error))
    return bool(_ACCOUNT_WORDS.search(error["message"][:CAUSE_CHARS]))


class RefusedContent(Enum):
    """The part of a request's messages that an upstream refuses."""

    # A filter refuses the content of the messages.
    FILTERED = "filtered"
    # The messages have an address from which nothing can be fetched.
    UNREACHABLE = "unreachable"


def find_refused_content(status: int, body: bytes) -> RefusedContent | None:
    """Returns the part of the messages that an error refuses; None: the error is about something else."""
    if status not in (400, 403, 422, 451) or is_account_refusal(status, body):
        return None
    error = find_openai_error_of_body(body)
    if error is None:
        return None
    if status == 403:
        return RefusedContent.FILTERED
    fields = (error.get(key) for key in ("code", "type", "innererror"))
    cause = f"{error['message'][:CAUSE_CHARS]} {' '.join(map(str, fields))}"
    # An address may have any word in it.
    if _UNREACHABLE_ADDRESS.search(cause):
        return RefusedContent.UNREACHABLE
    return RefusedContent.FILTERED if _FILTER_WORDS_400.search(cause) else None


def is_filter_verdict(begin: bytes) -> bool:
    """Returns whether a successful reply is nothing but a filter's verdict on the request, as Gemini has it.

    begin: the data of the reply's first event, or its body.
    """
    ending = None if len(begin) > _MAX_VERDICT_BYTES else _FINISH_REASON.search(begin)
    if ending is None or read_finish_reason(ending[1].decode("utf-8", "replace")) != "content_filter":
        return False
    choices = as_list(decode_object(begin).get("choices"))
    choice = as_object(choices[0]) if choices else {}
    if not choice.get("finish_reason"):
        return False
    message = choice.get("message") or choice.get("delta") or {}
    return isinstance(message, dict) and not any(map(message.get, ANSWER_FIELDS))


def exceeds_context(body: bytes, request: bytes = b"") -> bool:
    """Returns whether an error, with or without a length in it, is about a request that is too long for the model.

    request: the JSON of the request. Words that the error repeats from the request do not count.
    """
    error = find_openai_error_of_body(body)
    return error is not None and is_too_long(error, request)


def find_named_context_length(body: bytes, request: bytes) -> int | None:
    """Returns the context length in tokens that the body of an upstream's error names, or None.

    request: the JSON of the request. A length that the error repeats from it does not count.
    """
    text = body.decode("utf-8", "replace")
    error = find_openai_error_of_body(body)
    return find_context_length(text, request, text if error is None else error["message"])
