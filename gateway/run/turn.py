"""The loop of a turn: it feeds the machine what happens, and performs what the machine commands.

The machine (gateway.core.turn.machine) decides. This module reaches the upstream, the client, the memory tools and
the store. When the client leaves, everything that the turn waits for is cancelled, and what there is of the turn is
still written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec.structs import replace

from adapters.base import MAX_REPLY_BYTES, SMALL_STREAM_BYTES, HeldReply, ModelReply
from adapters.errors import ProviderError, ProviderTooLarge, UnfinishedEvent
from adapters.types import Event, Header, ModelRequest
from gateway.core.prompt.note import render_note
from gateway.core.tags import mark_of
from gateway.core.turn import commands, events
from gateway.core.turn.calls import ResumedCalls
from gateway.core.turn.commands import Command, TurnOutcome
from gateway.core.turn.events import TurnEvent
from gateway.core.turn.guide import FreeGuide, Guide, StopReason
from gateway.core.turn.machine import Turn
from gateway.core.turn.terms import TurnTerms
from gateway.core.upstream.policy import Target
from gateway.core.usage.reported import ReplyUsage
from gateway.errors import GatewayError, LimitReached
from gateway.run.call import ChatCall, endpoint_form_for
from gateway.run.memory.fit import fit, fit_rounds
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext, blocks_on_path
from gateway.run.memory.prompt import EndpointForm, Prompt
from gateway.run.memory.record import BlockEdits
from gateway.run.receipt import Receipt
from gateway.run.sink import ClientGone, HeldSink, Sink, UnseenSink
from gateway.run.tools.toolbox import ToolAnswer, Toolbox, run_tools
from gateway.run.turn_saving import SAVED, TurnMemory, TurnSaving, TurnServices
from gateway.run.upstream.failover import Endpoint, ModelSource
from gateway.run.upstream.keepalive import BEAT, await_with_beats, beating
from gateway.run.upstream.provider_errors import translate
from gateway.run.upstream.relay import handed_on
from storage.errors import StoreError

_log = logging.getLogger("mnemogate")
# The time that an upstream has to end its body after [DONE], so that its connection can be used again.
LAST_BYTES_S = 0.25


@dataclass(slots=True)
class TreeMemory:
    """Memory's part of a turn that is written as one exchange of a tree. Implements TurnMemory."""

    keeper: MemoryKeeper
    context: MemoryContext
    # The edits of its tools.
    changes: BlockEdits
    toolbox: Toolbox
    receipt: Receipt

    async def aim(self, prompt: Prompt, target: Target, form: EndpointForm) -> Prompt:
        self.context = self.context.answered_by(target)
        return await self.keeper.composer.remake(self.context, prompt, target, form)

    async def note_changes(self, prompt: Prompt, answers: dict[int, ToolAnswer]) -> None:
        context, changes, keeper = self.context, self.changes, self.keeper
        try:
            snapshot = (
                await keeper.store.turns.snapshot(context.agent, None, None) if context.agent.id else None
            )
        except StoreError as error:
            _log.warning(
                "Memory blocks could not be read again within a reply, which may go on with older values: %s",
                error.message,
            )
            snapshot = None
        if snapshot is not None and (snapshot.blocks, snapshot.ops) != (
            context.snapshot.blocks,
            context.snapshot.ops,
        ):
            # Others have written meanwhile: these edits will be merged into what is there now.
            self.context = context = replace(
                context, snapshot=replace(context.snapshot, blocks=snapshot.blocks, ops=snapshot.ops)
            )
            changes.reapply(blocks_on_path(context.request, snapshot, context.path))
        texts, shown = changes.describe_changes(answers[n].shown for n in sorted(answers))
        if texts:
            mark = mark_of(context.agent.secret)
            note = render_note((), texts, keeper.now(), mark=mark, names_mark=not prompt.names(mark)).rstrip()
            last = max(answers)
            answers[last] = replace(answers[last], changes=note, shown=shown)

    async def save_step(self, prompt: Prompt, step: commands.SaveStep) -> tuple[events.StepSaved, Prompt]:
        raise AssertionError("an exchange of a tree is written as a whole")

    def write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        return self.keeper.write(self.context, prompt, self.changes, outcome, self.receipt)


