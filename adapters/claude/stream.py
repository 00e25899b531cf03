"""The translation of a stream: Anthropic's events in, OpenAI's chunks out. Text and arguments go on as they come.

    message_start          the role's delta
    content_block_start    of a call: its id and name
    content_block_delta    text, reasoning, a piece of a call's arguments
    content_block_stop     parts that need the whole block: a signature, citations, a block of an unknown kind
    message_delta          why it ended
    message_stop           usage, if asked for, and [DONE]
    ping                   a comment
    error                  OpenAI's error event, and the end

A block is known by its index; calls are counted in the order in which they begin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from adapters.claude.error_form import make_error_body, translate_error
from adapters.claude.events import with_name_first
from adapters.claude.reply import (
    CALL_FIELDS,
    MESSAGE_FIELDS,
    THINKING_TYPES,
    make_container_field,
    make_native_block,
    place_citations,
    read_ending,
    translate_usage,
    with_indices,
)
from adapters.errors import ProviderReplyBroken
from adapters.json_escapes import join_halves, read_json, read_json_with_halves, write_json
from adapters.types import NATIVE_REPLY, Event, Json

_DONE_EVENT: Final = Event(b"data: [DONE]\n\n", b"[DONE]")
# The fields of a `message_delta` that `read_ending` reads.
_ENDING_FIELDS: Final = ("stop_reason", "stop_sequence", "stop_details")
_PING_EVENT: Final = Event(b": ping\n\n", None)


@dataclass(slots=True)
class _ContentBlock:
    """A block that has begun."""

    # The type of the block, as Anthropic names it.
    type: str
    # The index that the stream's events name the block by.
    index: int
    # The fields with which the block began.
    fields: Json
    # The number of characters of content before the block.
    content_start: int
    # The number of calls that began before the block; for a call its index.
    call_index: int
    # True if a piece of a call's arguments has come.
    has_input: bool = False
    # The texts of the deltas so far, by the field that they continue.
    pieces: dict[str, list[str]] = field(default_factory=dict)
    # The citations of a text.
    citations: list[Any] = field(default_factory=list)


class StreamTranslator:
    """The translator of one reply."""

    def __init__(
        self, created: int, *, wants_usage: bool, first_index: int = 0, is_native: bool = False
    ) -> None:
        """Begins a reply.

        created: the time of the reply, in seconds since the epoch.
        wants_usage: True if the client asked for the usage chunk.
        first_index: the index of the reply's first block, as in `translate_message`.
        is_native: True if the reply passes in Anthropic's own dialect, so that its chunks have `NATIVE_REPLY`.
        """
        self._created = created
        self._first_index = first_index
        self._is_native = is_native
        self._wants_usage = wants_usage
        # The blocks that have not ended, by their indexes.
        self._blocks: dict[int, _ContentBlock] = {}
        # The number of calls so far.
        self._call_count = 0
        # The number of characters of content so far.
        self._content_length = 0
        # The number of citations of the blocks that have ended.
        self._citation_count = 0
        # The counts of tokens so far, as Anthropic names them.
        self._usage: Json = {}
        self._prepare_frame(message_id=None, model=None)
        # True if a chunk with the finish_reason was returned.
        self._has_finish_reason = False
        # True if the message has ended, or an error came in its place.
        self.is_over = False

    @property
    def prompt_usage(self) -> Json | None:
        """The usage of the prompt, which the message reports as it begins; None: the message has not begun."""
        return translate_usage({**self._usage, "output_tokens": 0}) if self._usage else None

    def feed(self, event: Event) -> list[Event]:
        """Returns the chunks for an event. Raises: ProviderReplyBroken: the event is not in Anthropic's form."""
        data = event.data
        if data is None or self.is_over:
            return []
        try:
            event_json, strict_data = read_json(data)
            event_type = event_json["type"]
            if event_type != "content_block_delta":
                return self._translate(event_type, event_json)
            if self._is_native and strict_data is not data:
                # The client joins half a character at the end of this delta with the next one.
                event_json = read_json_with_halves(data)
            delta = event_json["delta"]
            if delta["type"] != "text_delta":
                return self._add_delta(event_json, delta)
            if self._is_native and (block := self._blocks.get(event_json.get("index", -1))) is not None:
                block.pieces.setdefault("text", []).append(delta["text"])
            return self._add_text(delta["text"])
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ProviderReplyBroken("the upstream sent an event that is not in Anthropic's form") from error

    def annotate(self, event: Event) -> list[Event]:
        """Returns an event in its own bytes, with the chunk for it as data; further chunks are events without bytes.

        An event that is not in Anthropic's form has no chunks. Only an event that does not begin with its name is
        written again.
        """
        event = with_name_first(event)
        try:
            chunk_events = self.feed(event)
        except ProviderReplyBroken:
            return [event._replace(data=None)]
        if event.name == "error":
            return [event]
        chunks = [chunk_event.data for chunk_event in chunk_events if chunk_event.data is not None]
        if not chunks:
            return [event._replace(data=None)]
        first_chunk, *other_chunks = chunks
        return [Event(event.raw, first_chunk, event.name), *(Event(b"", chunk) for chunk in other_chunks)]

    def finish(self) -> None:
        """Ends the stream. Raises: ProviderReplyBroken: the message in it has not ended."""
        if not self.is_over:
            raise ProviderReplyBroken("the upstream's stream ended before its message did")

    def _translate(self, event_type: Any, event_json: Json) -> list[Event]:
        match event_type:
            case "content_block_start":
                return self._begin_block(event_json)
            case "content_block_stop":
                return self._end_block(event_json)
            case "message_start":
                return self._begin_message(event_json.get("message") or {})
            case "message_delta":
                return self._translate_ending(event_json)
            case "message_stop":
                return self._end_message()
            case "ping":
                return [_PING_EVENT]
            case "error":
                return self._end_with_error(event_json)
        return []  # an event that a later version of the API has added

    # -- the message

    def _begin_message(self, message: Json) -> list[Event]:
        self._prepare_frame(message.get("id"), message.get("model"))
        self._add_usage(message.get("usage"))
        other_fields = {key: value for key, value in message.items() if key not in MESSAGE_FIELDS}
        first_delta: Json = {
            "role": "assistant",
            "content": "",
            "refusal": None,
            **self._make_native_delta(make_container_field(message)),
        }
        return [self._make_chunk(first_delta, chunk_fields=other_fields)]

    def _translate_ending(self, event_json: Json) -> list[Event]:
        self._add_usage(event_json.get("usage"))
        delta = event_json.get("delta") or {}
        ending = read_ending(delta)
        other_fields = {
            key: value for key, value in delta.items() if key not in _ENDING_FIELDS and value is not None
        }
        other_fields |= {
            key: value for key, value in event_json.items() if key not in ("type", "delta", "usage")
        }
        if ending.finish_reason is None and not other_fields:
            return []
        self._has_finish_reason |= ending.finish_reason is not None
        last_delta = self._make_native_delta(make_container_field(delta))
        if ending.refusal is not None:
            last_delta["refusal"] = ending.refusal
        return [self._make_chunk(last_delta, ending.finish_reason, ending.native_fields, other_fields)]

    def _end_message(self) -> list[Event]:
        self.is_over = True
        last_events: list[Event] = []
        # Some proxies of Anthropic's API give no reason. Clients of chat completions wait for one.
        if not (self._has_finish_reason or self._is_native):
            last_events.append(self._make_chunk({}, "tool_calls" if self._call_count else "stop"))
        if self._wants_usage:
            chunk = {**self._chunk_fields, "choices": [], "usage": translate_usage(self._usage)}
            last_events.append(_make_event(orjson.dumps(chunk)))
        return [*last_events, _DONE_EVENT]

    def _end_with_error(self, event_json: Json) -> list[Event]:
        self.is_over = True
        body = translate_error(event_json) or make_error_body("The upstream reported an error", "api_error")
        return [_make_event(orjson.dumps(body))]

    def _add_usage(self, usage: Any) -> None:
        """Merges counts, which are running totals: a later count replaces an earlier one, but null replaces nothing."""
        if isinstance(usage, dict):
            self._usage |= {key: value for key, value in usage.items() if value is not None}

    # -- the blocks of the message

    def _begin_block(self, event_json: Json) -> list[Event]:
        """Begins a content block, and returns the chunks for what it has from its beginning on."""
        fields = event_json.get("content_block") or {}
        index = event_json.get("index", len(self._blocks))
        block = _ContentBlock(
            type=fields.get("type") or "",
            index=index,
            fields=fields,
            content_start=self._content_length,
            call_index=self._call_count,
        )
        self._blocks[index] = block
        match block.type:
            case "text":
                block.citations += fields.get("citations") or ()
                return self._add_text(fields["text"]) if fields.get("text") else []
            case "tool_use":
                self._call_count += 1
                other_fields = {key: value for key, value in fields.items() if key not in CALL_FIELDS}
                head = {"index": block.call_index, "id": fields.get("id"), "type": "function"}
                function = {"name": fields.get("name"), "arguments": ""}
                return [self._make_chunk({"tool_calls": [{**head, "function": function, **other_fields}]})]
            case "thinking" if fields.get("thinking"):
                return [self._make_chunk({"reasoning_content": fields["thinking"]})]
        return []

    def _add_delta(self, event_json: Json, delta: Json) -> list[Event]:
        """Adds a delta to its content block, and returns the chunks for it."""
        delta_type = delta["type"]
        block = self._blocks.get(event_json.get("index", -1))
        if block is None:
            return []
        if delta_type == "input_json_delta":
            return self._add_input(block, delta.get("partial_json") or "")
        if delta_type == "citations_delta":
            block.citations.append(delta.get("citation"))
            return []
        # Every other delta is held until its block ends: a signature counts only as a whole.
        for key, value in delta.items():
            if key == "type":
                continue
            if isinstance(value, str):
                block.pieces.setdefault(key, []).append(value)
            else:
                block.fields[key] = value
        if delta_type == "thinking_delta" and delta.get("thinking"):
            return [self._make_chunk({"reasoning_content": delta["thinking"]})]
        return []

    def _add_input(self, block: _ContentBlock, piece: object) -> list[Event]:
        """Adds a piece of a block's input. The arguments of a call go on at once.

        The input of a server's own tool waits for the end of its block.
        """
        if not isinstance(piece, str):
            raise TypeError("partial_json is no text")
        if block.type != "tool_use":
            block.pieces.setdefault("input", []).append(piece)
            return []
        if not piece:
            return []
        block.has_input = True
        function = {"arguments": piece}
        return [self._make_chunk({"tool_calls": [{"index": block.call_index, "function": function}]})]

    def _end_block(self, event_json: Json) -> list[Event]:
        block = self._blocks.pop(event_json.get("index", -1), None)
        if block is None:
            return []
        whole_block = _make_whole_block(block)
        events = self._end_translated(block, whole_block)
        if self._is_native:
            events.append(self._make_chunk({NATIVE_REPLY: {"content": [make_native_block(whole_block)]}}))
        return events

    def _end_translated(self, block: _ContentBlock, whole_block: Json) -> list[Event]:
        """Returns the chunks for the end of a block in the form of a chat completion."""
        if block.type == "text":
            citations = place_citations(
                block.citations, block.content_start, self._content_length, self._citation_count
            )
            self._citation_count += len(citations)
            return [self._make_chunk({"citations": citations})] if citations else []
        if block.type == "tool_use":
            if block.has_input:
                return []
            # The arguments are missing or came all at once; they are JSON in both cases.
            arguments = orjson.dumps(block.fields.get("input") or {}).decode()
            function = {"arguments": arguments}
            return [self._make_chunk({"tool_calls": [{"index": block.call_index, "function": function}]})]
        key = "thinking_blocks" if block.type in THINKING_TYPES else "provider_blocks"
        block_with_indices = with_indices(
            whole_block, self._first_index + block.index, block.content_start, block.call_index
        )
        return [self._make_chunk({key: [block_with_indices]})]

    def _make_native_delta(self, parts: Json) -> Json:
        """Returns the field of a delta for parts of `NATIVE_REPLY`."""
        return {NATIVE_REPLY: parts} if self._is_native and parts else {}

    # -- the chunks

    def _prepare_frame(self, message_id: Any, model: Any) -> None:
        """Prepares the bytes that all chunks share: in most chunks only a text stands between them."""
        self._chunk_fields: Json = {
            "id": message_id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": model,
        }
        chunk_fields = orjson.dumps(self._chunk_fields)[:-1]
        self._before_text = b"data: " + chunk_fields + b',"choices":[{"index":0,"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}]'
        self._after_text += b',"usage":null}\n\n' if self._wants_usage else b"}\n\n"

    def _add_text(self, text: str) -> list[Event]:
        # The second half of a character was counted with its first one.
        self._content_length += len(text) - ("\udc00" <= text[:1] <= "\udfff")
        raw = self._before_text + write_json(text) + self._after_text
        # The slice leaves out "data: " and the line breaks: one copy less than `_make_event` makes.
        return [Event(raw, raw[6:-2])]

    def _make_chunk(
        self,
        delta: Json,
        finish_reason: str | None = None,
        choice_fields: Json | None = None,
        chunk_fields: Json | None = None,
    ) -> Event:
        """Returns a chunk. choice_fields, chunk_fields: further fields of the choice and of the chunk."""
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
            **(choice_fields or {}),
        }
        chunk = {**self._chunk_fields, "choices": [choice], **(chunk_fields or {})}
        if self._wants_usage:
            chunk["usage"] = None
        return _make_event(write_json(chunk))


def _make_whole_block(block: _ContentBlock) -> Json:
    """Returns the block as it would stand in a whole reply."""
    fields = dict(block.fields)
    for key, pieces in block.pieces.items():
        text = join_halves("".join(pieces))
        if key == "input":
            fields["input"] = _parse_input(text) if text else fields.get("input", {})
        else:
            first_text = fields.get(key)
            fields[key] = first_text + text if isinstance(first_text, str) else text
    if block.citations:
        fields["citations"] = block.citations
    return fields


def _parse_input(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text  # JSON that the end of the message has cut off stays a text


def _make_event(data: bytes) -> Event:
    return Event(b"data: " + data + b"\n\n", data)
