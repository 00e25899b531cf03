"""Makes messages of an agent file from the lists of Letta's server.

The server lists a message as several parts with one id, one each for its thoughts, its text and its calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from adapters.types import Json
from gateway.core.lenient import as_text, decode_object

# The types of parts that the gateway makes itself: summaries, and approvals, which the results have as well.
_RECREATED_TYPES = frozenset({"summary_message", "event_message", "approval_response_message"})


def convert_messages(parts: Iterable[Json]) -> list[Json]:
    """Returns the messages of a list of parts, without the messages that the gateway makes itself.

    The first message is the compiled prompt, as in the server's own files. Clients have sent the later system messages.
    """
    return [*_join_parts(part for part in parts if not _is_recreated(part))]


def count_messages(parts: Iterable[Json]) -> int:
    """Returns the number of messages in a list of parts, without the compiled prompt."""
    messages = convert_messages(parts)
    return len(messages) - (bool(messages) and messages[0]["role"] == "system")


def _is_recreated(part: Json) -> bool:
    """Returns whether the gateway makes this part itself."""
    return part["message_type"] in _RECREATED_TYPES or _is_summary(part)


def _is_summary(part: Json) -> bool:
    """Returns whether a part is a summary that Letta's server has put into the window as a user message."""
    content = as_text(part.get("content"))
    is_object = part["message_type"] == "user_message" and content.startswith("{")
    return is_object and decode_object(content).get("type") == "system_alert"


def _join_parts(parts: Iterable[Json]) -> Iterator[Json]:
    """Joins neighbouring parts with the same id. Yields the messages."""
    message: Json | None = None
    for part in parts:
        fields = _read_fields(part)
        if message is not None and message["id"] == part["id"]:
            # A server may list each call of a message, and each result, as a part of its own.
            for name, value in fields.items():
                message[name] = [*message.get(name, ()), *value] if isinstance(value, list) else value
            continue
        if message is not None:
            yield message
        message = {"id": part["id"], "created_at": part.get("date"), "content": [], **fields}
    if message is not None:
        yield message


def _read_fields(part: Json) -> Json:
    """Returns the fields that a part adds to its message. Raises: ValueError if the type of the part is unknown."""
    match part["message_type"]:
        case "user_message" | "system_message" as kind:
            sender = {name: part.get(name) for name in ("name", "otid", "sender_id")}
            role = "user" if kind == "user_message" else "system"
            return {"role": role, "content": _list_parts(part), **sender}
        case "assistant_message":
            return {"role": "assistant", "content": _list_parts(part)}
        case "reasoning_message":
            thought = {"type": "reasoning", "reasoning": part.get("reasoning") or ""}
            return {"role": "assistant", "content": [{**thought, "signature": part.get("signature")}]}
        case "hidden_reasoning_message":
            data = part.get("hidden_reasoning")
            content = [{"type": "redacted_reasoning", "data": data}] if data else []
            return {"role": "assistant", "content": content}
        case "tool_call_message" | "approval_request_message" as kind:
            calls = part.get("tool_calls") or [part["tool_call"]]
            role = "assistant" if kind == "tool_call_message" else "approval"
            return {"role": role, "tool_calls": [_convert_call(call) for call in calls]}
        case "tool_return_message":
            returns = part.get("tool_returns") or [part]
            return {
                "role": "tool",
                "name": part.get("name"),
                "tool_returns": [_convert_return(tool_return) for tool_return in returns],
            }
        case other:
            raise ValueError(f"a message of the type {other!r} is not known")


def _list_parts(part: Json) -> list[Json]:
    """Returns the content of a part as the list that a file has."""
    content = part.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content or ())


def _convert_call(call: Json) -> Json:
    """Returns the file's JSON of a call of a tool."""
    return {
        "id": call.get("tool_call_id") or "",
        "function": {"name": call.get("name") or "", "arguments": call.get("arguments") or ""},
    }


def _convert_return(tool_return: Json) -> Json:
    """Returns the file's JSON of the result of a call."""
    result = tool_return.get("tool_return")
    return {
        "tool_call_id": tool_return.get("tool_call_id"),
        "status": tool_return.get("status"),
        "stdout": tool_return.get("stdout"),
        "stderr": tool_return.get("stderr"),
        "func_response": result if isinstance(result, str) else orjson.dumps(result).decode(),
    }
