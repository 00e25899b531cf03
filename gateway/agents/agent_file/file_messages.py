"""Messages of an agent file: converted from their stored form to Letta's, and back.

Some facts are in the private fields of a stored message (`core.conversation.private`). A system message is stored as a
user message that is shown as the system's. The private length of a tool's result is the length of the tool's own text,
before a note about changed blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.agents.core.agent_file import PortableMessage
from gateway.agents.wire.message import Showing, drop_mistyped, find_spoken, render_content_parts
from gateway.agents.wire.shown_values import render_time, split_lines
from gateway.core.conversation.private import (
    CallStatus,
    find_author,
    find_own_length,
    make_framed_system_message,
    read_private,
    read_system_text,
    with_name,
    with_private,
)
from gateway.core.conversation.wire_message import read_text
from gateway.core.dates import parse_moment
from gateway.core.lenient import as_list, as_object, as_text
from gateway.core.memory.call_arguments import read_arguments
from gateway.core.thoughts import read_thoughts
from gateway.core.turn.call_ids import make_valid_tool_name

# The way of showing messages in which a call of `send_message` is text.
_DEFAULT_SHOWING = Showing()
# Letta packs a tool's result as an object with exactly these fields. A tool's own JSON may have them among others.
_PACKED_RESULT_FIELDS = {"status", "message", "time"}
# The statuses of tool returns, by the statuses in packed results.
_STATUSES = {"OK": "success", "Failed": "error"}
_PACKED_STATUSES = {status: packed for packed, status in _STATUSES.items()}
# The types of system events, which Letta's older agents got as user messages.
_EVENT_TYPES = ("heartbeat", "login")
# The part that stands for an image of which the file has only the id on Letta's server.
_LOST_IMAGE = {"type": "text", "text": "[image]"}
# The known roles. A `prompt` (`older_file.py`) becomes no message.
FILE_ROLES = frozenset({"user", "summary", "system", "approval", "assistant", "tool", "prompt"})


class Function(msgspec.Struct):
    """The function that a call names."""

    # The name of the tool.
    name: str
    # The arguments, as JSON in a text.
    arguments: str = ""


class FileCall(msgspec.Struct):
    """A tool call of a message in Letta's agent file."""

    # The id of the call.
    id: str
    # The tool and the arguments.
    function: Function


class FileReturn(msgspec.Struct):
    """A tool's result."""

    # The id of the call; None: the id in the message.
    tool_call_id: str | None = None
    # The status of the call; None: the status in the packed result, or success.
    status: CallStatus | None = None
    # The standard output of the tool's code, line by line.
    stdout: list[str] | None = None
    # The error output of the tool's code, line by line.
    stderr: list[str] | None = None
    # The result as the model read it.
    func_response: Any = None


class FileMessage(msgspec.Struct, kw_only=True):
    """A message of Letta's agent file."""

    # The id of the message in the file.
    id: str
    # One of `FILE_ROLES`; messages of other roles are left out.
    role: str
    # The content as parts, or in older files as a text.
    content: str | list[dict[str, Any]] | None = None
    # The name of the author, or of the tool that gave a result.
    name: str | None = None
    # The id that the client gave the message ("offline threading id").
    otid: str | None = None
    # The id of the agent that sent the message; None: no agent did.
    sender_id: str | None = None
    # The model that made a reply.
    model: str | None = None
    # The calls of a reply, or of a request for approval.
    tool_calls: list[FileCall] | None = None
    # The id of the call for a single result without `tool_returns`.
    tool_call_id: str | None = None
    # The results of calls; None: the content is the only result.
    tool_returns: list[FileReturn] | None = None
    # The time of the message, in ISO 8601; None: the time of the import.
    created_at: str | None = None
    # A person's decision about the calls; None: no person was asked.
    approve: bool | None = None
    # The person's reason for a denial; None: no reason was given.
    denial_reason: str | None = None


