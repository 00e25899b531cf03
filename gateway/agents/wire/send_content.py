"""Reads the content of a send into the messages that the gateway stores.

The messages of a send are of two kinds, which this module separates: plain messages, and answers to the waiting calls
of a paused run (approvals, and results of the client's tools).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from gateway.agents.core.call_decision import CallDecision
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.send import (
    Approvals,
    ClientSkill,
    ClientTool,
    Decision,
    ImagePart,
    Parts,
    PlainMessage,
    Send,
    TextPart,
    ToolReturn,
    ToolReturns,
    UpdateMessage,
    UrlSource,
)
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import convert
from gateway.core.conversation.private import make_framed_system_message, with_name, with_private
from gateway.core.conversation.wire_message import WireMessage
from gateway.errors import BadRequest
from gateway.validation import Fault, Path

# The most messages of one send. Not measured: it bounds the rows of one transaction.
_MAX_MESSAGES = 1_000
# The structs of messages, by their types.
_STRUCTS: dict[str, type[PlainMessage] | type[Approvals] | type[ToolReturns]] = {
    "message": PlainMessage,
    "approval": Approvals,
    "tool_return": ToolReturns,
}


class SendContent(Struct, frozen=True):
    """The content of a send."""

    # The new messages, as they are stored.
    messages: tuple[WireMessage, ...] = ()
    # Answers to waiting calls, which come before the messages.
    answers: tuple[CallDecision, ...] = ()
    # The client's id of the send, by which a resent send is recognised; None: the client gives no id.
    otid: str | None = None


def read_initial_messages(raw_messages: Sequence[dict[str, Any]]) -> tuple[WireMessage, ...]:
    """Returns the first messages of an agent's conversations, as they are stored. Raises: Unprocessable."""
    path = ("body", "initial_message_sequence")
    return tuple(
        _read_message(_parse_plain_message(fields, (*path, n))) for n, fields in enumerate(raw_messages)
    )


def with_skills(system: str, skills: Sequence[ClientSkill]) -> str:
    """Returns a copy of a system prompt that lists the client's skills at its end."""
    lines = [" ".join(f"- {skill.name} ({skill.location}): {skill.description}".split()) for skill in skills]
    skill_list = "\n".join(("<available_skills>", *lines, "</available_skills>"))
    return f"{system}\n\n{skill_list}" if system else skill_list


def read_new_text(update: UpdateMessage) -> str:
    """Returns the text of an update of a message. Raises: Unprocessable."""
    content = update.content
    if isinstance(content, UnsetType) or content is None:
        raise Unprocessable(Fault(("body", "content"), "Field required", "missing"))
    text = _read_text(content)
    if not text:
        raise Unprocessable(Fault(("body", "content"), "Expected a text; delete a message to forget it"))
    return text


def read_send(send: Send) -> SendContent:
    """Returns the content of a send. Raises: Unprocessable, BadRequest."""
    _check_tool_names(send.client_tools or ())
    if send.messages not in (UNSET, None) and send.input not in (UNSET, None):
        raise Unprocessable(Fault(("body", "input"), "Give either 'messages' or 'input', not both"))
    if isinstance(send.input, str | list):
        raw = {"role": "user", "content": send.input}
        return SendContent((_read_message(_parse_plain_message(raw, ("body", "input"))),))
    raw_messages = find_sent(send.messages)
    if not raw_messages:
        raise Unprocessable(Fault(("body", "messages"), "Field required", "missing"))
    if len(raw_messages) > _MAX_MESSAGES:
        raise Unprocessable(Fault(("body", "messages"), f"At most {_MAX_MESSAGES} messages in one send"))
    messages = [_parse_message(fields, ("body", "messages", n)) for n, fields in enumerate(raw_messages)]
    plain = [message for message in messages if isinstance(message, PlainMessage)]
    otids = (find_sent(message.otid) for message in messages)
    otid = next((message_otid for message_otid in otids if message_otid is not None), None)
    answers: list[CallDecision] = []
    for n, message in enumerate(messages):
        if not isinstance(message, PlainMessage):
            answers += _read_decisions(message, ("body", "messages", n))
    return SendContent(tuple(map(_read_message, plain)), tuple(answers), otid)


def _check_tool_names(tools: Sequence[ClientTool]) -> None:
    """Raises: Unprocessable if two of the client's tools have the same name."""
    names: set[str] = set()
    for n, tool in enumerate(tools):
        if tool.name in names:
            message = f"Another of the tools is named {tool.name!r}, and a call says no more than the name"
            raise Unprocessable(Fault(("body", "client_tools", n, "name"), message))
        names.add(tool.name)


def _parse_message(raw: dict[str, Any], path: Path) -> PlainMessage | Approvals | ToolReturns:
    """Returns an input message of any type. raw: the message as JSON. Raises: Unprocessable."""
    name = raw.get("type") or "message"
    struct_type = _STRUCTS.get(name) if isinstance(name, str) else None
    if struct_type is None:
        names = ", ".join(f"'{message_type}'" for message_type in _STRUCTS)
        raise Unprocessable(Fault((*path, "type"), f"Input should be one of {names}", "literal_error", name))
    return convert(_with_part_types({**raw, "type": name}), struct_type, path)