class TurnMachine(Protocol):
    """The machine of a turn, without IO: `Turn`, or `NativeTurn` for a request in its own dialect."""

    @property
    def first_call(self) -> commands.CallModel:
        """The call of the model that the shell makes by itself."""

    @property
    def usage(self) -> ReplyUsage:
        """The usage of the reply that is read, which fills as it comes in."""

    def feed(self, event: TurnEvent) -> list[Command]:
        """Returns the commands that follow from an event, in order; none from one that comes too late."""

    def take_texts(self, read: list[Event]) -> bytes | None:
        """Takes events that add text and do nothing else. Returns the client's bytes; None: they have to be fed."""

    def stored(self, outcome: TurnOutcome) -> TurnOutcome:
        """Returns an outcome as it is written."""


@dataclass(slots=True)
class TurnRun:
    """One turn. It owns what memory knows, what goes upstream and what will be written, until the turn is over."""

    call: ChatCall
    attempts: ModelSource
    # The prompt for the target that is asked.
    prompt: Prompt
    # None where nothing is remembered of the turn.
    memory: TurnMemory | None
    services: TurnServices
    # None: a turn without rules.
    guide: Guide | None = None
    terms: TurnTerms = field(default_factory=TurnTerms)
    # Calls of a stored step, with which the turn begins instead of a call of the model.
    resumed: ResumedCalls | None = None
    # The reason for which the turn ends before the model is asked; None: it is asked.
    ends: StopReason | None = None
    # Lets each call of the model begin, where limits hold for it. Raises: LimitReached.
    admit: Callable[[], Awaitable[None]] | None = None
    # In place of a `Turn` of these terms. It bounds by itself what is remembered of a stream.
    machine: TurnMachine | None = None
    # It is resumed after an interruption: a shutdown, a store that fails or a forgetting leaves it as it is on disk.
    is_taken_up: bool = False
    status: int = 0
    sink: Sink = field(init=False)
    _turn: TurnMachine = field(init=False)
    _reply: ModelReply | None = None
    _usage: ReplyUsage | None = None  # of the reply that is being read
    _endpoint: Endpoint | None = None  # the one that the prompt is for
    _next: commands.CallModel | None = None  # the round that follows
    _asked: commands.CallModel = field(init=False)  # the round that is under way
    _task: asyncio.Task[Any] | None = None
    _saving: TurnSaving | None = field(init=False)  # None where nothing is remembered
    _stop: StopReason | None = None
    _whole: commands.SendWhole | None = None
    _refusal: GatewayError | None = None
    _finished: bool = False
    _streamed_bytes: int = 0  # of all rounds, where they are remembered
    _held: HeldReply = field(default_factory=lambda: HeldReply(SMALL_STREAM_BYTES))
    _undone: Sequence[Command] = ()  # commands that were not performed because the client left

    def __post_init__(self) -> None:
        self.sink = self.call.sink
        self._turn = self.machine or Turn(
            self.terms, self.call.view(self.terms), self.guide or FreeGuide(self.services.limits.max_rounds)
        )
        self._asked = self._turn.first_call
        self._saving = None
        if self.memory is not None:
            saves_steps, is_taken_up = self.terms.saves_steps, self.is_taken_up
            self._saving = TurnSaving(self.call, self.memory, self.services, saves_steps, is_taken_up)

    async def run(self) -> int:
        """Answers the client. Returns the status sent. Raises: GatewayError while nothing was sent; ClientGone."""
        context = self.memory.context if self.memory is not None else None
        with self._saving or nullcontext():
            try:
                self._endpoint = self.attempts.endpoint
                self.call.fill_receipt(self.prompt.form, self.prompt, context)
                with self.sink.while_here():
                    await self._rounds()
            except (ClientGone, asyncio.CancelledError):
                await self._end_without_client()
                raise
            finally:
                self._held.release()
                if self._reply is not None:
                    await self._close()
        if self._refusal is not None:
            raise self._refusal
        return self.status

    def stop(self, reason: StopReason = StopReason.CANCELLED) -> None:
        """Ends the turn as soon as may be, with a proper end for its client; nothing, if it is at its end anyway."""
        if self._task is not None and self._stop is None:
            self._stop = reason
            self._task.cancel()

    async def _rounds(self) -> None:
        """Runs the rounds of the turn, until the machine calls the model no more or `stop` ends it."""
        self._task = asyncio.current_task()
        try:
            if self.ends is not None:
                await self._feed(events.Stopped(self.ends))
            elif self.resumed is None:
                self._next = self._asked
            else:
                await self._feed(self.resumed)
            while self._next is not None:
                self._asked, self._next = self._next, None
                await self._round()
        except asyncio.CancelledError:
            if self._stop is None or self._task is None or self._task.uncancel():
                raise
            self._task = None
            await self._perform_undone()
            await self._finish_saving_step()
            await self._feed(events.Stopped(self._stop))
        finally:
            self._task = None

    async def _perform_undone(self) -> None:
        """Performs the saving commands that a cancellation has cut off: the machine counts them as performed."""
        undone, self._undone = self._undone, ()
        for n, command in enumerate(undone):
            match command:
                case commands.SaveStep() if self._saving is not None:
                    self.services.pending.add(
                        self._saving.begin_step(self.prompt, command), "A step of a run"
                    )
                case commands.Save():
                    await self._perform_all([*undone[n:]])
                    return

    # -- what is asked

    async def _request_for(self, target: Target, endpoint: Endpoint) -> ModelRequest:
        """Returns the round's request for this target, with a prompt of its own if another one was expected."""
        if target != self.prompt.target or endpoint is not self._endpoint:
            await self._aim(target, endpoint)
        else:
            self.call.receipt.upstream_called()
        asked = self._asked
        prompt = self.prompt
        if asked.messages:
            prompt = await fit_rounds(prompt, asked.messages)
            self.call.receipt.prompt_tokens = 0  # these messages are not counted
        self.call.receipt.hides_usage = prompt.adds_usage and not self.call.request.wants_usage
        return self.call.request_of(
            target, endpoint, prompt, asked.messages, asked.budget_tokens, asked.offer
        )

    async def _aim(self, target: Target, endpoint: Endpoint) -> None:
        """Makes the prompt for another target."""
        form, context = endpoint_form_for(self.call.request, endpoint, target.model), None
        if self.memory is not None:
            self.prompt = await self.memory.aim(self.prompt, target, form)
            context = self.memory.context
        else:
            prompt = replace(self.prompt, target=target, form=form)
            self.prompt = replace(prompt, window=await fit(prompt))
        self._endpoint = endpoint
        self.call.fill_receipt(form, self.prompt, context)

    # -- a round of the model

    async def _round(self) -> None:
        """Calls the model, and feeds the machine its reply or the error."""
        beat_s = self.services.limits.beat_s
        if self.admit is not None:
            try:
                await self.admit()
            except LimitReached as error:
                await self._feed(events.ReplyFailed(error))
                return
        try:
            sending = self._send()
            if beat_s and self.sink.started:
                sending = await_with_beats(sending, beat_s, self._beat)
            reply = await sending
            headers = handed_on(reply.headers)
            self._turn.feed(events.ReplyStarted(reply.status, headers))
            self._usage = self._turn.usage
            if reply.is_stream:
                await self._take_stream(reply)
            else:
                whole = await reply.read(MAX_REPLY_BYTES)
                self.attempts.call.received(whole)
                await self._feed(events.ReceivedWhole(whole))
        except ProviderError as error:
            failure = translate(error)
            if self.sink.started and self.attempts.is_answered:
                self.attempts.broke(failure)  # an error that is raised is counted where it is caught
            rest = error.rest if isinstance(error, UnfinishedEvent) else b""
            await self._feed(events.ReplyFailed(failure, rest))
        finally:
            self._note_usage()
        await self._close()

    def _note_usage(self) -> None:
        """Notes in the account what the reply that has ended used, as far as it came."""
        usage, self._usage = self._usage, None
        if usage is not None:
            call = self.attempts.call
            call.end()
            call.counts = usage.counts
            if call.counts is None:
                call.received_chars = usage.chars

    async def _take_stream(self, reply: ModelReply) -> None:
        """Takes a stream until it ends, or the turn needs no more of it. Raises: ProviderError."""
        is_bounded = self.memory is not None and self.machine is None
        most = self.services.limits.streamed_bytes
        async with beating(reply.events(), self.services.limits.beat_s) as batches:
            async for batch in batches:
                if batch is BEAT:
                    await self._beat()
                    continue
                self.attempts.call.received(batch)
                if is_bounded:
                    for event in batch:
                        self._streamed_bytes += len(event.raw)
                    if self._streamed_bytes > most:
                        raise ProviderTooLarge(f"the reply is larger than {most} bytes")
                    self._held.hold(self._streamed_bytes)
                texts = self._turn.take_texts(batch)
                if texts is None:
                    await self._feed(events.Received(batch))
                    if self._finished or self._next is not None:
                        return
                elif texts:
                    await self.sink.write(texts)
            await self._feed(events.ReplyEnded())

    async def _send(self) -> ModelReply:
        # The reply has to be closed here from now on: the waiting task may be cancelled in the same moment.
        self._reply = await self.attempts.send(self._request_for)
        return self._reply

    async def _beat(self) -> None:
        """Sends a comment, unless that would commit us to a status that a later round may take back."""
        if not self.sink.started:
            if self._reply is None or self.terms.gateway_tools:
                return
            self._start(self._reply.status, handed_on(self._reply.headers))
        await self.sink.write(BEAT)

    def _feed(self, fact: TurnEvent) -> Awaitable[None]:
        return self._perform_all(self._turn.feed(fact))

    async def _perform_all(self, due: list[Command]) -> None:
        """Performs commands in order, and then those that follow from them."""
        while due:
            later: list[Command] = []
            calls: list[commands.RunTool] = []
            for n, command in enumerate(due):
                try:
                    match command:  # the most frequent first
                        case commands.SendBody(data):
                            await self.sink.write(data)
                        case commands.SendWhole():
                            self.call.receipt.upstream_answered()
                            self._whole = command
                        case commands.Save(outcome):
                            self.call.receipt.upstream_answered()  # to its end, for who gets the turn whole
                            self._task = None  # it is too late to be stopped
                            self._correct_count(outcome)
                            follow = self._turn.feed(await self._save(outcome))
                            # An error is raised in place of a reply that could not be saved.
                            later += follow if self._refusal is None else [commands.Finish()]
                        case commands.Finish():
                            await self._finish()
                        case commands.SendHead(status, headers):
                            self._start(status, headers)
                        case commands.RunTool():
                            calls.append(command)  # the calls of a round are run together
                        case commands.CallModel():
                            self._next = command
                        case commands.SaveStep():
                            later += await self._save_step(command)
                        case commands.Refuse(error):
                            self._refusal = error
                        case commands.CloseUpstream():
                            await self._close()
                except (ClientGone, asyncio.CancelledError):
                    self._undone = due[n + 1 :]
                    raise
            if calls:
                later += await self._run_tools(calls)
            due = later

    async def _run_tools(self, calls: Sequence[commands.RunTool]) -> list[Command]:
        """Runs the calls of a round and feeds the machine their results, in the order of the calls."""
        assert self.memory is not None
        made: dict[int, ToolAnswer] = {}
        try:
            await self._await_tools(run_tools(self.memory.toolbox, calls, made, self.call.receipt))
            await self.memory.note_changes(self.prompt, made)
        except (ClientGone, asyncio.CancelledError):
            # What has been done is known, though the others were cut off.
            self._undone = self._finished_tools(calls, made)
            raise
        return self._finished_tools(calls, made)

    def _finished_tools(
        self, calls: Sequence[commands.RunTool], made: Mapping[int, ToolAnswer]
    ) -> list[Command]:
        """Feeds the machine the results that were made, in the order of the calls."""
        due: list[Command] = []
        for n in sorted(made):
            due += self._turn.feed(made[n].event(calls[n].call_id))
        return due

    async def _await_tools(self, running: Coroutine[Any, Any, list[ToolAnswer]]) -> list[ToolAnswer]:
        """Waits for tools. Where they take long, the client gets a filler meanwhile."""
        filler = self.terms.filler
        if filler is None or isinstance(self.sink, HeldSink | UnseenSink):
            return await running
        task = asyncio.ensure_future(running)
        try:
            await asyncio.wait([task], timeout=filler.after_ms / 1000)
            if not task.done():
                await self._feed(events.ToolsLate())
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    # -- the client

    def _start(self, status: int, headers: Sequence[Header]) -> None:
        if self.sink.started:  # a keep-alive comment has sent the head already
            return
        self.status = status
        self.call.receipt.upstream_answered()
        self.sink.start(status, self.call.receipt.reply_headers(headers))

    async def _finish(self) -> None:
        self._finished = True
        if self._refusal is not None:
            return
        whole = self._whole
        if whole is not None:
            self.status = whole.status
            await self.sink.whole(whole.status, self.call.receipt.reply_headers(whole.headers), whole.body)
            return  # the reply was read to its end
        await self.sink.end()
        if self._reply is not None:
            await _read_out(self._reply)

    async def _end_without_client(self) -> None:
        """Ends a turn whose client is gone, or that a shutdown stops: nothing more is sent or waited for."""
        if self.is_taken_up:
            await self._finish_saving_step()
            return
        # The machine counts a command as performed, so what could no longer be sent is dropped, and the rest is done.
        for command in (*self._undone, *self._turn.feed(events.ClientLeft())):
            match command:
                case commands.SaveStep() if self._saving is not None:
                    self.services.pending.add(
                        self._saving.begin_step(self.prompt, command), "A step of a run"
                    )
                case commands.Save(outcome) if self._saving is not None:
                    outcome = self._turn.stored(outcome)
                    self._saving.write_unwaited(self.prompt, outcome, "A cancelled turn")
                case commands.CloseUpstream():
                    await self._close()

    async def _close(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            await reply.aclose()

    def _correct_count(self, outcome: TurnOutcome) -> None:
        """Compares the upstream's count of the prompt with the gateway's, which it corrects."""
        window = self.prompt.window
        if window.tokens and outcome.usage and outcome.rounds == 1:
            counted = outcome.usage.get("prompt_tokens")
            if isinstance(counted, int):
                self.attempts.counted(window.tokens, counted, window.most)

    # -- the store

    async def _save_step(self, step: commands.SaveStep) -> list[Command]:
        """Has a step committed. It is not given up: a client that leaves meanwhile finds it stored."""
        assert self._saving is not None
        saving, begun = self._saving.begin_step(self.prompt, step), time.perf_counter()
        try:
            saved, self.prompt = await asyncio.shield(saving)
            self.call.receipt.wrote(begun)
        except asyncio.CancelledError:
            self.services.pending.add(saving, "A step of a run")
            raise
        except StoreError as error:
            if self.is_taken_up:
                raise
            _log.warning(
                "A step of a run could not be stored, so the run ends with an error: %s", error.message
            )
            return self._turn.feed(events.Stopped(StopReason.ERROR))
        return self._turn.feed(saved)

    async def _finish_saving_step(self) -> None:
        if self._saving is not None:
            await self._saving.step_saved()

    async def _save(self, outcome: TurnOutcome) -> events.Saved:
        if self._saving is None:
            return SAVED
        saved = await self._saving.save(self.prompt, self._turn.stored(outcome))
        self._refusal = self._saving.refusal or self._refusal
        return saved


async def _read_out(reply: ModelReply) -> None:
    """Reads a reply to its end after the client has everything, so that its connection can be used again."""
    try:
        async with asyncio.timeout(LAST_BYTES_S):
            async for _ in reply.chunks():
                pass
    except (ProviderError, TimeoutError, RuntimeError):
        pass  # the connection is closed instead
