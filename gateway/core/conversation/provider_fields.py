"""Fields that a provider gives with a reply and reads again later: signed thoughts, blocks OpenAI has no form for.

Most clients drop these fields. The stored copy refills them if the reply came back word for word and the same
upstream and model are asked: no other upstream can read them, and a strict one refuses fields that it does not know.
Some fields stand next to a reply's text, others within its calls: Gemini refuses a call without its signature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from adapters.types import ANSWER_FIELDS, NATIVE_REPLY, READABLE_THOUGHT_FIELDS
from gateway.core.conversation.wire_message import read_call_id

# These fields are written by adapters/claude and by OpenRouter
# (openrouter.ai/docs/guides/best-practices/reasoning-tokens).
PROVIDER_FIELDS = ("thinking_blocks", "provider_blocks", NATIVE_REPLY, "reasoning_details")
# ai.google.dev/gemini-api/docs/thought-signatures, as Google and as LiteLLM have them
_PROVIDER_CALL_FIELDS = ("extra_content", "provider_specific_fields")
_MAY_HOLD_PROVIDER_FIELDS = frozenset((*PROVIDER_FIELDS, "tool_calls"))
THOUGHT_FIELDS = (*READABLE_THOUGHT_FIELDS, *PROVIDER_FIELDS)
# All fields in which an upstream sends a part of a reply.
REPLY_FIELDS = (*ANSWER_FIELDS, *THOUGHT_FIELDS)

Calls = Sequence[dict[str, Any]]


def has_provider_fields(message: Mapping[str, Any]) -> bool:
    """Returns whether a reply or one of its calls has fields that only its provider reads."""
    if _MAY_HOLD_PROVIDER_FIELDS.isdisjoint(message):  # in a third of the time
        return False
    if any(map(message.get, PROVIDER_FIELDS)):
        return True
    calls: Calls = message.get("tool_calls") or ()
    return bool(calls) and any(call.get(field) for call in calls for field in _PROVIDER_CALL_FIELDS)


def refill(message: dict[str, Any], stored_message: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the client's message with the fields that the client dropped; None: it dropped no field.

    The text is then the stored one, with its outer white space: the fields count characters.

    stored_message: the reply as it is stored.
    """
    missing_fields = {
        field: stored_message[field]
        for field in PROVIDER_FIELDS
        if stored_message.get(field) and field not in message
    }
    content = message.get("content")
    stored_content = stored_message.get("content")
    if (
        missing_fields
        and isinstance(content, str)
        and isinstance(stored_content, str)
        and content.strip() == stored_content.strip()
    ):
        missing_fields["content"] = stored_content
    client_calls = message.get("tool_calls")
    if isinstance(client_calls, list) and client_calls:
        calls = refill_calls(client_calls, stored_message.get("tool_calls") or ())
        if calls != client_calls:
            missing_fields["tool_calls"] = calls
    return {**message, **missing_fields} if missing_fields else None


def refill_calls(client_calls: Calls, stored_calls: Calls) -> list[dict[str, Any]]:
    """Returns the client's calls, each with the fields that the client dropped.

    A call is found by its id. Calls with the same id, or with none, are found in their order.

    stored_calls: the calls as they are stored.
    """
    stored_by_id: dict[str, deque[dict[str, Any]]] = {}
    for call in stored_calls:
        stored_by_id.setdefault(read_call_id(call), deque()).append(call)
    refilled = []
    for call in client_calls:
        same_id = stored_by_id.get(read_call_id(call)) if isinstance(call, dict) else None
        stored_call = same_id.popleft() if same_id else {}
        missing_fields = {
            field: stored_call[field]
            for field in _PROVIDER_CALL_FIELDS
            if stored_call.get(field) and field not in call
        }
        refilled.append({**call, **missing_fields} if missing_fields else call)
    return refilled
