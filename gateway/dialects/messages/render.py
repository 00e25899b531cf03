"""Renders a reply in the form of Anthropic's Messages API: one message, whatever upstream and rounds made it.

Messages of an upstream that speaks this dialect pass (`native_message`), and chat completions are translated
(`translated_message`).
(platform.claude.com/docs/en/build-with-claude/streaming)
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import ClassVar

import orjson

from adapters.types import NATIVE_MESSAGE, Event, Json
from gateway.core.json_limits import can_be_written
from gateway.core.lenient import as_text
from gateway.core.turn.client_view import ClientView, ReplyEvent
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.upstream_error import parse_error_body
from gateway.dialects.event_stream import NOT_DURABLE, EventBuffer
from gateway.dialects.messages.errors import FIELD_NAMES, make_error_object
from gateway.dialects.messages.native_events import find_event_name
from gateway.dialects.messages.native_message import NativeMessage
from gateway.dialects.messages.translated_message import MessageTerms, TranslatedMessage
from gateway.errors import GatewayError


class MessagesViewFactory(MessageTerms, frozen=True):
    """Makes the view of one request's reply (`ViewFactory`)."""

    speaks_chat: ClassVar[bool] = False

    def __call__(self, terms: TurnTerms) -> MessagesView:
        return MessagesView(self, terms.gateway_tools)


class MessagesView(ClientView):
    """The view of the Messages API. It shows one message: no gateway tools, no steps.

    While gateway tools are offered, nothing is sent before the first content. The first round may be hidden, and then
    an upstream's error in the next round can still be the reply's status.
    """

    def __init__(self, terms: MessageTerms, gateway_tools: Collection[str]) -> None:
        self._terms = terms
        self._gateway_tools = gateway_tools
        self._buffer = EventBuffer(is_holding=bool(gateway_tools))
        # The first event, or whole reply, decides whether the message is native. One endpoint answers all rounds.
        self._message: TranslatedMessage | NativeMessage = TranslatedMessage(terms, self._buffer)
        self.call_id_prefix = f"toolu_{secrets.token_hex(12)}"
        # The id of the reply; "": the upstream gives no id.
        self._id = ""

    @property
    def has_signed_thoughts(self) -> bool:
        return isinstance(self._message, NativeMessage)

    def take(self) -> bytes:
        return self._buffer.take()

    def release(self) -> None:
        self._buffer.release()

    def begin(self, first: Json) -> None:
        self._id = as_text(first.get("id"))
        self._message.begin(first)

    def add_whole_reply(self, body: bytes, reply: Json) -> None:
        if isinstance(self._message, TranslatedMessage) and NATIVE_MESSAGE in reply:
            self._message = NativeMessage(self._gateway_tools, self._buffer)
        self._message.add_whole_reply(body, reply)

    def show(self, event: ReplyEvent) -> None:
        if isinstance(self._message, TranslatedMessage) and find_event_name(event.raw or b"") is not None:
            self._message = NativeMessage(self._gateway_tools, self._buffer)
        self._message.show(event)

    def show_texts(self, batch: Sequence[Event], texts: Sequence[str]) -> bool:
        return self._message.show_texts(texts)

    def add_text(self, text: str) -> None:
        self._message.add_text(text)

    def add_thought(self, text: str) -> None:
        self._message.blocks.add_thought(text)

    def add_calls(self, calls: list[Json]) -> None:
        for call in calls:
            self._message.blocks.add_call(call)

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        self._message.hide_round(tail)

    def end(self, tail: Sequence[ReplyEvent], finish_reason: str | None, done: bytes) -> None:
        self._buffer.release()
        self._message.end(tail, finish_reason)

    def note_not_durable(self) -> None:
        self._buffer.add(NOT_DURABLE)

    def prepare_stored_fields(self, outcome: TurnOutcome, tail: Sequence[ReplyEvent]) -> Json:
        # The id has come with the first event: nothing has to be prepared, and the tail is left to `end`.
        return {"ids": [self._id]} if self._terms.has_thread and self._id else {}

    def show_upstream_error(self, error: Json, raw: bytes | None) -> None:
        if raw is not None and find_event_name(raw) == "error":
            self._buffer.add(raw)
            return
        code = error.get("code")
        status = code if isinstance(code, int) else 500  # OpenRouter's code is the status
        message = FIELD_NAMES.translate_sentence(str(error.get("message") or ""))
        error_fields = make_error_object(
            status, message, self._terms.request_id, code=code, upstream_type=error.get("type")
        )
        self._buffer.emit("error", **error_fields)

    def fail(self, error: GatewayError) -> None:
        error_fields = make_error_object(error.status, error.message, self._terms.request_id, code=error.code)
        self._buffer.emit("error", **error_fields)

    def render_body(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        return self._message.render_body(outcome, is_unchanged=is_unchanged)

    def render_error_body(self, status: int, body: bytes) -> bytes | None:
        body_json = parse_error_body(body)
        if status < 300 or body_json is None:
            return None
        error = body_json.get("error")
        if body_json.get("type") == "error" and isinstance(error, dict):
            return body
        fields: Json = error if isinstance(error, dict) else body_json
        text = _describe_error(fields, body_json)
        return orjson.dumps(make_error_object(status, text, self._terms.request_id, code=fields.get("code")))


def _describe_error(fields: Json, body_json: Json) -> str:
    """Returns the text of an upstream's error, in the names of this dialect. fields: the error object, or the body."""
    message = fields.get("message") or body_json.get("detail") or body_json.get("error")
    if isinstance(message, str) and message:
        return FIELD_NAMES.translate_sentence(message)
    if message and can_be_written(message):
        return orjson.dumps(message).decode()
    return "The upstream reported an error"