def _parse_plain_message(raw: dict[str, Any], path: Path) -> PlainMessage:
    return convert(_with_part_types({**raw, "type": "message"}), PlainMessage, path)


# The type of a part without a type, by the first of these fields that the part has.
_TYPE_BY_FIELD = (
    ("text", "text"), ("source", "image"), ("tool_return", "tool"), ("approve", "approval"), ("url", "url"),
    ("data", "base64"),
)  # fmt: skip


def _with_part_types(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a message with a type in each of its parts, since clients may leave types out.

    Letta 0.6 names the content of a message `text`.
    """
    if "text" in raw and "content" not in raw:
        raw = {("content" if key == "text" else key): value for key, value in raw.items()}
    list_names = ("content", "approvals", "tool_returns")
    return {
        key: [_with_type(part) for part in value] if key in list_names and isinstance(value, list) else value
        for key, value in raw.items()
    }


def _with_type(part: Any) -> Any:
    """Returns a copy of a part with a type, and with types in the source of an image and in the parts of a result."""
    if not isinstance(part, dict):
        return part
    if isinstance(result_parts := part.get("tool_return"), list):
        part = {**part, "tool_return": [*map(_with_type, result_parts)]}
    if isinstance(source := part.get("source"), dict):
        part = {**part, "source": _with_type(source)}
    if part.get("type"):
        return part
    name = next((name for key, name in _TYPE_BY_FIELD if key in part), None)
    return part if name is None else {**part, "type": name}


def _read_content(content: str | Parts) -> Any:
    if isinstance(content, str):
        return content
    parts = [_read_part(part) for part in content]
    # Most lists have one text, and every provider takes a text as a string.
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _read_part(part: TextPart | ImagePart) -> dict[str, Any]:
    """Returns a part of a message's content as it is stored."""
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    source = part.source
    if isinstance(source, UrlSource):
        return {"type": "image_url", "image_url": {"url": source.url}}
    image: dict[str, Any] = {"url": f"data:{source.media_type};base64,{source.data}"}
    if (detail := find_sent(source.detail)) is not None:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def _read_message(plain: PlainMessage) -> WireMessage:
    """Returns an input message as it is stored. Raises: BadRequest."""
    private = {"otid": plain.otid or None, "sender": plain.sender_id or None}
    if plain.role != "user" and any(isinstance(part, ImagePart) for part in plain.content):
        raise BadRequest(
            f"A message of the role {plain.role!r} is text; send images as the user's.", param="content"
        )
    if plain.role == "system":
        return make_framed_system_message(_read_text(plain.content), **private)
    message: WireMessage = {"role": plain.role, "content": _read_content(plain.content)}
    return with_private(with_name(message, plain.name or ""), **private)


def _read_text(content: str | Parts | list[TextPart]) -> str:
    """Returns the text of a message's content, with each part on its own line."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if isinstance(part, TextPart))


def _read_decisions(message: Approvals | ToolReturns, path: Path) -> list[CallDecision]:
    """Returns the answers in a message. Raises: Unprocessable if it has none, which must not count as a denial."""
    if isinstance(message, ToolReturns):
        field, decisions = "tool_returns", [*map(_read_tool_decision, message.tool_returns)]
    elif message.approvals or (approve := find_sent(message.approve)) is None:
        field, decisions = "approvals", [*map(_read_decision, message.approvals or ())]
    else:
        field, decisions = "approve", [CallDecision(None, approve, message.reason or None)]
    if not decisions:
        raise Unprocessable(Fault((*path, field), "Expected at least one answer", "missing"))
    request = None if isinstance(message, ToolReturns) else message.approval_request_id or None
    return [replace(decision, request=request) for decision in decisions]


def _read_decision(answer: Decision | ToolReturn) -> CallDecision:
    if isinstance(answer, ToolReturn):
        return _read_tool_decision(answer)
    return CallDecision(answer.tool_call_id, answer.approve, answer.reason or None)


def _read_result_text(content: str | Parts) -> str:
    """Returns the text of a result.

    In chat completions the message of a tool has no images, so a text replaces them that states their number.
    """
    text = _read_text(content)
    images = 0 if isinstance(content, str) else sum(isinstance(part, ImagePart) for part in content)
    if not images:
        return text
    # These are the words of Letta's server.
    omitted = "[Image omitted]" if images == 1 else f"[{images} images omitted]"
    return f"{text} {omitted}" if text else omitted


def _read_tool_decision(tool_return: ToolReturn) -> CallDecision:
    """Returns the result of a call that the client made, as a decision about the call."""
    message: WireMessage = {
        "role": "tool",
        "tool_call_id": tool_return.tool_call_id,
        "content": _read_result_text(tool_return.tool_return),
    }
    output = {
        name: "\n".join(lines)
        for name, lines in (("stdout", tool_return.stdout), ("stderr", tool_return.stderr))
        if isinstance(lines, list) and lines
    }
    return CallDecision(
        tool_return.tool_call_id, result=with_private(message, status=tool_return.status, **output)
    )
