"""The reasons for which turns end."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

# The error of a step that did not begin because a limit was reached.
OUT_OF_QUOTA: Final = "insufficient_quota"


class StopReason(StrEnum):
    """The reason for which a turn ended. The words are those of Letta's API."""

    END_TURN = "end_turn"
    TOOL_RULE = "tool_rule"
    MAX_STEPS = "max_steps"
    REQUIRES_APPROVAL = "requires_approval"  # a person or the client must answer first
    MAX_TOKENS = "max_tokens_exceeded"
    BAD_TOOL_CALL = "invalid_tool_call"
    NO_TOOL_CALL = "no_tool_call"  # the model calls nothing, though it has to
    BAD_REPLY = "invalid_llm_response"
    UPSTREAM_ERROR = "llm_api_error"
    NO_CREDITS = "insufficient_credits"
    SYSTEM_OVERFLOW = "context_window_overflow_in_system_prompt"
    CANCELLED = "cancelled"
    ERROR = "error"

    @property
    def is_proper(self) -> bool:
        """True where the turn came to a regular end."""
        return self in _PROPER_REASONS


# The reasons of turns that have come to a proper end.
_PROPER_REASONS: Final = frozenset(
    {StopReason.END_TURN, StopReason.TOOL_RULE, StopReason.MAX_STEPS, StopReason.REQUIRES_APPROVAL}
)

# Why a turn failed, for the reader of its run or item, if the cause is no error of an upstream.
STOP_MESSAGES: Final[Mapping[str, str]] = {
    StopReason.MAX_TOKENS: "The reply was cut off at the limit of its tokens.",
    StopReason.BAD_REPLY: "The reply cannot be read, or a filter of the upstream cut it off.",
    StopReason.BAD_TOOL_CALL: "Three replies in a row called tools with arguments that are no JSON.",
    StopReason.NO_TOOL_CALL: "Three replies in a row called no tool, and a rule demands a call.",
}
