"""Translates the input of a Responses request to messages of chat completions.

An input is a flat list of items. A reply is several of them: thoughts, text, each call. In chat
completions these are one message, and results follow the message with their calls.
(platform.openai.com/docs/api-reference/responses/create, `input`)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from msgspec import Struct

from adapters.types import Json
from gateway.core.conversation.canonical import gap, media_in
from gateway.core.conversation.provider_fields import THOUGHTS
from gateway.core.request.chat_request import Reference
from gateway.dialects.fields import missing, optional, text_in, wrong_type
from gateway.dialects.responses.left_out import LeftOutFields
from gateway.dialects.responses.response_ids import place_of, turn_of
from gateway.dialects.responses.sealed import is_sealed, unseal
from gateway.dialects.responses.tools import FUNCTIONS_ALONE, UpstreamTools, call_of, result_of, unsupported
from gateway.errors import BadRequest

_ROLES = ("user", "assistant", "system", "developer")


class InputMessages(Struct, frozen=True):
    """The input of a request, translated into messages of a chat completion."""

    messages: list[Json]
    # The messages that stand for a reply which the client only names.
    references: list[Reference]
    # For each message the index of its input item; 0 where the input is a text. A reply has -1, since several items
    # may make one.
    places: list[int]
    # What has no place in these messages. Thoughts of another provider cannot be read here.
    left_out: LeftOutFields


def read_items(
    items: str | list[Any],
    start: int = 0,
    *,
    takes: UpstreamTools = FUNCTIONS_ALONE,
    is_read_only: bool = False,
    name: str = "input",
    before: int = 0,
) -> InputMessages:
    """Returns what the items say.

    start: how many messages come before these.
    takes: decides the form of calls.
    name: the field with the items, for errors. before: how many of them are not of that field.
    is_read_only: the items themselves go upstream, so what has no place in chat completions is passed over,
        and so is what is wrong.

    Raises: BadRequest: an item has no place in chat completions, or a form that is none.
    """
    if isinstance(items, str):
        return InputMessages([{"role": "user", "content": items}], [], [0], LeftOutFields())
    messages = _Messages(start, takes, is_read_only=is_read_only)
    for index, item in enumerate(items):
        if item.__class__ is dict and len(item) == 2 and messages.take_plain(index, item):
            continue
        where = f"{name}[{index - before}]"
        if not isinstance(item, dict):
            raise wrong_type(where, "an object", item)
        kind = item.get("type") or _untyped(item)
        known = _KINDS.get(kind) if isinstance(kind, str) else None
        if known is not None:
            messages.at = index
            try:
                known.take(messages, item, where)
            except BadRequest:
                if not is_read_only:
                    raise
            messages.left_out.add_rest(item, known.read, where)
        elif isinstance(kind, str) and kind in _LEFT_OUT:
            messages.left_out.add(f"{where}.{kind}")
        elif not (is_read_only or (isinstance(kind, str) and kind in _READ_ELSEWHERE)):
            raise missing(f"{where}.type") if kind is None else unsupported(f"{where}.type", kind)
    return messages.end()


def _untyped(item: Json) -> str | None:
    """Returns the kind of an item without a type, which two kinds need not have."""
    return "message" if "role" in item else "item_reference" if "id" in item else None


class _Reply:
    """A reply made of several successive items."""

    def __init__(self) -> None:
        self._has_spoken = False  # the last item is words
        self._texts: list[str] = []
        self._parts: list[Json] = []  # of its content that are no texts
        self._refusals: list[str] = []
        self._calls: list[Json] = []
        self._thoughts: dict[str, list[Any]] = {}
        self.thought_ids: list[tuple[str, str]] = []  # of thoughts that are only named, and where

    @property
    def is_over(self) -> bool:
        """Returns whether text that comes now is of another reply. Calls are followed by their results alone."""
        return self._has_spoken and not self._calls

    def say(self, content: str | list[Json]) -> None:
        text = content if isinstance(content, str) else self._text_in(content)
        if self._texts:  # as the words of two rounds are joined where the reply is stored
            self._texts.append(gap(self._texts[-1], text))
        self._texts.append(text)
        self._has_spoken = True

    def _text_in(self, parts: list[Json]) -> str:
        text: list[str] = []
        for part in parts:
            if part["type"] == "text":
                text.append(part["text"])
            elif part["type"] == "refusal":
                self._refusals.append(part["refusal"])
            else:
                self._parts.append(part)
        return "".join(text)

    def call(self, call: Json) -> None:
        self._calls.append(call)

    def think(self, thoughts: Json) -> None:
        self._has_spoken = False
        for key in THOUGHTS:
            if thoughts.get(key) is not None:
                self._thoughts.setdefault(key, []).append(thoughts[key])

    def message(self) -> Json | None:
        """Returns the message; None if nothing but thoughts came of it."""
        if not (self._texts or self._calls):
            return None
        text: str | list[Json] = "".join(self._texts)
        if self._parts:
            text = [*([{"type": "text", "text": text}] if text else []), *self._parts]
        built: Json = {"role": "assistant", "content": text}
        if self._refusals:
            built["refusal"] = "".join(self._refusals)
        if not text and (self._calls or self._refusals):
            built["content"] = None
        for key, values in self._thoughts.items():
            built[key] = _joined(values)
        if self._calls:
            built["tool_calls"] = self._calls
        return built


def _joined(values: list[Any]) -> Any:
    """Returns values of one field as one: texts and lists go on, of anything else the last one counts."""
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    if all(isinstance(value, list) for value in values):
        return [*chain.from_iterable(values)]
    return values[-1]


class _Messages:
    """The messages so far, and the reply to which the next items may belong."""

    def __init__(self, start: int, takes: UpstreamTools, *, is_read_only: bool) -> None:
        self.at = 0  # the item that is taken
        self._start = start
        self._takes = takes
        self._is_read_only = is_read_only
        self.left_out = LeftOutFields()
        self._input = InputMessages([], [], [], self.left_out)
        self._open: _Reply | None = None
        self._media: list[Json] = []  # of the newest results, which follow them in a user's message

    @property
    def _reply(self) -> _Reply:
        """The reply that goes on, or a new one: most messages are a user's."""
        if self._open is None:
            self._open = _Reply()
        return self._open

    def end(self) -> InputMessages:
        self._end_reply()
        self._put_media()
        return self._input

    def take_plain(self, index: int, item: Json) -> bool:
        """Takes a message of a user or a reply that is a text, as most are. Returns False for any other item."""
        role, content = item.get("role"), item.get("content")
        if content.__class__ is not str or (role != "user" and role != "assistant"):
            return False
        self.at = index
        if role == "user":
            self._add({"role": role, "content": content})
            return True
        self._say(content)
        return True

    def take_message(self, item: Json, where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role not in _ROLES:
            raise missing(f"{where}.role") if role is None else _wrong_role(f"{where}.role", role)
        if content is None:
            raise missing(f"{where}.content")
        joined = self._content(content, f"{where}.content")
        if role != "assistant":
            self._add({"role": role, "content": joined})
            return
        self._say(joined)

    def take_thoughts(self, item: Json, where: str) -> None:
        content = optional(item, "encrypted_content", str, where)
        id = item.get("id")
        if content is None and not self._is_read_only and isinstance(id, str) and turn_of(id)[0]:
            self._reply.thought_ids.append((id, f"{where}.id"))
        elif not is_sealed(content):
            self.left_out.add_rest(item, _COMMON, where)
        self._reply.think(unseal(content, f"{where}.encrypted_content") if is_sealed(content) else {})

    def take_call(self, item: Json, where: str) -> None:
        self._reply.call(call_of(item, where, self._takes))

    def take_result(self, item: Json, where: str) -> None:
        id, output = result_of(item, where)
        content = self._content(output, f"{where}.output")
        # A tool's message has no place for media.
        if media := media_in({"content": content}):
            self._end_reply()  # before which the media of earlier results stand
            self._media += media
            content = "\n".join(
                part["text"] for part in content if isinstance(part, dict) and part not in media
            )
        self._add({"role": "tool", "tool_call_id": id, "content": content})

    def take_reference(self, item: Json, where: str) -> None:
        id = text_in(item, "id", where)
        turn, place = turn_of(id), place_of(id)
        self._end_reply()
        self._put_media()
        references = self._input.references
        index = self._start + len(self._input.messages)
        # The items of one reply are one message.
        last = references[-1] if references else None
        named = None if last is None else (last.index, last.conversation, last.turn, last.place)
        if named != (index - 1, *turn, place):
            references.append(Reference(index, id, *turn, f"{where}.id", place=place))
            self._put({"role": "assistant", "content": ""})

    def _content(self, content: Any, where: str) -> str | list[Json]:
        return _content(content, where, self.left_out, is_read_only=self._is_read_only)

    def _say(self, content: str | list[Json]) -> None:
        if self._open is not None and self._open.is_over:
            self._end_reply()
        self._reply.say(content)

    def _add(self, message: Json) -> None:
        self._end_reply()
        self._put(message)

    def _end_reply(self) -> None:
        reply, self._open = self._open, None
        message = None if reply is None else reply.message()
        if reply is None or message is None:
            return
        self._put(message)
        at = self._start + len(self._input.messages) - 1
        for id, param in reply.thought_ids:
            self._input.references.append(Reference(at, id, *turn_of(id), param, is_thoughts=True))

    def _put_media(self) -> None:
        if self._media:
            media, self._media = self._media, []
            self._input.messages.append({"role": "user", "content": media})
            self._input.places.append(-1)

    def _put(self, message: Json) -> None:
        if message["role"] != "tool":
            self._put_media()
        self._input.messages.append(message)
        self._input.places.append(-1 if message["role"] == "assistant" else self.at)


def _wrong_role(param: str, role: Any) -> BadRequest:
    if not isinstance(role, str):
        return wrong_type(param, "a string", role)
    return BadRequest(
        f"Invalid value: {role[:40]!r}. Supported values are: 'assistant', 'system', 'developer', and 'user'.",
        param=param,
        code="invalid_value",
    )


def _content(content: Any, where: str, left_out: LeftOutFields, *, is_read_only: bool) -> str | list[Json]:
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
        if is_read_only and kind not in _WORDS:
            parts.append(part)
            continue
        known = _PARTS.get(kind) if isinstance(kind, str) else None
        if known is None:
            raise missing(f"{at}.type") if kind is None else unsupported(f"{at}.type", kind)
        parts.append(known.translate(part, at))
        left_out.add_rest(part, known.read, at)
    return parts


# Parts of a content


def _text_part(part: Json, where: str) -> Json:
    return {"type": "text", "text": text_in(part, "text", where)}


def _refusal(part: Json, where: str) -> Json:
    return {"type": "refusal", "refusal": text_in(part, "refusal", where)}


def _image(part: Json, where: str) -> Json:
    if part.get("file_id") is not None:
        raise unsupported(f"{where}.file_id", part["file_id"])
    image = {"url": text_in(part, "image_url", where)}
    detail = optional(part, "detail", str, where)
    return {"type": "image_url", "image_url": image if detail is None else {**image, "detail": detail}}


def _file(part: Json, where: str) -> Json:
    if part.get("file_url") is not None:
        raise unsupported(f"{where}.file_url", part["file_url"])
    return {
        "type": "file",
        "file": {key: text_in(part, key, where) for key in _FILE if part.get(key) is not None},
    }


def _audio(part: Json, where: str) -> Json:
    audio = part.get("input_audio")
    if not isinstance(audio, dict):
        param = f"{where}.input_audio"
        raise missing(param) if audio is None else wrong_type(param, "an object", audio)
    return {"type": "input_audio", "input_audio": audio}


class _Part(Struct, frozen=True):
    """A kind of part."""

    translate: Callable[[Json, str], Json]
    # The fields that are read of it.
    read: frozenset[str]


class _Kind(Struct, frozen=True):
    """A kind of item."""

    take: Callable[[_Messages, Json, str], None]
    # The fields that are read of it, and those that say nothing to a model.
    read: frozenset[str]


_FILE = ("file_data", "file_id", "filename")
_TEXT = _Part(_text_part, frozenset(("type", "text")))
_PARTS = {
    "input_text": _TEXT,
    "output_text": _TEXT,
    "text": _TEXT,
    "refusal": _Part(_refusal, frozenset(("type", "refusal"))),
    "input_image": _Part(_image, frozenset(("type", "image_url", "file_id", "detail"))),
    "input_file": _Part(_file, frozenset(("type", "file_url", *_FILE))),
    "input_audio": _Part(_audio, frozenset(("type", "input_audio"))),
}
_WORDS = ("input_text", "output_text", "text", "refusal")
_COMMON = frozenset(("type", "id", "status"))
_KINDS = {
    kind: _Kind(take, _COMMON | set(fields.split()))
    for kind, take, fields in (
        ("message", _Messages.take_message, "role content"),
        ("item_reference", _Messages.take_reference, ""),
        ("reasoning", _Messages.take_thoughts, "summary content encrypted_content"),
        ("function_call", _Messages.take_call, "call_id name arguments namespace"),
        ("custom_tool_call", _Messages.take_call, "call_id name input namespace"),
        ("tool_search_call", _Messages.take_call, "call_id arguments execution"),
        ("local_shell_call", _Messages.take_call, "call_id action"),
        ("shell_call", _Messages.take_call, "call_id action"),
        ("apply_patch_call", _Messages.take_call, "call_id operation"),
        ("function_call_output", _Messages.take_result, "call_id output"),
        ("custom_tool_call_output", _Messages.take_result, "call_id output"),
        ("tool_search_output", _Messages.take_result, "call_id tools execution"),
        ("local_shell_call_output", _Messages.take_result, "call_id output"),
        ("shell_call_output", _Messages.take_result, "call_id output"),
        ("apply_patch_call_output", _Messages.take_result, "call_id output"),
    )
}
# Items that bring no message: tools, and what is made of a whole list.
_READ_ELSEWHERE = frozenset(("additional_tools", "compaction", "compaction_trigger"))
# Items that are left out: searches that were made upstream (their results go back with the thoughts), and those that
# Codex has for itself (names in the binary of 0.169).
_LEFT_OUT = frozenset(
    (
        *("web_search_call", "image_generation_call", "agent_message", "ghost_snapshot"),
        *("configuration_update", "context_compaction", "other"),
    )
)
