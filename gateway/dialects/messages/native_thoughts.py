"""The thoughts in a request to the Messages API, after its model or the messages before the thoughts have changed.

Each function returns members of the request's body in place of its own. A member with the value None is left out.
(platform.claude.com/docs/en/build-with-claude/extended-thinking)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adapters.claude.model_traits import takes_thinking, thinks_on_request
from adapters.claude.thinking import BINDING_BETA, with_block_binding
from adapters.types import Json
from gateway.core.lenient import as_list
from gateway.dialects.messages.content import THOUGHT_TYPES


class ThinkingChange(NamedTuple):
    """A change of a request on account of its thoughts."""

    # The members of the body in place of the request's own.
    members: Json
    # The names of settings that are left out.
    left_out: Sequence[str] = ()
    # The betas that the members need.
    betas: Sequence[str] = ()


def has_thoughts(messages: Sequence[Json]) -> bool:
    """Returns whether a reply among these messages has thoughts."""
    return any(block.get("type") in THOUGHT_TYPES for message in messages for block in _list_blocks(message))


def drop_thoughts(body: Json, messages: Sequence[Json]) -> Json:
    """Returns the members `messages` without thoughts, and a fitting `thinking`. body: the request's body."""
    members: Json = {"messages": [_strip_thoughts(message) for message in messages]}
    thinking = body.get("thinking")
    last_reply = next((message for message in reversed(messages) if message.get("role") == "assistant"), {})
    if isinstance(thinking, dict) and thinking.get("type") == "enabled" and _has_calls(last_reply):
        # Where thinking has a budget, a call without its thought is refused.
        members["thinking"] = {"type": "disabled"}
    return members


def drop_refused_thinking(body: Json, model: str) -> ThinkingChange:
    """Returns the change that leaves out the settings of thinking that a model refuses."""
    members: Json = {}
    left_out: list[str] = []
    thinking, config = body.get("thinking"), body.get("output_config")
    if isinstance(thinking, dict) and not takes_thinking(model, thinking.get("type")):
        members["thinking"] = None
        left_out.append("thinking")
    if isinstance(config, dict) and "effort" in config and thinks_on_request(model):
        members["output_config"] = {key: value for key, value in config.items() if key != "effort"} or None
        left_out.append("output_config.effort")
    return ThinkingChange(members, left_out=left_out)


def allow_other_prefix(body: Json, messages: Sequence[Json]) -> ThinkingChange:
    """Returns the change that makes up for thoughts before which messages have changed.

    The change asks the upstream to drop such thoughts. If a request cannot ask for that, all thoughts are left out.
    """
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and "block_binding" in thinking:
        return ThinkingChange({})
    bound_thinking = with_block_binding(thinking, body.get("tool_choice"))
    if bound_thinking is None:
        return ThinkingChange(drop_thoughts(body, messages))
    return ThinkingChange({"thinking": bound_thinking}, betas=(BINDING_BETA,))


def _has_calls(message: Json) -> bool:
    return any(block.get("type") == "tool_use" for block in _list_blocks(message))


def _list_blocks(message: Json) -> list[Json]:
    return [block for block in as_list(message.get("content")) if isinstance(block, dict)]


def _strip_thoughts(message: Json) -> Json:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    remaining = [
        block for block in content if not (isinstance(block, dict) and block.get("type") in THOUGHT_TYPES)
    ]
    # A message that has only thoughts stays: the API takes no message without content.
    if not remaining or len(remaining) == len(content):
        return message
    return {**message, "content": remaining}
