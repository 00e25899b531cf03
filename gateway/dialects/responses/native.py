"""A request to OpenAI's Responses API that goes upstream in this dialect, with memory in `instructions` and `input`.

Memory learns the conversation and its messages from the request as a chat completion. That chat completion lacks the
parts that chat completions have no place for; they go upstream in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Event, Json
from gateway.core.conversation.heard import as_heard
from gateway.core.conversation.wire_message import text_of
from gateway.core.json_limits import is_too_deep
from gateway.core.request.chat_request import ChatRequest, Reference
from gateway.core.request.edit import BodyEdit
from gateway.core.request.known_replies import KnownReplies, MemoryKey
from gateway.core.turn.commands import FINISHED, End
from gateway.core.turn.draft import join_messages
from gateway.core.turn.native_reader import NativeReply
from gateway.core.usage.reported import is_pending
from gateway.dialects.chat.parse import parse as parse_chat
from gateway.dialects.fields import read_object, read_optional, repeated_keys
from gateway.dialects.lenient import as_object, decode_object
from gateway.dialects.responses.codex import codex_side_request
from gateway.dialects.responses.input import read_items
from gateway.dialects.responses.instructions import ClientInstructions, restore_instructions
from gateway.dialects.responses.parse import read_conversation_id
from gateway.dialects.responses.request_fields import translate_text_format
from gateway.errors import BadRequest, BodyTooLarge

# Fields that name something stored at OpenAI, so that memory cannot read all of the prompt.
_OPENAI_FIELDS: Final = ("prompt",)
# Fields that memory reads in another form, or that would mean another thing in a chat completion.
_TRANSLATED_FIELDS: Final = frozenset(
    ("input", "instructions", "text", "tool_choice", "tools", "stream_options")
)
_DELTA_EVENT: Final = "response.output_text.delta"
_ITEM_EVENT: Final = "response.output_item.done"
_CREATED_EVENT: Final = "response.created"
# The most events that are read of a reply without an end; later events are not remembered. Chosen: far above what
# models write in one reply. Reading so many events takes some 0.2 s.
MAX_CONTENT_EVENTS: Final = 50_000
_END_EVENTS: Final = {
    "response.completed": FINISHED,
    "response.incomplete": FINISHED,  # cut by a limit: its text counts nevertheless
    "response.failed": End.FAILED,
    "error": End.FAILED,
}


class _PlacedMessage(NamedTuple):
    """A message of a request's input, as a message of a chat completion."""

    message: Json
    # The index of its item in the input (0 for an input that is a text). -1: it is a reply, comes from several items,
    # or has the media of results.
    item_index: int


