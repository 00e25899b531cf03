"""Translates the input of a Responses request to messages of chat completions.

An input is a flat list of items. A reply is several items: thoughts, text, each call. In chat completions a reply is
one message, and results directly follow the message with their calls. In an input other messages may stand between
them, as where a user has typed something while a tool was running.
(platform.openai.com/docs/api-reference/responses/create, `input`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.conversation.wire_message import list_media
from gateway.core.prompt.result_order import find_results_order
from gateway.core.request.chat_request import Reference
from gateway.dialects.fields import (
    ItemPath,
    make_missing_field_error,
    make_unknown_value_error,
    make_unsupported_error,
    make_wrong_type_error,
    read_optional,
    read_required_text,
)
from gateway.dialects.responses.call_form import FUNCTIONS_ALONE, UpstreamTools
from gateway.dialects.responses.call_items import read_call, read_result
from gateway.dialects.responses.input_parts import PART_KINDS, TEXT_PART_TYPES
from gateway.dialects.responses.input_reply import InputReply, ReferencedThoughts
from gateway.dialects.responses.left_out import LeftOutFields
from gateway.dialects.responses.response_ids import parse_input_index, parse_turn_name
from gateway.dialects.responses.sealed import is_sealed, unseal
from gateway.errors import BadRequest

_ROLES = ("user", "assistant", "system", "developer")
# The fields of all items. `id` and `status` are of no use to a model.
_COMMON_FIELDS = frozenset(("type", "id", "status"))
# Types of items that are no messages, and are read with the tools and the fields of the request.
_TYPES_READ_ELSEWHERE = frozenset(("additional_tools", "compaction", "compaction_trigger"))
# Types of items that are left out: searches that were made upstream (their results go back with the thoughts), and
# items that Codex has for itself (names in the binary of 0.169).
_TYPES_LEFT_OUT = frozenset(
    (
        "web_search_call",
        "image_generation_call",
        "agent_message",
        "ghost_snapshot",
        "context_compaction",
        "other",
    )
)


class InputMessages(Struct, frozen=True):
    """The leading messages of a chat completion, and after them the input of a request, translated into messages."""

    # The messages.
    messages: list[Json]
    # The references to replies that the client only names.
    references: list[Reference]
    # For each message the index of its input item; 0 where the input is a text. -1: the message comes from no single
    # item, as a leading message, a reply, or a message with the media of results.
    item_indices: list[int]
    # The models that made the thoughts of replies, by the index of the reply; "": the model is not known.
    models: dict[int, str]
    # The fields that these messages lack, among them thoughts of other providers, which cannot be read here.
    left_out: LeftOutFields


def read_items(
    items: str | list[Any],
    leading_messages: Sequence[Json] = (),
    *,
    upstream_tools: UpstreamTools = FUNCTIONS_ALONE,
    is_lenient: bool = False,
    field: str = "input",
    items_before: int = 0,
) -> InputMessages:
    """Returns items as messages of a chat completion.

    leading_messages: the messages of the chat completion that come before these.
    upstream_tools: the kinds of tools that upstreams take, which decide the form of calls.
    is_lenient: True if items that are wrong or have no form in chat completions are skipped, since the items themselves
        go upstream.
    field: the request's field with the items, for errors.
    items_before: the number of stored items before the request's own, which positions in errors do not count.

    Raises: BadRequest: an item is wrong, or has no form in chat completions.
    """
    builder = _MessageBuilder(leading_messages, upstream_tools, ItemPath("", field), is_lenient=is_lenient)
    if isinstance(items, str):
        builder.add_item({"role": "user", "content": items}, 0, 0)
    else:
        for index, item in enumerate(items):
            builder.add_item(item, index, index - items_before)
    return builder.end()


class _MessageBuilder:
    """Builds messages of items. Successive items may be one reply, which stays open until another message begins."""

    def __init__(
        self,
        leading_messages: Sequence[Json],
        upstream_tools: UpstreamTools,
        item_path: ItemPath,
        *,
        is_lenient: bool,
    ) -> None:
        # The index of the item that is being read.
        self._item_index = 0
        # The path to this item, for errors.
        self._path = item_path
        # The path to the part of this item's content that is being read, for errors.
        self._part_path = ItemPath(item_path, ".content")
        self._upstream_tools = upstream_tools
        self._is_lenient = is_lenient
        self._left_out = LeftOutFields()
        self._input = InputMessages(
            messages=[*leading_messages],
            references=[],
            item_indices=[-1] * len(leading_messages),
            models={},
            left_out=self._left_out,
        )
        # The reply to which the next item may still belong; None: the next item of a reply begins one.
        self._open_reply: InputReply | None = None
        # The media of the newest results. A user's message after the results gets them.
        self._media: list[Json] = []

    def end(self) -> InputMessages:
        """Returns the messages of all items that were added."""
        self._end_reply()
        self._append_media()
        # Items that are read leniently go upstream themselves, in their order.
        order = None if self._is_lenient else find_results_order(self._input.messages)
        return self._input if order is None else self._reorder(order)

    def add_item(self, item: Any, index: int, index_in_field: int) -> None:
        """Adds an item to the messages. Raises: BadRequest.

        index: the index of the item among all items.
        index_in_field: the index of the item in the request's field, for errors.
        """
        self._item_index = index
        if item.__class__ is dict and len(item) == 2 and self._add_plain(item):
            return
        path = self._path
        path.index = index_in_field
        if not isinstance(item, dict):
            raise make_wrong_type_error(f"{path}", "an object", item)
        item_type = item.get("type") or _find_type(item)
        reading = _ITEM_READINGS.get(item_type) if isinstance(item_type, str) else None
        if reading is not None:
            try:
                reading.add(self, item)
            except BadRequest:
                if not self._is_lenient:
                    raise
            self._left_out.add_rest(item, reading.read_fields, path)
        elif isinstance(item_type, str) and item_type in _TYPES_LEFT_OUT:
            self._left_out.add(f"{path}.{item_type}")
        elif not (self._is_lenient or (isinstance(item_type, str) and item_type in _TYPES_READ_ELSEWHERE)):
            if item_type is None:
                raise make_missing_field_error(f"{path}.type")
            raise make_unsupported_error(f"{path}.type", item_type)

    def add_message(self, item: Json) -> None:
        """Adds a message of any role. Raises: BadRequest."""
        role = item.get("role")
        content = item.get("content")
        if role not in _ROLES:
            raise make_unknown_value_error(
                f"{self._path}.role", role, "'assistant', 'system', 'developer', and 'user'"
            )
        if content is None:
            raise make_missing_field_error(f"{self._path}.content")
        content = self._read_content(content, ".content")
        if role == "assistant":
            self._add_reply_content(content)
        else:
            self._append_after_reply({"role": role, "content": content})

    def add_thoughts(self, item: Json) -> None:
        """Adds thoughts to the open reply, or a reference if the client only names them. Raises: BadRequest."""
        content = read_optional(item, "encrypted_content", str, self._path)
        item_id = item.get("id")
        thoughts: Json = {}
        if is_sealed(content):
            thoughts = unseal(content, f"{self._path}.encrypted_content")
        elif (
            content is None
            and not self._is_lenient
            and isinstance(item_id, str)
            and parse_turn_name(item_id) is not None
        ):
            self._current_reply.referenced_thoughts.append(ReferencedThoughts(item_id, f"{self._path}.id"))
        else:
            self._left_out.add_rest(item, _COMMON_FIELDS, self._path)
        self._current_reply.add_thoughts(thoughts)

    def add_call(self, item: Json) -> None:
        """Adds a call to the open reply. Raises: BadRequest."""
        self._current_reply.add_call(read_call(item, self._path, self._upstream_tools))

    def add_result(self, item: Json) -> None:
        """Adds the result of a call as a tool's message; its media go into a user's message. Raises: BadRequest."""
        call_id, output = read_result(item, self._path)
        content = self._read_content(output, ".output")
        message = {"role": "tool", "tool_call_id": call_id, "content": content}
        # A tool's message cannot have media.
        media = list_media(message)
        if media:
            self._end_reply()  # the media of earlier results come before the reply
            self._media += media
            message["content"] = "\n".join(
                part["text"]
                for part in content
                if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        self._append_after_reply(message)

    def add_configuration(self, item: Json) -> None:
        """Refuses another form of answers: a later response that continues by an id would not have this form.

        Raises: BadRequest.
        """
        text = item.get("text")
        if text is not None:
            raise make_unsupported_error(f"{self._path}.text", text)

    def add_reference(self, item: Json) -> None:
        """Adds an empty reply in the place of an item that is only named. Raises: BadRequest."""
        item_id = read_required_text(item, "id", self._path)
        turn = parse_turn_name(item_id)
        input_index = parse_input_index(item_id)
        self._end_reply()
        self._append_media()
        references = self._input.references
        index = len(self._input.messages)
        # The items of one reply are one message.
        if references:
            previous = references[-1]
            if (previous.index, previous.turn, previous.input_index) == (index - 1, turn, input_index):
                return
        references.append(Reference(index, item_id, turn, f"{self._path}.id", input_index=input_index))
        self._append({"role": "assistant", "content": ""})

    @property
    def _current_reply(self) -> InputReply:
        """The open reply; without one, a new reply is opened."""
        if self._open_reply is None:
            self._open_reply = InputReply()
        return self._open_reply

    def _add_plain(self, item: Json) -> bool:
        """Adds an item that is a user's or an assistant's text, as most are. Returns False for any other item."""
        role = item.get("role")
        content = item.get("content")
        if content.__class__ is not str or (role != "user" and role != "assistant"):
            return False
        if role == "user":
            self._append_after_reply({"role": role, "content": content})
        else:
            self._add_reply_content(content)
        return True

    def _read_content(self, content: Any, key: str) -> str | list[Json]:
        """Returns a content in the form of chat completions. key: the field's name after a dot. Raises: BadRequest."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise make_wrong_type_error(f"{self._path}{key}", "a string or an array of objects", content)
        path = self._part_path
        path.key = key
        parts: list[Json] = []
        for index, part in enumerate(content):
            path.index = index
            if not isinstance(part, dict):
                raise make_wrong_type_error(f"{path}", "an object", part)
            part_type = part.get("type")
            if self._is_lenient and part_type not in TEXT_PART_TYPES:
                parts.append(part)
                continue
            if part_type is None:
                raise make_missing_field_error(f"{path}.type")
            part_kind = PART_KINDS.get(part_type) if isinstance(part_type, str) else None
            if part_kind is None:
                raise make_unsupported_error(f"{path}.type", part_type)
            parts.append(part_kind.translate(part, path))
            self._left_out.add_rest(part, part_kind.read_fields, path)
        return parts

    def _add_reply_content(self, content: str | list[Json]) -> None:
        if self._open_reply is not None and self._open_reply.is_over:
            self._end_reply()
        self._current_reply.add_content(content)

    def _append_after_reply(self, message: Json) -> None:
        if self._open_reply is not None:
            self._end_reply()
        self._append(message)

    def _end_reply(self) -> None:
        reply = self._open_reply
        if reply is None:
            return
        self._open_reply = None
        message = reply.build_message()
        if message is None:
            return
        self._append(message)
        index = len(self._input.messages) - 1
        if reply.model is not None:
            self._input.models[index] = reply.model
        for item_id, param in reply.referenced_thoughts:
            turn = parse_turn_name(item_id)
            self._input.references.append(Reference(index, item_id, turn, param, "thoughts"))

    def _reorder(self, order: Sequence[int]) -> InputMessages:
        """Returns the messages in another order. order: the indices of the messages, in that order."""
        unordered = self._input
        new_indices = {old_index: new_index for new_index, old_index in enumerate(order)}
        return replace(
            unordered,
            messages=[unordered.messages[index] for index in order],
            item_indices=[unordered.item_indices[index] for index in order],
            references=[
                replace(reference, index=new_indices.get(reference.index, reference.index))
                for reference in unordered.references
            ],
            models={new_indices[index]: model for index, model in unordered.models.items()},
        )

    def _append_media(self) -> None:
        if self._media:
            self._input.messages.append({"role": "user", "content": self._media})
            self._input.item_indices.append(-1)
            self._media = []

    def _append(self, message: Json) -> None:
        if self._media and message["role"] != "tool":
            self._append_media()
        self._input.messages.append(message)
        self._input.item_indices.append(-1 if message["role"] == "assistant" else self._item_index)


