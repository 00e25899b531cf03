"""The thinking of a request of the Messages API: how much a model thinks, and which earlier thoughts it gets back.

Claude refuses thoughts that stand where the model did not think them, and thinking where a thought is missing.
(platform.claude.com/docs/en/build-with-claude/extended-thinking, .../preserved-thinking)
"""

from __future__ import annotations

from typing import Any, Final

from adapters.claude.error_form import Untranslatable
from adapters.claude.model_traits import ModelTraits
from adapters.claude.reply import THINKING_TYPES
from adapters.types import Json

# The value of `anthropic-beta` that `thinking.block_binding` needs.
BINDING_BETA: Final = "thinking-binding-controls-2026-08-01"
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
# OpenAI's efforts below Anthropic's lowest effort. A model that always thinks takes "none" as "low".
_OPENAI_LOW_EFFORTS: Final = ("none", "minimal")
# The tokens for thoughts by effort, where a model takes no effort (build-with-claude/extended-thinking: at least 1,024,
# below `max_tokens`). Not measured: each effort has twice the tokens of the one below.
_THINKING_TOKENS: Final = {"low": 4_096, "medium": 8_192, "high": 16_384}
_MIN_THINKING_TOKENS: Final = 1_024


def set_effort(claude_request: Json, config: Json, effort: Any, traits: ModelTraits) -> None:
    """Sets the thinking of a request for an effort of OpenAI's. config: its `output_config`.

    Raises: Untranslatable: there is no such effort.
    """
    if effort == "none" and traits.least_thinking is not None:
        claude_request.setdefault("thinking", {"type": traits.least_thinking})
    elif effort is not None:
        if effort not in _EFFORTS and effort not in _OPENAI_LOW_EFFORTS:
            raise Untranslatable(f"There is no effort {effort!r} here.", "reasoning_effort", "invalid_value")
        if traits.thinks_on_request:
            _enable_thinking(claude_request, effort)
        else:
            config.setdefault("effort", "low" if effort in _OPENAI_LOW_EFFORTS else effort)


def drop_refused_thinking(claude_request: Json) -> None:
    """Drops `thinking` if the last reply has a call without a thought: the API would refuse the request."""
    thinking = claude_request.get("thinking")
    if not isinstance(thinking, dict) or thinking.get("type") != "enabled":
        return
    last_reply = next(
        (
            message["content"]
            for message in reversed(claude_request["messages"])
            if message["role"] == "assistant"
        ),
        (),
    )
    block_types = [block.get("type") for block in last_reply]
    if "tool_use" in block_types and block_types[0] not in THINKING_TYPES:
        del claude_request["thinking"]


def drop_unbound_thoughts(claude_request: Json) -> None:
    """Has Claude drop the thoughts before which memory, tools or notes were changed: it would refuse such thoughts."""
    replies = (message for message in claude_request["messages"] if message["role"] == "assistant")
    thinking_replies = [
        reply for reply in replies if any(block.get("type") in THINKING_TYPES for block in reply["content"])
    ]
    if not thinking_replies:
        return
    thinking = with_block_binding(claude_request.get("thinking"), claude_request.get("tool_choice"))
    if thinking is not None:
        claude_request["thinking"] = thinking
        return
    # This request cannot ask Claude to drop thoughts. Such a request may lack thoughts, so they are dropped here.
    for reply in thinking_replies:
        reply["content"] = [block for block in reply["content"] if block.get("type") not in THINKING_TYPES]


def with_block_binding(thinking: Any, tool_choice: Any) -> Json | None:
    """Returns the `thinking` of a request that has Claude drop thoughts before which something was changed.

    Returns None where the request cannot ask for that: its thinking is not adaptive, or it forces a call.

    thinking: the request's own `thinking`; None: the default of the models that bind thoughts, which is adaptive.
    tool_choice: the request's tool choice in Claude's form; None: the default.
    """
    if thinking is None:
        thinking = {"type": "adaptive"}
    if not isinstance(thinking, dict) or thinking.get("type") != "adaptive" or _forces_call(tool_choice):
        return None
    return {"block_binding": {"prefix_mismatch_behavior": "drop_block"}, **thinking}


def _enable_thinking(claude_request: Json, effort: str) -> None:
    """Gives a model tokens to think, unless a call is forced or there is no room for thoughts."""
    max_tokens = claude_request.get("max_tokens")
    if (
        effort in _OPENAI_LOW_EFFORTS
        or _forces_call(claude_request.get("tool_choice"))
        or not isinstance(max_tokens, int)
        or max_tokens <= _MIN_THINKING_TOKENS
    ):
        return
    tokens = min(_THINKING_TOKENS.get(effort, max(_THINKING_TOKENS.values())), max_tokens - 1)
    claude_request.setdefault("thinking", {"type": "enabled", "budget_tokens": tokens})


def _forces_call(tool_choice: Any) -> bool:
    return isinstance(tool_choice, dict) and tool_choice.get("type") in ("any", "tool")
