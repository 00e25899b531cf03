"""The view of a run for its client: events of the agents API, made of the events of the turn machine.

Text and thoughts leave as they come, or (`stream_tokens: false`) as whole messages when their step ends. Calls leave as
whole messages, without their asides, which are not for the client. A result leaves when it is stored, under its stored
number. Only errors have an event name, since the client drops other named events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Event, Json
from gateway.agents.wire.faults import LettaErrors, make_error_event
from gateway.agents.wire.message import (
    Envelope,
    Showing,
    find_spoken,
    pop_asides,
    render_messages,
    render_part,
)
from gateway.agents.wire.run_json import render_stop, render_usage
from gateway.agents.wire.shown_values import render_time
from gateway.core import ids
from gateway.core.lenient import as_object, as_text
from gateway.core.thoughts import read_thoughts
from gateway.core.turn.asides import Asides
from gateway.core.turn.client_view import ClientView, ReplyEvent
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.round import DONE_EVENT
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import ToolCall
from gateway.core.turn.upstream_error import parse_error_body
from gateway.core.usage.reported import find_reported_counts, find_usage
from gateway.dialects.event_stream import encode_event
from gateway.errors import GatewayError, UpstreamError
from storage.run_records import TokenCounts, WaitKind


def make_ping(run_uid: str, at: float) -> bytes:
    """Returns the event that shows that a run goes on."""
    run_id = ids.make_id("run", run_uid)
    return encode_event({"id": run_id, "date": render_time(at), "message_type": "ping", "run_id": run_id})


def number_stream(data: bytes, first: int) -> list[bytes]:
    """Returns the events of a stream, each with its number as `seq_id`. The end mark of a stream is no event."""
    events: list[bytes] = []
    for event_bytes in data.split(b"\n\n"):
        if event_bytes and event_bytes + b"\n\n" != DONE_EVENT and not event_bytes.startswith(b":"):
            # The data of an event is an object.
            events.append(event_bytes[:-1] + b',"seq_id":%d}\n\n' % (first + len(events)))
    return events


def is_end(event: bytes) -> bool:
    """Returns whether an event is the last event of a run."""
    return event.startswith(b"event: error") or b'"message_type":"usage_statistics"' in event


@dataclass(slots=True)
class RunNumbers:
    """The ids and numbers with which a run's messages are shown. `first_seq` to `step_count` change with each step."""

    # The uid of the agent, which the ids of its messages contain.
    agent_uid: str
    # The public id of the run.
    run_id: str
    # The number of the first message of the current step.
    first_seq: int
    # The number of the message in which the model replies in the current step.
    reply_seq: int
    # The number of steps that have begun.
    step_count: int = 1
    # The tools of the calls of an earlier run that this run answers, by the ids of the calls.
    tool_names: Mapping[str, str] = field(default_factory=dict)
    # The uids of sleeptime runs that the end of this run makes due; empty until the end.
    started_run_uids: Sequence[str] = ()
    # The number of a reply of which an earlier attempt may have shown a part; None: there is no such reply.
    partial_reply_seq: int | None = None
    # The number of this attempt.
    attempt: int = 1

    def make_envelope(self, seq: int, at: float) -> Envelope:
        """Returns the envelope of the message with a number. at: its time, in seconds since the epoch."""
        step_id = ids.make_id_with_seq("step", self.agent_uid, self.first_seq)
        message_id = ids.make_id_with_seq("message", self.agent_uid, seq)
        if seq == self.partial_reply_seq:
            message_id = ids.with_attempt(message_id, self.attempt)
        return Envelope(message_id, at, self.run_id, step_id)


class StepViewFactory(Struct, frozen=True):
    """Makes the view of a run, once its first step is open."""

    # The ids and numbers of the run's messages.
    numbers: RunNumbers
    # The messages that the client wants, and their form.
    showing: Showing
    # True: replies are shown token by token; False: step by step.
    by_token: bool
    # Returns seconds since the epoch.
    now: Callable[[], float]
    # The messages to show before the first reply.
    preface: Sequence[Json] = ()
    # The tokens of the earlier steps of the run.
    counts: TokenCounts = msgspec.field(default_factory=TokenCounts)
    # A field of `ViewFactory`: the client does not read chat completions.
    speaks_chat: bool = False

    def __call__(self, terms: TurnTerms) -> StepView:
        events = list(map(encode_event, self.preface))
        asides = terms.asides or Asides()
        return StepView(self.numbers, self.showing, self.by_token, self.now, self.counts, events, asides)


