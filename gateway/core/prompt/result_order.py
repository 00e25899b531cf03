"""Puts results of tools right after their calls, in a client's list and in the messages of a stored conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

from msgspec.structs import replace

from gateway.core.conversation.wire_message import list_raw_calls, read_call_id, read_result_id
from gateway.core.json_object import parse_object
from gateway.core.prompt.composition import InsertedMessage

UNANSWERED_RESULT = "No result was given."


def find_results_order(messages: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """Returns the indices of a list's messages in the order in which results directly follow the reply with their call.

    Returns None if the list has that order. A result without its call in the list before it stays where it is.
    """
    # The indices of replies by the ids of their calls.
    reply_indices: dict[str, int] = {}
    # The indices of results that do not directly follow their reply, by the index of the reply.
    late_results: dict[int, list[int]] = {}
    # The index of the last message that is no result.
    last_index = -1
    for index, message in enumerate(messages):
        if message.get("role") != "tool":
            last_index = index
            reply_indices.update((read_call_id(call), index) for call in list_raw_calls(message))
            continue
        reply_index = reply_indices.get(read_result_id(message), last_index)
        if reply_index != last_index:
            late_results.setdefault(reply_index, []).append(index)
    if not late_results:
        return None
    moved_indices = {*chain.from_iterable(late_results.values())}
    order: list[int] = []
    # The results of the last reply that are moved to it.
    moved_results: Sequence[int] = ()
    for index, message in enumerate(messages):
        if index in moved_indices:
            continue
        if message.get("role") != "tool":
            order += moved_results
            moved_results = late_results.get(index, ())
        order.append(index)
    return [*order, *moved_results]


class SentMessage(NamedTuple):
    """A message that is sent after the head of a stored conversation, or before it."""

    # The message with its note and its place on the path.
    content: InsertedMessage
    # The index in the client's list, where the message may stay as it came; None: the gateway inserts the message.
    list_index: int | None = None

    @property
    def role(self) -> object:
        return self.content.message.get("role")

    @property
    def result_id(self) -> str:
        """The id of the call that the message answers, as `read_call_id` returns it: some calls have no id."""
        return read_result_id(self.content.message)


def has_calls_or_results(messages: Iterable[InsertedMessage]) -> bool:
    """Returns whether messages have calls or results, which `put_results_after_calls` may have to move."""
    sent_messages = (each.message for each in messages)
    return any("tool_calls" in message or message.get("role") == "tool" for message in sent_messages)


def put_results_after_calls(messages: Sequence[SentMessage]) -> list[SentMessage]:
    """Returns messages with the results of tools right after their calls.

    Servers refuse a call without its result and a result without its call. So a stored call without a result gets a
    result, the same with each request. If a result comes after a later reply, its call is added to that reply. Stored
    results without a call, and further results of one call, are left out.
    """
    calls: dict[str, Any] = {}
    starts = [index for index, message in enumerate(messages) if message.role == "assistant"]
    first_messages = messages[: starts[0]] if starts else messages
    ordered = [
        message for message in first_messages if message.role != "tool" or message.list_index is not None
    ]
    for start, end in pairwise([*starts, len(messages)]):
        ordered += _with_results_first(messages[start], messages[start + 1 : end], calls)
    return ordered


def _with_results_first(
    reply: SentMessage, following: Sequence[SentMessage], calls: dict[str, Any]
) -> Sequence[SentMessage]:
    """Returns a reply, the results of its calls, and the other messages that follow it.

    calls: the calls of the replies before this one, by their ids; the calls of this reply are added.
    """
    results = [each for each in following if each.role == "tool"]
    own_ids = {read_call_id(call) for call in list_raw_calls(reply.content.message)}
    late_ids = dict.fromkeys(each.result_id for each in results if each.result_id not in own_ids)
    late_calls = [calls[call_id] for call_id in late_ids if call_id in calls]
    whole_reply = _with_calls(reply, late_calls)
    all_calls = list_raw_calls(whole_reply.content.message)
    calls.update((read_call_id(call), call) for call in all_calls)
    open_calls = Counter(map(read_call_id, all_calls))
    answers: list[SentMessage] = []
    # The newest of several results of a call is sent.
    for each in reversed(results):
        if open_calls[each.result_id] > 0 or each.list_index is not None:
            open_calls[each.result_id] -= 1
            answers.insert(0, each)
    open_ids = open_calls.elements() if reply.list_index is None else ()
    missing_results = [_make_missing_result(calls[call_id], reply) for call_id in open_ids]
    other_messages = [each for each in following if each.role != "tool"]
    return [whole_reply, *missing_results, *answers, *other_messages]


def _make_missing_result(call: Mapping[str, Any], reply: SentMessage) -> SentMessage:
    """Returns the result for a stored call without a result."""
    message = {"role": "tool", "tool_call_id": call.get("id"), "content": UNANSWERED_RESULT}
    return SentMessage(InsertedMessage(message, (), reply.content.position))


def _with_calls(reply: SentMessage, late_calls: Sequence[Any]) -> SentMessage:
    """Returns a copy of a reply with more calls, and with readable arguments if the reply is stored."""
    if reply.list_index is not None and not late_calls:
        return reply
    message = reply.content.message
    own_calls = list_raw_calls(message)
    if reply.list_index is None:
        own_calls = [_make_readable(call) for call in own_calls]
    calls = [*own_calls, *late_calls]
    if calls == (message.get("tool_calls") or []):
        return reply
    fields = {name: value for name, value in message.items() if name != "tool_calls"}
    return SentMessage(replace(reply.content, message={**fields, "tool_calls": calls} if calls else fields))


def _make_readable(call: dict[str, Any]) -> dict[str, Any]:
    """Returns a call with arguments that are a JSON object; strict servers refuse others, which become `{}`."""
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    text = function.get("arguments")
    is_readable = not isinstance(text, str) or parse_object(text) is not None
    return call if is_readable else {**call, "function": {**function, "arguments": "{}"}}
