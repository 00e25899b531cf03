"""A request to OpenAI's Responses API that goes upstream in this dialect, with memory in `instructions` and `input`.

Memory learns the conversation and its messages from the request as a chat completion. Parts without a place in chat
completions are not in it; they go upstream in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.conversation.heard import as_heard
from gateway.core.json_limits import is_too_deep
from gateway.core.lenient import as_list
from gateway.core.request.chat_request import ChatRequest, Reference
from gateway.core.request.edit import BodyEdit
from gateway.core.request.known_replies import KnownReplies, MemoryKey
from gateway.dialects.chat.parse import parse as parse_chat
from gateway.dialects.fields import read_object, read_optional
from gateway.dialects.repeated_keys import find_repeated_keys
from gateway.dialects.responses.codex import find_codex_side_request
from gateway.dialects.responses.input import read_items
from gateway.dialects.responses.instructions import ClientInstructions, restore_instructions
from gateway.dialects.responses.parse import read_conversation_id
from gateway.dialects.responses.request_fields import translate_text_format
from gateway.dialects.responses.response_reader import ResponseReader
from gateway.errors import BadRequest, BodyTooLarge

# Fields that memory reads in another form, or that would mean another thing in a chat completion.
_TRANSLATED_FIELDS: Final = frozenset(
    ("input", "instructions", "text", "tool_choice", "tools", "stream_options")
)


class _PlacedMessage(NamedTuple):
    """A message of a request's input, as a message of a chat completion."""

    # The message.
    message: Json
    # The index of the message's item in the input (0 for an input that is a text). -1: the message is a reply, comes
    # from several items, or has the media of results.
    item_index: int


class NativeResponsesRequest(Struct, frozen=True):
    """A request, and the chat completion that memory reads. Implements `NativeRequest`, which documents the methods."""

    # The request's body as it came.
    raw: bytes
    # The parsed body.
    json: Json
    # The path below the upstream's base URL, with the query.
    upstream_path: str
    # The request as a chat completion, without gateway tools.
    chat: ChatRequest
    # The last messages of `chat`, which come from the input. Empty if the input has no messages: then `chat` has an
    # empty message in their place.
    input_messages: Sequence[_PlacedMessage]
    # The references to replies that the input only names, with their indexes in `chat`.
    references: Sequence[Reference]
    # The id of the conversation at OpenAI that the request continues; None: it names no conversation.
    conversation_id: str | None
    # The id of the response that the request continues; None: it continues no response.
    previous_id: str | None
    # True if the request continues a response or conversation that the upstream stores, or refers to an item there.
    refers_to_stored: bool
    # The part of the reply before this request that a voice agent's user heard; None: the user heard all of it.
    heard: Json | None = None

    @property
    def referenced_ids(self) -> frozenset[str]:
        return frozenset(filter(None, [self.previous_id, *(reference.id for reference in self.references)]))

    @property
    def is_stored(self) -> bool:
        return self.json.get("store") is not False

    @property
    def new_messages(self) -> list[Json]:
        return [placed.message for placed in self.input_messages]

    def with_history(self, known: KnownReplies, memory: MemoryKey) -> NativeResponsesRequest:
        """Returns a copy of the request with a `chat` that has the messages to which it refers, as far as known."""
        earlier_messages: Sequence[Json] = known.list_path(memory, self.previous_id)
        input_messages = self._with_named_replies(known, memory)
        cut_reply: Json | None = None
        if earlier_messages and earlier_messages[-1]["role"] == "assistant":
            heard_path = as_heard(
                earlier_messages, [input_message.message for input_message in input_messages]
            )
            earlier_messages = heard_path.path
            cut_reply = heard_path.cut_reply
            input_messages = [
                input_message
                for index, input_message in enumerate(input_messages)
                if index not in heard_path.repeat_indices
            ]
        return replace(
            self,
            chat=self._make_chat(earlier_messages, input_messages),
            input_messages=input_messages,
            references=(),
            heard=cut_reply,
        )

    def render_body(self, model: str, system: str = "", notes: Mapping[int, str] | None = None) -> bytes:
        """Returns the body for the upstream: the client's, with the memory section and the notes."""
        edit = BodyEdit(self.raw, self.json, list_key="input", text_kind="input_text")
        if model != self.chat.model:
            edit.set_member("model", model)
        if system:
            instructions = self.json.get("instructions")
            edit.set_member("instructions", f"{instructions}\n\n{system}" if instructions else system)
        sent_input = self.json["input"]
        for index, note in (notes or {}).items():
            item_index = self._locate_item(index)
            if not note or item_index < 0:
                continue
            if isinstance(sent_input, str):
                edit.set_member("input", note + sent_input)
            else:
                edit.prefix_text(item_index, note)
        return edit.render()

    def make_reader(self) -> ResponseReader:
        return ResponseReader(may_be_later=self.json.get("background") is True)

    def make_change(self) -> ClientInstructions:
        return restore_instructions(self.json.get("instructions"))

    @property
    def _first_input_index(self) -> int:
        """The index in `chat` of the input's first message."""
        return len(self.chat.messages) - len(self.input_messages)

    def _with_named_replies(self, known_replies: KnownReplies, memory: MemoryKey) -> list[_PlacedMessage]:
        """Returns the input's messages with the replies that it only names; unknown replies are left out."""
        named_replies = {
            reference.index - self._first_input_index: known_replies.find_reply(memory, reference.id)
            for reference in self.references
        }
        return [
            placed._replace(message=message)
            for index, placed in enumerate(self.input_messages)
            if (message := named_replies.get(index, placed.message)) is not None
        ]

    def _make_chat(
        self, earlier_messages: Sequence[Json], input_messages: Sequence[_PlacedMessage]
    ) -> ChatRequest:
        """Returns the request as a chat completion with these messages after its instructions."""
        head = self.chat.messages[:1] if self.json.get("instructions") else []
        messages = [*head, *earlier_messages, *(input_message.message for input_message in input_messages)]
        json = {**self.chat.json, "messages": messages}
        return replace(self.chat, raw=orjson.dumps(json), json=json, messages=messages)

    def _locate_item(self, index: int) -> int:
        """Returns the index of the item of the input with a message of `chat`; -1: no single item has the message."""
        input_index = index - self._first_input_index
        return self.input_messages[input_index].item_index if input_index >= 0 else -1


