"""Renders a reply in the form of OpenAI's Responses API: one response, with output items made of chat completions.

Thoughts, words and each call are items of their own (`growing_output`). Every event of a stream names the item and the
part that go on, and everything is sent once more when it is complete.
(platform.openai.com/docs/api-reference/responses-streaming)
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import orjson
from msgspec import Struct

from adapters.types import Event, Json, completion_count, token_count
from gateway.core.conversation.canonical import WireMessage
from gateway.core.conversation.directions import DIRECTIONS_FIELD, directions_in
from gateway.core.conversation.private import private_of, without_private
from gateway.core.finish_reasons import BROKE, read_finish_reason
from gateway.core.turn.client_view import ClientView, ReplyEvent, no_usage
from gateway.core.turn.commands import FINISHED, TurnOutcome
from gateway.core.turn.draft import delta_of, generated_in, is_first_choice
from gateway.core.turn.ledger import BILLED
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn_name import TurnName
from gateway.core.usage.reported import reported_counts, usage_of
from gateway.dialects.event_stream import NOT_DURABLE, EventBuffer, encode_typed_event
from gateway.dialects.lenient import as_list, as_object, as_text
from gateway.dialects.responses.errors import FIELDS, error_fields, response_error, translate_error
from gateway.dialects.responses.growing_output import GrowingOutput
from gateway.dialects.responses.request_fields import ECHOED
from gateway.dialects.responses.response_ids import make_tag
from gateway.dialects.responses.stored_response import (
    RESPONSE_FIELD,
    StoredResponse,
    changed_fields,
    is_in_reply_order,
    read_stored_response,
)
from gateway.dialects.responses.tools import NO_FORMS, CallForm
from gateway.errors import GatewayError

# The reason of an incomplete response, by the reason for which its reply ended.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter", BROKE: "max_output_tokens"}


class MakesResponses(Struct, frozen=True):
    """Makes the view of one request's response."""

    # A response is no chat completion.
    speaks_chat: ClassVar[bool] = False
    # The fields of the request that the response repeats.
    echo: Json
    # Returns the name of the turn, once the upstream was called; None: the turn is not stored.
    turn_name: Callable[[], TurnName | None]
    # Returns the usage for a reply's text, in the form of a chat completion. Called where the upstream reports none.
    count: Callable[[str], Json | None] = no_usage
    # Returns the model that answers, under the name with which its turn is stored. Called for sealed thoughts.
    model: Callable[[], str] = str
    # The forms of calls, by the names that their tools have upstream.
    forms: Mapping[str, CallForm] = NO_FORMS
    # Thoughts are shown with `encrypted_content`, in which they can be sent back.
    shows_sealed_thoughts: bool = False
    # The messages of its request's input that its turn alone has.
    messages: Sequence[Json] = ()
    # The part that all its ids share; "": it is made of the turn's names.
    tag: str = ""
    # When the response was made, in seconds since the epoch; None: when its reply was.
    created: int | None = None
    # The `sequence_number` of its first event.
    first_number: int = 0
    # An attempt that was broken off has sent `response.created` already.
    has_sent_created: bool = False

    def __call__(self, terms: TurnTerms) -> ResponsesView:
        return ResponsesView(self, waits=bool(terms.gateway_tools))


class _NumberedEvents(EventBuffer):
    """Events with their `sequence_number`, and comments."""

    __slots__ = ("_number",)

    def __init__(self, first_number: int, *, is_holding: bool) -> None:
        super().__init__(is_holding=is_holding)
        self._number = first_number

    def emit(self, kind: str, **fields: Any) -> None:
        """Adds an event. kind: its type."""
        fields["sequence_number"] = self._number
        self.add(encode_typed_event(kind, fields))
        self._number += 1