class NativeResponse(Struct, frozen=True):
    """A request, and what memory reads in it. Implements `NativeRequest`, which documents the methods."""

    # The request's body as it came.
    raw: bytes
    # The parsed body.
    json: Json
    # The path below the upstream's base URL, with the query.
    upstream_path: str
    # The request as a chat completion, without gateway tools.
    chat: ChatRequest
    # The messages of `chat` that come from its input, which are the last ones. Empty if the input has no messages: then
    # an empty message stands in for them in `chat`.
    input_messages: Sequence[_PlacedMessage]
    # Replies that the input only names, with their indexes in `chat`.
    references: Sequence[Reference]
    # The id of the conversation at OpenAI that the request continues.
    conversation_id: str | None
    # The id of the response that the request continues.
    previous_id: str | None
    # The part of the reply before this request that a voice agent's user heard; None: the user heard all of it.
    heard: Json | None = None

    @property
    def referenced_ids(self) -> frozenset[str]:
        return frozenset(filter(None, [self.previous_id, *(each.id for each in self.references)]))

    @property
    def is_stored(self) -> bool:
        return self.json.get("store") is not False

    @property
    def new_messages(self) -> list[Json]:
        return [each.message for each in self.input_messages]

    @property
    def _first_input_index(self) -> int:
        """The index in `chat` of the input's first message."""
        return len(self.chat.messages) - len(self.input_messages)

    def with_history(self, known: KnownReplies, memory: MemoryKey) -> NativeResponse:
        """Returns the request with a `chat` that has the messages to which it only refers, as far as they are known."""
        earlier_messages: Sequence[Json] = known.path(memory, self.previous_id)
        input_messages = self._with_named_replies(known, memory)
        cut_reply: Json | None = None
        if earlier_messages and earlier_messages[-1]["role"] == "assistant":
            heard_path = as_heard(earlier_messages, [each.message for each in input_messages])
            earlier_messages = heard_path.path
            cut_reply = heard_path.cut_reply
            input_messages = [each for n, each in enumerate(input_messages) if n not in heard_path.repeats]
        return replace(
            self,
            chat=self._make_chat(earlier_messages, input_messages),
            input_messages=input_messages,
            references=(),
            heard=cut_reply,
        )

    def _with_named_replies(self, known_replies: KnownReplies, memory: MemoryKey) -> list[_PlacedMessage]:
        """Returns the input's messages with the replies that the input only names, without those that are not known."""
        input_start = self._first_input_index
        named_replies = {
            each.index - input_start: known_replies.reply(memory, each.id) for each in self.references
        }
        return [
            each._replace(message=message)
            for n, each in enumerate(self.input_messages)
            if (message := named_replies.get(n, each.message)) is not None
        ]

    def _make_chat(
        self, earlier_messages: Sequence[Json], input_messages: Sequence[_PlacedMessage]
    ) -> ChatRequest:
        """Returns the request as a chat completion with these messages after its instructions."""
        head = self.chat.messages[:1] if self.json.get("instructions") else []
        messages = [*head, *earlier_messages, *(each.message for each in input_messages)]
        json = {**self.chat.json, "messages": messages}
        return replace(self.chat, raw=orjson.dumps(json), json=json, messages=messages)

    def body(self, model: str, system: str = "", notes: Mapping[int, str] | None = None) -> bytes:
        """Returns the body for the upstream: the client's, with the memory section and the notes."""
        edit = BodyEdit(self.raw, self.json, listed="input", text_kind="input_text")
        if model != self.chat.model:
            edit.set_member("model", model)
        if system:
            instructions = self.json.get("instructions")
            edit.set_member("instructions", f"{instructions}\n\n{system}" if instructions else system)
        sent_input = self.json["input"]
        for index, note in (notes or {}).items():
            item_index = self._item_index(index)
            if not note or item_index < 0:
                continue
            if isinstance(sent_input, str):
                edit.set_member("input", note + sent_input)
            else:
                edit.prefix_text(item_index, note)
        return edit.render()

    def _item_index(self, index: int) -> int:
        """Returns the index of the item of the input with a message of `chat`; -1: no single item has the message."""
        n = index - self._first_input_index
        return self.input_messages[n].item_index if n >= 0 else -1

    def reader(self) -> ResponseReader:
        return ResponseReader(may_be_later=self.json.get("background") is True)

    def change(self) -> ClientInstructions:
        return restore_instructions(self.json.get("instructions"))


def read_native(body: bytes, upstream_path: str, max_messages: int) -> NativeResponse | None:
    """Returns a request as memory reads it; None: memory cannot read it, and the upstream reports the mistake."""
    try:
        return _read(body, upstream_path, max_messages)
    except (BadRequest, BodyTooLarge):
        return None


def _read(body: bytes, upstream_path: str, max_messages: int) -> NativeResponse | None:
    json = read_object(body)
    if not _is_readable(body, json, max_messages):
        return None
    instructions = read_optional(json, "instructions", str)
    leading_messages: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    translated = read_items(json["input"], leading_messages, is_lenient=True)
    messages = translated.messages
    previous_id = read_optional(json, "previous_response_id", str)
    has_input_messages = len(messages) > len(leading_messages)
    if not has_input_messages:
        if previous_id is None:
            return None
        # An input of nothing but results of OpenAI's own tools has no messages; an empty message stands in for them.
        messages = [*leading_messages, {"role": "user", "content": ""}]
    chat_json = _translate(json, messages)
    request = parse_chat(orjson.dumps(chat_json), max_messages + 1)
    request.side_request = codex_side_request(json)
    if json.get("tool_choice") in (None, "auto"):
        # The model has chosen its calls itself, so a call may be the task of a sub-agent.
        request.dialect_fields = {"tool_choice": "auto"}
    input_messages: list[_PlacedMessage] = []
    if has_input_messages:
        input_start = len(leading_messages)
        input_messages += map(
            _PlacedMessage, request.messages[input_start:], translated.item_indices[input_start:]
        )
    return NativeResponse(
        raw=body,
        json=json,
        upstream_path=upstream_path,
        chat=request,
        input_messages=input_messages,
        references=translated.references,
        conversation_id=read_conversation_id(json),
        previous_id=previous_id,
    )


