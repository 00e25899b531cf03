"""Reads a list of messages of an agent file."""

from __future__ import annotations

from collections import Counter
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
    # The stored ids of the last reply's calls without a result. A summary on Letta's server may have replaced others.
    open_ids: set[str] = set()
    # How often each id of a call in the file has had a result since the last reply.
    result_counts: Counter[str] = Counter()
    for index, file_message in _join_approval_requests(messages):
        call_counts: Counter[str] = Counter()
        calls = [
            replace(call, id=_make_distinct_id(call.id, call_counts))
            for call in file_message.tool_calls or ()
        ]
        distinct_message = replace(file_message, tool_calls=calls)
        for portable_message in read_file_message(distinct_message, now, is_text_thought=is_text_thought):
            message = portable_message.message
            if message["role"] != "tool":
                open_ids = {str(call["id"]) for call in message.get("tool_calls") or ()}
                result_counts.clear()
            elif (stored_id := _make_distinct_id(message["tool_call_id"], result_counts)) in open_ids:
                open_ids.remove(stored_id)
                message["tool_call_id"] = stored_id
            else:
                left_out.add(index)
                continue
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


def _make_distinct_id(file_id: str, counts: Counter[str]) -> str:
    """Returns an id for the next occurrence of an id; providers refuse a reply with an id twice.

    counts: how often each id has occurred.
    """
    counts[file_id] += 1
    return file_id if counts[file_id] == 1 else f"{file_id}_{counts[file_id]}"