class ResponsesView(ClientView):
    """The view of the Responses API. As in a chat completion it shows one reply: no gateway tools, no steps.

    waits: gateway tools are offered, so a hidden round may come first. Nothing is sent before the first content, and an
        upstream's error after a hidden round can still be a status.
    """

    def __init__(self, factory: MakesResponses, *, waits: bool) -> None:
        self._factory = factory
        self._tag = ""  # the part that all ids of the response share, once something is sent
        self._has_id = False
        self._is_stored = False
        self._created_at = factory.created
        self._completed: int | None = None
        self._error: Json | None = None
        # What the upstream has sent.
        self._first_chunk: Json = {}  # the last one given to `begin`: model, time, service tier
        self._logprobs: list[Any] = []  # of a whole reply
        self._usage: Json | None = None
        self._finish_reason: str | None = None
        self._has_tail = False
        # What the client gets.
        self._events = _NumberedEvents(factory.first_number, is_holding=waits)
        # Without a cycle the view is freed with its turn, and with it what it holds of the request.
        view = weakref.proxy(self)
        self._output = GrowingOutput(
            lambda: view._begin_response(), self._events.emit, factory.forms, lambda: view._sealing_model()
        )
        self._has_begun = False
        self._is_whole = False  # it is one JSON body, without events

    def take(self) -> bytes:
        return self._events.take()

    def release(self) -> None:
        self._events.is_holding = False
        if self._first_chunk:  # else the next one has its model
            self._begin_response()

    def begin(self, first: Json) -> None:
        self._first_chunk = first

    def take_whole(self, body: bytes, reply: Json) -> None:
        choices = filter(is_first_choice, reply["choices"])
        self._logprobs = _logprobs(next(choices, {}))

    def show(self, event: ReplyEvent) -> None:
        self._show_event(event, is_hidden=False)

    def show_texts(self, read: Sequence[Event], texts: Sequence[str]) -> bool:
        for text in filter(None, texts):
            self._output.add_text(text, [])
        return True

    def add_text(self, text: str) -> None:
        self._output.add_text(text, [])

    def add_words(self, text: str, between: str, call: int) -> None:
        self.add_text(between + text)

    def add_thought(self, text: str) -> None:
        self._output.add_thought(text)

    def add_calls(self, calls: list[Json]) -> None:
        for call in calls:
            self._output.add_call(call)

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        for event in tail:
            self._show_event(event, is_hidden=True)

    def end(self, tail: Sequence[ReplyEvent], finish: str | None, done: bytes) -> None:
        self._show_tail(tail)
        self._finish_reason = finish or self._finish_reason
        response = self._end_response()
        self._events.emit(f"response.{response['status']}", response=response)

    def not_stored(self) -> None:
        self.assign_id()
        self._is_stored = False

    def not_durable(self) -> None:
        self._begin_response()
        self._events.add(NOT_DURABLE)

    def upstream_error(self, error: Json, raw: bytes | None) -> None:
        code, kind = error.get("code"), str(error.get("type") or "server_error")
        message, param = FIELDS.translate_sentence(str(error.get("message") or "")), error.get("param")
        if isinstance(param, str):
            param = FIELDS.translate_path(param)
        self._emit_failure(message, None if code is None else str(code), kind, param)

    def fail(self, error: GatewayError) -> None:
        self._emit_failure(error.message, error.code, error.kind, error.param)

    def whole(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        self._send_no_events()
        self._output.add_delta(
            delta_of({"message": without_private(outcome.shown_reply or {})}), self._logprobs
        )
        self._finish_reason, self._usage = outcome.finish_reason, outcome.usage
        return orjson.dumps(self._end_response())

    def error_reply(self, status: int, body: bytes) -> bytes | None:
        return None if status < 300 else translate_error(body)

    def stored_fields(self, outcome: TurnOutcome, tail: Sequence[ReplyEvent]) -> Json:
        self._show_tail(tail)
        is_over = outcome.state is FINISHED
        if is_over:
            self.assign_id()
        if not self._is_stored:
            return {}
        reason = _INCOMPLETE.get(read_finish_reason(outcome.finish_reason)) if is_over else None
        status = "failed" if self._error else "completed" if is_over and reason is None else "incomplete"
        if is_over:
            self._usage = (
                outcome.usage or self._usage or self._factory.count(generated_in(outcome.shown_reply or {}))
            )
        if status == "completed":
            self._completed = int(time.time())
        stored = self._stored_response(status, reason, self._usage if is_over else None)
        fields = {RESPONSE_FIELD: msgspec.to_builtins(stored)}
        if directions := directions_in(self._factory.messages):
            fields[DIRECTIONS_FIELD] = [*map(list, directions)]
        return fields

    def _stored_response(self, status: str, reason: str | None, usage: Json | None) -> StoredResponse:
        """Returns the response as it is stored. usage: as a chat completion has it."""
        tier = self._first_chunk.get("service_tier")
        is_in_order = is_in_reply_order(self._output.kinds())
        return StoredResponse(
            status,
            self._creation_time(),
            self._model(),
            usage=None if usage is None else render_usage(usage),
            completed=self._completed,
            incomplete_reason=reason,
            error=self._error,
            service_tier=tier if isinstance(tier, str) else None,
            echo=changed_fields(self._factory.echo),
            forms={
                name: (form.kind, form.name, form.namespace) for name, form in self._factory.forms.items()
            },
            output=None if is_in_order else self._output.json(status),
            id_tag=self._factory.tag,
        )

    # -- what the upstream sends

    def _show_tail(self, tail: Sequence[ReplyEvent]) -> None:
        """Shows the last events, once: they are a part of what is stored, and `end` has them again."""
        if not self._has_tail:
            self._has_tail = True
            for event in tail:
                self._show_event(event, is_hidden=False)

    def _show_event(self, event: ReplyEvent, *, is_hidden: bool) -> None:
        """Shows an event. is_hidden: it ends a hidden round."""
        if event.chunk is None:
            if event.raw is not None and event.raw.startswith(b":"):
                was_holding = self._events.is_holding
                self._events.add(event.raw, has_content=False)
                if was_holding and not self._events.is_holding:
                    self._begin_response()
            return
        for choice in event.choices:
            if not is_first_choice(choice):
                continue
            if not self._events.is_holding:
                self._begin_response()  # the model may think for long before its first text
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._output.add_delta(
                    delta if event.calls is None else {**delta, "tool_calls": event.calls}, _logprobs(choice)
                )
            if not is_hidden:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
        usage = event.usage or usage_of(event.chunk)
        if not is_hidden and reported_counts(usage) is not None:
            self._usage = usage

    # -- a stored response

    def restore(self, stored: StoredResponse) -> None:
        """Takes over the stored fields of the response."""
        self._first_chunk = {
            "created": stored.created,
            "model": stored.model,
            "service_tier": stored.service_tier,
        }
        self._completed, self._error = stored.completed, stored.error
        self.assign_id()

    def rebuild_output(self, reply: WireMessage, stored: StoredResponse) -> list[Json]:
        """Returns the output items that are made of a stored reply."""
        self._send_no_events()
        self._has_begun = True
        self._output.add_delta(delta_of({"message": reply}), [])
        self._output.end(stored.status)
        return self._output.done()

    # -- what the client gets

    def _begin_response(self) -> str:
        """Begins the response, once. Returns the part that all its ids share."""
        self._events.is_holding = False
        if not self._has_begun:
            self.assign_id()
            self._has_begun = True
            if not self._is_whole:
                if not self._factory.has_sent_created:
                    self._events.emit("response.created", response=self.response("in_progress"))
                self._events.emit("response.in_progress", response=self.response("in_progress"))
        return self._tag

    def _send_no_events(self) -> None:
        """Makes the response one JSON body."""
        self._is_whole = True
        self._output.send_no_events()

    def _sealing_model(self) -> str | None:
        """Returns the model that makes the thoughts; None: they are shown without `encrypted_content`."""
        if self._factory.shows_sealed_thoughts or not self._is_stored:
            return self._factory.model()
        return None

    def assign_id(self) -> None:
        """Gives the response its id, once, and with it decides whether the response is stored."""
        if self._has_id:
            return
        self._has_id = True
        turn = self._factory.turn_name()
        self._is_stored = self._factory.echo.get("store") is not False and turn is not None
        self._tag = self._factory.tag or make_tag(turn if self._is_stored else None)

    def _end_response(self) -> Json:
        """Ends what has begun. Returns the response as it is at its end."""
        self._begin_response()
        reason = _INCOMPLETE.get(read_finish_reason(self._finish_reason))
        status = "completed" if reason is None else "incomplete"
        self._output.end(status)
        if self._usage is None:
            self._usage = self._factory.count(self._output.generated_text())
        if status == "completed":
            self._completed = self._completed or int(time.time())
        return self.response(status, reason)

    def _emit_failure(self, message: str, code: str | None, kind: str, param: Any) -> None:
        self._begin_response()
        fields = error_fields(message, code, kind, param)
        self._events.emit("error", **fields)
        self._error = response_error(message, fields["code"])
        self._events.emit("response.failed", response=self.response("failed"))

    def response(self, status: str, reason: str | None = None) -> Json:
        """Returns the response as it is now. reason: why it is incomplete."""
        is_over = status in ("completed", "incomplete")
        response = {
            **self._factory.echo,
            "id": f"resp_{self._tag}",
            "object": "response",
            "created_at": self._creation_time(),
            "completed_at": self._completed if status == "completed" else None,
            "status": status,
            "error": self._error,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": self._model(),
            "output": self._output.done() if is_over else [],
            "usage": None if self._usage is None or not is_over else render_usage(self._usage),
        }
        response["store"] = self._is_stored
        if isinstance(tier := self._first_chunk.get("service_tier"), str):
            response["service_tier"] = tier
        return response

    def _model(self) -> str:
        return as_text(self._first_chunk.get("model")) or self._factory.echo["model"]

    def _creation_time(self) -> int:
        """Returns when the response was made, in seconds since the epoch: the same each time."""
        if self._created_at is None:
            created = self._first_chunk.get("created")
            self._created_at = created if isinstance(created, int) else int(time.time())
        return self._created_at


def rebuild_response(tag: str, reply: WireMessage, *, shows_sealed_thoughts: bool = False) -> Json | None:
    """Returns a stored response as it was answered, but for logprobs; None: the reply is not one of a response.

    tag: that of its ids.
    shows_sealed_thoughts: as in `MakesResponses`.
    """
    stored = read_stored_response(reply)
    if stored is None:
        return None
    view = ResponsesView(
        MakesResponses(
            stored.full_echo,
            lambda: TurnName.from_tag(tag),
            model=lambda: private_of(reply).get("model", ""),
            forms=stored.call_forms,
            shows_sealed_thoughts=shows_sealed_thoughts,
        ),
        waits=False,
    )
    view.restore(stored)
    output = [] if stored.status == "failed" else stored.output_of(reply)
    if output is None:
        output = view.rebuild_output(without_private(reply), stored)
    elif not shows_sealed_thoughts:
        output = [{k: v for k, v in item.items() if k != "encrypted_content"} for item in output]
    return {**view.response(stored.status, stored.incomplete_reason), "output": output, "usage": stored.usage}


def empty_response(factory: MakesResponses, status: str) -> Json:
    """Returns a response of which nothing has come yet."""
    view = ResponsesView(factory, waits=False)
    view.assign_id()
    return view.response(status)


def render_output(tag: str, reply: WireMessage, forms: Mapping[str, CallForm] = NO_FORMS) -> list[Json]:
    """Returns a reply that no response was made of as output items. tag: of their ids. forms: of its calls."""
    # As of a stored turn, so that thoughts are shown without `encrypted_content`.
    view = ResponsesView(MakesResponses(ECHOED, lambda: TurnName.from_tag(tag), forms=forms), waits=False)
    stored = StoredResponse("completed", 0, "")
    view.restore(stored)
    return view.rebuild_output(reply, stored)


def render_usage(usage: Json) -> Json:
    """Returns a chat completion's usage under the names of the Responses API."""
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    item = {
        "input_tokens": token_count(usage, "prompt_tokens"),
        "input_tokens_details": {
            "cached_tokens": token_count(prompt, "cached_tokens"),
            "cache_write_tokens": token_count(prompt, "cache_write_tokens"),
        },
        "output_tokens": completion_count(usage),
        "output_tokens_details": {"reasoning_tokens": token_count(completion, "reasoning_tokens")},
        "total_tokens": token_count(usage, "total_tokens"),
    }
    return {**item, BILLED: usage[BILLED]} if BILLED in usage else item


def _logprobs(choice: Json) -> list[Any]:
    return as_list(as_object(choice.get("logprobs")).get("content"))
