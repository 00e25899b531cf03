"""Renders a reply in the form of Anthropic's Messages API: one message, whatever upstream and rounds made it.

What an upstream sends in this dialect passes (`native_events`). A chat completion's deltas become content blocks
(`blocks`): thoughts without a signature, text, and the client's calls.
(platform.claude.com/docs/en/build-with-claude/streaming)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Final

import msgspec
import orjson
from msgspec import Struct

from adapters.types import Event, Json, completion_count, token_count
from gateway.core.conversation.canonical import text_of
from gateway.core.conversation.private import without_private
from gateway.core.turn.client_view import MAX_HELD_BYTES, ClientView, ReplyEvent, no_usage
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.draft import generated_in, is_first_choice
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.upstream_error import decode_error
from gateway.core.usage.reported import reported_counts, usage_of
from gateway.dialects.event_stream import NOT_DURABLE, encode_typed_event
from gateway.dialects.lenient import as_text
from gateway.dialects.messages.blocks import GrowingBlocks, render_blocks
from gateway.dialects.messages.errors import FIELDS, error_object
from gateway.dialects.messages.native_events import (
    NativeEvents,
    event_name,
    merge_replies,
    stop_reason_for,
)
from gateway.errors import GatewayError


class MakesMessages(Struct, frozen=True):
    """Makes the view of one request's reply (`MakesView`)."""

    speaks_chat: ClassVar[bool] = False
    # The model that the request names.
    model: str
    # The tokens of the prompt, estimated.
    input_tokens: int
    # The gateway's id of the request.
    request_id: str
    # Returns the usage for a reply's text, in the form of a chat completion. Called where the upstream reports none.
    count: Callable[[str], Json | None] = no_usage
    stop_sequences: Sequence[str] = ()
    # The client may continue from the reply by its id.
    has_thread: bool = False

    def __call__(self, terms: TurnTerms) -> MessagesView:
        return MessagesView(self, terms.gateway_tools)


class _NativeBody(msgspec.Struct):
    """The body of a whole reply that came in this dialect, as adapters hand it on."""

    native_message: msgspec.Raw


_native_body = msgspec.json.Decoder(_NativeBody)
# Fields of a choice in which upstreams name the stop sequence that ended it: Anthropic's adapter, vLLM, SGLang.
_STOPPED_BY: Final = ("stop_sequence", "stop_reason", "matched_stop")


