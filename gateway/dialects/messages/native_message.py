"""A message that an upstream sends in this dialect. Its events pass (`native_events`); the gateway adds its text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import orjson

from adapters.types import Json
from gateway.core.turn.client_view import ReplyEvent
from gateway.core.turn.commands import TurnOutcome
from gateway.dialects.event_stream import EventBuffer
from gateway.dialects.messages.blocks import GrowingBlocks
from gateway.dialects.messages.native_events import NativeEvents, find_event_name, merge_replies


class _NativeBody(msgspec.Struct):
    """The body of a whole reply in this dialect, in the form in which adapters return it."""

    native_message: msgspec.Raw


_BODY_DECODER = msgspec.json.Decoder(_NativeBody)


class NativeMessage:
    """One message of any number of rounds. Puts the events of the message into the buffer.

    The methods have the names of the methods of `ClientView` that call them, by way of `MessagesView`.
    """

    def __init__(self, gateway_tools: Collection[str], buffer: EventBuffer) -> None:
        self._gateway_tools = gateway_tools
        # The buffer's `add` may hold bytes back until some have content; its `emit` adds an event that has content.
        self._buffer = buffer
        self._events = NativeEvents(gateway_tools)
        # Blocks of the gateway's own text. Such a block goes on until the upstream's next block.
        self.blocks = GrowingBlocks(buffer.emit, self._events.claim_index)
        # Whole replies, one for each round.
        self._replies: list[bytes] = []

    def begin(self, first: Json) -> None:
        """Ignores the turn's first chunk: the upstream's own first event has the id and the model."""

    def show(self, event: ReplyEvent) -> None:
        """Shows an event, or a comment. A chunk without bytes is part of an event that was shown already."""
        raw = event.raw or b""
        if (name := find_event_name(raw)) is not None:
            event_bytes = self._events.translate_event(raw, name)
            if event_bytes and name != "ping":
                self.blocks.end()
            self._add(event_bytes, has_content=self._events.has_content)
        elif event.chunk is None and raw.startswith(b":"):
            self._add(raw, has_content=False)

    def show_texts(self, texts: Sequence[str]) -> bool:
        """Returns False: each event has to be read, and passes by itself."""
        return False

    def add_text(self, text: str) -> None:
        # A blank that separates the texts of two rounds begins no block, since each text is a block of its own.
        if self.blocks.is_open or text.strip():
            self.blocks.add_text(text)

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        """Ends a hidden round. tail: the round's last events."""
        self.blocks.end()
        for raw in self._events.hide_round(_list_raw_events(tail)):
            self._add(raw, has_content=False)

    def end(self, tail: Sequence[ReplyEvent], finish_reason: str | None) -> None:
        """Ends the message. finish_reason: the reason in place of the upstream's; None: the upstream's."""
        self.blocks.end()
        tail_bytes = _list_raw_events(tail)
        # Otherwise the upstream's own last event has passed already, and no event is left to be sent.
        if tail_bytes or not self._events.is_over:
            for raw in self._events.end(tail_bytes, finish_reason):
                self._buffer.add(raw)

    def add_whole_reply(self, body: bytes, reply: Json) -> None:
        """Adds the message of a whole reply. body: the reply in the form in which the adapter returns it."""
        self._replies.append(bytes(_BODY_DECODER.decode(body).native_message))

    def render_body(self, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        """Returns the whole replies as one message. is_unchanged: True if the client gets the last reply as it is."""
        if is_unchanged:
            return self._replies[-1]
        replies = [orjson.loads(reply) for reply in self._replies]
        return orjson.dumps(merge_replies(replies, self._gateway_tools, outcome.finish_reason))

    def _add(self, raw: bytes, *, has_content: bool) -> None:
        if raw:
            self._buffer.add(raw, has_content=has_content)


def _list_raw_events(tail: Sequence[ReplyEvent]) -> list[bytes]:
    return [event.raw for event in tail if event.raw]
