"""Passes the events of an upstream that speaks Anthropic's dialect itself, as one message.

A reply of one round passes byte for byte. A reply of several rounds, which the gateway's tools have made, becomes one
message: the first `message_start`, all blocks but the calls of these tools under running indices, and one end with
the usage of all rounds.
(platform.claude.com/docs/en/build-with-claude/streaming)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from adapters.claude.reply import read_ending
from adapters.types import Json
from gateway.core.finish_reasons import BROKE, read_finish_reason
from gateway.core.lenient import as_object, decode_object
from gateway.dialects.event_stream import encode_typed_event

# The name of an event, if its data has the same `type`: some upstreams name the chunks of chat completions, too.
_EVENT_NAME: Final = re.compile(rb'event: ?(\w+)\r?\n(?=(?s:.*?)"type"\s*:\s*"\1")')
_DATA_LINE: Final = re.compile(rb"^data: ?(.*)$", re.MULTILINE)
_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    BROKE: "max_tokens",  # the only reason for a reply without its end
}


def choose_stop_reason(finish_reason: Any) -> str:
    """Returns Anthropic's reason for the end of a message. finish_reason: the `finish_reason` of a chat completion."""
    return _STOP_REASONS[read_finish_reason(finish_reason)]


def find_event_name(raw: bytes) -> str | None:
    """Returns the name of an event; None: the event is not one of Anthropic's. raw: the event's bytes."""
    match = _EVENT_NAME.match(raw)
    return match[1].decode() if match else None


class NativeEvents:
    """The events of one reply, which may have several rounds."""

    def __init__(self, gateway_tools: Collection[str]) -> None:
        """Begins a reply. gateway_tools: the names of tools that run in the gateway."""
        self._gateway_tools = gateway_tools
        # False if every event passes unread.
        self._parses_events = bool(gateway_tools)
        # The index of a block in the message, by its index in this round; None: the block is not shown.
        self._shown_indices: dict[int, int | None] = {}
        # The index of the next block in the message.
        self._next_index = 0
        # The usage of this round.
        self._usage: Json = {}
        # The sum of the usages of the rounds before.
        self._earlier_usage: Json = {}
        # The last `message_delta` of any round.
        self._message_delta: Json = {}
        # True if the client has got a `message_delta`.
        self._has_message_delta = False
        # The last container of any round; None: no round has used one.
        self._container: Any = None
        # True if the client has got the beginning of the message.
        self.has_begun = False
        # True if the client has got some content of the message.
        self.has_content = False
        # True if the client has got the end of the message.
        self.is_over = False

    def translate_event(self, raw: bytes, name: str) -> bytes:
        """Returns the bytes that the client gets for an event; b"": the event is hidden.

        raw: the event as it came.
        name: the name of the event.
        """
        self.is_over = self.is_over or name == "message_stop"
        self._has_message_delta = self._has_message_delta or name == "message_delta"
        if not self._parses_events:
            self.has_begun = True
            self.has_content = True
            return raw
        match name:
            case "message_start":
                return self._begin_round(raw)
            case "content_block_start" | "content_block_delta" | "content_block_stop":
                return self._show_block(raw, name)
            case "message_delta":
                self._merge_delta(raw)
        return raw

    def claim_index(self) -> int:
        """Returns the index in the message of a block that begins now."""
        index = self._next_index
        self._next_index += 1
        return index

    def hide_round(self, tail: Sequence[bytes]) -> list[bytes]:
        """Ends a hidden round. tail: the round's last events. Returns the events of the tail that the client gets."""
        shown_events = []
        for raw in tail:
            name = find_event_name(raw)
            if name == "message_delta":
                self._merge_delta(raw)
            elif name == "ping" or raw.startswith(b":"):
                shown_events.append(raw)
        self._earlier_usage = add_usage(self._earlier_usage, self._usage)
        self._usage = {}
        return shown_events

    def end(self, tail: Sequence[bytes], finish_reason: str | None) -> list[bytes]:
        """Returns the events that end the message.

        tail: the last events of the last round.
        finish_reason: the reason in place of the upstream's, in OpenAI's words; None: the upstream's own reason.
        """
        events = []
        for raw in tail:
            name = find_event_name(raw)
            if name == "message_delta" and (self._earlier_usage or finish_reason):
                self._merge_delta(raw)
                events.append(self._render_delta(finish_reason))
            else:
                events.append(raw)
            self._has_message_delta = self._has_message_delta or name == "message_delta"
            self.is_over = self.is_over or name == "message_stop"
        # Without an end the last round was hidden or stopped, or its stream ended without its last event.
        if not self.is_over:
            if not self._has_message_delta:
                events.append(self._render_delta(finish_reason or "stop"))
            events.append(encode_typed_event("message_stop", {}))
            self.is_over = True
        return events

    def _begin_round(self, raw: bytes) -> bytes:
        """Records the usage and the container of a round. Returns the event in the first round; b"": a later round."""
        event = _decode_data(raw)
        message = as_object(event.get("message"))
        self._usage = as_object(message.get("usage"))
        self._container = message.get("container") or self._container
        self._shown_indices = {}
        if self.has_begun:
            return b""
        self.has_begun = True
        return raw

    def _show_block(self, raw: bytes, name: str) -> bytes:
        """Returns an event of a block under the block's index in the message; b"": a gateway tool's call is hidden."""
        event = _decode_data(raw)
        index = event.get("index")
        if not isinstance(index, int):
            return raw
        if name == "content_block_start":
            if _is_call(event.get("content_block"), self._gateway_tools):
                self._shown_indices[index] = None
            else:
                self._shown_indices[index] = self.claim_index()
                self.has_content = True
        shown_index = self._shown_indices.get(index, index)
        if shown_index is None:
            return b""
        if shown_index == index:
            return raw
        return encode_typed_event(name, {**_without_type(event), "index": shown_index})

    def _merge_delta(self, raw: bytes) -> None:
        """Records a `message_delta`, with its container and its usage."""
        self._message_delta = _without_type(_decode_data(raw))
        self._container = as_object(self._message_delta.get("delta")).get("container") or self._container
        usage = as_object(self._message_delta.get("usage"))
        self._usage |= {key: value for key, value in usage.items() if value is not None}

    def _render_delta(self, finish_reason: str | None) -> bytes:
        """Returns the `message_delta` of the whole message. finish_reason: as in `end`."""
        delta = self._message_delta.get("delta")
        delta = dict(delta) if isinstance(delta, dict) else {"stop_sequence": None}
        if finish_reason is not None:
            delta["stop_reason"] = choose_stop_reason(finish_reason)
        if self._container is not None:
            delta["container"] = self._container
        usage = add_usage(self._earlier_usage, self._usage)
        return encode_typed_event("message_delta", {**self._message_delta, "delta": delta, "usage": usage})


