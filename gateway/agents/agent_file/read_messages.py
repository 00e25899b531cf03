"""Reads a list of messages of an agent file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from gateway.agents.agent_file.file_messages import FILE_ROLES, FileCall, FileMessage, read_file_message
from gateway.agents.core.agent_file import PortableMessage


def read_messages(
    listed: Sequence[FileMessage], now: float, *, is_text_thought: bool
) -> tuple[list[PortableMessage], list[int]]:
    """Returns the messages of a list as they are stored, and the indices of messages with parts that are left out.

    Results without calls are left out, since no provider accepts them, and messages of unknown roles. The compiled
    prompt is ignored, since it is compiled again.

    now: the time of messages without a time, in seconds since the epoch.
    is_text_thought: text next to calls is a thought, as with Letta's older agents.
    """
    begins_with_prompt = bool(listed) and listed[0].role == "system"
    messages = list(enumerate(listed))[1 if begins_with_prompt else 0 :]
    stored = [
        (index, stored_message)
        for index, message in _join_approval_requests(messages)
        for stored_message in read_file_message(message, now, is_text_thought=is_text_thought)
    ]
    accepted: list[PortableMessage] = []
    left_out = {index for index, message in messages if message.role not in FILE_ROLES}
    flags = _are_accepted(stored_message for _, stored_message in stored)
    for (index, stored_message), is_accepted in zip(stored, flags, strict=True):
        if is_accepted:
            accepted.append(stored_message)
        else:
            left_out.add(index)
    return accepted, sorted(left_out)


def _join_approval_requests(messages: Iterable[tuple[int, FileMessage]]) -> Iterator[tuple[int, FileMessage]]:
    """Yields messages with their indices, and each reply as one message.

    Letta's server stores the calls that a person must allow as another message, after the reply with its other calls.
    """
    replies: list[tuple[int, FileMessage, list[FileCall]]] = []
    for index, message in messages:
        calls = message.tool_calls or []
        if replies and message.role == "approval" and calls:
            _, last_reply, last_calls = replies[-1]
            if last_reply.role == "assistant" and last_calls:
                last_calls.extend(calls)
                continue
        replies.append((index, message, [*calls]))
    for index, message, calls in replies:
        yield index, replace(message, tool_calls=calls) if calls else message


def _are_accepted(messages: Iterable[PortableMessage]) -> Iterator[bool]:
    """Yields for each message whether a provider accepts it. At most one result may follow a call.

    If a summary has replaced calls on Letta's server, their results have no calls.
    """
    waiting: set[str] = set()
    for portable in messages:
        message = portable.message
        if message["role"] != "tool":
            waiting = {str(call["id"]) for call in message.get("tool_calls") or ()}
            yield True
        else:
            id = message["tool_call_id"]
            yield id in waiting
            waiting.discard(id)