class MessagesView(ClientView):
    """The view of the Messages API. It shows one message: no gateway tools, no steps.

    While gateway tools are offered nothing is sent before the first content: the first round may be a hidden one, and
    an upstream's error in the round after it can still be the reply's status.
    """

    def __init__(self, request: MakesMessages, gateway_tools: Collection[str]) -> None:
        self._request = request
        self._gateway_tools = gateway_tools
        self._holds_events = bool(gateway_tools)
        self._held_bytes = 0
        self._out: list[bytes] = []
        self._first_chunk: Json = {}  # of the turn
        self._has_begun = False
        self._blocks = GrowingBlocks(self._emit)
        self._native = NativeEvents(gateway_tools)
        self._is_native = False  # the upstream answers in this dialect
        self._native_replies: list[bytes] = []  # whole ones
        self._usage: Json | None = None
        self._finish_reason: str | None = None
        self._is_refused = False
        self._stopped_by: str | None = None

    def take(self) -> bytes:
        if self._holds_events or not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def release(self) -> None:
        self._holds_events = False

    def begin(self, first: Json) -> None:
        self._first_chunk = first

    def take_whole(self, body: bytes, reply: Json) -> None:
        if "native_message" in reply:
            self._native_replies.append(bytes(_native_body.decode(body).native_message))
        elif self._request.stop_sequences:
            choice = reply["choices"][0] if reply["choices"] else None
            self._stopped_by = self._stop_sequence(choice) if isinstance(choice, dict) else None

    def show(self, event: ReplyEvent, *, is_hidden: bool = False) -> None:
        """Shows an event. is_hidden: it ends a hidden round."""
        raw = event.raw or b""
        if (name := event_name(raw)) is not None:
            self._is_native = True
            shown = self._native.pass_on(raw, name)
            if shown and name != "ping":
                self._blocks.end()  # that of a filler
            self._put(shown, has_content=self._native.has_content)
            return
        if event.chunk is None:
            if raw.startswith(b":"):
                self._put(raw, has_content=False)
            return
        if self._is_native and not raw:
            return  # a further chunk of a native event that was passed on
        for choice in event.choices:
            if not is_first_choice(choice):
                continue
            if not self._holds_events:
                self._begin_message()  # the model may think for long before its first text
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._add_delta(delta if event.calls is None else {**delta, "tool_calls": event.calls})
            if not is_hidden:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                self._stopped_by = self._stop_sequence(choice) or self._stopped_by
        usage = event.usage or usage_of(event.chunk)
        if not is_hidden and reported_counts(usage) is not None:
            self._usage = usage

    def show_texts(self, read: Sequence[Event], texts: Sequence[str]) -> bool:
        if self._is_native:
            return False
        for text in filter(None, texts):
            self.add_text(text)
        return True

    def add_text(self, text: str) -> None:
        if self._is_native and not self._blocks.is_open:
            if not text.strip():
                return  # a separator between the texts of two rounds, which are two blocks
            # A filler is a block of its own, which goes on until the upstream's next one.
            self._blocks.next_index = self._native.next_index
            self._native.next_index += 1
        self._blocks.add_text(text)

    def add_words(self, text: str, between: str, call: int) -> None:
        self.add_text(between + text)

    def add_thought(self, text: str) -> None:
        self._blocks.add_thought(text)

    def add_calls(self, calls: list[Json]) -> None:
        for call in calls:
            self._blocks.add_call(call)

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        if self._is_native:
            self._blocks.end()
            for raw in self._native.hide([event.raw for event in tail if event.raw]):
                self._put(raw, has_content=False)
            return
        for event in tail:
            self.show(event, is_hidden=True)

    def end(self, tail: Sequence[ReplyEvent], finish: str | None, done: bytes) -> None:
        self._holds_events = False
        raws = [event.raw for event in tail if event.raw]
        if self._is_native:
            self._blocks.end()
            if raws or not self._native.is_over:
                self._out += self._native.end(raws, finish)
            return
        for event in tail:
            self.show(event)
        self._finish_reason = finish or self._finish_reason
        self._begin_message()
        self._blocks.end()
        usage = self._usage or self._request.count(self._blocks.generated_text()) or {}
        ending = self._ending(has_calls=self._blocks.has_calls)
        self._emit("message_delta", delta=ending, usage=_message_usage(usage, self._request.input_tokens))
        self._emit("message_stop")

    def not_durable(self) -> None:
        self._out.append(NOT_DURABLE)

    def stored_fields(self, outcome: TurnOutcome, tail: Sequence[ReplyEvent]) -> Json:
        id_ = self._first_chunk.get("id")
        return {"ids": [id_]} if self._request.has_thread and isinstance(id_, str) and id_ else {}

    def upstream_error(self, error: Json, raw: bytes | None) -> None:
        self._holds_events = False
        if raw is not None and event_name(raw) == "error":
            self._out.append(raw)
            return
        code = error.get("code")
        status = code if isinstance(code, int) else 500
        message = FIELDS.translate_sentence(str(error.get("message") or ""))
        shown = error_object(status, message, self._request.request_id, code=code, kind=error.get("type"))
        self._out.append(encode_typed_event("error", shown))

    def fail(self, error: GatewayError) -> None:
        self._holds_events = False
        shown = error_object(error.status, error.message, self._request.request_id, code=error.code)
        self._out.append(encode_typed_event("error", shown))

    def whole(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        if self._native_replies:
            if is_unchanged:
                return self._native_replies[-1]
            replies = [orjson.loads(each) for each in self._native_replies]
            return orjson.dumps(merge_replies(replies, self._gateway_tools, outcome.finish_reason))
        shown_reply = without_private(outcome.shown_reply or {})
        self._finish_reason, self._is_refused = outcome.finish_reason, bool(shown_reply.get("refusal"))
        counted = outcome.usage or self._request.count(generated_in(shown_reply)) or {}
        usage = _message_usage(counted, self._request.input_tokens)
        content = render_blocks(shown_reply)
        ending = self._ending(has_calls=any(block["type"] == "tool_use" for block in content))
        return orjson.dumps({**self._message(), "content": content, **ending, "usage": usage})

    def error_reply(self, status: int, body: bytes) -> bytes | None:
        parsed = decode_error(body)
        if status < 300 or parsed is None:
            return None
        error = parsed.get("error")
        if parsed.get("type") == "error" and isinstance(error, dict):
            return body
        fields: Json = error if isinstance(error, dict) else parsed
        message = fields.get("message") or parsed.get("detail") or error or "The upstream reported an error"
        text = (
            FIELDS.translate_sentence(message) if isinstance(message, str) else orjson.dumps(message).decode()
        )
        return orjson.dumps(error_object(status, text, self._request.request_id, code=fields.get("code")))

    def _add_delta(self, delta: Json) -> None:
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            self._blocks.add_thought(thought)
        if text := text_of(delta):
            self._blocks.add_text(text)
        if isinstance(refusal := delta.get("refusal"), str) and refusal:
            self._is_refused = True
            self._blocks.add_text(refusal)
        calls = delta.get("tool_calls")
        self.add_calls([call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else [])

    def _put(self, raw: bytes, *, has_content: bool) -> None:
        if not raw:
            return
        self._out.append(raw)
        if self._holds_events:
            self._held_bytes += len(raw)
            self._holds_events = not has_content and self._held_bytes <= MAX_HELD_BYTES

    def _begin_message(self) -> None:
        self._holds_events = False
        if self._has_begun or self._native.has_begun:
            return
        self._has_begun = True
        usage = {"input_tokens": self._request.input_tokens, "output_tokens": 0}
        self._out.append(
            encode_typed_event("message_start", {"message": {**self._message(), "usage": usage}})
        )

    def _message(self) -> Json:
        id_ = self._first_chunk.get("id")
        return {
            "id": id_ if isinstance(id_, str) and id_ else f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": as_text(self._first_chunk.get("model")) or self._request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _ending(self, *, has_calls: bool) -> Json:
        reason = "refusal" if self._is_refused else stop_reason_for(self._finish_reason)
        if reason == "end_turn" and has_calls:
            # Calls that were forced end with "stop" in chat completions, and clients run them by this reason alone.
            reason = "tool_use"
        if reason == "end_turn" and self._stopped_by is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stopped_by}
        return {"stop_reason": reason, "stop_sequence": None}

    def _stop_sequence(self, choice: Json) -> str | None:
        """Returns the stop sequence that ended a choice; None: none did, or the upstream does not name it."""
        named = (choice.get(key) for key in _STOPPED_BY)
        return next((each for each in named if each in self._request.stop_sequences), None)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._begin_message()
        self._out.append(encode_typed_event(kind, fields))


def _message_usage(usage: Json, input_tokens: int) -> Json:
    """Returns the usage of a chat completion as the Messages API reports it: cached tokens are counted apart.

    input_tokens: of the prompt, where the usage is empty.
    """
    details = usage.get("prompt_tokens_details")
    cached = token_count(details, "cached_tokens")
    written = token_count(details, "cache_write_tokens")
    prompt = token_count(usage, "prompt_tokens") if usage else input_tokens
    return {
        "input_tokens": max(0, prompt - cached - written),
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "output_tokens": completion_count(usage),
    }
