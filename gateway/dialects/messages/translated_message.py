"""A message that is made of chat completions: of the deltas of a stream, or of a whole reply.

Deltas become content blocks (`blocks`): thoughts without a signature, text, and the client's calls.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

import orjson
from msgspec import Struct

from adapters.token_counts import count_completion_tokens, read_cached_tokens, read_token_count
from adapters.types import Json
from gateway.core.conversation.private import without_private
from gateway.core.conversation.wire_message import read_text
from gateway.core.lenient import as_list, as_text
from gateway.core.thoughts import read_thoughts
from gateway.core.turn.chunks import is_first_choice
from gateway.core.turn.client_view import ReplyEvent
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.draft import read_generated_text
from gateway.core.usage.reported import find_reported_counts, find_usage
from gateway.dialects.event_stream import EventBuffer
from gateway.dialects.messages.blocks import GrowingBlocks, render_blocks
from gateway.dialects.messages.native_events import choose_stop_reason

# Fields of a choice in which upstreams name the stop sequence that ended it: Anthropic's adapter, vLLM, SGLang.
_STOP_SEQUENCE_FIELDS: Final = ("stop_sequence", "stop_reason", "matched_stop")


class MessageTerms(Struct, frozen=True):
    """The facts about a request that the message of its reply needs."""

    # The model that the request names.
    model: str
    # The tokens of the prompt, estimated.
    input_tokens: int
    # The gateway's id of the request.
    request_id: str
    # Returns the usage for a reply's text, in the form of a chat completion. Called if the upstream reports no usage.
    count_usage: Callable[[str], Json | None]
    # The texts at which the reply ends.
    stop_sequences: Sequence[str] = ()
    # True if the client may continue from the reply by its id.
    has_thread: bool = False


class _MessageEvents:
    """Puts the events of one message into the buffer, from `message_start` on."""

    def __init__(self, terms: MessageTerms, buffer: EventBuffer) -> None:
        self._terms = terms
        self._buffer = buffer
        # True if `message_start` was put into the buffer.
        self._has_begun = False
        # The first chunk of the turn, which has the id and the model.
        self.first_chunk: Json = {}

    def begin(self) -> None:
        """Begins the message, once. From now on events may be sent."""
        self._buffer.release()
        if self._has_begun:
            return
        self._has_begun = True
        usage = {**_render_usage({}, self._terms.input_tokens), "service_tier": self.service_tier}
        self._buffer.emit("message_start", message={**self.make_empty_message(), "usage": usage})
        # Anthropic's streams have a ping at their beginning, which some clients take for a sign of life.
        self._buffer.emit("ping")

    def emit(self, event_type: str, **fields: Any) -> None:
        """Puts an event into the buffer. fields: the fields of the event besides its type."""
        self.begin()
        self._buffer.emit(event_type, **fields)

    @property
    def service_tier(self) -> str:
        """The tier of the upstream, by Anthropic's name: only "priority" has the same name."""
        return "priority" if self.first_chunk.get("service_tier") == "priority" else "standard"

    def make_empty_message(self) -> Json:
        """Returns the message without content, and without an end."""
        return {
            "id": as_text(self.first_chunk.get("id")) or f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": as_text(self.first_chunk.get("model")) or self._terms.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }


class TranslatedMessage:
    """One message of any number of rounds. Puts the events of the message into the buffer.

    The methods have the names of the methods of `ClientView` that call them, by way of `MessagesView`.
    """

    def __init__(self, terms: MessageTerms, buffer: EventBuffer) -> None:
        self._terms = terms
        self._buffer = buffer
        self._events = _MessageEvents(terms, buffer)
        # The content of the message.
        self.blocks = GrowingBlocks(self._events.emit, count().__next__)
        # The usage that the upstream has reported; None: it has reported none yet.
        self._usage: Json | None = None
        # The reason for which the reply ended; None: the reply has not ended.
        self._finish_reason: str | None = None
        # True if the model has refused to answer.
        self._is_refused = False
        # The stop sequence that ended the reply; None: no stop sequence did, or it is not known.
        self._stop_sequence: str | None = None

    def begin(self, first: Json) -> None:
        """Stores the turn's first chunk, which has the id and the model."""
        self._events.first_chunk = first

    def show(self, event: ReplyEvent, *, is_hidden: bool = False) -> None:
        """Shows an event. is_hidden: True if the event ends a hidden round."""
        if event.chunk is None:
            if event.raw is not None and event.raw.startswith(b":"):
                self._buffer.add(event.raw, has_content=False)
            return
        for choice in filter(is_first_choice, event.choices):
            if not self._buffer.is_holding:
                self._events.begin()  # the model may think for long before its first text
            delta = choice.get("delta")
            if isinstance(delta, dict):
                if event.calls is not None:
                    delta = {**delta, "tool_calls": event.calls}
                self._add_delta(delta)
            if not is_hidden:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                self._stop_sequence = self._find_stop_sequence(choice) or self._stop_sequence
        usage = event.usage or find_usage(event.chunk)
        if not is_hidden and find_reported_counts(usage) is not None:
            self._usage = usage

    def show_texts(self, texts: Sequence[str]) -> bool:
        """Shows events that have these texts and nothing else. Returns True: `show` is not needed for the events."""
        for text in filter(None, texts):
            self.blocks.add_text(text)
        return True

    def add_text(self, text: str) -> None:
        self.blocks.add_text(text)

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        """Ends a hidden round. tail: the round's last events."""
        for event in tail:
            self.show(event, is_hidden=True)

    def end(self, tail: Sequence[ReplyEvent], finish_reason: str | None) -> None:
        """Ends the message. finish_reason: the reason in place of the upstream's; None: the upstream's."""
        for event in tail:
            self.show(event)
        self._finish_reason = finish_reason or self._finish_reason
        self._events.begin()
        self.blocks.end()
        usage = self._usage or self._terms.count_usage(self.blocks.read_generated_text()) or {}
        ending = self._make_ending(has_calls=self.blocks.has_calls)
        self._events.emit("message_delta", delta=ending, usage=_render_usage(usage, self._terms.input_tokens))
        self._events.emit("message_stop")

    def add_whole_reply(self, body: bytes, reply: Json) -> None:
        """Reads the end of a whole reply. body: the bytes of `reply`."""
        if self._terms.stop_sequences:
            choice = reply["choices"][0] if reply["choices"] else None
            self._stop_sequence = self._find_stop_sequence(choice) if isinstance(choice, dict) else None

    def render_body(self, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        """Returns the message of a turn whose replies came whole."""
        shown_reply = without_private(outcome.shown_reply or {})
        self._finish_reason = outcome.finish_reason
        self._is_refused = bool(shown_reply.get("refusal"))
        usage = outcome.usage or self._terms.count_usage(read_generated_text(shown_reply)) or {}
        content = render_blocks(shown_reply)
        message = {
            **self._events.make_empty_message(),
            "content": content,
            **self._make_ending(has_calls=any(block["type"] == "tool_use" for block in content)),
            "usage": {
                **_render_usage(usage, self._terms.input_tokens),
                "service_tier": self._events.service_tier,
            },
        }
        return orjson.dumps(message)

    def _add_delta(self, delta: Json) -> None:
        if thought := read_thoughts(delta):
            self.blocks.add_thought(thought)
        if text := read_text(delta):
            self.blocks.add_text(text)
        if isinstance(refusal := delta.get("refusal"), str) and refusal:
            self._is_refused = True
            self.blocks.add_text(refusal)
        for call in as_list(delta.get("tool_calls")):
            if isinstance(call, dict):
                self.blocks.add_call(call)

    def _make_ending(self, *, has_calls: bool) -> Json:
        """Returns the fields with the reason for the end of the message."""
        reason = "refusal" if self._is_refused else choose_stop_reason(self._finish_reason)
        if reason in ("end_turn", "tool_use"):
            # In chat completions a forced call ends with "stop", and some servers give "tool_calls" without a call.
            # Clients run calls only for the reason "tool_use", and would send no results if there were no calls.
            reason = "tool_use" if has_calls else "end_turn"
        if reason == "end_turn" and self._stop_sequence is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stop_sequence}
        return {"stop_reason": reason, "stop_sequence": None}

    def _find_stop_sequence(self, choice: Json) -> str | None:
        """Returns the stop sequence that ended a choice; None: none did, or the upstream does not name it."""
        values = (choice.get(key) for key in _STOP_SEQUENCE_FIELDS)
        return next((value for value in values if value in self._terms.stop_sequences), None)


def _render_usage(usage: Json, input_tokens: int) -> Json:
    """Returns a chat completion's usage as the Messages API reports it: `input_tokens` do not count cached tokens.

    input_tokens: the tokens of the prompt, if the usage is empty.
    """
    details = usage.get("prompt_tokens_details")
    cached_tokens = read_cached_tokens(usage)
    cache_write_tokens = read_token_count(details, "cache_write_tokens")
    prompt_tokens = read_token_count(usage, "prompt_tokens") if usage else input_tokens
    return {
        "input_tokens": max(0, prompt_tokens - cached_tokens - cache_write_tokens),
        "cache_read_input_tokens": cached_tokens,
        "cache_creation_input_tokens": cache_write_tokens,
        "output_tokens": count_completion_tokens(usage),
    }
