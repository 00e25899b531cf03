"""Runs without a client in the form of the agents API: their events, and the messages that no event has shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.runs.run import RunStart
from gateway.agents.runs.stored_run import load_exchanges_of_run, load_last_counts
from gateway.agents.wire.faults import make_error_event
from gateway.agents.wire.message import Showing, render_summary
from gateway.agents.wire.run_json import find_failure_message, make_end_events, render_result, render_stop
from gateway.agents.wire.run_stream import RunNumbers, StepViewFactory, is_end, make_ping, number_stream
from gateway.agents.wire.shown_values import render_time
from gateway.core import ids
from gateway.core.turn.client_view import ViewFactory
from gateway.core.turn.stop_reason import StopReason
from gateway.dialects.event_stream import encode_event
from gateway.errors import GatewayError, UpstreamError
from storage.run_records import Run, RunState, RunTextKind
from storage.sql.store import Store

# The members of a message that are sent in pieces if the message is streamed by token.
_TEXTS = ("content", "reasoning")


def dump_showing(showing: Showing, *, by_token: bool) -> Json:
    """Returns the JSON in which the way of showing a run is stored."""
    return {**msgspec.to_builtins(showing, order="deterministic"), "by_token": by_token}


def load_showing(options: Json) -> Showing:
    """Returns the way of showing a run. options: the JSON that `dump_showing` made; {}: the default."""
    return msgspec.convert(options, Showing)


async def read_run_showing(store: Store, run: Run) -> Showing:
    """Returns the way of listing the messages of a run, which the send of a background run chooses."""
    load_texts = store.run_texts.load_texts
    texts = await load_texts(run.agent_row, run.id, RunTextKind.LISTING) if run.background else ()
    return load_showing(orjson.loads(texts[0].data) if texts else {})


def make_factory(
    start: RunStart,
    showing: Showing,
    now: Callable[[], float],
    *,
    by_token: bool,
    preface: Sequence[Json] = (),
) -> StepViewFactory:
    """Returns the factory of the view of a run that begins or goes on.

    by_token: replies are shown token by token; False: step by step.
    preface: the messages to show before those of the run.
    """
    step_count = start.steps if start.is_resumed else start.steps + 1
    partial_reply_seq = start.reply_seq if start.attempt > 1 and not start.is_resumed else None
    numbers = RunNumbers(
        start.agent.uid,
        ids.make_id("run", start.run_uid),
        first_seq=start.first_seq,
        reply_seq=start.reply_seq,
        step_count=step_count,
        tool_names=start.tool_names,
        started_run_uids=start.started_run_uids,
        partial_reply_seq=partial_reply_seq,
        attempt=start.attempt,
    )
    return StepViewFactory(numbers, showing, by_token, now, preface=preface, counts=start.counts)


class RunEvents(Struct, frozen=True):
    """Shows runs in the form of the agents API. Implements `RunDialect`, which documents the methods."""

    # The store with the steps of runs.
    store: Store
    # Returns seconds since the epoch.
    now: Callable[[], float]

    number_events = staticmethod(number_stream)
    is_end = staticmethod(is_end)

    def make_view(self, start: RunStart, options: Json) -> ViewFactory:
        showing, by_token = load_showing(options), bool(options.get("by_token"))
        preface = () if start.summary is None else render_summary(start.summary, start.agent.uid, showing)
        return make_factory(start, showing, self.now, by_token=by_token, preface=preface)

    def make_first_event(self, uid: str) -> bytes:
        return make_ping(uid, self.now())

    def make_error_events(self, uid: str, error: GatewayError) -> bytes:
        return encode_event(render_stop(StopReason.ERROR)) + make_error_event(error, ids.make_id("run", uid))

    async def make_missing_events(
        self, run: Run, options: Json, logged: Sequence[bytes], attempt: int
    ) -> bytes:
        agent = await self.store.agents.find_by_id(run.agent_row)
        messages: list[Json] = []
        if agent is not None:
            showing = load_showing(options) if options else await read_run_showing(self.store, run)
            renderer = MessageRenderer(self.store, agent, showing)
            messages = await renderer.render_output(run, await load_exchanges_of_run(self.store, agent, run))
        logged_messages = (orjson.loads(event.partition(b"data: ")[2]) for event in logged)
        events = list(_list_missing(messages, logged_messages, attempt))
        if (error := await find_error(self.store, run)) is not None:
            events.append(render_stop(run.stop or StopReason.ERROR))
            return b"".join(map(encode_event, events)) + make_error_event(error, ids.make_id("run", run.uid))
        if run.is_over:
            events += make_end_events(run, await load_last_counts(self.store, run))
        return b"".join(map(encode_event, events))

    async def make_callback_body(self, agent_row: int, run_row: int) -> Json | None:
        """Returns the body of a callback about a run that has ended; None if the run is gone."""
        run = await self.store.runs.find_run(agent_row, run_row)
        agent = await self.store.agents.find_by_id(agent_row)
        if run is None or agent is None:
            return None
        renderer = MessageRenderer(self.store, agent, await read_run_showing(self.store, run))
        messages = await renderer.render_output(run, await load_exchanges_of_run(self.store, agent, run))
        error = await find_error(self.store, run)
        message = find_failure_message(run) if error is None else error.message
        fields = {} if message is None else {"error": message}
        counts = await load_last_counts(self.store, run)
        return {
            "run_id": ids.make_id("run", run.uid),
            "status": run.state.value,
            "stop_reason": run.stop,
            "completed_at": render_time(run.ended),
            "metadata": {**fields, "result": render_result(messages, run, last_counts=counts)},
        }


async def find_error(store: Store, run: Run) -> GatewayError | None:
    """Returns the error with which a run has failed; None if the run has not failed, or no error message is stored."""
    if run.state is not RunState.FAILED:
        return None
    texts = await store.run_texts.load_texts(run.agent_row, run.id, RunTextKind.ERROR)
    if not texts:
        return None
    message, *status = (text.data.decode() for text in texts)
    error = GatewayError(message) if run.stop == StopReason.ERROR else UpstreamError(message)
    if status:
        error.status = int(status[0])
    return error


def _list_missing(messages: Iterable[Json], logged_messages: Iterable[Json], attempt: int) -> Iterable[Json]:
    """Yields the messages that the events of a log have not shown in full.

    A message that was shown in part gets another id, with the number of the attempt.
    """
    shown_texts: dict[tuple[Any, ...], str] = {}
    for message in logged_messages:
        key = _make_message_key(message)
        shown_texts[key] = shown_texts.get(key, "") + _join_streamed_text(message)
    for message in messages:
        key = _make_message_key(message)
        if key not in shown_texts:
            yield message
        elif shown_texts[key] != _join_streamed_text(message):
            yield {**message, "id": ids.with_attempt(message["id"], attempt)}


def _make_message_key(message: Json) -> tuple[Any, ...]:
    # The end of an otid is the number of the message among the messages with one id.
    position = str(message.get("otid")).rpartition(":")[2]
    return ids.without_attempt(str(message.get("id"))), message.get("message_type"), position


def _join_streamed_text(message: Json) -> str:
    return "".join(text for name in _TEXTS if isinstance(text := message.get(name), str))
