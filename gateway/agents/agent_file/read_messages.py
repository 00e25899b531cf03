"""Reads a list of messages of an agent file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from gateway.agents.agent_file.file_messages import FileCall, FileMessage, from_file_message
from gateway.agents.core.agent_file import PortableMessage


def read_messages(
    listed: Sequence[FileMessage], now: float, *, is_text_thought: bool
) -> tuple[list[PortableMessage], list[int]]:
    """Returns the messages of a list as they are stored, and the places in the list of those that are left out.

    A message that no provider would accept is left out, and the compiled prompt, which is compiled again, is ignored.

    now: the time of messages that have none.
    is_text_thought: text next to calls is a thought, as with Letta's older agents.
    """
    begins_with_prompt = bool(listed) and listed[0].role == "system"
    messages = list(enumerate(listed))[1 if begins_with_prompt else 0 :]
    stored = [
        (place, stored_message)
        for place, message in _join_requests(messages)
        for stored_message in from_file_message(message, now, is_text_thought=is_text_thought)
    ]
    accepted = _are_accepted(stored_message for _, stored_message in stored)
    read: list[PortableMessage] = []
    left_out: list[int] = []
    for (place, stored_message), is_accepted in zip(stored, accepted, strict=True):
        if is_accepted:
            read.append(stored_message)
        else:
            left_out.append(place)
    return read, left_out


def _join_requests(messages: Iterable[tuple[int, FileMessage]]) -> Iterator[tuple[int, FileMessage]]:
    """Yields messages with their places, each reply as one.

    Letta's server keeps the calls that a person must allow as another message, which follows the reply's other calls.
    """
    replies: list[tuple[int, FileMessage, list[FileCall]]] = []
    for place, message in messages:
        calls = message.tool_calls or []
        if replies and message.role == "approval" and calls:
            _, last, last_calls = replies[-1]
            if last.role == "assistant" and last_calls:
                last_calls.extend(calls)
                continue
        replies.append((place, message, [*calls]))
    for place, message, calls in replies:
        yield place, replace(message, tool_calls=calls) if calls else message


def _are_accepted(messages: Iterable[PortableMessage]) -> Iterator[bool]:
    """Yields for each message whether a provider accepts it: a tool result has to follow its call, and only once.

    Where a summary replaced the calls, Letta's server retained their results.
    """
    waiting: set[str] = set()
    for each in messages:
        message = each.message
        if message["role"] != "tool":
            waiting = {str(call["id"]) for call in message.get("tool_calls") or ()}
            yield True
        else:
            id = message["tool_call_id"]
            yield id in waiting
            waiting.discard(id)
