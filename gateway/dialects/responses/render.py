"""Renders a reply in the form of OpenAI's Responses API: one response, with output items made of chat completions.

Thoughts, text and each call are items of their own (`growing_output`). Every event of a stream names the item and the
part to which it adds; a complete part, a complete item and the complete response are sent once more.
(platform.openai.com/docs/api-reference/responses-streaming)
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import orjson

from adapters.token_counts import count_completion_tokens, read_cached_tokens, read_token_count
from adapters.types import Event, Json
from gateway.core.conversation.directions import DIRECTIONS_FIELD, list_directions
from gateway.core.conversation.private import read_private, without_private
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.finish_reasons import BROKE, read_finish_reason
from gateway.core.lenient import as_list, as_object
from gateway.core.turn.chunks import is_first_choice, make_delta
from gateway.core.turn.client_view import ClientView, ReplyEvent
from gateway.core.turn.commands import FINISHED, TurnOutcome
from gateway.core.turn.draft import read_generated_text
from gateway.core.turn.ledger import BILLED_FIELD
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn_name import TurnName
from gateway.core.usage.reported import find_reported_counts, find_usage
from gateway.dialects.event_stream import NOT_DURABLE
from gateway.dialects.responses.call_form import NO_FORMS, CallForm
from gateway.dialects.responses.errors import (
    FIELD_NAMES,
    make_error_fields,
    make_response_error,
    translate_error,
)
from gateway.dialects.responses.growing_output import GrowingOutput
from gateway.dialects.responses.growing_response import GrowingResponse, ResponseTerms
from gateway.dialects.responses.request_fields import ECHO_DEFAULTS
from gateway.dialects.responses.stored_response import (
    RESPONSE_FIELD,
    StoredResponse,
    is_in_reply_order,
    list_changed_fields,
    read_stored_response,
)
from gateway.errors import GatewayError

# The reason of an incomplete response, by the reason for which its reply ended.
_INCOMPLETE_REASONS = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
    BROKE: "max_output_tokens",
}


class ResponsesViewFactory(ResponseTerms, frozen=True):
    """Makes the view of one request's response (`ViewFactory`)."""

    # A response is no chat completion.
    speaks_chat: ClassVar[bool] = False

    def __call__(self, terms: TurnTerms) -> ResponsesView:
        return ResponsesView(self, is_holding=bool(terms.gateway_tools))