def merge_replies(replies: Sequence[Json], gateway_tools: Collection[str], finish_reason: str | None) -> Json:
    """Returns the messages of all rounds as one message.

    finish_reason: the reason for which the reply ended, in OpenAI's words; None: the reason of the last message.
    """
    content: list[Any] = []
    usage: Json = {}
    for reply in replies:
        content += [block for block in reply.get("content") or () if not _is_call(block, gateway_tools)]
        usage = add_usage(usage, as_object(reply.get("usage")))
    merged_reply = {**replies[-1], "id": replies[0].get("id"), "content": content, "usage": usage}
    if containers := [reply["container"] for reply in replies if reply.get("container")]:
        merged_reply["container"] = containers[-1]
    # Several reasons of Anthropic's are one reason in OpenAI's words, so a reason that fits stays.
    if finish_reason not in (None, read_ending(merged_reply).finish_reason):
        merged_reply["stop_reason"] = choose_stop_reason(finish_reason)
    return merged_reply


def add_usage(earlier_usage: Json, later_usage: Json) -> Json:
    """Returns the sum of two usages: numbers are added, lists are joined, and other fields have the later value."""
    usage_sum = {**earlier_usage, **{key: value for key, value in later_usage.items() if value is not None}}
    for key in earlier_usage.keys() & later_usage.keys():
        earlier_value = earlier_usage[key]
        later_value = later_usage[key]
        if _is_number(earlier_value) and _is_number(later_value):
            usage_sum[key] = earlier_value + later_value
        elif isinstance(earlier_value, dict) and isinstance(later_value, dict):
            usage_sum[key] = add_usage(earlier_value, later_value)
        elif isinstance(earlier_value, list) and isinstance(later_value, list):
            usage_sum[key] = earlier_value + later_value  # `iterations`, in their order
    return usage_sum


def _is_call(block: Any, tools: Collection[str]) -> bool:
    """Returns whether a block is a call of one of these tools."""
    if not isinstance(block, dict) or block.get("type") != "tool_use":
        return False
    name = block.get("name")
    return isinstance(name, str) and name in tools


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_type(event: Json) -> Json:
    return {key: value for key, value in event.items() if key != "type"}


def _decode_data(raw: bytes) -> Json:
    """Returns the data of an event."""
    return decode_object(b"\n".join(_DATA_LINE.findall(raw)))
