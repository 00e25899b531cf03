"""The JSON of stored messages in the agents API. One stored message may be shown as several messages with one id.

A reply is shown as its thoughts, its text and its calls, in this order. A call by which the agent speaks
(`send_message`) is shown as the spoken text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import Struct

from gateway.agents.wire.sent_values import get_sent_fields
from gateway.agents.wire.shown_values import render_time, split_lines
from gateway.core import exact_json, ids
from gateway.core.conversation.private import find_author, find_own_length, read_private, read_system_text
from gateway.core.conversation.wire_message import WireMessage, find_callee, is_system, join_texts, read_text
from gateway.core.json_limits import is_too_deep
from gateway.core.lenient import as_text, decode_object
from gateway.core.memory.call_arguments import read_arguments
from gateway.core.thoughts import read_thoughts
from gateway.core.turn.asides import THINKING
from storage.records import Summary
from storage.run_records import WaitKind


class Showing(Struct, frozen=True):
    """The way in which a caller wants messages to be shown."""

    # The message types that are shown; None: all types.
    types: frozenset[str] | None = None
    # The tool by which the agent speaks: a call of it is shown as a text; None: all calls are shown as calls.
    speaking_tool: str | None = msgspec.field(name="speaks", default="send_message")
    # The argument of this tool that has the text.
    text_argument: str = msgspec.field(name="argument", default="message")
    # True: summaries of the conversation are shown as well.
    shows_summaries: bool = msgspec.field(name="summaries", default=False)

    def shows(self, message_type: str) -> bool:
        """Returns whether messages of a type are shown."""
        return self.types is None or message_type in self.types


class Envelope(Struct, frozen=True):
    """The ids and the time with which a stored message is shown."""

    # The public id of the message.
    id: str
    # The time of the message, in seconds since the epoch.
    at: float
    # The public id of the run that made the message; None: no run made it.
    run_id: str | None = None
    # The public id of the step that made the message; None: no run made it.
    step_id: str | None = None
    # The public id of the conversation; None: all messages of the list are of one conversation.
    conversation_id: str | None = None


def read_showing(body: msgspec.Struct) -> Showing:
    """Returns the way in which a send or a query wants messages to be shown."""
    fields = get_sent_fields(body)
    types = fields.get("include_return_message_types")
    return Showing(
        None if types is None else frozenset(types),
        fields["assistant_message_tool_name"] if fields["use_assistant_message"] else None,
        fields["assistant_message_tool_kwarg"],
        fields.get("include_compaction_messages") is True,
    )


def render_messages(
    message: WireMessage,
    envelope: Envelope,
    showing: Showing,
    *,
    waiting: Mapping[str, WaitKind] = MappingProxyType({}),
    tool_names: Mapping[str, str] = MappingProxyType({}),
    first_index: int = 0,
    results: Sequence[WireMessage] = (),
) -> list[dict[str, Any]]:
    """Returns the JSON of the messages that show a stored message.

    waiting: the kinds of answers for which calls wait, by the ids of the calls, if the stored message is a reply.
    tool_names: the names of tools by the ids of their calls, if the stored message has results.
    first_index: the number of messages that have shown parts of the stored message already.
    results: the results that are shown as a part of the stored message.
    """
    message = drop_mistyped(message)
    sources = (message, *map(drop_mistyped, results))
    parts = (part for source in sources for part in _render_parts(source, showing, waiting, tool_names))
    private = read_private(message)
    messages = []
    for index, (message_type, fields) in enumerate(parts, first_index):
        if not showing.shows(message_type):
            continue
        head = {"name": find_author(message), "sender_id": private.get("sender")}
        # Messages with one id differ in their otid. The first has the otid that the client sent.
        if index == 0 and private.get("otid"):
            head["otid"] = private["otid"]
        messages.append(render_part(message_type, envelope, index, {**head, **fields}))
    return messages


# The types of the fields that this module reads. Other types, of clients and providers, are stored as they came.
_FIELD_TYPES = {
    "name": str, "tool_call_id": str, "refusal": str, "reasoning_content": str, "reasoning": str,
    "reasoning_details": list, "thinking_blocks": list, "tool_calls": list,
}  # fmt: skip


def drop_mistyped(message: WireMessage) -> WireMessage:
    """Returns a copy of a message without the fields that have another type than in `_FIELD_TYPES`."""
    typed: WireMessage = {
        key: value for key, value in message.items() if isinstance(value, _FIELD_TYPES.get(key, object))
    }
    if "tool_calls" in typed:
        typed["tool_calls"] = [_repair_call(call) for call in typed["tool_calls"] if isinstance(call, dict)]
    return typed


def _repair_call(call: dict[str, Any]) -> dict[str, Any]:
    """Returns a call as a function call, the only kind in this API. A custom tool's input becomes the arguments."""
    function = find_callee(call) or {}
    values = {"name": function.get("name"), "arguments": function.get("arguments", function.get("input"))}
    return {
        **call,
        "id": as_text(call.get("id")),
        "function": {key: as_text(value) for key, value in values.items()},
    }