def _is_readable(body: bytes, json: Json, max_messages: int) -> bool:
    """Returns whether memory can read a request: the input is in the body and within bounds, and no key is repeated."""
    items = json.get("input")
    if not isinstance(items, (str, list)) or any(json.get(key) for key in _OPENAI_FIELDS):
        return False
    if isinstance(items, list) and len(items) > max_messages:
        return False
    return not (repeated_keys(body, json=json) or is_too_deep([json]))


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
    objects = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return [
        {
            "type": "function",
            "function": {key: tool.get(key) for key in ("name", "description", "parameters")},
        }
        for tool in objects
        if tool.get("type") == "function" and isinstance(tool.get("name"), str)
    ]


class ResponseReader:
    """Reads a response that passes. Implements `NativeReader`, which documents the methods.

    The last event of a stream has the whole response, so only this event is parsed. If it never comes, the earlier
    events are parsed.
    """

    def __init__(self, *, may_be_later: bool = False) -> None:
        """Begins with nothing read. may_be_later: the upstream may make the response in the background."""
        self.is_over = False
        self.background_id: str | None = None
        self._may_be_later = may_be_later
        self._end: End = End.CANCELLED
        self._response: Json = {}  # the response in the last event, or in the whole body
        self._created_event = b""
        self._content_events: list[bytes] = []  # events with content, as long as no end has come

    def take(self, event: Event) -> None:
        if event.data is None or self.is_over:
            return
        # Some upstreams give all events the name "message", which stands for no name.
        is_named = event.name is not None and event.name.startswith("response.")
        event_type = event.name if is_named else decode_object(event.data).get("type")
        if not isinstance(event_type, str):
            return
        if event_type in (_DELTA_EVENT, _ITEM_EVENT):
            if len(self._content_events) < MAX_CONTENT_EVENTS:
                self._content_events.append(event.data)
        elif event_type == _CREATED_EVENT:
            self._created_event = event.data
            if self._may_be_later:
                self._note_pending(_response_in(event.data))
        elif event_type in _END_EVENTS:
            self.is_over = True
            self._end = _END_EVENTS[event_type]
            self._response = _response_in(event.data)

    def take_whole(self, body: bytes) -> None:
        self.is_over = True
        self._response = decode_object(body)
        if self._may_be_later and self._note_pending(self._response):
            self._end = End.CANCELLED
            return
        has_failed = self._response.get("error") or self._response.get("status") in (
            "failed",
            "cancelled",
        )
        self._end = End.FAILED if has_failed else FINISHED

    def reply(self) -> NativeReply:
        """Returns the reply as far as it has come. A reply that was cut has only its text, without calls."""
        response = self._response or _response_in(self._created_event)
        items = response.get("output") or self._assemble_items()
        if not isinstance(items, list):
            items = []
        translated = read_items([item for item in items if isinstance(item, dict)], is_lenient=True)
        replies = [message for message in translated.messages if message["role"] == "assistant"]
        message = join_messages(replies) if replies else None
        if message is not None and self._end is not FINISHED:
            text = text_of(message)
            message = {"role": "assistant", "content": text} if text else None
        ids = [response.get("id"), *(item.get("id") for item in items if isinstance(item, dict))]
        return NativeReply(self._end, message, tuple(id for id in ids if isinstance(id, str) and id))

    def _note_pending(self, response: Json) -> bool:
        """Notes the id of a response that is made in the background. Returns whether the response is."""
        id = response.get("id")
        self.background_id = id if isinstance(id, str) and is_pending(response) else None
        return self.background_id is not None

    def _assemble_items(self) -> list[Json]:
        """Returns the complete items, and for each item that is not complete the text that has come."""
        items: dict[int, Json] = {}  # by their indices in the output
        deltas: dict[int, list[str]] = {}
        for event in map(decode_object, self._content_events):
            index, item, delta = event.get("output_index"), event.get("item"), event.get("delta")
            if not isinstance(index, int):
                continue
            if isinstance(item, dict):
                items[index] = item
            elif isinstance(delta, str):
                deltas.setdefault(index, []).append(delta)
        for index, pieces in deltas.items():
            part = {"type": "output_text", "text": "".join(pieces)}
            items.setdefault(index, {"type": "message", "role": "assistant", "content": [part]})
        return [items[index] for index in sorted(items)]


def _response_in(event_data: bytes) -> Json:
    return as_object(decode_object(event_data).get("response"))
