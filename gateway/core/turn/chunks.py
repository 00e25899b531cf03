"""The shapes of a chat completion: a whole reply as the chunk of a stream, a choice's message as a delta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.types import Json


def make_chunk(body: Json) -> Json:
    """Returns a whole reply as the one chunk of a stream. It shares unchanged values with the reply."""
    choices = []
    for choice in body.get("choices") or []:
        if isinstance(choice, dict):
            other_fields = {key: value for key, value in choice.items() if key != "message"}
            choices.append({**other_fields, "delta": make_delta(choice)})
    return {**body, "object": "chat.completion.chunk", "choices": choices}


def split_into_chunks(completion: Json, *, with_usage: bool) -> list[Json]:
    """Returns a whole reply as a stream's chunks: one with the message, one with the finish reason, one with the usage.

    completion: a reply with one choice and its usage.
    """
    [choice] = completion["choices"]
    head = {**completion, "object": "chat.completion.chunk"}
    usage = head.pop("usage")
    message = {"index": 0, "delta": make_delta(choice), "finish_reason": None}
    finish = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    chunks = [{**head, "choices": [message]}, {**head, "choices": [finish]}]
    return [*chunks, {**head, "choices": [], "usage": usage}] if with_usage else chunks


def is_first_choice(choice: Any) -> bool:
    """Returns whether an entry of `choices` is the one that a turn follows. Some proxies write its index as a text."""
    return isinstance(choice, dict) and choice.get("index") in (None, 0, "0")


def as_deltas(chunk: Json) -> Json:
    """Returns a chunk with deltas in place of messages, which some upstreams stream; any other chunk as it is."""
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return chunk
    have_messages = all(
        isinstance(choice, dict) and "message" in choice and choice.get("delta") is None for choice in choices
    )
    return make_chunk(chunk) if choices and have_messages else chunk


def make_delta(choice: Json) -> Json:
    """Returns the message of a whole reply's choice as a delta, which may be the message itself."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return {}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    indexed_calls = [{**call, "index": n} if isinstance(call, dict) else call for n, call in enumerate(calls)]
    return {**message, "tool_calls": indexed_calls}


def has_content(delta: Mapping[str, Any]) -> bool:
    """Returns whether a delta has a value beside its role."""
    return any(value for key, value in delta.items() if key != "role")