def _find_type(item: Json) -> str | None:
    """Returns the type of an item without `type`, which messages and references may lack; None: another item."""
    if "role" in item:
        return "message"
    return "item_reference" if "id" in item else None


class _ItemReading(Struct, frozen=True):
    """The reading of items of one type."""

    # Adds an item to the messages.
    add: Callable[[_MessageBuilder, Json], None]
    # The fields that are read or are of no use to a model. All other fields are reported as left out.
    read_fields: frozenset[str]


def _read_as(add: Callable[[_MessageBuilder, Json], None], *fields: str) -> _ItemReading:
    """Returns the reading of a type. fields: the fields that are read, besides those of all items."""
    return _ItemReading(add, _COMMON_FIELDS.union(fields))


_ITEM_READINGS = {
    "message": _read_as(_MessageBuilder.add_message, "role", "content"),
    "item_reference": _read_as(_MessageBuilder.add_reference),
    "configuration_update": _read_as(_MessageBuilder.add_configuration),
    "reasoning": _read_as(_MessageBuilder.add_thoughts, "summary", "content", "encrypted_content"),
    "function_call": _read_as(_MessageBuilder.add_call, "call_id", "name", "arguments", "namespace"),
    "custom_tool_call": _read_as(_MessageBuilder.add_call, "call_id", "name", "input", "namespace"),
    "tool_search_call": _read_as(_MessageBuilder.add_call, "call_id", "arguments", "execution"),
    "local_shell_call": _read_as(_MessageBuilder.add_call, "call_id", "action"),
    "shell_call": _read_as(_MessageBuilder.add_call, "call_id", "action"),
    "apply_patch_call": _read_as(_MessageBuilder.add_call, "call_id", "operation"),
    "function_call_output": _read_as(_MessageBuilder.add_result, "call_id", "output"),
    "custom_tool_call_output": _read_as(_MessageBuilder.add_result, "call_id", "output"),
    "tool_search_output": _read_as(_MessageBuilder.add_result, "call_id", "tools", "execution"),
    "local_shell_call_output": _read_as(_MessageBuilder.add_result, "call_id", "output"),
    "shell_call_output": _read_as(_MessageBuilder.add_result, "call_id", "output"),
    "apply_patch_call_output": _read_as(_MessageBuilder.add_result, "call_id", "output"),
}
