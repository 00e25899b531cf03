"""Tells the input of a Responses request in messages of chat completions.

An input is a flat list of items. A reply stands in it as several: what was thought, what was said, each call. In chat
completions these are one message, and results follow the message whose calls they answer.
(platform.openai.com/docs/api-reference/responses/create, `input`)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from adapters.types import Json
from gateway.core.conversation.canonical import in_a_row
from gateway.core.request.chat import Reference
from gateway.dialects.fields import missing, optional, wrong_type
from gateway.dialects.responses.ids import turn_of
from gateway.errors import BadRequest

# How `encrypted_content` of our own begins: the fields of a reply's thoughts as the upstream made them, which some
# upstreams want back with the results of their calls. One of OpenAI's can be read by OpenAI alone.
SEALED = "mnemogate:"
THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks", "provider_blocks")
_ROLES = ("user", "assistant", "system", "developer")


def messages_of(items: str | list[Any], start: int = 0) -> tuple[list[Json], list[Reference]]:
    """Returns the messages that say what the items say, and what stands in them for a reply that is kept here.

    start: how many messages come before these. Raises: BadRequest: an item has no place in chat completions.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}], []
    messages = _Messages(start)
    for index, item in enumerate(items):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise wrong_type(where, "an object", item)
        kind = item.get("type") or ("message" if "role" in item else None)
        take = _KINDS.get(kind) if isinstance(kind, str) else None
        if take is None:
            raise missing(f"{where}.type") if kind is None else untold(f"{where}.type", kind)
        take(messages, item, where)
    return messages.found, messages.references


def untold(param: str, what: object) -> BadRequest:
    """Returns the error for what chat completions have no place for."""
    return BadRequest(
        f"Unsupported value for '{param}': {str(what)[:60]!r}. The gateway answers this model by way of chat "
        "completions, which have no place for it.",
        param=param,
        code="unsupported_value",
    )


