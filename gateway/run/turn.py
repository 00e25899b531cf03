"""The loop of a turn: it feeds the machine events, and performs the commands that the machine returns.

The machine (gateway.core.turn.machine) decides. This module calls the upstream, the client, the memory tools and the
store. When the client leaves, all that the turn waits for is cancelled, and the turn is written as far as it came.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from adapters import first_event
from adapters.base import ModelReply
from adapters.errors import ProviderError, UnfinishedEvent
from adapters.reply_quota import MAX_REPLY_BYTES, StreamReservation
from adapters.types import Event, Header
from gateway.core.turn import commands, events
from gateway.core.turn.calls import ResumedCalls
from gateway.core.turn.commands import Command, TurnOutcome
from gateway.core.turn.events import TurnEvent
from gateway.core.turn.guide import FreeGuide, Guide
from gateway.core.turn.machine import Turn
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.usage.reported import ReplyUsage
from gateway.errors import (
    CallerError,
    Conflict,
    GatewayError,
    MemoryUnavailable,
    UpstreamError,
    drop_tracebacks,
)
from gateway.run.call import ChatCall
from gateway.run.memory.prompt import Prompt
from gateway.run.refused_parts import RefusedParts
from gateway.run.round_requests import RoundRequests
from gateway.run.sink import ClientGone, HeldSink, Sink, UnseenSink
from gateway.run.tools.toolbox import ToolAnswer, run_tools
from gateway.run.turn_saving import SAVED_EVENT, SavedStep, TurnMemory, TurnSaving, explain_loss
from gateway.run.turn_services import TurnServices
from gateway.run.upstream.keepalive import KEEP_ALIVE, await_with_keep_alives, keep_alive
from gateway.run.upstream.model_source import ModelSource
from gateway.run.upstream.provider_errors import translate_provider_error
from gateway.run.upstream.relay import choose_forwarded_headers
from storage.errors import StoreError

_log = logging.getLogger("mnemogate")
# The time that an upstream has to end its body after [DONE], so that its connection can be used again.
LAST_BYTES_S = 0.25
_ResultT = TypeVar("_ResultT")


class TurnMachine(Protocol):
    """The machine of a turn: `Turn`, or `NativeTurn` for a request in its own dialect."""

    @property
    def first_call(self) -> commands.CallModel:
        """The call of the model with which a turn begins."""

    @property
    def usage(self) -> ReplyUsage:
        """The usage of the reply that is being read; it is filled in as the reply arrives."""

    def feed(self, event: TurnEvent) -> list[Command]:
        """Returns the commands that follow from an event, in order: none, if the event comes too late."""

    def feed_texts(self, batch: list[Event]) -> bytes | None:
        """Reads events that only add text, and returns the client's bytes.

        Returns None, and reads nothing, if any of the events does more: then the events have to be fed.
        """

    def with_stored_fields(self, outcome: TurnOutcome) -> TurnOutcome:
        """Returns an outcome in the form in which it is stored."""


class RunTerms(Struct, frozen=True):
    """Values of a turn that only runs of agents set."""

    # Calls of a stored step, with which the turn begins instead of a call of the model.
    resumed_calls: ResumedCalls | None = None
    # The reason for which the turn ends before the model is called; None: the model is called.
    stop_reason: StopReason | None = None
    # Is awaited before each call of the model. Raises: LimitReached. None: the calls have no limits.
    admit: Callable[[], Awaitable[None]] | None = None
    # True: another attempt resumes the turn, so a shutdown, a failing store or a forgetting leaves it as it is on disk.
    is_resumable: bool = False


@dataclass(slots=True)
class TurnRun:
    """One turn, from its first call of the model until it is written."""

    # The request of the turn.
    call: ChatCall
    # The source of the model's replies.
    attempts: ModelSource
    # The prompt for the target that is expected to answer.
    prompt: InitVar[Prompt]
    # The memory of the turn; None: nothing is remembered of the turn.
    memory: TurnMemory | None
    # The services that the process's turns share.
    services: TurnServices
    # The rules of the turn; None: a turn without rules.
    guide: InitVar[Guide | None] = None
    # The terms by which the machine runs.
    terms: TurnTerms = field(default_factory=TurnTerms)
    # The values that only runs of agents set.
    run_terms: RunTerms = field(default_factory=RunTerms)
    # A machine of another kind, which itself bounds the remembered part of a stream; None: a `Turn` of these terms.
    machine: TurnMachine | None = None

    # The status that was sent to the client; 0: no head was sent yet.
    status: int = field(default=0, init=False)
    # The client of the reply.
    sink: Sink = field(init=False)
    # The machine.
    _turn: TurnMachine = field(init=False)
    # Makes the requests of the rounds.
    _requests: RoundRequests = field(init=False)
    # Saves the turn; None: nothing is remembered.
    _saving: TurnSaving | None = field(default=None, init=False)
    # The reserved bytes of the streams of all rounds; only a turn with memory reserves any.
    _reservation: StreamReservation = field(init=False)

    # The round under way. A cancellation leaves the reply open until `run` closes it.
    _reply: ModelReply | None = field(default=None, init=False)
    # The usage of the reply that is being read; None: no reply is being read.
    _usage: ReplyUsage | None = field(default=None, init=False)
    # The call of the model for the next round; None: no round follows.
    _next_call: commands.CallModel | None = field(default=None, init=False)

    # The end of the turn. A cancellation may come before or after any of these is set.
    # A reply that is no stream. It is sent by `Finish`.
    _whole_reply: commands.SendWhole | None = field(default=None, init=False)
    # The error that `run` raises in place of the rest of the reply.
    _error: GatewayError | None = field(default=None, init=False)
    # True: the client has all that it gets.
    _is_finished: bool = field(default=False, init=False)

    # The task that `stop` cancels; None: it is too late to stop the turn.
    _stoppable_task: asyncio.Task[Any] | None = field(default=None, init=False)
    # The reason of the `stop` that has cancelled the task; None: no `stop` has.
    _stop_reason: StopReason | None = field(default=None, init=False)
    # The commands that a cancellation has cut off. The machine expects that they are performed.
    _unperformed_commands: Sequence[Command] = field(default=(), init=False)

    def __post_init__(self, prompt: Prompt, guide: Guide | None) -> None:
        self.sink = self.call.sink
        self._turn = self.machine or Turn(
            self.terms,
            self.call.make_view(self.terms),
            guide or FreeGuide(self.services.limits.max_hidden_rounds),
        )
        self._requests = RoundRequests(
            call=self.call,
            memory=self.memory,
            prompt=prompt,
            refused_parts=RefusedParts(self.terms.saves_steps),
            model_call=self._turn.first_call,
        )
        self._reservation = StreamReservation(self.services.limits.max_streamed_bytes)
        if self.memory is not None:
            self._saving = TurnSaving(
                call=self.call,
                memory=self.memory,
                services=self.services,
                saves_steps=self.terms.saves_steps,
                is_resumable=self.run_terms.is_resumable,
            )

    async def run(self) -> int:
        """Answers the client. Returns the status sent. Raises: GatewayError while nothing was sent; ClientGone."""
        with nullcontext() if self._saving is None else self._saving.track_turn():
            try:
                self._requests.begin(self.attempts.endpoint)
                with self.sink.cancel_on_leave():
                    await self._run_rounds()
            except (ClientGone, asyncio.CancelledError):
                await self._end_without_client()
                raise
            finally:
                self._reservation.release()
                if self._reply is not None:
                    await self._close_reply()
        if self._error is not None:
            raise self._error
        return self.status

    def stop(self, reason: StopReason = StopReason.CANCELLED) -> None:
        """Ends the turn as soon as possible, with a proper end for its client. Does nothing once the save has begun."""
        if self._stoppable_task is not None and self._stop_reason is None:
            self._stop_reason = reason
            self._stoppable_task.cancel()

    async def _run_rounds(self) -> None:
        """Runs rounds until the machine does not call the model again, or `stop` ends the turn."""
        self._stoppable_task = asyncio.current_task()
        try:
            if self.run_terms.stop_reason is not None:
                await self._feed(events.Stopped(self.run_terms.stop_reason))
            elif self.run_terms.resumed_calls is not None:
                await self._feed(self.run_terms.resumed_calls)
            else:
                self._next_call = self._turn.first_call
            while self._next_call is not None:
                self._requests.model_call, self._next_call = self._next_call, None
                await self._run_round()
        except asyncio.CancelledError:
            if self._stop_reason is None or self._stoppable_task is None or self._stoppable_task.uncancel():
                raise
            self._stoppable_task = None
            await self._perform_saves()
            await self._wait_step()
            await self._feed(events.Stopped(self._stop_reason))
        finally:
            self._stoppable_task = None

    async def _perform_saves(self) -> None:
        """Performs the saves among the commands that a cancellation has cut off."""
        cut_commands, self._unperformed_commands = self._unperformed_commands, ()
        for n, command in enumerate(cut_commands):
            match command:
                case commands.SaveStep() if self._saving is not None:
                    self.services.pending.add(self._begin_step(self._saving, command), "A step of a run")
                case commands.Save():
                    await self._perform_all([*cut_commands[n:]])
                    return

    # -- a round of the model

    async def _run_round(self) -> None:
        """Calls the model, and feeds the machine its reply or the error."""
        try:
            if self.run_terms.admit is not None:
                await self.run_terms.admit()
            sending = self._send()
            if self.sink.has_started:
                sending = self._with_comments(sending)
            reply = await sending
            headers = choose_forwarded_headers(reply.headers)
            self._turn.feed(events.ReplyStarted(reply.status, headers))
            self._usage = self._turn.usage
            if reply.is_stream:
                await self._read_stream(reply)
            else:
                body = await reply.read(MAX_REPLY_BYTES)
                self.call.receipt.clock.note_answer()
                self.attempts.call.note_piece(body)
                if reply.status >= 400:
                    body = self._requests.with_client_indexes(body)
                await self._feed(events.ReceivedWhole(body))
        except ProviderError as error:
            unfinished_event = error.rest if isinstance(error, UnfinishedEvent) else b""
            await self._feed(events.ReplyFailed(translate_provider_error(error), unfinished_event))
            drop_tracebacks(error)
        except CallerError as error:
            if self._reply is not None:
                raise
            # A limit is reached, or the hidden rounds do not fit a window.
            await self._feed(events.ReplyFailed(error))
        finally:
            self._note_usage()
        await self._close_reply()

    def _note_usage(self) -> None:
        """Notes in the receipt the usage of a reply that has ended, as far as it came."""
        usage, self._usage = self._usage, None
        if usage is not None:
            call = self.attempts.call
            call.end()
            call.note_usage(usage, None if self._reply is None else self._reply.prompt_usage)

    async def _read_stream(self, reply: ModelReply) -> None:
        """Reads a stream until it ends, or the turn needs no more of it. Raises: ProviderError."""
        is_bounded = self.memory is not None and self.machine is None
        async with keep_alive(reply.events(), self._keep_alive_s) as batches:
            async for batch in batches:
                if batch is KEEP_ALIVE:
                    await self._feed(events.Silence())
                    continue
                self.attempts.call.note_piece(batch)
                if is_bounded:
                    for event in batch:
                        self._reservation.reserve_more(len(event.raw))
                texts = self._turn.feed_texts(batch)
                if texts is None:
                    await self._feed(events.Received(batch))
                    if self._is_finished or self._next_call is not None:
                        return
                    if batch[-1].data is None and self._has_waited_long:
                        await self._feed(events.LongWait())
                elif texts:
                    await self.sink.write(texts)
            await self._feed(events.ReplyEnded())

    async def _send(self) -> ModelReply:
        # The field is set here, so that the reply is closed even if the waiting task is cancelled at this moment.
        self._reply = await self.attempts.send(self._requests.make, self._requests)
        return self._reply

    @property
    def _sends_at_once(self) -> bool:
        """True: each write reaches the client before the turn has ended."""
        return not isinstance(self.sink, HeldSink | UnseenSink)

    @property
    def _has_waited_long(self) -> bool:
        """True: the client has nothing yet, and has waited for longer than signs of life are held back."""
        has_nothing = self._sends_at_once and not self.sink.has_started
        return has_nothing and self.call.receipt.clock.measure_ms() >= first_event.HELD_S * 1000

    @property
    def _keep_alive_s(self) -> float:
        """The silence after which the client gets a comment; 0: the client gets no comments."""
        return self.services.limits.keep_alive_s if self._sends_at_once else 0.0

    def _with_comments(self, work: Coroutine[Any, Any, _ResultT]) -> Coroutine[Any, Any, _ResultT]:
        """Returns work during which the client gets comments, where the settings ask for them."""
        silent_s = self._keep_alive_s
        return (
            await_with_keep_alives(work, silent_s, lambda: self._feed(events.Silence())) if silent_s else work
        )

    def _feed(self, event: TurnEvent) -> Awaitable[None]:
        """Feeds the machine an event, and performs the commands that follow."""
        return self._perform_all(self._turn.feed(event))

    async def _perform_all(self, due_commands: list[Command]) -> None:
        """Performs commands in their order, and then the commands that follow from them."""
        while due_commands:
            next_commands: list[Command] = []
            tool_calls: list[commands.RunTool] = []
            for n, command in enumerate(due_commands):
                try:
                    # The most frequent commands come first.
                    match command:
                        case commands.SendBody(data):
                            await self.sink.write(data)
                        case commands.SendWhole():
                            self._whole_reply = command
                        case commands.Save(outcome):
                            next_commands += await self._save_turn(outcome)
                        case commands.Finish():
                            await self._finish_reply()
                        case commands.SendHead(status, headers):
                            self._start_reply(status, headers)
                        case commands.RunTool():
                            # The calls of a round are run together.
                            tool_calls.append(command)
                        case commands.CallModel():
                            self._next_call = command
                        case commands.NoteReply(number, reply) if self.call.record is not None:
                            self.call.record.journal.note_reply(number, reply)
                        case commands.SaveStep():
                            next_commands += await self._save_step(command)
                        case commands.SendError(error):
                            self._error = error
                        case commands.CloseUpstream(error):
                            await self._close_upstream(error)
                except (ClientGone, asyncio.CancelledError):
                    self._unperformed_commands = due_commands[n + 1 :]
                    raise
            if tool_calls:
                next_commands += await self._run_tools(tool_calls)
            due_commands = next_commands

    async def _run_tools(self, calls: Sequence[commands.RunTool]) -> list[Command]:
        """Runs the calls of a round and feeds the machine their results, in the order of the calls."""
        # Without memory no tool runs in the gateway.
        assert self.memory is not None
        answers: dict[int, ToolAnswer] = {}
        try:
            await self._await_tools(run_tools(self.memory.toolbox, calls, answers, self.call.receipt))
            await self.memory.note_changes(self._requests.prompt, answers)
        except (ClientGone, asyncio.CancelledError):
            # Some answers may have come before the other calls were cut off.
            self._unperformed_commands = self._feed_answers(calls, answers)
            raise
        return self._feed_answers(calls, answers)

    def _feed_answers(
        self, calls: Sequence[commands.RunTool], answers: Mapping[int, ToolAnswer]
    ) -> list[Command]:
        """Feeds the machine the answers that have come, in the order of the calls.

        answers: the answers by the index of their call.
        """
        next_commands: list[Command] = []
        for n in sorted(answers):
            next_commands += self._turn.feed(events.ToolFinished(answers[n].as_result(calls[n].call_id)))
        return next_commands

    async def _await_tools(self, tool_run: Coroutine[Any, Any, None]) -> None:
        """Waits for tools. If they take long, the client gets a filler meanwhile."""
        filler = self.terms.filler
        if filler is None or not self._sends_at_once:
            await self._with_comments(tool_run)
            return
        task = asyncio.ensure_future(self._with_comments(tool_run))
        try:
            await asyncio.wait([task], timeout=filler.after_ms / 1000)
            if not task.done():
                await self._feed(events.ToolsLate())
            await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    # -- the client

    def _start_reply(self, status: int, headers: Sequence[Header]) -> None:
        self.status = status
        self.call.receipt.clock.note_answer()
        self.sink.start(status, self.call.receipt.note_reply_head(headers))

    async def _finish_reply(self) -> None:
        """Ends the reply for the client. The rest of the upstream's body is read afterwards."""
        self._is_finished = True
        if self._error is not None:
            return
        whole_reply = self._whole_reply
        if whole_reply is not None:
            # Such a reply was read to its end.
            self.status = whole_reply.status
            headers = self.call.receipt.note_reply_head(whole_reply.headers)
            await self.sink.send_body(whole_reply.status, headers, whole_reply.body)
            return
        await self.sink.end()
        if self._reply is not None:
            # The client has everything, so its request is over, and counts towards no limit.
            self.services.pending.add(_drain_reply(self._reply), "The rest of a reply")
            self._reply = None

    async def _end_without_client(self) -> None:
        """Ends a turn after its client has left or a shutdown has begun: nothing more is sent or waited for."""
        if self.run_terms.is_resumable:
            await self._wait_step()
            return
        # The machine expects all commands to be performed. Here only those that save or close are.
        for command in (*self._unperformed_commands, *self._turn.feed(events.ClientLeft())):
            match command:
                case commands.SaveStep() if self._saving is not None:
                    self.services.pending.add(self._begin_step(self._saving, command), "A step of a run")
                case commands.Save(outcome) if self._saving is not None:
                    self._saving.write_unwaited(
                        self._requests.prompt, self._as_stored(outcome), "A cancelled turn"
                    )
                case commands.CloseUpstream(error):
                    await self._close_upstream(error)

    async def _close_upstream(self, error: GatewayError | None) -> None:
        if isinstance(error, UpstreamError):
            self.attempts.note_broken(error)
        await self._close_reply()

    async def _close_reply(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            await reply.aclose()

    def _report_prompt_tokens(self, outcome: TurnOutcome) -> None:
        """Reports the upstream's count of the prompt's tokens, which corrects the gateway's."""
        window = self._requests.prompt.window
        if window.tokens and outcome.usage and outcome.round_count == 1:
            upstream_tokens = outcome.usage.get("prompt_tokens")
            if isinstance(upstream_tokens, int):
                self.attempts.note_prompt_tokens(window.tokens, upstream_tokens, window.max_tokens)

    # -- the store

    async def _save_step(self, step: commands.SaveStep) -> list[Command]:
        """Commits a step. The commit goes on if the client leaves meanwhile."""
        # Only runs of agents, which are stored, have steps.
        assert self._saving is not None
        started_at = time.perf_counter()
        step_write = self._begin_step(self._saving, step)
        try:
            saved_step = await asyncio.shield(step_write)
            self._requests.set_prompt(saved_step.prompt)
            self.call.receipt.note_write(started_at)
        except asyncio.CancelledError:
            self.services.pending.add(step_write, "A step of a run")
            raise
        except StoreError as error:
            if self.run_terms.is_resumable:
                raise
            _log.warning(
                "A step of a run could not be stored, so the run ends with an error: %s", error.message
            )
            loss = explain_loss(error)
            client_error = MemoryUnavailable.for_status(error.status) if loss is None else Conflict(loss)
            return self._turn.feed(events.StepFailed(client_error))
        except CallerError as error:
            return self._turn.feed(events.StepFailed(error))
        return self._turn.feed(saved_step.event)

    def _begin_step(self, saving: TurnSaving, step: commands.SaveStep) -> asyncio.Future[SavedStep]:
        return saving.begin_step(self._requests.prompt, self._requests.refused_parts.annotate_step(step))

    async def _wait_step(self) -> None:
        if self._saving is not None:
            await self._saving.wait_step()

    def _as_stored(self, outcome: TurnOutcome) -> TurnOutcome:
        """Returns an outcome in the form in which it is stored."""
        return self._turn.with_stored_fields(self._requests.refused_parts.annotate_outcome(outcome))

    async def _save_turn(self, outcome: TurnOutcome) -> list[Command]:
        """Saves the turn. From now on `stop` does nothing."""
        # A stream that the client gets as one body ends here.
        self.call.receipt.clock.note_answer()
        self._stoppable_task = None
        self._report_prompt_tokens(outcome)
        saved_event = SAVED_EVENT
        if self._saving is not None:
            saved_event = await self._saving.save(self._requests.prompt, self._as_stored(outcome))
            if outcome.is_refused and self.call.when_refused is not None:
                await self.call.when_refused()
            self._error = self._saving.error or self._error
        next_commands = self._turn.feed(saved_event)
        # In place of a reply that could not be saved, `run` raises an error.
        return next_commands if self._error is None else [commands.Finish()]


async def _drain_reply(reply: ModelReply) -> None:
    """Reads a reply to its end and closes it. Then its connection can be used again."""
    try:
        async with asyncio.timeout(LAST_BYTES_S):
            async for _ in reply.chunks():
                pass
    except (ProviderError, TimeoutError, RuntimeError):
        # The connection is closed instead.
        pass
    finally:
        await reply.aclose()
