"""Checks that each call in a Messages request has its result in the user's next turn, and each result its call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from adapters.types import Json
from gateway.dialects.messages.errors import make_field_error
from gateway.dialects.messages.message_origin import MessageOrigin

# Errors in Anthropic's words, which clients read.
_NO_CALL_MESSAGE: Final = (
    "unexpected `tool_use_id` found in `tool_result` blocks: {}. Each `tool_result` block must have a corresponding "
    "`tool_use` block in the previous message."
)
_NO_RESULT_MESSAGE: Final = (
    "`tool_use` ids were found without `tool_result` blocks immediately after: {}. Each `tool_use` block must have a "
    "corresponding `tool_result` block in the next message."
)
# The most characters of an id that an error quotes. Ids have about 30.
_QUOTED_ID_CHARS: Final = 80


def check_call_pairs(messages: Sequence[Json], origins: Sequence[MessageOrigin]) -> None:
    """Refuses a call without its result in the user's next turn, and a result without its call. Raises: BadRequest.

    Results before the first reply pass: in append mode memory may have their calls.
    """
    # The indexes of messages with calls that have no result so far, by the calls' ids.
    open_calls: dict[str, int] = {}
    has_reply = False
    previous_role = ""
    for message, origin in zip(messages, origins, strict=True):
        role = message["role"]
        if role == "system":
            continue
        if role == "assistant":
            has_reply = True
            if previous_role != role:
                _refuse_open_calls(open_calls)
            for call in message.get("tool_calls", ()):
                open_calls[call["id"]] = origin.message_index
        elif role == "tool" and has_reply:
            call_id = message["tool_call_id"]
            if call_id not in open_calls:
                raise make_field_error(
                    f"messages.{origin.message_index}.content.{origin.result_block}",
                    _NO_CALL_MESSAGE.format(call_id[:_QUOTED_ID_CHARS]),
                )
            del open_calls[call_id]
        previous_role = role
    _refuse_open_calls(open_calls)


def _refuse_open_calls(calls: Mapping[str, int]) -> None:
    """Refuses calls without results. calls: the indexes of their messages, by their ids. Raises: BadRequest."""
    if calls:
        first_index = min(calls.values())
        quoted_ids = [call_id[:_QUOTED_ID_CHARS] for call_id, index in calls.items() if index == first_index]
        raise make_field_error(f"messages.{first_index}", _NO_RESULT_MESSAGE.format(", ".join(quoted_ids)))