# -- stored -> file


def render_file_message(portable: PortableMessage, message_id: str, agent_id: str) -> dict[str, Any]:
    """Returns a stored message in Letta's form."""
    message, private = drop_mistyped(portable.message), read_private(portable.message)
    if (length := find_own_length(portable.message)) is not None:
        # The note about changed blocks after the tool's own text is no part of the result.
        message = {**message, "content": read_text(message)[:length]}
    role, approval = message.get("role"), private.get("approval")
    returns: list[dict[str, Any]] = []
    if private.get("shown") == "system":
        role, content = "system", [_render_text(read_system_text(message))]
    elif role == "tool":
        returns = [_render_return(message, private, portable.at)]
        content = [_render_text(returns[0]["func_response"])]
    else:
        content = [*_render_thoughts(message), *_render_parts(message)]
        if not content and role != "assistant":
            # Letta's server 0.16.8 lists no message of an agent that has a message without a text.
            content = [_render_text("")]
    return {
        "type": "message",
        "role": role,
        "content": content,
        "name": find_author(message),
        "otid": private.get("otid"),
        "sender_id": private.get("sender"),
        "batch_item_id": None,
        "group_id": None,
        "id": message_id,
        "model": portable.model or None,
        "agent_id": agent_id,
        "tool_calls": [_render_call(call) for call in message.get("tool_calls", ())] or None,
        "tool_call_id": message.get("tool_call_id"),
        "tool_returns": returns,
        "created_at": render_time(portable.at),
        "approve": None if approval is None else approval == "approved",
        "approval_request_id": None,
        "denial_reason": private.get("reason"),
        "approvals": [],
    }


def _render_text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "signature": None}


def _render_parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the content of a stored message as parts."""
    content = message.get("content")
    if isinstance(content, list):
        parts = render_content_parts(content)
        return [_render_text(part["text"]) if part["type"] == "text" else part for part in parts]
    text = read_text(message)
    return [_render_text(text)] if text else []


def _render_thoughts(message: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Yields the thoughts of a stored reply: its thinking blocks; without blocks, its readable thoughts."""
    blocks = [block for block in message.get("thinking_blocks") or () if isinstance(block, dict)]
    for block in blocks:
        if isinstance(block.get("data"), str):
            yield {"type": "redacted_reasoning", "data": block["data"]}
        elif isinstance(block.get("thinking"), str):
            yield _render_thought(block["thinking"], block.get("signature"))
    if not blocks and (readable := read_thoughts(message)):
        yield _render_thought(readable, signature=None)


def _render_thought(text: str, signature: Any) -> dict[str, Any]:
    """Returns a thought as a part of a file's message. signature: the provider's; no text: it has none."""
    return {
        "type": "reasoning",
        "is_native": True,
        "reasoning": text,
        "signature": signature if isinstance(signature, str) else None,
    }


def _render_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the file's JSON of a stored call."""
    function = call.get("function") or {}
    return {
        "id": call.get("id") or "",
        "function": {"arguments": function.get("arguments") or "", "name": function.get("name") or ""},
        "type": "function",
    }


def _render_return(message: Mapping[str, Any], private: Mapping[str, Any], at: float) -> dict[str, Any]:
    """Returns a result in the packed form, without which Letta's server refuses to list the agent's messages."""
    status = private.get("status") or "success"
    packed_result = {
        "status": _PACKED_STATUSES.get(status, "Failed"),
        "message": read_text(message),
        "time": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %I:%M:%S %p UTC+0000"),
    }
    return {
        "tool_call_id": message.get("tool_call_id"),
        "status": status,
        "stdout": split_lines(private.get("stdout")),
        "stderr": split_lines(private.get("stderr")),
        "func_response": msgspec.json.encode(packed_result).decode(),
    }


# -- file -> stored


