"""Passes the events of an upstream that speaks Anthropic's dialect itself, as one message.

A reply of one round passes byte for byte. Of a reply of several rounds, which the gateway's tools have made, the client
gets the first `message_start`, all blocks but the calls of these tools under running indices, and one end with the
usage of all rounds.
(platform.claude.com/docs/en/build-with-claude/streaming)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from adapters.claude.reply import read_ending
from adapters.types import Json
from gateway.core.finish_reasons import BROKE, read_finish_reason
from gateway.dialects.event_stream import encode_typed_event
from gateway.dialects.lenient import as_object, decode_object

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


def stop_reason_for(finish: Any) -> str:
    """Returns Anthropic's reason for the end of a message. finish: the `finish_reason` of a chat completion."""
    return _STOP_REASONS[read_finish_reason(finish)]


def event_name(raw: bytes) -> str | None:
    """Returns the name of an event. raw: its bytes. None: the event is none of Anthropic's."""
    match = _EVENT_NAME.match(raw)
    return None if match is None else match[1].decode()


class NativeEvents:
    """The events of one reply, whatever number of rounds made it."""

    def __init__(self, gateway_tools: Collection[str]) -> None:
        """Begins a reply. gateway_tools: the names of tools that run in the gateway."""
        self._gateway_tools = gateway_tools
        self._is_parsed = bool(gateway_tools)  # else every event passes unread
        # By the index of a block in this round its index in the message; None: the block is not shown.
        self._shown_indices: dict[int, int | None] = {}
        self._next_index = 0  # of the next block in the message
        self._usage: Json = {}  # of this round
        self._earlier_usage: Json = {}  # of the rounds before
        self._message_delta: Json = {}  # the last `message_delta` of any round
        self._has_message_delta = False  # the client has got one
        self._container: Any = None  # the last container of any round
        self.has_begun = False
        self.has_content = False
        self.is_over = False

    def pass_on(self, raw: bytes, name: str) -> bytes:
        """Returns the bytes that the client gets for an event; empty where it gets none."""
        self.is_over = self.is_over or name == "message_stop"
        self._has_message_delta = self._has_message_delta or name == "message_delta"
        if not self._is_parsed:
            self.has_begun = self.has_content = True
            return raw
        match name:
            case "message_start":
                return self._begin_round(raw)
            case "content_block_start" | "content_block_delta" | "content_block_stop":
                return self._show_block(raw, name)
            case "message_delta":
                self._read_delta(raw)
        return raw

    def claim_index(self) -> int:
        """Returns the index in the message of a block that begins now."""
        index, self._next_index = self._next_index, self._next_index + 1
        return index

    def hide_round(self, tail: Sequence[bytes]) -> list[bytes]:
        """Ends a hidden round. Returns the events of `tail`, its last ones, that the client gets."""
        passed = []
        for raw in tail:
            name = event_name(raw)
            if name == "message_delta":
                self._read_delta(raw)
            elif name == "ping" or raw.startswith(b":"):
                passed.append(raw)
        self._earlier_usage, self._usage = add_usage(self._earlier_usage, self._usage), {}
        return passed

    def end(self, tail: Sequence[bytes], finish: str | None) -> list[bytes]:
        """Returns the events that end the message.

        tail: the last events of the last round.
        finish: replaces the upstream's reason, in OpenAI's words; None: the upstream's own reason.
        """
        events = []
        for raw in tail:
            name = event_name(raw)
            if name == "message_delta" and (self._earlier_usage or finish):
                self._read_delta(raw)
                events.append(self._render_delta(finish))
            else:
                events.append(raw)
            self._has_message_delta = self._has_message_delta or name == "message_delta"
            self.is_over = self.is_over or name == "message_stop"
        # The last round was hidden or stopped, or its stream ended without its last event.
        if not self.is_over:
            events += () if self._has_message_delta else [self._render_delta(finish or "stop")]
            events.append(encode_typed_event("message_stop", {}))
            self.is_over = True
        return events

    def _begin_round(self, raw: bytes) -> bytes:
        parsed = _decode_data(raw)
        message = as_object(parsed.get("message"))
        self._usage = as_object(message.get("usage"))
        self._container = message.get("container") or self._container
        self._shown_indices = {}
        if self.has_begun:
            return b""
        self.has_begun = True
        return raw

    def _show_block(self, raw: bytes, name: str) -> bytes:
        parsed = _decode_data(raw)
        index = parsed.get("index")
        if not isinstance(index, int):
            return raw
        if name == "content_block_start":
            if _is_call_of(parsed.get("content_block"), self._gateway_tools):
                self._shown_indices[index] = None
            else:
                self._shown_indices[index] = self.claim_index()
                self.has_content = True
        shown_index = self._shown_indices.get(index, index)
        if shown_index is None:
            return b""
        if shown_index == index:
            return raw
        return encode_typed_event(name, {**_without_type(parsed), "index": shown_index})

    def _read_delta(self, raw: bytes) -> None:
        self._message_delta = _without_type(_decode_data(raw))
        self._container = as_object(self._message_delta.get("delta")).get("container") or self._container
        self._usage |= {k: v for k, v in as_object(self._message_delta.get("usage")).items() if v is not None}

    def _render_delta(self, finish: str | None) -> bytes:
        delta = self._message_delta.get("delta")
        delta = dict(delta) if isinstance(delta, dict) else {"stop_sequence": None}
        if finish is not None:
            delta["stop_reason"] = stop_reason_for(finish)
        if self._container is not None:
            delta["container"] = self._container
        usage = add_usage(self._earlier_usage, self._usage)
        return encode_typed_event("message_delta", {**self._message_delta, "delta": delta, "usage": usage})


def merge_replies(replies: Sequence[Json], gateway_tools: Collection[str], finish: str | None) -> Json:
    """Returns the messages of all rounds as one.

    finish: why the reply ended, in OpenAI's words; None: for the reason of the last message.
    """
    content: list[Any] = []
    usage: Json = {}
    for reply in replies:
        content += [block for block in reply.get("content") or () if not _is_call_of(block, gateway_tools)]
        usage = add_usage(usage, as_object(reply.get("usage")))
    whole = {**replies[-1], "id": replies[0].get("id"), "content": content, "usage": usage}
    if containers := [reply["container"] for reply in replies if reply.get("container")]:
        whole["container"] = containers[-1]
    # Several of Anthropic's reasons are one in OpenAI's words.
    if finish not in (None, read_ending(whole).finish_reason):
        whole["stop_reason"] = stop_reason_for(finish)
    return whole


def _is_call_of(block: Any, tools: Collection[str]) -> bool:
    if not isinstance(block, dict) or block.get("type") != "tool_use":
        return False
    name = block.get("name")
    return isinstance(name, str) and name in tools


def add_usage(one: Json, other: Json) -> Json:
    """Returns the sum of two usages: numbers are added, lists joined, and of any other field the later value counts."""
    total = {**one, **{key: value for key, value in other.items() if value is not None}}
    for key in one.keys() & other.keys():
        before, after = one[key], other[key]
        if _is_number(before) and _is_number(after):
            total[key] = before + after
        elif isinstance(before, dict) and isinstance(after, dict):
            total[key] = add_usage(before, after)
        elif isinstance(before, list) and isinstance(after, list):
            total[key] = before + after  # `iterations`, in their order
    return total


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_type(parsed: Json) -> Json:
    return {key: value for key, value in parsed.items() if key != "type"}


def _decode_data(raw: bytes) -> Json:
    return decode_object(b"\n".join(_DATA_LINE.findall(raw)))