def read_native(body: bytes, upstream_path: str, max_messages: int) -> NativeResponsesRequest | None:
    """Returns a request as memory reads it; None: memory cannot read it, and the upstream reports the mistake."""
    try:
        return _read(body, upstream_path, max_messages)
    except (BadRequest, BodyTooLarge):
        return None


def _read(body: bytes, upstream_path: str, max_messages: int) -> NativeResponsesRequest | None:
    """Returns the request of a body; None: memory cannot read it. Raises: BadRequest, BodyTooLarge."""
    json = read_object(body)
    if not _is_readable(body, json, max_messages):
        return None
    instructions = read_optional(json, "instructions", str)
    leading_messages: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    translated = read_items(json["input"], leading_messages, is_lenient=True)
    messages = translated.messages
    previous_id = read_optional(json, "previous_response_id", str)
    if len(messages) == len(leading_messages):
        if previous_id is None:
            return None
        # An input with results of OpenAI's own tools alone has no messages; an empty message takes their place.
        messages = [*leading_messages, {"role": "user", "content": ""}]
    chat_json = _translate(json, messages)
    request = parse_chat(orjson.dumps(chat_json), max_messages + 1)
    request.side_request = find_codex_side_request(json)
    if json.get("tool_choice") in (None, "auto"):
        # The model has chosen its calls itself, so a call may be the task of a sub-agent.
        request.dialect_fields = {"tool_choice": "auto"}
    input_start = len(leading_messages)
    # An empty message that takes the place of the input has no index.
    input_messages = [
        *map(_PlacedMessage, request.messages[input_start:], translated.item_indices[input_start:])
    ]
    conversation_id = read_conversation_id(json)
    return NativeResponsesRequest(
        raw=body,
        json=json,
        upstream_path=upstream_path,
        chat=request,
        input_messages=input_messages,
        references=translated.references,
        conversation_id=conversation_id,
        previous_id=previous_id,
        refers_to_stored=any((translated.references, conversation_id, previous_id)),
    )


def _is_readable(body: bytes, json: Json, max_messages: int) -> bool:
    """Returns whether memory can read a request: the input is in the body and within bounds, and no key is repeated."""
    items = json.get("input")
    # `prompt` names a prompt that is stored at OpenAI, of which memory cannot read anything.
    if not isinstance(items, (str, list)) or json.get("prompt"):
        return False
    if isinstance(items, list) and len(items) > max_messages:
        return False
    return not (find_repeated_keys(body, json=json) or is_too_deep([json]))


def _translate(json: Json, messages: list[Json]) -> Json:
    """Returns a request as a chat completion with these messages."""
    # With this choice no gateway tool is offered: its calls could not be hidden.
    chat_json: Json = {"model": json.get("model"), "messages": messages, "tool_choice": "none"}
    for key, value in json.items():
        if value is not None and key not in _TRANSLATED_FIELDS:
            chat_json.setdefault(key, value)
    if json.get("text") is not None:
        chat_json.update(translate_text_format(json["text"]))
    if functions := _read_functions(json.get("tools")):
        chat_json["tools"] = functions
    return chat_json


def _read_functions(tools: Any) -> list[Json]:
    """Returns the tools that are functions, which show whether a call starts a sub-agent."""
    return [
        {
            "type": "function",
            "function": {key: tool.get(key) for key in ("name", "description", "parameters")},
        }
        for tool in as_list(tools)
        if isinstance(tool, dict) and tool.get("type") == "function" and isinstance(tool.get("name"), str)
    ]