@dataclass(slots=True)
class _UnshownReply:
    """The parts of a reply that are not shown yet, in the pieces in which they came."""

    # The pieces of the thoughts.
    thoughts: list[str] = field(default_factory=list)
    # The pieces of the text.
    text: list[str] = field(default_factory=list)
    # The text of calls that speak, by the number of the call.
    spoken_texts: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class StepView(ClientView):
    """The view of a run. The client's calls wait for `end`, and results until they are stored.

    Implements `ClientView`, which documents the methods.
    """

    # The ids and numbers of the run's messages.
    numbers: RunNumbers
    # The messages that the client wants, and their form.
    showing: Showing
    # True: replies are shown token by token; False: step by step.
    by_token: bool
    # Returns seconds since the epoch.
    now: Callable[[], float]
    # The tokens of the earlier steps of the run.
    counts: TokenCounts
    # The events of the messages to show before the first reply.
    first_events: list[bytes]
    # The arguments of calls that are for the gateway, not for the tools.
    asides: Asides
    # The tokens of the current step.
    _step_counts: TokenCounts = field(default_factory=TokenCounts, init=False)
    # The events that `take` has not returned yet.
    _events: list[bytes] = field(default_factory=list, init=False)
    # The pieces of the reply, if replies are shown step by step.
    _unshown: _UnshownReply = field(default_factory=_UnshownReply, init=False)
    # The keys (`_add_piece`) of the messages of the reply that have begun. The index of a key is the message's number.
    _message_keys: list[str] = field(default_factory=list, init=False)
    # The tools of calls that were shown, by call id.
    _tool_names: dict[str, str] = field(default_factory=dict, init=False)
    # The waiting calls, with their stored ids.
    _waiting_calls: list[Json] = field(default_factory=list, init=False)
    # The kind of answer for which each waiting call waits, by call id.
    _waiting: Mapping[str, WaitKind] = field(default_factory=dict, init=False)
    # The stop reason of the run, once it is known.
    _stop: StopReason = field(default=StopReason.END_TURN, init=False)

    def take(self) -> bytes:
        data = b"".join(self._events)
        self._events.clear()
        return data

    # -- a stream

    def begin(self, first: Json) -> None:
        """Shows the messages before the first reply. Ids and times are the gateway's, so `first` is ignored."""
        self._events += self.first_events
        self.first_events.clear()

    def show(self, event: ReplyEvent) -> None:
        for choice in event.choices:
            delta = as_object(as_object(choice).get("delta"))
            if thought := read_thoughts(delta):
                self.add_thought(thought)
            if text := as_text(delta.get("content") or delta.get("refusal")):
                self.add_text(text)
        usage = find_usage(event.chunk) if event.chunk else None
        if isinstance(usage, dict):
            # Some upstreams report the usage so far with each chunk: the last report counts.
            self._step_counts = find_reported_counts(usage) or TokenCounts()

    def show_texts(self, batch: Sequence[Event], texts: Sequence[str]) -> bool:
        for text in filter(None, texts):
            self.add_text(text)
        return True

    def add_text(self, text: str) -> None:
        if self.by_token:
            self._add_piece("assistant_message", {"content": text})
        else:
            self._unshown.text.append(text)

    def add_spoken_text(self, text: str, between: str, call_index: int) -> None:
        # Only a call that is shown to this client as text is shown while it is written.
        if self.asides.spoken_arguments.get(self.showing.speaking_tool or "") != self.showing.text_argument:
            return
        if self.by_token:
            self._add_piece("assistant_message", {"content": text}, f"of call {call_index}")
        else:
            self._unshown.spoken_texts[call_index] = self._unshown.spoken_texts.get(call_index, "") + text

    def add_thought(self, text: str) -> None:
        if self.by_token:
            self._add_piece("reasoning_message", {"reasoning": text, "source": "reasoner_model"})
        else:
            self._unshown.thoughts.append(text)

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        for reply_event in tail:
            self.show(reply_event)

    def end(self, tail: Sequence[ReplyEvent], finish_reason: str | None, done: bytes) -> None:
        for reply_event in tail:
            self.show(reply_event)
        self._end_reply()
        if self._waiting_calls:
            self._show_calls(self._waiting_calls)
        numbers, counts = self.numbers, self.counts.plus(self._step_counts)
        usage = render_usage(counts, numbers.step_count, numbers.started_run_uids, self._step_counts)
        self._events += [encode_event(render_stop(self._stop)), encode_event(usage), DONE_EVENT]

    # -- the gateway's tools

    def show_calls(self, calls: Sequence[ToolCall]) -> None:
        self._end_reply()
        self._tool_names.update({call.id: call.name for call in calls})
        self._show_calls([call.as_json() for call in calls])

    # -- a turn that stores each step

    def show_results(self, first_seq: int | None, results: Sequence[Json], *, is_last: bool = False) -> None:
        self._end_reply()
        # Results belong to the step that made the calls. Results of an earlier run's calls open a step.
        if first_seq is not None and not self.numbers.step_count and not is_last:
            self.numbers.first_seq = first_seq
        for n, result in enumerate(results):
            self._add_message(result, self.numbers.reply_seq if first_seq is None else first_seq + n)

    def begin_step(self, first_seq: int, reply_seq: int) -> None:
        self.numbers.first_seq = first_seq
        self.numbers.reply_seq = reply_seq
        self._message_keys.clear()
        self.counts = self.counts.plus(self._step_counts)
        self._step_counts = TokenCounts()
        self.numbers.step_count += 1

    def note_stop(
        self, reason: StopReason, waiting: Mapping[str, WaitKind], calls: Sequence[ToolCall] = ()
    ) -> None:
        self._stop, self._waiting = reason, waiting
        self._waiting_calls = [call.as_json() for call in calls]

    # -- errors

    def show_upstream_error(self, error: Json, raw: bytes | None) -> None:
        self.fail(UpstreamError(str(error.get("message") or "The upstream failed.")))

    def fail(self, error: GatewayError) -> None:
        self._end_reply()
        self._events += [encode_event(render_stop(self._stop)), make_error_event(error, self.numbers.run_id)]

    # -- one body

    def render_body(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        raise AssertionError("a run is shown as events")

    def render_error_body(self, status: int, body: bytes) -> bytes:
        from_upstream = UpstreamError(_read_error_message(body) or f"The upstream answered {status}.")
        return LettaErrors().render_body(from_upstream)

    # -- the events

    def _add_piece(self, kind: str, fields: dict[str, Any], name: str = "") -> None:
        """Shows a piece of a message. All pieces of a message have the same id and otid.

        kind: the type of the message.
        name: a text that distinguishes messages of one kind.
        """
        key = f"{kind} {name}"
        if key not in self._message_keys:
            self._message_keys.append(key)
        if not self.showing.shows(kind):
            return
        envelope = self.numbers.make_envelope(self.numbers.reply_seq, self.now())
        self._events.append(encode_event(render_part(kind, envelope, self._message_keys.index(key), fields)))

    def _show_calls(self, calls: Sequence[Json]) -> None:
        """Shows calls without the arguments of the gateway, whose thoughts and spoken texts are shown already."""
        names = [str((call.get("function") or {}).get("name")) for call in calls]
        _, tool_calls = pop_asides(calls, self.asides.map_asides(names))
        unspoken = [
            call
            for name, call in zip(names, tool_calls, strict=True)
            if name not in self.asides.spoken_arguments or find_spoken(call, self.showing) is None
        ]
        self._add_message({"role": "assistant", "tool_calls": unspoken}, self.numbers.reply_seq)

    def _end_reply(self) -> None:
        """Shows the rest of the reply as whole messages: thoughts, text, then the texts of speaking calls."""
        unshown, self._unshown = self._unshown, _UnshownReply()
        thoughts, text = "".join(unshown.thoughts), "".join(unshown.text)
        if thoughts or text:
            reply: Json = {"role": "assistant", "content": text}
            if thoughts:
                reply["reasoning_content"] = thoughts
            self._add_message(reply, self.numbers.reply_seq)
        for spoken_text in unshown.spoken_texts.values():
            self._add_message({"role": "assistant", "content": spoken_text}, self.numbers.reply_seq)

    def _add_message(self, message: Json, seq: int) -> None:
        """Adds the events of a message. seq: the number of the message."""
        envelope = self.numbers.make_envelope(seq, self.now())
        # The messages of one reply are numbered as in lists, in which messages that are not shown have numbers, too.
        first_index = len(self._message_keys) if seq == self.numbers.reply_seq else 0
        messages = render_messages(
            message,
            envelope,
            replace(self.showing, types=None),
            waiting=self._waiting,
            tool_names={**self.numbers.tool_names, **self._tool_names},
            first_index=first_index,
        )
        if seq == self.numbers.reply_seq:
            self._message_keys += [shown["message_type"] for shown in messages]
        self._events += [
            encode_event(shown) for shown in messages if self.showing.shows(shown["message_type"])
        ]


def _read_error_message(body: bytes) -> str | None:
    """Returns the message of an upstream's error, in any of the usual forms; None if the body has no message."""
    parsed = parse_error_body(body)
    error = None if parsed is None else parsed.get("error", parsed)
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