class ResponsesView(ClientView):
    """The view of the Responses API. As in a chat completion it shows one reply: no gateway tools, no steps.

    is_holding: True if nothing is sent before the first content, since gateway tools are offered: a hidden round may
        come first, and then an upstream's error in the next round can still be the reply's status.
    """

    def __init__(self, terms: ResponseTerms, *, is_holding: bool) -> None:
        self._terms = terms
        self._response = GrowingResponse(terms, is_holding=is_holding)
        self._output = GrowingOutput(self._response)
        # In the background another attempt replays the calls, whose results were stored by these ids.
        self.call_id_prefix = f"call_{terms.tag or secrets.token_hex(12)}"
        # The logprobs of a reply that came whole.
        self._logprobs: list[Any] = []
        # The usage that the upstream has reported; None: it has reported none yet.
        self._usage: Json | None = None
        # The reason for which the reply ended; None: the reply has not ended.
        self._finish_reason: str | None = None
        # True if the last events were shown (`_show_tail`).
        self._has_shown_tail = False

    def take(self) -> bytes:
        return self._response.events.take()

    def release(self) -> None:
        self._response.events.release()
        # Without a first chunk the model is not known yet; that chunk then begins the response.
        if self._response.first_chunk:
            self._response.begin()

    def begin(self, first: Json) -> None:
        self._response.first_chunk = first

    def add_whole_reply(self, body: bytes, reply: Json) -> None:
        choices = filter(is_first_choice, reply["choices"])
        self._logprobs = _read_logprobs(next(choices, {}))

    def show(self, event: ReplyEvent) -> None:
        self._show_event(event, is_hidden=False)

    def show_texts(self, batch: Sequence[Event], texts: Sequence[str]) -> bool:
        for text in filter(None, texts):
            self._output.add_text(text, [])
        return True

    def add_text(self, text: str) -> None:
        self._output.add_text(text, [])

    def add_thought(self, text: str) -> None:
        self._output.add_thought(text)

    def add_calls(self, calls: list[Json]) -> None:
        for call in calls:
            self._output.add_call(call)

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        for event in tail:
            self._show_event(event, is_hidden=True)

    def end(self, tail: Sequence[ReplyEvent], finish_reason: str | None, done: bytes) -> None:
        self._show_tail(tail)
        self._finish_reason = finish_reason or self._finish_reason
        response = self._end_response()
        self._response.emit(f"response.{response['status']}", response=response)

    def note_not_stored(self) -> None:
        self._response.assign_id()
        self._response.is_stored = False

    def note_not_durable(self) -> None:
        self._response.events.add(NOT_DURABLE)

    def show_upstream_error(self, error: Json, raw: bytes | None) -> None:
        code = error.get("code")
        error_type = str(error.get("type") or "server_error")
        message = FIELD_NAMES.translate_sentence(str(error.get("message") or ""))
        param = error.get("param")
        if isinstance(param, str):
            param = FIELD_NAMES.translate_path(param)
        self._emit_failure(message, str(code) if code is not None else None, error_type, param)

    def fail(self, error: GatewayError) -> None:
        self._emit_failure(error.message, error.code, error.kind, error.param)

    def render_body(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        self._response.sends_events = False
        self._output.add_delta(
            make_delta({"message": without_private(outcome.shown_reply or {})}), self._logprobs
        )
        self._finish_reason = outcome.finish_reason
        self._usage = outcome.usage
        return orjson.dumps(self._end_response())

    def render_error_body(self, status: int, body: bytes) -> bytes | None:
        return None if status < 300 else translate_error(body)

    def prepare_stored_fields(self, outcome: TurnOutcome, tail: Sequence[ReplyEvent]) -> Json:
        """Shows the tail, and gives a reply that is over its id, usage and time (`ClientView` documents the method)."""
        self._show_tail(tail)
        response = self._response
        is_over = outcome.state is FINISHED
        if is_over:
            response.assign_id()
        if not response.is_stored:
            return {}
        incomplete_reason = None
        usage = None
        if is_over:
            # Where an upstream gives two reasons, the response has the stored one. `end` may get another in its place.
            self._finish_reason = outcome.finish_reason
            incomplete_reason = _INCOMPLETE_REASONS.get(read_finish_reason(outcome.finish_reason))
            usage = outcome.usage or self._usage
            if not usage:
                usage = self._terms.count_usage(read_generated_text(outcome.shown_reply or {}))
            self._usage = usage
        # The status of the reply as it is stored; `end` decides the same.
        if response.error:
            status = "failed"
        elif is_over and incomplete_reason is None:
            status = "completed"
            response.complete()
        else:
            status = "incomplete"
        stored_response = self._make_stored_response(status, incomplete_reason, usage)
        fields = {RESPONSE_FIELD: msgspec.to_builtins(stored_response)}
        if directions := list_directions(self._terms.messages):
            fields[DIRECTIONS_FIELD] = [*map(list, directions)]
        return fields

    def _make_stored_response(
        self, status: str, incomplete_reason: str | None, usage: Json | None
    ) -> StoredResponse:
        """Returns the response as it is stored. usage: the usage in the form of a chat completion."""
        response = self._response
        terms = self._terms
        is_in_order = is_in_reply_order(self._output.list_id_prefixes())
        return StoredResponse(
            status=status,
            created_at=response.created_at,
            model=response.model,
            usage=render_usage(usage),
            completed_at=response.completed_at,
            incomplete_reason=incomplete_reason,
            error=response.error,
            service_tier=response.service_tier,
            echo=list_changed_fields(terms.echo),
            forms=dict(terms.forms),
            output=None if is_in_order else self._output.render_items(status),
            id_tag=terms.tag,
        )

    # -- the events of the upstream

    def _show_tail(self, tail: Sequence[ReplyEvent]) -> None:
        """Shows the last events, once: `prepare_stored_fields` needs them, and `end` gets them again."""
        if not self._has_shown_tail:
            self._has_shown_tail = True
            for event in tail:
                self._show_event(event, is_hidden=False)

    def _show_event(self, event: ReplyEvent, *, is_hidden: bool) -> None:
        """Shows an event. is_hidden: True if the event ends a hidden round."""
        events = self._response.events
        if event.chunk is None:
            if event.raw is not None and event.raw.startswith(b":"):
                was_holding = events.is_holding
                events.add(event.raw, has_content=False)
                if was_holding and not events.is_holding:
                    self._response.begin()
            return
        for choice in event.choices:
            if not is_first_choice(choice):
                continue
            if not events.is_holding:
                self._response.begin()  # the model may think for long before its first text
            delta = choice.get("delta")
            if isinstance(delta, dict):
                if event.calls is not None:
                    delta = {**delta, "tool_calls": event.calls}
                self._output.add_delta(delta, _read_logprobs(choice))
            if not is_hidden:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
        usage = event.usage or find_usage(event.chunk)
        if not is_hidden and find_reported_counts(usage) is not None:
            self._usage = usage

    # -- the events for the client

    def _end_response(self) -> Json:
        """Ends the open items, and returns the complete response."""
        self._response.begin()
        incomplete_reason = _INCOMPLETE_REASONS.get(read_finish_reason(self._finish_reason))
        status = "incomplete" if incomplete_reason else "completed"
        self._output.end(status)
        if self._usage is None:
            self._usage = self._terms.count_usage(self._output.read_generated_text())
        if status == "completed":
            self._response.complete()
        return self._response.render(
            status, incomplete_reason, output=self._output.list_final_items(), usage=render_usage(self._usage)
        )

    def _emit_failure(self, message: str, code: str | None, error_type: str, param: Any) -> None:
        """Sends the error, and the response that has failed."""
        response = self._response
        response.begin()
        fields = make_error_fields(message, code, error_type, param)
        response.emit("error", **fields)
        response.error = make_response_error(message, fields["code"])
        response.emit("response.failed", response=response.render("failed"))


def rebuild_response(tag: str, reply: WireMessage, *, shows_sealed_thoughts: bool = False) -> Json | None:
    """Returns a stored response as it was answered, but for logprobs; None: the reply was not sent as a response.

    tag: the part that the response's ids share.
    shows_sealed_thoughts: True if the response has the sealed thoughts, as in `ResponseTerms`.
    """
    stored_response = read_stored_response(reply)
    if stored_response is None:
        return None
    terms = ResponseTerms(
        stored_response.full_echo,
        lambda: TurnName.from_tag(tag),
        answering_model=lambda: read_private(reply).get("model", ""),
        forms=stored_response.forms,
        shows_sealed_thoughts=shows_sealed_thoughts,
    )
    response = GrowingResponse(terms)
    response.restore(stored_response)
    output = [] if stored_response.status == "failed" else stored_response.find_output(reply)
    if output is None:
        output = _rebuild_output(response, without_private(reply), stored_response.status)
    elif not shows_sealed_thoughts:
        output = [
            {key: value for key, value in item.items() if key != "encrypted_content"} for item in output
        ]
    return response.render(
        stored_response.status,
        stored_response.incomplete_reason,
        output=output,
        usage=stored_response.usage,
    )


def render_output(tag: str, reply: WireMessage, forms: Mapping[str, CallForm] = NO_FORMS) -> list[Json]:
    """Returns the output items for a reply that was not shown as a response.

    tag: the part that the items' ids share.
    forms: the forms of calls, by the names of their tools upstream.
    """
    # The turn counts as stored, so that thoughts are shown without `encrypted_content`.
    response = GrowingResponse(ResponseTerms(ECHO_DEFAULTS, lambda: TurnName.from_tag(tag), forms=forms))
    response.restore(StoredResponse("completed", created_at=0, model=""))
    return _rebuild_output(response, reply, "completed")


def make_empty_response(terms: ResponseTerms, status: str) -> Json:
    """Returns a response without output."""
    response = GrowingResponse(terms)
    response.assign_id()
    return response.render(status)


def render_usage(usage: Json | None) -> Json | None:
    """Returns a chat completion's usage with the names of the Responses API; None: the usage is not known."""
    if usage is None:
        return None
    prompt_details = usage.get("prompt_tokens_details")
    completion_details = usage.get("completion_tokens_details")
    rendered = {
        "input_tokens": read_token_count(usage, "prompt_tokens"),
        "input_tokens_details": {
            "cached_tokens": read_cached_tokens(usage),
            "cache_write_tokens": read_token_count(prompt_details, "cache_write_tokens"),
        },
        "output_tokens": count_completion_tokens(usage),
        "output_tokens_details": {
            "reasoning_tokens": read_token_count(completion_details, "reasoning_tokens")
        },
        "total_tokens": read_token_count(usage, "total_tokens"),
    }
    return {**rendered, BILLED_FIELD: usage[BILLED_FIELD]} if BILLED_FIELD in usage else rendered


def _rebuild_output(response: GrowingResponse, reply: WireMessage, status: str) -> list[Json]:
    """Returns the output items for a stored reply. status: the status of the response."""
    output = GrowingOutput(response)
    output.add_delta(make_delta({"message": reply}), [])
    output.end(status)
    return output.list_final_items()


def _read_logprobs(choice: Json) -> list[Any]:
    """Returns the logprobs of a choice's content, if there are any."""
    return as_list(as_object(choice.get("logprobs")).get("content"))