def read_file_message(
    message: FileMessage, at: float, *, is_text_thought: bool = False
) -> list[PortableMessage]:
    """Returns the messages to store for a message of a file: one for each tool result, none for an approval's answer.

    at: the time of a message without a time, in seconds since the epoch.
    is_text_thought: True if text next to calls is a thought, as with Letta's older agents.
    """
    timestamp = _parse_time(message.created_at, at)
    messages: list[dict[str, Any]]
    match message.role:
        case "user" if event := _read_event_text(message.content):
            messages = [make_framed_system_message(event, otid=message.otid)]
        case "user" | "summary":
            stored = with_name(
                {"role": "user", "content": _read_content(message.content)}, message.name or ""
            )
            messages = [with_private(stored, otid=message.otid, sender=message.sender_id)]
        case "system":
            text = _unpack_text(_join_text(message.content), "system_alert")
            messages = [make_framed_system_message(text, otid=message.otid, sender=message.sender_id)]
        case "approval" if not message.tool_calls:
            messages = []  # the answer to an approval request; the request is a reply with calls
        case "assistant" | "approval":
            messages = [_read_reply(message, is_text_thought=is_text_thought)]
        case "tool":
            messages = _read_results(message)
        case _:
            messages = []
    return [PortableMessage(wire_message, timestamp, message.model or "") for wire_message in messages]


def _read_reply(message: FileMessage, *, is_text_thought: bool) -> dict[str, Any]:
    """Returns a reply as it is stored. is_text_thought: True if text next to calls is a thought."""
    parts = message.content if isinstance(message.content, list) else []
    text = _join_text(message.content)
    blocks = [block for block in map(_read_thought, parts) if block is not None]
    if is_text_thought and text and message.tool_calls:
        blocks.append({"type": "thinking", "thinking": text})
        text = ""
    # A reply without calls has a text, even an empty one: providers refuse null.
    no_text = None if message.tool_calls else ""
    reply: dict[str, Any] = {"role": "assistant", "content": text or no_text}
    if readable := "\n".join(block["thinking"] for block in blocks if "thinking" in block):
        reply["reasoning_content"] = readable
    # Providers accept only the thinking blocks that they signed.
    if signed_blocks := [block for block in blocks if "signature" in block or "data" in block]:
        reply["thinking_blocks"] = signed_blocks
    if message.tool_calls:
        reply["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _read_function(call.function)}
            for call in message.tool_calls
        ]
        spoken_texts = [find_spoken(call, _DEFAULT_SHOWING) for call in reply["tool_calls"]]
        reply = with_private(reply, spoken="\n\n".join(filter(None, spoken_texts)) or None)
    return with_private(reply, otid=message.otid)


def _read_function(function: Function) -> dict[str, Any]:
    """Returns a call that can be sent again, since strict servers check its name and parse its arguments."""
    has_object = read_arguments(function.arguments) is not None and function.arguments.strip()
    arguments = function.arguments if has_object else "{}"
    return {"name": make_valid_tool_name(function.name), "arguments": arguments}