def render_part(
    message_type: str, envelope: Envelope, index: int, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the JSON of one of the messages that show a stored message.

    index: the number of the message among the messages with one id, from 0.
    """
    return {
        "id": envelope.id,
        "date": render_time(envelope.at),
        "name": None,
        "message_type": message_type,
        "otid": f"{envelope.id}:{index}",
        "sender_id": None,
        "step_id": envelope.step_id,
        "run_id": envelope.run_id,
        "conversation_id": envelope.conversation_id,
        "is_err": None,
        **fields,
    }


def render_summary(summary: Summary, uid: str, showing: Showing) -> list[dict[str, Any]]:
    """Returns the JSON of a summary, under the id of the last message that it covers; [] if it is not shown.

    uid: the uid of the agent.
    """
    if not showing.shows_summaries:
        return []
    exchange = summary.exchange
    seq = exchange.reply_seq - (1 if exchange.reply is None else 0)
    envelope = Envelope(ids.make_id_with_seq("message", uid, seq), summary.at)
    data = {"covers_up_to": envelope.id, "summary_tokens": summary.tokens, "model": summary.model}
    parts: list[_Part] = [
        ("event_message", {"event_type": "compaction", "event_data": data}),
        ("summary_message", {"summary": summary.text, "compaction_stats": None}),
    ]
    return [
        render_part(message_type, envelope, 0, {**fields, "otid": f"{envelope.id}:{message_type}"})
        for message_type, fields in parts
        if showing.shows(message_type)
    ]


def render_as_object(message: WireMessage, envelope: Envelope, agent_id: str) -> dict[str, Any]:
    """Returns a stored message in the form of Letta 0.6: `msg_object=true`."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else _render_content(content)
    return {
        "id": envelope.id,
        "role": "system" if read_private(message).get("shown") == "system" else message.get("role"),
        "content": parts,
        "text": read_system_text(message),
        "name": find_author(message),
        "tool_calls": message.get("tool_calls"),
        "tool_call_id": message.get("tool_call_id"),
        "created_at": render_time(envelope.at),
        "agent_id": agent_id,
        "step_id": envelope.step_id,
        "run_id": envelope.run_id,
        "conversation_id": envelope.conversation_id,
    }


# A message of the API: its type, and the fields that only messages of this type have.
_Part = tuple[str, dict[str, Any]]


def _render_parts(
    message: WireMessage, showing: Showing, waiting: Mapping[str, WaitKind], tool_names: Mapping[str, str]
) -> Iterator[_Part]:
    """Yields the messages of the API that show a stored message."""
    role, private = message.get("role"), read_private(message)
    if role == "tool":
        if private.get("approval") is not None:
            yield _render_decision(message, private)
        tool = tool_names.get(message.get("tool_call_id", ""))
        if showing.speaking_tool is None or tool != showing.speaking_tool:
            yield _render_result(message, private, tool_names)
    elif role == "assistant":
        yield from _render_reply(message, showing, waiting)
    elif private.get("shown") == "system" or is_system(message):
        yield "system_message", {"content": read_system_text(message)}
    else:
        yield "user_message", {"content": _render_content(message.get("content"))}


def _render_decision(message: WireMessage, private: Mapping[str, Any]) -> _Part:
    """Returns the message that shows a person's decision about a call."""
    approve = private["approval"] == "approved"
    decision = {
        "type": "approval",
        "tool_call_id": message.get("tool_call_id"),
        "approve": approve,
        "reason": private.get("reason"),
    }
    return "approval_response_message", {
        "approvals": [decision],
        "approve": approve,
        "reason": private.get("reason"),
        "approval_request_id": None,
    }


def _render_result(message: WireMessage, private: Mapping[str, Any], tool_names: Mapping[str, str]) -> _Part:
    """Returns the message that shows the result of a call."""
    call_id = message.get("tool_call_id")
    result = {
        "status": private.get("status") or "success",
        "stdout": split_lines(private.get("stdout")),
        "stderr": split_lines(private.get("stderr")),
        "tool_call_id": call_id,
        "tool_return": read_text(message)[: find_own_length(message)],
    }
    return "tool_return_message", {
        **result,
        "name": tool_names.get(call_id or "") or message.get("name"),
        "tool_returns": [{"type": "tool", **result}],
    }


def _render_reply(message: WireMessage, showing: Showing, waiting: Mapping[str, WaitKind]) -> Iterator[_Part]:
    """Yields the messages of a reply: thoughts, text and calls."""
    private = read_private(message)
    thought, calls = pop_asides(message.get("tool_calls", ()), private.get("asides") or {})
    yield from _render_thoughts({**message, "reasoning_content": thought} if thought else message)
    text = join_texts((private.get("filler", ""), read_text(message) or message.get("refusal") or ""))
    # The text of a speaking tool is shown instead of its calls.
    spoken = [spoken_text for call in calls if (spoken_text := find_spoken(call, showing)) is not None]
    if text:
        yield "assistant_message", {"content": text}
    for spoken_text in filter(None, spoken):
        yield "assistant_message", {"content": spoken_text}
    shown_calls = [call for call in calls if find_spoken(call, showing) is None]
    # A call that only waits for other calls needs no answer.
    unanswered = [call for call in shown_calls if waiting.get(call.get("id", "")) in ("approval", "client")]
    if other_calls := [call for call in shown_calls if call not in unanswered]:
        yield "tool_call_message", _render_calls(other_calls)
    if unanswered:
        yield "approval_request_message", _render_calls(unanswered)


def pop_asides(
    calls: Sequence[dict[str, Any]], asides: Mapping[str, Sequence[str]]
) -> tuple[str, list[dict[str, Any]]]:
    """Returns the thoughts in the arguments of calls, and copies of the calls with the arguments that their tools get.

    asides: the names of the arguments that the gateway has added, by tool.
    """
    thoughts, tool_calls = [], []
    for call in calls:
        function = call.get("function") or {}
        names = asides.get(function.get("name", ""))
        arguments = read_arguments(function.get("arguments") or "") if names else None
        # JSON that is nested too deeply cannot be written again: no tool gets it, and the call stays as it came.
        if names and arguments is not None and not is_too_deep(arguments):
            thoughts.append(arguments.get(THINKING) if THINKING in names else None)
            tool_arguments = {name: value for name, value in arguments.items() if name not in names}
            function = {**function, "arguments": exact_json.dumps(tool_arguments).decode()}
            call = {**call, "function": function}
        tool_calls.append(call)
    return "".join(thought for thought in thoughts if isinstance(thought, str)), tool_calls


def _render_thoughts(message: Mapping[str, Any]) -> Iterator[_Part]:
    """Yields the readable thoughts of a reply, or a part that stands for thoughts that only the provider can read."""
    blocks = [block for block in message.get("thinking_blocks") or () if isinstance(block, dict)]
    if readable := read_thoughts(message):
        signature = next((block.get("signature") for block in blocks if block.get("signature")), None)
        fields = {"reasoning": readable, "source": "reasoner_model", "signature": signature}
        yield "reasoning_message", fields
    elif blocks or message.get("reasoning_details"):
        data = next((block.get("data") for block in blocks if isinstance(block.get("data"), str)), None)
        state = "redacted" if data else "omitted"
        yield "hidden_reasoning_message", {"state": state, "hidden_reasoning": data}


def _render_calls(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the fields of a message with calls: the first call, and all calls."""
    shown_calls = [render_call(call) for call in calls]
    return {"tool_call": shown_calls[0], "tool_calls": shown_calls}


def render_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON of a stored call."""
    function = call.get("function") or {}
    return {
        "name": function.get("name") or "",
        "arguments": function.get("arguments") or "",
        "tool_call_id": call.get("id") or "",
    }


def find_spoken(call: Mapping[str, Any], showing: Showing) -> str | None:
    """Returns the text of a call by which the agent speaks; None for a call that is shown as a call."""
    function = call.get("function") or {}
    if showing.speaking_tool is None or function.get("name") != showing.speaking_tool:
        return None
    spoken_text = decode_object(as_text(function.get("arguments"))).get(showing.text_argument)
    return spoken_text if isinstance(spoken_text, str) else None


def _render_content(content: Any) -> Any:
    """Returns the content of a user message: a string, or parts of text and images."""
    if not isinstance(content, list):
        return as_text(content)
    return render_content_parts(content)


def render_content_parts(content: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the JSON of the parts of a message's content."""
    return [_render_content_part(part) for part in content if isinstance(part, dict)]


def _render_content_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON of a part of a message's content."""
    if part.get("type") == "image_url":
        image = part.get("image_url") or {}
        url = image.get("url") if isinstance(image, dict) else image
        return {"type": "image", "source": _render_source(as_text(url))}
    text = part.get("text", part.get("refusal"))
    # Sounds and files have no form in this API, so only their presence is shown.
    return {"type": "text", "text": text if isinstance(text, str) else f"[{part.get('type')}]"}


def _render_source(url: str) -> dict[str, Any]:
    if url.startswith("data:") and ";base64," in url:
        media_type, data = url.removeprefix("data:").split(";base64,", 1)
        return {"type": "base64", "media_type": media_type, "data": data}
    return {"type": "url", "url": url}
