"""Memory's part of a run: each step is written as it ends, and the next step is planned on the stored steps.

The blocks are read again before the tools of a step run, and their edits are written with the results.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.runs.run import make_reading_command
from gateway.agents.runs.step_edits import StepEdits
from gateway.agents.runs.step_result import UPSTREAM_FAULTS, StepResult, choose_end, number_results
from gateway.agents.runs.stored_conversation import make_step_open, plan_next, reread_context, with_ended_step
from gateway.core.conversation.canonical import MessageHasher, is_user
from gateway.core.conversation.private import NUDGE_SENDER, make_framed_system_message
from gateway.core.conversation.stored_path import finish_step, hash_exchanges, mark_refused, supersede_refused
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, ShownBlocks
from gateway.core.tags import make_mark
from gateway.core.turn import commands, events
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.tool_result import ToolResult
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.core.usage.reported import find_reported_counts
from gateway.errors import CallerError
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.section_blocks import sort_in_prompt_order
from gateway.run.memory.turn_write import make_recall_row_maker
from gateway.run.receipt import Receipt
from gateway.run.tools.toolbox import ToolAnswer, Toolbox
from gateway.run.turn_saving import SavedStep
from storage.commands import CommittedTurn, MemoryReader
from storage.errors import NotFound, RunEnded, StaleWrite, StoreError, StoreTimeout, WriteConflict
from storage.job_records import Job
from storage.records import Block, Conversation, Exchange
from storage.run_commands import ReadSpan, RunAccept, RunEnd, StepEnd, StepOpen, StepOpened
from storage.run_records import Run, RunState, RunStep, TokenCounts

T = TypeVar("T")

# How often edits are applied again, or a send is planned again, because another writer was faster: another process, or
# one that writes for the first time. Not measured: a run fails only if as many writers in a row are faster.
CONFLICT_TRIES = 32

# Makes the tools of a step of a run. The last parameter is the row of the run that made the calls with which this run
# begins; 0: this run begins with a call of the model.
ToolboxFactory = Callable[[MemoryContext, BlockEdits, Run, int], Toolbox]


class RunLinks(Struct, frozen=True):
    """The records to which each write of a run refers: the replaced run, the memory that it reads, and its job."""

    # The row of an ended run of the same send, which this run replaces; None: this run replaces no run.
    replaced_run_row: int | None = None
    # The span of another memory that the run reads; None: the run reads no other memory.
    reading: ReadSpan | None = None
    # The job's attempt that performs the run; None: a client waits for the run.
    job: Job | None = None


@dataclass(slots=True)
class EndedSteps:
    """The steps of a run that have ended."""

    # Their exchanges, oldest first.
    exchanges: list[Exchange] = field(default_factory=list)
    # The tokens of the newest step.
    last_counts: TokenCounts = field(default_factory=TokenCounts)
    # The characters that the steps have added to the conversation.
    new_chars: int = 0

    def add(self, exchange: Exchange, messages: Iterable[WireMessage]) -> None:
        """Adds the exchange of a step. messages: the messages that the step brought."""
        self.exchanges.append(exchange)
        self.new_chars += sum(len(read_text(message)) for message in messages) + exchange.size


@dataclass(slots=True)
class RunMemory:
    """Memory's part of one run. Implements `TurnMemory`, which documents its methods."""

    # Reads, composes and writes memory.
    keeper: MemoryKeeper
    # The conversation before the current step.
    context: MemoryContext
    # The form of requests that the endpoint of the newest attempt takes.
    form: EndpointForm
    # The run. Its id is 0 until the run is stored, with its first step or earlier.
    run: Run
    # Makes the tools of each step.
    make_toolbox: ToolboxFactory
    # Ids of calls that the client has answered.
    client_call_ids: frozenset[str] = frozenset()
    # The row of the run that made the calls with which this run begins; 0: this run begins with a call of the model.
    calling_run_row: int = 0
    # The records to which each write of the run refers.
    links: RunLinks = field(default_factory=RunLinks)
    # Messages that came with answers to waiting calls. In the conversation they follow the results of these calls.
    after_results: Sequence[WireMessage] = ()
    # The receipt of the send; None: no record is written of the memory that the run recalls.
    receipt: Receipt | None = None
    # The uids of the runs that the end of this run has started.
    started_run_uids: list[str] = field(default_factory=list)
    # The steps of this attempt that have ended.
    steps: EndedSteps = field(default_factory=EndedSteps)
    # The exchange of the step under way; None: no step is open.
    open_exchange: Exchange | None = None
    # The tools of the current step.
    toolbox: Toolbox = field(init=False)
    # The edits of blocks by the tools of the current step.
    _edits: StepEdits = field(init=False)
    # The write of a step that took too long to open, and its result; None: no such step is awaited.
    _late_opening: tuple[StepOpen, Future[StepOpened]] | None = field(default=None, init=False)
    # The time when the open step began, in seconds since the epoch.
    _step_began_at: float = field(default=0.0, init=False)
    # The readers of the memory, as they were when the run began.
    _readers: Sequence[MemoryReader] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._readers = tuple(self.context.snapshot.readers)
        self._set_blocks(self.context.blocks, NOTHING_SHOWN)

    # -- the beginning

    async def make_prompt(self) -> Prompt:
        """Returns the prompt of the step under way. Raises: StoreError."""
        composer = self.keeper.composer
        prompt = await composer.make_prompt(self.context, self.form, self.toolbox.list_definitions())
        self._edits.block_edits.shown = prompt.section.shown_blocks
        return replace(prompt, needs_usage=True)

    async def open(self, prompt: Prompt, request: bytes | None) -> None:
        """Opens the first step, with the messages of the send.

        request: the request of a background run, to be stored without its messages; None: a client waits for the run.

        Raises: WriteConflict if the conversation has moved; StoreError.
        """
        now = self.keeper.now()
        write = make_step_open(self.context, prompt, self._make_started_run(), now)
        if self.links.replaced_run_row is not None and write.abandoned is None:
            write = replace(write, replaced=supersede_refused(self.context.path, write.exchange.inputs))
        await self._open(
            replace(write, replaces=self.links.replaced_run_row, request=request, reading=self.links.reading)
        )

    async def store_run(self, began_at: float | None) -> None:
        """Stores the run before its first step, so that it can be cancelled during the calls before that step.

        began_at: the time when the step of the replaced run began whose calls this run goes on with, in seconds since
            the epoch; None: this run replaces no run.

        Raises: RunEnded if another run has taken its send; StoreError.
        """
        runs, agent_row = self.keeper.store.runs, self.context.agent.id
        if not self.run.is_stored:
            conversation_row = self.context.path[-1].conversation_row
            draft = replace(self.run, agent_row=agent_row, conversation_row=conversation_row, begun=began_at)
            self.run = await runs.create(draft, replaces=self.links.replaced_run_row)
        elif began_at is not None:  # the run was accepted, so all but `began_at` is stored
            self.run = await runs.note_first_exchange(agent_row, self.run.id, began_at)

    async def resume_step(self, exchange: Exchange) -> None:
        """Continues with a step that an earlier attempt of this run has opened. exchange: the step's exchange."""
        conversation = self.context.snapshot.conversation
        assert conversation is not None  # the open step is stored in it
        opened = StepOpened(self.context.agent, exchange, conversation.rev, self.context.section, None)
        self._set_open_step(opened, self.keeper.now(), conversation.key)

    async def write_results(self, results: Sequence[ToolResult]) -> None:
        """Writes results of calls of a run that stopped, after its last step. Raises: StoreError."""
        self._edits.block_edits.shown = await self.keeper.composer.list_shown_blocks(self.context)
        await self._end_with_results(results, RunState.FAILED, StopReason.ERROR)

    async def give_up(self, prompt: Prompt) -> None:
        """Ends a run that took too long to open its first step, once the step is on disk."""
        try:
            await self._await_late_opening()
            if self.open_exchange is not None:
                await self._end_step(prompt, StepResult(stop=StopReason.ERROR, error=StopReason.ERROR))
        finally:
            self.context.request.ticket.leave()

    # -- the methods of `TurnMemory`

    async def retarget(self, prompt: Prompt, target: Target, form: EndpointForm) -> Prompt:
        context = self.context.with_expected_target(target)
        return await self.keeper.composer.retarget_prompt(context, prompt, target, form)

    def note_target(self, prompt: Prompt) -> None:
        self.context, self.form = self.context.with_expected_target(prompt.target), prompt.form

    async def note_changes(self, prompt: Prompt, answers: dict[int, ToolAnswer]) -> None:
        return

    async def save_step(self, prompt: Prompt, step: commands.SaveStep) -> SavedStep:
        if step.reply is not None:
            result = StepResult((step.reply,), step.shown_reply, step.usage, waiting=step.waiting)
            exchange = await self._end_step(prompt, result)
            # The tools and the notes of the next call need the blocks as they are now.
            self._set_blocks(await self._load_blocks(), self._edits.block_edits.shown)
            if not (step.results or step.nudge):
                return SavedStep(_make_saved_event(exchange), prompt)
        results = await self._reapply_if_overtaken(step.results)
        try:
            prompt = await self._begin_step(results, step.nudge)
        except CallerError as error:
            # The next prompt does not fit its window. What the tools have done is stored all the same.
            if results:
                await self._end_with_results(results, RunState.FAILED, StopReason.ERROR, error.message)
            raise
        assert self.open_exchange is not None  # by `_begin_step`
        return SavedStep(_make_saved_event(self.open_exchange, self.context.plan.messages), prompt)

    def write(self, prompt: Prompt, outcome: TurnOutcome) -> Coroutine[Any, Any, object]:
        # The next send of the conversation waits for this write. A run that may be continued stays in the queue.
        if not self.run.background:
            self.context.request.ticket.transfer()
        return self._write_and_notify(prompt, outcome)

    # -- a step ends

    async def _end_step(self, prompt: Prompt, result: StepResult) -> Exchange:
        """Writes the end of the open step. Returns its exchange. Raises: StoreError."""
        assert self.open_exchange is not None  # callers end a step only while it is open
        context = self.context
        now = self.keeper.now()
        exchange = self._make_exchange(self.open_exchange, prompt, result)
        if result.is_refused:
            exchange = mark_refused(exchange, context.path)
        counts = find_reported_counts(result.usage) or TokenCounts()
        step = RunStep(
            exchange_row=exchange.id, agent_row=context.agent.id, run_row=self.run.id,
            number=self.run.steps + 1, begun=self._step_began_at, ended=now, counts=counts, stop=result.stop,
            error=result.error, waiting=dict(result.waiting),
        )  # fmt: skip
        is_last = result.stop is not None and result.error is None
        accepts = self._list_due_readings(exchange, now) if is_last else ()
        recall = None
        if self.receipt is not None and not self.steps.exchanges:
            recall = make_recall_row_maker(
                prompt, TurnOutcome(End.FINISHED, usage=result.usage), self.receipt
            )
        results = number_results(exchange, result.results)
        write = StepEnd(
            context.agent, exchange, step, results, reading=self.links.reading, accepts=accepts,
            error_message=result.error_message, error_status=result.error_status, recall=recall, job=self.links.job,
        )  # fmt: skip
        self.started_run_uids += await asyncio.shield(self.keeper.store.stored_paths.finish(write))
        self.steps.last_counts = counts
        self.run = replace(self.run, steps=step.number, counts=self.run.counts.plus(counts))
        self.calling_run_row = self.run.id
        self._extend_path(exchange)
        return exchange

    def _list_due_readings(self, exchange: Exchange, now: float) -> list[RunAccept]:
        """Returns the runs of sleeptime agents that are due once this run ends, since they read its messages."""
        sleeptime, exchanges = self.context.request.spec.sleeptime, (*self.steps.exchanges, exchange)
        if sleeptime is None or not sleeptime.every:
            return []
        if not any(is_user(message) for step in exchanges for message in step.inputs):
            return []
        return [
            make_reading_command(reader.agent_row, self.context.agent.id, now)
            for reader in self._readers
            if not reader.is_busy and reader.turns + 1 >= sleeptime.every
        ]

    def _make_exchange(self, exchange: Exchange, prompt: Prompt, result: StepResult) -> Exchange:
        """Returns the exchange of a step with its reply."""
        context, hasher = self.context, MessageHasher(self.context.agent.secret)
        return finish_step(
            exchange,
            hasher,
            hash_exchanges(context.path, hasher),
            full_reply=result.full_reply,
            shown_reply=result.shown_reply,
            model=context.plan.query.model,
            evicted=prompt.window.evicted,
            now=self.keeper.now(),
        )

    def _extend_path(self, exchange: Exchange) -> None:
        """Adds an exchange that has ended to the path."""
        self.steps.add(exchange, self.context.plan.messages)
        self.open_exchange = None
        self.context = with_ended_step(self.context, exchange)

    async def _reapply_if_overtaken(self, results: Sequence[ToolResult]) -> Sequence[ToolResult]:
        """Applies the edits again if another writer has changed the blocks meanwhile.

        Returns the results of all calls, with the new results of the edits.
        """
        if self._edits.ran_alone(results) or self._edits.were_made_on(await self._load_blocks()):
            return results
        return await self._reapply_edits(results)

    async def _load_blocks(self) -> list[Block]:
        blocks = await self.keeper.store.blocks.load(self.context.agent.id)
        return sort_in_prompt_order(self.context.request.spec, blocks)

    def _set_blocks(self, blocks: Sequence[Block], shown: ShownBlocks) -> None:
        """Makes the tools of the current step anew. The parameters are as in `StepEdits`."""
        self._edits = StepEdits(blocks, shown, self.client_call_ids)
        self.toolbox = self.make_toolbox(
            self.context, self._edits.block_edits, self.run, self.calling_run_row
        )

    # -- the next step begins

    async def _begin_step(
        self, results: Sequence[ToolResult], nudge: str, end: RunEnd | None = None
    ) -> Prompt:
        """Writes the results and opens the next step. Returns its prompt. Raises: StoreError.

        end: the end of the run, if the run ends with this step; the step then has no reply. None: the run goes on.
        """
        return await self._write_with_edits(results, lambda current: self._try_open(current, nudge, end))

    async def _write_with_edits(
        self, results: Sequence[ToolResult], write: Callable[[Sequence[ToolResult]], Awaitable[T]]
    ) -> T:
        """Writes edits with their results. If another writer was faster, the edits are applied again.

        Raises: WriteConflict, StoreError.
        """
        with suppress(WriteConflict):
            return await write(results)
        async with self.keeper.editing:
            for _ in range(CONFLICT_TRIES):
                results = await self._reapply_edits(results)
                with suppress(WriteConflict):
                    return await write(results)
        raise WriteConflict("the blocks of this agent change too fast")

    async def _try_open(self, results: Sequence[ToolResult], nudge: str, end: RunEnd | None) -> Prompt:
        """Opens the next step with results. Returns its prompt.

        end: the end of the run, if the run ends with this step; None: the run goes on.

        Raises: CallerError if the prompt does not fit the window; StoreError.
        """
        context, block_edits = self.context, self._edits.block_edits
        shown_blocks = block_edits.shown
        try:
            self._plan_next(results, nudge, is_last=end is not None)
            prompt = await self.make_prompt()
            await self._open(self._make_next_open(prompt, end))
        except (CallerError, WriteConflict):
            # The results are written with another step.
            self.context, block_edits.shown = context, shown_blocks
            raise
        return prompt

    def _plan_next(self, results: Sequence[ToolResult], nudge: str, *, is_last: bool) -> None:
        """Plans the next step with results. is_last: True if the run ends with this step, which has no reply."""
        context, edits, now = self.context, self._edits, self.keeper.now()
        messages = edits.make_messages(results, make_mark(context.agent.secret), now)
        if nudge:
            messages.append(make_framed_system_message(nudge, sender=NUDGE_SENDER))
        messages += self.after_results
        if is_last:
            # No model gets this prompt, so messages may be evicted from it, even if the client forbids eviction.
            chat = replace(context.request.chat, may_evict=True)
            context = replace(context, request=replace(context.request, chat=chat))
        self.context = plan_next(context, messages, edits.block_edits.blocks, now)

    def _make_next_open(self, prompt: Prompt, end: RunEnd | None) -> StepOpen:
        """Returns the write that opens the planned step. end: as in `_try_open`."""
        edits = self._edits
        write = make_step_open(self.context, prompt, self._make_started_run(), self.context.request.now)
        write = replace(
            write,
            edits=edits.merge(self.context.path[-1].id),
            versions=edits.versions_read,
            reading=self.links.reading,
            replaces=self.links.replaced_run_row,
        )
        if end is None:
            return write
        return replace(write, exchange=self._make_exchange(write.exchange, prompt, StepResult()), end=end)

    async def _reapply_edits(self, results: Sequence[ToolResult]) -> list[ToolResult]:
        """Applies the edits of the step to the blocks as they are now.

        Returns the results of all calls, with the new results of the edits.
        """
        context = await reread_context(self.keeper.store, self.context)
        if context is None:
            raise WriteConflict("the conversation has gone on without this run")
        self.context = context
        earlier_edits = self._edits
        self._set_blocks(context.blocks, earlier_edits.block_edits.shown)
        return self._edits.reapply(earlier_edits, results)

    def _make_started_run(self) -> Run | None:
        """Returns the run in its state after the step that begins it; None if it has begun already."""
        if self.run.state is not RunState.CREATED:
            return None
        return replace(self.run, state=RunState.RUNNING, begun=self.context.request.now)

    async def _open(self, write: StepOpen) -> None:
        """Writes the next step, and waits until it is on disk. Raises: StoreError."""
        opening = self.keeper.store.stored_paths.open(replace(write, job=self.links.job))
        try:
            # No client waits for a run in the background, so it waits for the disk.
            async with asyncio.timeout(None if self.run.background else self.keeper.open_wait_s):
                opened = await asyncio.shield(opening)
        except TimeoutError:
            self._late_opening = write, opening
            raise StoreTimeout("the disk did not take the message in time") from None
        self._set_open_step(opened, write.now, write.key)

    async def _await_late_opening(self) -> None:
        """Waits for the step that took too long to open, so that it can be ended."""
        late_opening, self._late_opening = self._late_opening, None
        if late_opening is not None:
            write, opening = late_opening
            with suppress(StoreError):
                self._set_open_step(await asyncio.shield(opening), write.now, write.key)

    def _set_open_step(self, opened: StepOpened, opened_at: float, key: str | None) -> None:
        """Makes a stored open step the current step.

        opened_at: the time when the step was opened, in seconds since the epoch.
        key: the client's id of the conversation.
        """
        self.keeper.store.agents.cache(opened.agent)
        exchange, snapshot = opened.exchange, self.context.snapshot
        uid = self.context.conversation_uid
        conversation = Conversation(exchange.conversation_row, uid, key, opened.rev, exchange.id)
        snapshot = replace(snapshot, conversation=conversation, next_seq=exchange.next_seq)
        self.context = replace(
            self.context,
            agent=opened.agent,
            snapshot=snapshot,
            section=opened.section,
            abandoned_exchange=None,
            exchange_row=exchange.id,
        )
        self.open_exchange = exchange
        self._step_began_at = opened_at
        self.after_results = ()
        self.run = opened.run or self.run
        self._edits.block_edits.edits.clear()

    # -- the run ends

    async def _write_and_notify(self, prompt: Prompt, outcome: TurnOutcome) -> events.StepSaved | None:
        """Writes the end of the run, and notifies the background services. Returns what `_write_end` returns.

        Raises: StoreError.
        """
        try:
            after_results = await self._write_end(prompt, outcome)
        except (StaleWrite, RunEnded) as error:
            if self.run.background:
                raise
            # The step's reply may quote what was erased, so the step stays open, and the next send ends it. If the
            # whole memory was forgotten, the run is gone as well.
            loss = events.FORGOTTEN_LOSS if isinstance(error, StaleWrite) else events.TAKEN_OVER_LOSS
            with suppress(NotFound):
                await self._end_run(RunState.FAILED, StopReason.ERROR, loss)
            raise
        finally:
            if not self.run.background:
                self.context.request.ticket.leave()
        self._notify_services(prompt)
        return after_results

    async def _write_end(self, prompt: Prompt, outcome: TurnOutcome) -> events.StepSaved | None:
        """Writes the end of the run, and of a step that is open.

        Returns the event of the step that was added for the results of the last calls; None: no step was added.
        """
        state, stop = choose_end(prompt, outcome)
        await self._await_late_opening()
        is_transient = stop in UPSTREAM_FAULTS and not outcome.is_refused
        if self.links.reading is not None and state is RunState.FAILED and is_transient:
            # The step stays open, so that the next attempt goes on with it.
            return None
        error = (outcome.error_kind or str(stop)) if state is RunState.FAILED else None
        if self.open_exchange is None and outcome.results and not outcome.waiting:
            # No step is left, or the run was stopped: the next send shows the model the results of its tools.
            return await self._end_with_results(outcome.results, state, stop)
        if self.open_exchange is not None:
            await self._end_step(
                prompt, StepResult.of(outcome, stop, error, withholds_error=self.links.reading is not None)
            )
            self.run = replace(self.run, state=state, stop=stop, ended=self.keeper.now())
        elif outcome.waiting:
            await self._pause(stop, outcome)
        else:
            await self._end_run(state, stop)
        return None

    async def _end_with_results(
        self, results: Sequence[ToolResult], state: RunState, stop: StopReason, error_message: str = ""
    ) -> events.StepSaved:
        """Ends the run with a step that has the results of its tools, and no reply. Returns the event of that step."""
        end = self._make_run_end(state, stop, error_message)
        await self._begin_step(results, nudge="", end=end)
        assert self.open_exchange is not None  # by `_begin_step`
        after_results = _make_saved_event(self.open_exchange, self.context.plan.messages)
        self._extend_path(self.open_exchange)
        return after_results

    async def _pause(self, stop: StopReason, outcome: TurnOutcome) -> None:
        """Ends the run with calls that wait for an answer, after the gateway's tools have run."""

        async def end(results: Sequence[ToolResult]) -> Run:
            exchange = self.context.path[-1]
            write = RunEnd(
                self.context.agent.id, self.run.id, RunState.COMPLETED, stop, self.keeper.now(),
                exchange_row=exchange.id, epoch=self.context.agent.epoch, job=self.links.job,
                waiting=outcome.waiting, results=number_results(exchange, results),
                edits=self._edits.merge(exchange.id), versions=self._edits.versions_read,
            )  # fmt: skip
            return await asyncio.shield(self.keeper.store.stored_paths.end(write))

        self._note_end(await self._write_with_edits(outcome.results, end))

    async def _end_run(self, state: RunState, stop: StopReason, error_message: str = "") -> None:
        end = self._make_run_end(state, stop, error_message)
        self._note_end(await asyncio.shield(self.keeper.store.stored_paths.end(end)))

    def _make_run_end(self, state: RunState, stop: StopReason, error_message: str) -> RunEnd:
        return RunEnd(
            self.context.agent.id, self.run.id, state, stop, self.keeper.now(), reading=self.links.reading,
            error_message=error_message, job=self.links.job,
        )  # fmt: skip

    def _note_end(self, run: Run) -> None:
        """Copies the state of a stored run that has ended. run: the stored run."""
        self.run = replace(self.run, state=run.state, stop=run.stop, ended=run.ended)

    def _notify_services(self, prompt: Prompt) -> None:
        """Notifies the background services of the work that the run has left."""
        if self.links.reading is not None:
            # No search finds the messages of this run: they are emptied before they are indexed.
            return
        keeper, context, exchanges = self.keeper, self.context, self.steps.exchanges
        keeper.writer.report_lag(context.agent.id, context.snapshot, self.steps.new_chars)
        if not exchanges:
            return
        first_step, last_step = exchanges[0], exchanges[-1]
        message_count = sum(len(exchange.inputs) + 1 for exchange in exchanges)
        keeper.events.report_stored_turn(
            context.agent.id, message_count, context.request.spec.sleeptime, first_step.seq
        )
        if prompt.window.summary_plan is not None:
            turn = CommittedTurn(context.agent, last_step.id, last_step.conversation_row, True)
            keeper.events.report_filling_window(turn, prompt.window.summary_plan)


def _make_saved_event(exchange: Exchange, messages: Sequence[WireMessage] = ()) -> events.StepSaved:
    """Returns the event of a saved step, with the results among the messages that came in with it."""
    results = (message for message in messages if message.get("role") == "tool")
    return events.StepSaved(exchange.seq, exchange.reply_seq, tuple(results))
