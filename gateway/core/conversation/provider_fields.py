"""Fields that a provider gives with a reply and reads again later: signed thoughts, blocks OpenAI has no form for.

Most clients drop these fields. They are put back from the stored copy if the reply came back word for word and the same
upstream and model are asked: no other upstream can read them, and a strict one refuses fields that it does not know.
Some fields stand next to a reply's text, others within its calls: Gemini refuses a call without its signature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from adapters.types import NATIVE_REPLY
from gateway.core.conversation.wire_message import PRIVATE, call_id

# These fields are written by adapters/claude and by OpenRouter
# (openrouter.ai/docs/guides/best-practices/reasoning-tokens).
FIELDS = ("thinking_blocks", "provider_blocks", NATIVE_REPLY, "reasoning_details")
# ai.google.dev/gemini-api/docs/thought-signatures, as Google and as LiteLLM have them
CALL_FIELDS = ("extra_content", "provider_specific_fields")
_OPAQUE = frozenset((*FIELDS, "tool_calls"))
THOUGHTS = ("reasoning_content", "reasoning", *FIELDS)
# The fields of a reply and of its calls, and the parts of its content, that another model gets. A strict upstream
# refuses all others, such as Mistral's `prefix` and OpenAI's `annotations`, and Mistral's thoughts among the parts.
_KNOWN_FIELDS = frozenset(
    ("role", "content", "name", "tool_calls", "function_call", "refusal", "audio", "cache_control", PRIVATE)
)
_KNOWN_CALL_FIELDS = frozenset(("id", "type", "function", "custom", "cache_control"))
_KNOWN_PARTS = ("text", "refusal")
# The content in place of that of an empty reply, which Mistral and Kimi refuse to take back.
NO_REPLY = "(No reply.)"
_REPLY_PARTS = ("content", "tool_calls", "function_call", "refusal", "audio", *FIELDS)
_UNREADABLE_FILE = {"type": "text", "text": "[A file that cannot be read here.]"}
_GONE_MEDIA = {"type": "text", "text": "[A picture or file that can no longer be fetched.]"}
# The argument of a function that stands for a custom tool; it has the text that is the tool's input.
INPUT_ARGUMENT = "input"

Calls = Sequence[dict[str, Any]]


def has_opaque(message: Mapping[str, Any]) -> bool:
    """Returns whether a reply or one of its calls has fields that only its provider reads."""
    if _OPAQUE.isdisjoint(message):  # in a third of the time
        return False
    if any(map(message.get, FIELDS)):
        return True
    calls: Calls = message.get("tool_calls") or ()
    return bool(calls) and any(call.get(field) for call in calls for field in CALL_FIELDS)


def refill(message: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the client's message with the fields that it dropped; None where it dropped none.

    White space at the ends of its text is the stored copy's then: the fields count characters.

    stored: the reply as it is stored.
    """
    missing = {field: stored[field] for field in FIELDS if stored.get(field) and field not in message}
    content = message.get("content")
    own = stored.get("content")
    if missing and isinstance(content, str) and isinstance(own, str) and content.strip() == own.strip():
        missing["content"] = own
    client_calls = message.get("tool_calls")
    if isinstance(client_calls, list) and client_calls:
        calls = refill_calls(client_calls, stored.get("tool_calls") or ())
        if calls != client_calls:
            missing["tool_calls"] = calls
    return {**message, **missing} if missing else None


def refill_calls(client_calls: Calls, stored: Calls) -> list[dict[str, Any]]:
    """Returns the client's calls, each with the fields that it dropped.

    A call is found by its id. Calls with the same id, or with none, are found in their order.

    stored: the calls as they are stored.
    """
    stored_by_id: dict[str, deque[dict[str, Any]]] = {}
    for call in stored:
        stored_by_id.setdefault(call_id(call), deque()).append(call)
    refilled = []
    for call in client_calls:
        same_id = stored_by_id.get(call_id(call)) if isinstance(call, dict) else None
        stored_call = same_id.popleft() if same_id else {}
        missing = {
            field: stored_call[field] for field in CALL_FIELDS if stored_call.get(field) and field not in call
        }
        refilled.append({**call, **missing} if missing else call)
    return refilled


def for_another_model(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored message as another model gets it: a reply has its words, and calls of functions alone.

    Not even readable thoughts are left: OpenAI refuses them.
    """
    if message.get("role") != "assistant":
        return message
    shown = {key: value for key, value in message.items() if key in _KNOWN_FIELDS}
    calls, content = shown.get("tool_calls"), shown.get("content")
    if isinstance(calls, list):
        shown["tool_calls"] = [
            as_function_call({key: value for key, value in call.items() if key in _KNOWN_CALL_FIELDS})
            if isinstance(call, dict)
            else call
            for call in calls
        ]
    if isinstance(content, list):
        parts = [part for part in content if not isinstance(part, dict) or part.get("type") in _KNOWN_PARTS]
        shown["content"] = parts or None
    return shown


def is_empty_reply(message: Mapping[str, Any]) -> bool:
    """Returns whether a message is a reply with nothing in it but readable thoughts."""
    return message.get("role") == "assistant" and not any(map(message.get, _REPLY_PARTS))


def with_stand_in(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored message as every upstream takes it: an empty reply has a text that stands for it."""
    return {**message, "content": NO_REPLY} if is_empty_reply(message) else message


def has_unreadable_files(message: Mapping[str, Any]) -> bool:
    """Returns whether a message has files in Claude's own form, such as a file by its id: no other model reads them."""
    content = message.get("content")
    return isinstance(content, list) and any(map(_is_claudes_file, content))


def without_unreadable_files(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a message with a text in place of each file that `has_unreadable_files` finds."""
    content = [_UNREADABLE_FILE if _is_claudes_file(part) else part for part in message["content"]]
    return {**message, "content": content}


def has_remote_media(message: Mapping[str, Any]) -> bool:
    """Returns whether a message has pictures or other media that an upstream has to fetch from an address."""
    content = message.get("content")
    return isinstance(content, list) and any(map(_is_remote, content))


def without_remote_media(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a message with a text in place of each part that `has_remote_media` finds."""
    if not has_remote_media(message):
        return message
    content = [_GONE_MEDIA if _is_remote(part) else part for part in message["content"]]
    return {**message, "content": content}


def _is_remote(part: object) -> bool:
    if not isinstance(part, dict):
        return False
    source = part.get("source") or part.get(str(part.get("type")))
    url = source.get("url") if isinstance(source, dict) else source
    return isinstance(url, str) and url.startswith(("http:", "https:"))


def _is_claudes_file(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("document", "image") and "source" in part


def as_function_call(call: dict[str, Any]) -> dict[str, Any]:
    """Returns a call of a custom tool as one of a function, which is what most models take; any other call as it is."""
    custom = call.get("custom")
    if not isinstance(custom, dict):
        return call
    arguments = orjson.dumps({INPUT_ARGUMENT: custom.get("input")}).decode()
    without_custom = {key: value for key, value in call.items() if key != "custom"}
    return {
        **without_custom,
        "type": "function",
        "function": {"name": custom.get("name"), "arguments": arguments},
    }
