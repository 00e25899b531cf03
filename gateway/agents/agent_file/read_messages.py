"""Reads a list of messages of an agent file."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
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
    # The stored ids of the last reply's calls without a result, by their ids in the file. A summary on Letta's server
    # may have replaced other calls.
    open_ids: dict[str, deque[str]] = {}
    for index, file_message in _join_approval_requests(messages):
        calls = file_message.tool_calls or []
        stored_message = replace(file_message, tool_calls=_number_repeated(calls))
        for portable_message in read_file_message(stored_message, now, is_text_thought=is_text_thought):
            message = portable_message.message
            if message["role"] != "tool":
                open_ids = defaultdict(deque)
                for call, stored_call in zip(calls, message.get("tool_calls") or (), strict=False):
                    open_ids[call.id].append(str(stored_call["id"]))
            elif ids := open_ids.get(message["tool_call_id"]):
                message["tool_call_id"] = ids.popleft()
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


def _number_repeated(calls: Sequence[FileCall]) -> list[FileCall]:
    """Returns the calls of a reply with distinct ids; providers refuse a reply with an id twice."""
    numbered_calls: list[FileCall] = []
    numbers: Counter[str] = Counter()
    taken_ids = {call.id for call in calls}
    for call in calls:
        numbers[call.id] += 1
        while numbers[call.id] > 1 and f"{call.id}_{numbers[call.id]}" in taken_ids:
            numbers[call.id] += 1
        is_first = numbers[call.id] == 1
        numbered_calls.append(call if is_first else replace(call, id=f"{call.id}_{numbers[call.id]}"))
    return numbered_calls