def _read_thought(part: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the thinking block of a part; None if the part is no thought."""
    if part.get("type") == "reasoning" and isinstance(part.get("reasoning"), str):
        signature = part.get("signature")
        fields = {"signature": signature} if isinstance(signature, str) and signature else {}
        return {"type": "thinking", "thinking": part["reasoning"], **fields}
    if part.get("type") == "summarized_reasoning":
        # The part has no signature, only a state that OpenAI's Responses API reads.
        texts = [as_text(as_object(step).get("text")) for step in as_list(part.get("summary"))]
        return {"type": "thinking", "thinking": "\n\n".join(texts)} if any(texts) else None
    if part.get("type") == "redacted_reasoning" and isinstance(part.get("data"), str):
        return {"type": "redacted_thinking", "data": part["data"]}
    return None


def _read_results(message: FileMessage) -> list[dict[str, Any]]:
    """Returns the results of calls, a message each."""
    returns = message.tool_returns or [FileReturn(message.tool_call_id)]
    decision = {None: None, True: "approved", False: "denied"}[message.approve]
    results = []
    for tool_return in returns:
        response = tool_return.func_response
        text = response if isinstance(response, str) else _join_text(message.content)
        text, status = _unpack_result(text)
        status = tool_return.status or status
        result: dict[str, Any] = {
            "role": "tool",
            "tool_call_id": tool_return.tool_call_id or message.tool_call_id or "",
            "content": text,
        }
        results.append(
            with_private(
                with_name(result, message.name or ""),
                status=status if status != "success" else None,
                stdout="\n".join(tool_return.stdout or ()) or None,
                stderr="\n".join(tool_return.stderr or ()) or None,
                approval=decision,
                reason=message.denial_reason,
            )
        )
    return results


def _unpack_result(text: str) -> tuple[str, str | None]:
    """Returns a result and its status, unpacked if Letta's server has packed it; otherwise the text and None.

    A packed result other than text is returned as JSON.
    """
    record = _parse_object(text)
    status = _STATUSES.get(str(record["status"])) if record.keys() == _PACKED_RESULT_FIELDS else None
    if status is None:
        return text, None
    message = record["message"]
    return message if isinstance(message, str) else msgspec.json.encode(message).decode(), status


def _read_content(content: str | list[dict[str, Any]] | None) -> Any:
    """Returns the content of a user message: a text, or parts of text and images."""
    if not isinstance(content, list):
        return _unpack_text(content or "", "user_message")
    parts = [part for item in content if (part := _read_part(item)) is not None]
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def is_packed(content: Any) -> bool:
    """Returns whether this is a system message in the packed form of older agent types."""
    try:
        valid_content = msgspec.convert(content, str | list[dict[str, Any]])
    except msgspec.ValidationError:
        return False
    text = _join_text(valid_content)
    return _unpack_text(text, "system_alert") != text


def _unpack_text(text: str, packed_type: str) -> str:
    """Returns the text that Letta's older agents packed in an object of this type, or a plain text as it is."""
    packed = _parse_object(text)
    is_packed_message = isinstance(packed.get("message"), str) and isinstance(packed.get("time"), str)
    return packed["message"] if is_packed_message and packed.get("type") == packed_type else text


def _read_event_text(content: str | list[dict[str, Any]] | None) -> str:
    """Returns the text of a system event, which Letta's older agents got as a user message; "" for other messages."""
    text = _join_text(content)
    packed = _parse_object(text)
    if packed.get("type") not in _EVENT_TYPES or not isinstance(packed.get("time"), str):
        return ""
    return packed["reason"] if isinstance(packed.get("reason"), str) and packed["reason"] else text


def _parse_object(text: str) -> dict[str, Any]:
    """Parses a text that is a JSON object; {} for any other text."""
    return (read_arguments(text) if text.startswith("{") else None) or {}


def _read_part(part: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns a part of a user's message as it is stored; None if it has neither a text nor an image."""
    source = part.get("source")
    if part.get("type") == "image" and isinstance(source, dict):
        url = source.get("url")
        if isinstance(source.get("data"), str):
            url = f"data:{source.get('media_type') or 'image/png'};base64,{source['data']}"
        return {"type": "image_url", "image_url": {"url": url}} if isinstance(url, str) else _LOST_IMAGE
    text = part.get("text")
    return {"type": "text", "text": _unpack_text(text, "user_message")} if isinstance(text, str) else None


def _join_text(content: str | list[dict[str, Any]] | None) -> str:
    if not isinstance(content, list):
        return content or ""
    return "\n".join(
        part["text"] for part in content if part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _parse_time(text: str | None, default: float) -> float:
    """Returns the seconds since the epoch of an ISO date; `default` for any other text."""
    try:
        return parse_moment(text or "")
    except ValueError:
        return default
