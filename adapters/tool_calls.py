"""Tool calls of requests, for upstreams with calls that differ from OpenAI's. Everything else passes as it came.

Calls without an id get an id, and results without an id get those of the calls, in order: strict servers refuse calls
without ids. Gemini and servers of open models have made such calls, and may have answered earlier in a conversation.

Ids of other models' calls are replaced by ids that the upstream takes. Mistral takes nine letters and digits and
nothing else (error 3280), and so do the templates of its older models elsewhere. A conversation has other ids where
another model made the call, or the gateway named it. (docs.mistral.ai/capabilities/function_calling)

A call without a signature gets a mark that it has none: otherwise Gemini, from its third generation on, refuses the
call within the turn that is under way. Of calls side by side the first bears the mark.
(ai.google.dev/gemini-api/docs/thought-signatures)

A reply without thoughts gets empty thoughts where a request has tools: otherwise DeepSeek, which thinks by default,
refuses the request. Applications without tools drop the thoughts, and the gateway adds tools to their requests; replies
of other models have no thoughts. (api-docs.deepseek.com/guides/thinking_mode)
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

import orjson

from adapters.types import Json

# Bytes without which a request need not be parsed.
# This is the beginning of "tool_calls" and of "tool_call_id".
_CALLS_OR_RESULT_KEY: Final = b'"tool_call'
# The end of the `tool_call_id` of a result for a call without an id. (This pattern takes 30 us for 100 kB; one that
# begins with a quotation mark takes 460. To find the key above takes 8 us.)
_MISSING_ID: Final = re.compile(rb'_id"\s*:\s*(?:""|null)')
_TOOLS_KEY: Final = b'"tools"'
_THOUGHTS_FIELD: Final = "reasoning_content"
_MISTRAL_ID: Final = re.compile(r"[a-zA-Z0-9]{9}")
_NO_SIGNATURE_MARK: Final[Json] = {"thought_signature": "skip_thought_signature_validator"}
_MODELS_WITHOUT_SIGNATURES: Final = re.compile(r"(?:.*/)?gemini-[12]\b")


def with_call_ids(body: bytes) -> bytes:
    """Returns a chat completion request with an id in each call; the same bytes where no id was missing."""
    if body.find(_CALLS_OR_RESULT_KEY) < 0 or not _MISSING_ID.search(body):
        return body
    return _change_messages(body, _add_missing_ids)


def with_mistral_ids(body: bytes) -> bytes:
    """Returns a chat completion request with ids of Mistral's form; the same bytes where all ids had this form."""
    return _change_messages(body, _rename_ids)


def with_gemini_signatures(body: bytes) -> bytes:
    """Returns a chat completion request with calls that Gemini takes; the same bytes where no mark was missing."""
    return _change_messages(body, _mark_unsigned)


def with_thoughts(body: bytes) -> bytes:
    """Returns a chat completion request with thoughts in its replies; the same bytes where none were missing."""
    return _change_messages(body, _add_thoughts, key=_TOOLS_KEY)


def _change_messages(
    body: bytes, change: Callable[[str, list[Json]], bool], key: bytes = _CALLS_OR_RESULT_KEY
) -> bytes:
    """Returns a body with changed messages; the same bytes where nothing was changed, or the body is nested too deep.

    change: a function of a model's name and the messages. It changes the messages in place, and returns whether it did.
    key: the bytes without which a request has nothing to change.
    """
    if key not in body:
        return body
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list):
        return body
    objects = [message for message in messages if isinstance(message, dict)]
    try:
        return orjson.dumps(request) if change(str(request.get("model")), objects) else body
    except orjson.JSONEncodeError:  # orjson reads 1,024 levels, and writes 254
        return body


def _add_missing_ids(model: str, messages: list[Json]) -> bool:
    """Gives an id to each call without an id, and to its result. Returns whether an id was missing."""
    is_changed = False
    unanswered: deque[str] = deque()
    for message_index, message in enumerate(messages):
        if message.get("role") != "tool":
            unanswered.clear()
        elif unanswered and not message.get("tool_call_id"):
            message["tool_call_id"] = unanswered.popleft()
        for call_index, call in enumerate(_read_calls(message)):
            if not call.get("id"):
                call["id"] = f"call_unnamed_{message_index}_{call_index}"
                unanswered.append(call["id"])
                is_changed = True
    return is_changed


def _rename_ids(model: str, messages: list[Json]) -> bool:
    """Gives ids of Mistral's form to calls and to the results that name them. Returns whether an id was changed."""
    has_added_ids = _add_missing_ids(model, messages)
    fields: list[tuple[Json, str]] = [(message, "tool_call_id") for message in messages]
    fields += [(call, "id") for message in messages for call in _read_calls(message)]
    foreign_ids = [
        (owner, key)
        for owner, key in fields
        if isinstance(owner.get(key), str) and not _MISTRAL_ID.fullmatch(owner[key])
    ]
    for owner, key in foreign_ids:
        owner[key] = blake2b(owner[key].encode("utf-8", "surrogatepass")).hexdigest()[:9]
    return has_added_ids or bool(foreign_ids)


def _mark_unsigned(model: str, messages: list[Json]) -> bool:
    """Marks each call without a signature that is the first of its message, from the user's last message on.

    Returns whether a call was marked.
    """
    if _MODELS_WITHOUT_SIGNATURES.match(model):
        return False
    user_indexes = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    turn_start = max(user_indexes, default=0)
    first_calls = [calls[0] for message in messages[turn_start:] if (calls := _read_calls(message))]
    unsigned_calls = [call for call in first_calls if not _read_google_fields(call).get("thought_signature")]
    for call in unsigned_calls:
        extra = call.get("extra_content")
        extra_fields = extra if isinstance(extra, dict) else {}
        call["extra_content"] = {
            **extra_fields,
            "google": {**_read_google_fields(call), **_NO_SIGNATURE_MARK},
        }
    return bool(unsigned_calls)


def _add_thoughts(model: str, messages: list[Json]) -> bool:
    """Gives empty thoughts to replies without thoughts, and ids to calls without ids. Returns whether any was given."""
    has_added_ids = _add_missing_ids(model, messages)
    thoughtless_replies = [
        message
        for message in messages
        if message.get("role") == "assistant" and not isinstance(message.get(_THOUGHTS_FIELD), str)
    ]
    for message in thoughtless_replies:
        message[_THOUGHTS_FIELD] = ""
    return has_added_ids or bool(thoughtless_replies)


def _read_google_fields(call: Json) -> Json:
    """Returns Gemini's own fields of a call."""
    extra = call.get("extra_content")
    google: Any = extra.get("google") if isinstance(extra, dict) else None
    return google if isinstance(google, dict) else {}


def _read_calls(message: Json) -> list[Json]:
    """Returns the calls of a message."""
    calls: Any = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