class _Messages:
    """The messages so far.

    reply: the last one, while items may still belong to it. goes_on: so do words, since a call or a thought of it
    stands between. thoughts: of a reply to come.
    """

    def __init__(self, start: int) -> None:
        self.found: list[Json] = []
        self.references: list[Reference] = []
        self._start = start
        self._reply: Json | None = None
        self._goes_on = False
        self._thoughts: Json = {}

    def take_message(self, item: Json, where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role not in _ROLES:
            raise missing(f"{where}.role") if role is None else _wrong_role(f"{where}.role", role)
        if content is None:
            raise missing(f"{where}.content")
        said = _content(content, f"{where}.content")
        if role != "assistant":
            self._add({"role": role, "content": said})
            return
        if isinstance(said, list) and all(part["type"] == "text" for part in said):
            said = "".join(part["text"] for part in said)
        reply = self._reply
        if reply is None or not self._goes_on:
            self._begin_reply(said)
        else:
            # Results follow their calls, so nothing may stand between.
            reply["content"] = _joined(reply["content"], said)

    def take_thoughts(self, item: Json, where: str) -> None:
        self._goes_on = True
        sealed = optional(item, "encrypted_content", str)
        if not sealed or not sealed.startswith(SEALED):
            return
        try:
            thoughts = orjson.loads(sealed.removeprefix(SEALED))
        except orjson.JSONDecodeError:
            thoughts = None
        if not isinstance(thoughts, dict):
            raise BadRequest(
                f"Invalid '{where}.encrypted_content': it is not as the gateway made it.",
                param=f"{where}.encrypted_content",
            )
        into = self._thoughts if self._reply is None else self._reply
        for key, value in thoughts.items():
            if key in THOUGHTS:
                before = into.get(key)
                into[key] = before + value if type(before) is type(value) and before else value

    def take_call(self, item: Json, where: str) -> None:
        function = {"name": _text(item, "name", where), "arguments": _text(item, "arguments", where)}
        self._call({"id": _text(item, "call_id", where), "type": "function", "function": function})

    def take_custom_call(self, item: Json, where: str) -> None:
        custom = {"name": _text(item, "name", where), "input": _text(item, "input", where)}
        self._call({"id": _text(item, "call_id", where), "type": "custom", "custom": custom})

    def take_result(self, item: Json, where: str) -> None:
        output = item.get("output")
        if output is None:
            raise missing(f"{where}.output")
        content = _content(output, f"{where}.output")
        self._add({"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": content})

    def take_reference(self, item: Json, where: str) -> None:
        id = _text(item, "id", where)
        turn = turn_of(id)
        index = self._start + len(self.found)
        # The items of one reply are one message.
        last = self.references[-1] if self.references else None
        if last is None or (last.index, last.conversation, last.turn) != (index - 1, *turn):
            self.references.append(Reference(index, id, *turn, f"{where}.id"))
            self._add({"role": "assistant", "content": ""})

    def _call(self, call: Json) -> None:
        reply = self._begin_reply(None) if self._reply is None else self._reply
        reply.setdefault("tool_calls", []).append(call)
        self._goes_on = True

    def _begin_reply(self, content: Any) -> Json:
        reply = {"role": "assistant", "content": content, **self._thoughts}
        self._add(reply)
        self._reply = reply
        return reply

    def _add(self, message: Json) -> None:
        self.found.append(message)
        self._reply, self._goes_on, self._thoughts = None, False, {}


def _wrong_role(param: str, role: Any) -> BadRequest:
    if not isinstance(role, str):
        return wrong_type(param, "a string", role)
    return BadRequest(
        f"Invalid value: {role[:40]!r}. Supported values are: 'assistant', 'system', 'developer', and 'user'.",
        param=param,
        code="invalid_value",
    )


def _text(item: Json, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        param = f"{where}.{key}"
        raise missing(param) if value is None else wrong_type(param, "a string", value)
    return value


def _content(content: Any, where: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(where, "a string or an array of objects", content)
    parts = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        if not isinstance(part, dict):
            raise wrong_type(at, "an object", part)
        kind = part.get("type")
        told = _PARTS.get(kind) if isinstance(kind, str) else None
        if told is None:
            raise missing(f"{at}.type") if kind is None else untold(f"{at}.type", kind)
        parts.append(told(part, at))
    return parts


def _joined(before: Any, after: Any) -> Any:
    """Returns the contents of two messages as one."""
    if not before or not after:
        return before or after
    if isinstance(before, str) and isinstance(after, str):
        return in_a_row([before, after])
    texts = [[{"type": "text", "text": part}] if isinstance(part, str) else part for part in (before, after)]
    return texts[0] + texts[1]


# Parts of a content


def _text_part(part: Json, where: str) -> Json:
    return {"type": "text", "text": _text(part, "text", where)}


def _refusal(part: Json, where: str) -> Json:
    return {"type": "refusal", "refusal": _text(part, "refusal", where)}


def _image(part: Json, where: str) -> Json:
    if part.get("file_id") is not None:
        raise untold(f"{where}.file_id", part["file_id"])
    image = {"url": _text(part, "image_url", where)}
    detail = optional(part, "detail", str)
    return {"type": "image_url", "image_url": image if detail is None else {**image, "detail": detail}}


def _file(part: Json, where: str) -> Json:
    if part.get("file_url") is not None:
        raise untold(f"{where}.file_url", part["file_url"])
    named = ("file_data", "file_id", "filename")
    return {
        "type": "file",
        "file": {key: _text(part, key, where) for key in named if part.get(key) is not None},
    }


def _audio(part: Json, where: str) -> Json:
    audio = part.get("input_audio")
    if not isinstance(audio, dict):
        param = f"{where}.input_audio"
        raise missing(param) if audio is None else wrong_type(param, "an object", audio)
    return {"type": "input_audio", "input_audio": audio}


_PARTS: dict[str, Callable[[Json, str], Json]] = {
    "input_text": _text_part,
    "output_text": _text_part,
    "text": _text_part,
    "refusal": _refusal,
    "input_image": _image,
    "input_file": _file,
    "input_audio": _audio,
}
_KINDS: dict[str, Callable[[_Messages, Json, str], None]] = {
    "message": _Messages.take_message,
    "item_reference": _Messages.take_reference,
    "reasoning": _Messages.take_thoughts,
    "function_call": _Messages.take_call,
    "function_call_output": _Messages.take_result,
    "custom_tool_call": _Messages.take_custom_call,
    "custom_tool_call_output": _Messages.take_result,
}
