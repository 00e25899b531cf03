"""Reads a list of messages of an agent file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from gateway.agents.agent_file.file_messages import FILE_ROLES, FileCall, FileMessage, read_file_message
from gateway.agents.core.agent_file import PortableMessage


def read_messages(
    file_messages: Sequence[FileMessage], now: float, *, is_text_thought: bool
) -> tuple[list[PortableMessage], list[int]]:
    """Returns the messages of a list as they are stored, and the indices of messages with parts that are left out.

    Messages of unknown roles are left out, and results without calls, since no provider accepts them. The compiled
    prompt is ignored, since it is compiled again.

    now: the time of messages without a time, in seconds since the epoch.
    is_text_thought: True if text next to calls is a thought, as with Letta's older agents.
    """
    begins_with_prompt = bool(file_messages) and file_messages[0].role == "system"
    messages = list(enumerate(file_messages))[1 if begins_with_prompt else 0 :]
    accepted: list[PortableMessage] = []
    left_out = {index for index, message in messages if message.role not in FILE_ROLES}
    # The calls of the last reply that have no result yet: their ids in the file by their stored ids. A summary on
    # Letta's server may have replaced other calls.
    open_calls: dict[str, str] = {}
    for index, file_message in _join_approval_requests(messages):
        calls = file_message.tool_calls or []
        file_ids = _make_distinct_ids(calls)
        distinct_calls = [replace(call, id=call_id) for call, call_id in zip(calls, file_ids, strict=True)]
        distinct_message = replace(file_message, tool_calls=distinct_calls)
        for portable_message in read_file_message(distinct_message, now, is_text_thought=is_text_thought):
            message = portable_message.message
            if message["role"] != "tool":
                open_calls = file_ids if "tool_calls" in message else {}
            else:
                result_id = message["tool_call_id"]
                answered_id = next((key for key, file_id in open_calls.items() if file_id == result_id), None)
                if answered_id is None:
                    left_out.add(index)
                    continue
                del open_calls[answered_id]
                message["tool_call_id"] = answered_id
            accepted.append(portable_message)
    return accepted, sorted(left_out)


def _join_approval_requests(messages: Iterable[tuple[int, FileMessage]]) -> Iterator[tuple[int, FileMessage]]:
    """Yields messages with their indices; a reply and the calls that follow it become one message.

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
        yield index, replace(message, tool_calls=calls)


def _make_distinct_ids(calls: Iterable[FileCall]) -> dict[str, str]:
    """Returns the ids of a reply's calls in the file, by distinct ids; providers refuse a reply with an id twice."""
    file_ids: dict[str, str] = {}
    for call in calls:
        distinct_id = call.id
        while distinct_id in file_ids:
            distinct_id += "_"
        file_ids[distinct_id] = call.id
    return file_ids
