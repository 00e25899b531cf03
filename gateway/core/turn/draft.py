"""Puts a message together from the deltas of one reply.

It knows the shape of a chat completion and nothing of turns; a set of names decides which calls are the gateway's. A
whole reply is read as a stream of one delta. Bytes for the client are rendered elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from adapters.types import READABLE_THOUGHT_FIELDS, Json
from gateway.core.conversation.fillers import FillerSpan, read_filler_spans, with_filler_spans
from gateway.core.conversation.wire_message import (
    PRIVATE,
    choose_separator,
    find_callee,
    list_raw_calls,
    read_text,
)
from gateway.core.lenient import as_list, as_object
from gateway.core.thoughts import THOUGHTS_SEPARATOR, read_thoughts
from gateway.core.turn.continued_reply import SPAN_FIELDS, continue_spans
from gateway.core.turn.json_pieces import REPLACED_FIELDS, copy_json, merge_field
from gateway.core.turn.tool_call import CallOwner, ToolCall, decide_owner
from gateway.core.usage.reported import ReplyUsage, find_reported_counts
from storage.run_records import TokenCounts


class _ClientPieces(NamedTuple):
    """The pieces of calls that the client gets with one event."""

    # The pieces, as the client gets them.
    pieces: list[Json]
    # The number of pieces that the client gets as they came.
    unchanged_count: int


class MessageDraft(ReplyUsage):
    """The assistant message of one reply (choice 0), of which pieces may still come."""

    __slots__ = (
        "_call_id_prefix",
        "_client_call_count",
        "_decided_count",
        "_fields",
        "_newest_by_index",
        "_texts",
        "calls",
        "counts",
        "finish_reason",
        "usage",
    )

    def __init__(self, call_id_prefix: str = "") -> None:
        """Makes a message without deltas.

        call_id_prefix: `ClientView.call_id_prefix`, with the number of the round.
        """
        self._call_id_prefix = call_id_prefix
        # The fields in the order in which they came. A field with text has its pieces in `_texts`.
        self._fields: Json = {}
        # The pieces of each field with text.
        self._texts: dict[str, list[str]] = {}
        # The calls, in the order in which they began.
        self.calls: list[ToolCall] = []
        # The newest call under each index of the upstream's.
        self._newest_by_index: dict[Any, ToolCall] = {}
        # The number of calls before the first call of unknown owner.
        self._decided_count = 0
        # The number of these calls that are the client's.
        self._client_call_count = 0
        # The finish_reason of the reply; None: none has come.
        self.finish_reason: str | None = None
        # The usage of the reply; None: none has come.
        self.usage: Json | None = None
        # The tokens of `usage`; None: the reply reports none.
        self.counts: TokenCounts | None = None

    @property
    def text(self) -> str:
        return "".join(self._texts.get("content", ()))

    def add(self, delta: Json) -> None:
        """Adds everything of a delta but its tool calls."""
        for key, value in delta.items():
            if type(value) is str:
                if key in REPLACED_FIELDS:
                    self._fields[key] = value
                elif key in self._texts:
                    self._texts[key].append(value)
                else:
                    # Texts are joined once, at the end. The entry keeps the fields in the order in which they came.
                    self._texts[key] = [value]
                    self._fields.setdefault(key, None)
            elif value is None:
                self._fields.setdefault(key, None)
            elif key != "tool_calls":
                merge_field(self._fields, key, value)

    def add_usage(self, usage: Any) -> None:
        """Adds a usage, if it reports any tokens."""
        counts = find_reported_counts(usage)
        if counts is not None:
            self.usage = usage
            self.counts = counts

    def add_texts(self, texts: Iterable[str]) -> None:
        """Appends texts to the content, which has begun."""
        self._texts["content"] += texts

    def add_call_piece(self, entry: Json) -> ToolCall:
        """Adds a piece to the call that it continues, or to a new one, and returns the call."""
        index = entry.get("index")
        key = str(index) if isinstance(index, list | dict) else index
        last_call = self.calls[-1] if self.calls else None
        call = last_call if index is None else self._newest_by_index.get(key)
        if call is None or _begins_next_call(entry, call):
            call = self._newest_by_index[key] = ToolCall(index)
            self.calls.append(call)
            if self._call_id_prefix and (
                not entry.get("id") or entry["id"] in [each.id for each in self.calls]
            ):
                call.new_id = f"{self._call_id_prefix}_{len(self.calls)}"
        call.add(entry)
        return call

    def add_calls(
        self, entries: list[Any], gateway_tools: Collection[str], *, is_over: bool
    ) -> list[Json] | None:
        """Adds pieces of tool calls. Returns the pieces that the client gets now; None: the given ones, unchanged.

        A call of the client's waits until the owners of all calls before it are known, so that the index under which
        the client gets it does not depend on how the bytes were cut.

        gateway_tools: the names of the tools that run here; their calls are withheld from the client.
        is_over: True if no more pieces come, so that every name is complete.
        """
        pieces: dict[ToolCall, list[Json]] = {}
        for entry in entries:
            if isinstance(entry, dict):
                call = self.add_call_piece(entry)
                pieces.setdefault(call, []).append({**entry, "id": call.new_id} if call.new_id else entry)
                # Arguments come after the name, so the first of them shows that the name has ended.
                if call.owner is CallOwner.UNKNOWN and gateway_tools:
                    function = entry.get("function")
                    has_arguments = isinstance(function, dict) and bool(function.get("arguments"))
                    call.owner = decide_owner(
                        call, gateway_tools, is_complete=bool(call.name) and has_arguments
                    )
        if not gateway_tools:
            has_new_ids = any(call.new_id for call in pieces)
            return [piece for call in pieces for piece in pieces[call]] if has_new_ids else None
        if is_over:
            for call in self.calls[self._decided_count :]:
                if call.owner is CallOwner.UNKNOWN:
                    call.owner = decide_owner(call, gateway_tools, is_complete=True)
        client_pieces, unchanged_count = self._make_client_pieces(pieces)
        # If all pieces go out unchanged, the caller passes the event's own bytes on.
        return None if unchanged_count == len(entries) == len(client_pieces) else client_pieces

    @property
    def is_empty(self) -> bool:
        """True if no field of a message has come; a message with an empty text is not empty."""
        return not (self._fields or self.calls)

    @property
    def char_count(self) -> int:
        """The characters of all that the model wrote."""
        return len(self.read_generated_text())

    def read_generated_text(self) -> str:
        """Returns all that the model wrote of the reply so far, as `read_generated_text` reads it of a message."""
        return read_generated_text(self.make_message(self.calls))

    def make_message(self, calls: Iterable[ToolCall] = ()) -> Json:
        """Returns the assistant message with these calls, in the form in which OpenAI's API takes it back.

        LiteLLM's wrapper for other providers' fields is left out: LiteLLM would pass it to servers that refuse it.
        """
        message: Json = {"role": "assistant", **self._fields}
        for key, texts in self._texts.items():
            text = "".join(texts)
            value = message[key]
            message[key] = _concatenate(value, text) if value else text
        message["role"] = "assistant"  # whatever the upstream called it: it is the reply
        message.pop("tool_calls", None)
        message.pop("provider_specific_fields", None)
        message.pop(PRIVATE, None)  # set by the gateway alone
        call_json = [call.as_json() for call in calls]
        if not message.get("content"):
            message["content"] = _choose_empty_content(message, call_json)
        if call_json:
            message["tool_calls"] = call_json
        return message

    def _make_client_pieces(self, new_pieces: Mapping[ToolCall, list[Json]]) -> _ClientPieces:
        """Returns the pieces that the client gets now. new_pieces: the new pieces of each call."""
        client_pieces: list[Json] = []
        unchanged_count = 0
        calls = [call for call in new_pieces if call.is_sent] + self._index_client_calls()
        for call in sorted(calls, key=lambda call: call.client_index):
            pieces = new_pieces.get(call, [])
            if not call.is_sent and call.piece_count != len(pieces):
                # Earlier pieces were held back while the owner was unknown: all pieces go as one.
                index = call.client_index if call.is_reindexed or call.index is None else call.index
                client_pieces.append({"index": index, **call.as_json()})
            elif call.is_reindexed:
                client_pieces.extend({**entry, "index": call.client_index} for entry in pieces)
            else:
                client_pieces.extend(pieces)
                unchanged_count += 0 if call.new_id else len(pieces)
            call.is_sent = True
        return _ClientPieces(client_pieces, unchanged_count)

    def _index_client_calls(self) -> list[ToolCall]:
        """Gives the client's calls their indices, in which the gateway's calls leave no gap. Returns these calls.

        The calls from the first call of unknown owner on get no index yet.
        """
        client_calls: list[ToolCall] = []
        while self._decided_count < len(self.calls):
            call = self.calls[self._decided_count]
            if call.owner is CallOwner.UNKNOWN:
                break
            if call.owner is CallOwner.CLIENT:
                call.client_index = self._client_call_count
                call.is_reindexed = call.client_index != self._decided_count
                self._client_call_count += 1
                client_calls.append(call)
            self._decided_count += 1
        return client_calls


def _begins_next_call(entry: Json, call: ToolCall) -> bool:
    """Returns whether a piece begins a new call, although it has the index of a call, or no index."""
    index = entry.get("index")
    call_id = entry.get("id")
    function = entry.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if call_id:
        # Some upstreams send parallel calls under one index, or without any. Under one index another id is not enough
        # to distinguish a new call from a piece with a new id; a name that comes with it is.
        return bool(call.upstream_id and call_id != call.upstream_id and (name or index is None))
    # There is neither index nor id: a name after arguments begins the next call.
    return bool(index is None and name and call.name and call.argument_pieces)


def join_messages(messages: Iterable[Json]) -> Json:
    """Returns one assistant message with the content of several messages.

    Texts and thoughts are joined with a separator, tool calls are listed, and other fields are merged.

    messages: the messages, oldest first.
    """
    joined_message: Json = {}
    calls: list[Json] = []
    fillers: list[FillerSpan] = []
    for message in messages:
        text_before, text = read_text(joined_message), read_text(message)
        # The offset at which the message's text begins in the joined text.
        start_offset = len(text_before) + len(choose_separator(text_before, text))
        for key, value in message.items():
            if key == "tool_calls":
                calls.extend(value)
            elif value is None:
                joined_message.setdefault(key, None)
            elif key == "content":
                content = joined_message.get(key)
                joined_message[key] = _concatenate(content, value, choose_separator(content, value))
            elif key in READABLE_THOUGHT_FIELDS and _are_texts(joined_message.get(key), value):
                joined_message[key] += THOUGHTS_SEPARATOR + value
            elif key in SPAN_FIELDS and isinstance(value, list) and (start_offset or joined_message.get(key)):
                spans = as_list(joined_message.get(key))
                joined_message[key] = [*spans, *continue_spans(value, len(spans), start_offset)]
            elif key == PRIVATE:
                fillers += [
                    FillerSpan(start_offset + start, start_offset + end)
                    for start, end in read_filler_spans(message)
                ]
            else:
                merge_field(joined_message, key, value)
    joined_message["content"] = joined_message.get("content") or _choose_empty_content(joined_message, calls)
    if calls:
        joined_message["tool_calls"] = calls
    return with_filler_spans(joined_message, fillers)


def _are_texts(*values: Any) -> bool:
    """Returns whether all values are texts that are not empty."""
    return all(isinstance(value, str) and value for value in values)


def _choose_empty_content(message: Json, calls: Sequence[Json]) -> str | None:
    """Returns the content of a message that has no text: None if it has a call or a refusal, as with OpenAI's API."""
    return None if calls or message.get("function_call") or message.get("refusal") else ""


def _concatenate(content: Any, more_content: Any, separator: str = "") -> Any:
    """Returns content followed by more content; either may be text or a list of parts."""
    if not content or not more_content:
        return copy_json(content or more_content)
    if isinstance(content, str) and isinstance(more_content, str):
        return content + separator + more_content
    return [*_list_parts(content), *_list_parts(more_content)]


def _list_parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def read_generated_text(message: Mapping[str, Any]) -> str:
    """Returns all of a message that the model wrote, calls included, for an estimate of its tokens."""
    parts = [
        read_thoughts(message),
        read_text(message),
        message.get("refusal"),
        as_object(message.get("audio")).get("transcript"),
    ]
    for callee in (*map(find_callee, list_raw_calls(message)), message.get("function_call")):
        if isinstance(callee, dict):
            parts += map(callee.get, ("name", "arguments", "input"))
    return "".join([part for part in parts if isinstance(part, str)])
