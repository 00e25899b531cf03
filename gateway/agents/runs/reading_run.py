"""One run of a sleeptime agent: the messages to read, the call of its model, and the next batch after a failure."""

from __future__ import annotations

import logging

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.registry.resolved_agents import ResolvedAgent
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.run import AcceptedRun, RunRequest
from gateway.agents.runs.run_starter import MessageGone
from gateway.agents.runs.step_result import ERROR_WITHHELD, UPSTREAM_FAULTS
from gateway.core.conversation.kind import QueueName
from gateway.core.memory.transcript import clean_messages, render_transcript
from gateway.core.turn.client_view import UnseenView
from gateway.core.turn.stop_reason import StopReason
from gateway.errors import GatewayError
from gateway.run.background.background_model import BackgroundModels
from gateway.run.background.budget import DailyBudget
from gateway.run.background.job_context import JobContext, JobFailed
from gateway.run.background.learner import BATCH_CHARS
from gateway.run.background.worker import WorkerLimits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.queue import QueueTicket
from gateway.run.sink import UnseenSink
from gateway.run.upstream.route import make_agent_route
from storage.listing import OpenReading, ReaderEntry
from storage.reader_commands import UnreadMessages
from storage.records import Agent
from storage.run_commands import ReadSpan, RunEnd
from storage.run_records import Run, RunState, RunTextKind

_log = logging.getLogger("mnemogate")

# The most steps of one run. Not measured: its edits usually take two or three steps.
MAX_STEPS = 10
# A longer message is cut in its middle, so that a message that fits no window does not block the next ones.
MESSAGE_CHARS = 200_000
# The most times that a batch is made smaller after a failed run: each time the batch may have half as many characters,
# and each of its messages a quarter as many.
_MAX_SHRINKS = 3
# Enough that summaries and learning do not wait for these runs, with fewer connections than clients' runs have.
LIMITS = WorkerLimits(concurrency=8)


class UnreadBatch(Struct, frozen=True):
    """The messages of a memory that a run reads."""

    # The part of the memory with these messages.
    span: ReadSpan
    # True: the memory has more to be read after the span.
    is_more: bool
    # The message for the agent; "" if the span has no words for a model.
    text: str = ""


class ReadingServices(Struct, frozen=True):
    """The services that runs of sleeptime agents use."""

    # The store, the settings and the queues of memory.
    keeper: MemoryKeeper
    # Performs the runs.
    agent_runs: AgentRuns
    # The daily budget of background calls of models.
    budget: DailyBudget
    # The models that are asked outside of runs, to test whether one answers.
    models: BackgroundModels


class ReadingRun(Struct, frozen=True):
    """One run of a sleeptime agent, in one attempt of the job of the memory that it reads."""

    # The services of the process.
    services: ReadingServices
    # The job of the memory that is read, in this attempt.
    job: JobContext
    # The memory that is read.
    memory: Agent
    # The agent that reads, as a reader of the memory.
    reader: ReaderEntry
    # The same agent, as its runs need it.
    resolved: ResolvedAgent
    # The run, with its conversation.
    reading: OpenReading

    async def perform(self) -> UnreadBatch | None:
        """Performs the run to its end.

        Returns the batch that was read, or that the model refused; None if the run has failed for another reason, or if
        nothing was left to read.

        Raises: JobFailed, JobPostponed, StoreError.
        """
        run, keeper = self.reading.run, self.services.keeper
        fault = ""
        has_begun = run.state is not RunState.CREATED
        batch = await (self._find_noted_batch() if has_begun else self._choose_batch())
        if batch is None:
            await self._fail(StopReason.ERROR)
        elif not has_begun and not batch.text:
            state, stop = RunState.COMPLETED, StopReason.END_TURN
            await keeper.store.stored_paths.end(
                RunEnd(run.agent_row, run.id, state, stop, keeper.now(), reading=batch.span, job=self.job.job)
            )
        else:
            await self.services.budget.check(self.memory.scope.project)
            fault = await self._ask_or_fail(batch)
        current_run, is_refused = await self._conclude_attempt(fault)
        if batch is not None and is_refused:
            batch = await self._shrink_refused(batch)
        await keeper.store.sleeptime_agents.empty_reading(run.agent_row, run.conversation_row)
        has_messages = batch is not None and batch.span.upto > batch.span.cursor
        return batch if has_messages and (is_refused or current_run.state is RunState.COMPLETED) else None

    async def _ask_or_fail(self, batch: UnreadBatch) -> str:
        """Asks the agent to read. Fails the run if the agent cannot be asked, even later.

        Returns the kind of error, as `perform_accepted` does.

        Raises: JobFailed if the agent is to be asked again; StoreError.
        """
        try:
            return await self._ask(batch)
        except MessageGone:
            await self._fail(StopReason.ERROR)
        except GatewayError as error:
            if self.job.job.tries < LIMITS.tries:
                raise JobFailed(f"the run of a sleeptime agent cannot begin: {error.message}") from error
            await self._fail(StopReason.ERROR, error.message)
        return ""

    async def _shrink_refused(self, batch: UnreadBatch) -> UnreadBatch | None:
        """Returns the batch after a model has refused it, if a smaller part is to be read next or the batch is skipped.

        A batch is skipped if it cannot be made smaller, and the model has answered the agent before and answers a
        greeting now. Otherwise the model may refuse everything, because of its settings or its account: returns None.
        """
        store = self.services.keeper.store
        if await store.runs.count_failed_before(self.reading.run, _MAX_SHRINKS) < _MAX_SHRINKS:
            return replace(batch, is_more=True)
        if not await store.runs.has_answered(self.reading.run) or not await self._answers_greeting():
            return None
        now = self.services.keeper.now()
        await self.job.commit(store.sleeptime_agents.make_advance_effect(batch.span, now))
        _log.warning("Sleeptime: the model of an agent refuses to read a part of a memory, which is skipped.")
        return batch

    async def _answers_greeting(self) -> bool:
        """Returns whether the model of the agent answers a greeting."""
        models = self.services.models
        model = models.get_model(make_agent_route(models.settings, self.resolved.spec))
        greeting = {"role": "user", "content": "Hello."}
        try:
            await model.ask(self.resolved.scope.project, [greeting], agent_row=self.reading.run.agent_row)
        except JobFailed:
            return False
        return True

    async def _find_noted_batch(self) -> UnreadBatch | None:
        """Returns the batch that the run noted when it began, without its text; None if the note is gone."""
        run, load_texts = self.reading.run, self.services.keeper.store.run_texts.load_texts
        texts = await load_texts(run.agent_row, run.id, RunTextKind.REQUEST)
        note = orjson.loads(texts[0].data) if texts else {}
        if "upto" not in note:
            return None
        cursor, upto, exchange_rows = note["cursor"], note["upto"], note["exchanges"]
        span = ReadSpan(self.memory.id, self.reader.agent_row, cursor, upto, exchange_rows)
        return UnreadBatch(span, note["is_more"])

    async def _choose_batch(self) -> UnreadBatch:
        """Returns the next unread messages, as many as the agent's model is to read at once.

        Raises: JobFailed if the memory is gone; StoreError.
        """
        memory, reader, store = self.memory, self.reader, self.services.keeper.store
        window = self.resolved.spec.context_window
        failed_count = await store.runs.count_failed_before(self.reading.run, _MAX_SHRINKS)
        # With about four characters a token, a batch fills a quarter of the window, and a message at most half of it.
        batch_chars = min(BATCH_CHARS, window or BATCH_CHARS) >> failed_count
        message_chars = min(MESSAGE_CHARS, 2 * (window or MESSAGE_CHARS)) >> 2 * failed_count
        unread = await read_unread(self.services.keeper, memory, reader, batch_chars)
        messages = clean_messages(
            unread.messages,
            max_chars=message_chars,
            keeps_secrets=self.services.keeper.settings.learn_secrets,
            keeps_repeats=True,
        )
        exchange_rows = sorted({*(message.exchange_row for message in unread.messages), *unread.tools_used})
        span = ReadSpan(memory.id, reader.agent_row, unread.cursor, unread.upto, exchange_rows)
        transcript = render_transcript(messages, unread.tools_used) if messages else ""
        return UnreadBatch(span, unread.is_more, transcript)

    async def _ask(self, batch: UnreadBatch) -> str:
        """Has the model read the batch and edit blocks, from the step where an earlier attempt was broken off.

        Returns the kind of error, as `perform_accepted` does.

        Raises: GatewayError, StoreError, MessageGone.
        """
        span, spec, conversation_name = batch.span, self.resolved.spec, self.reading.conversation_name
        request = RunRequest(
            spec,
            self.resolved.scope,
            conversation_name,
            messages=({"role": "user", "content": batch.text},),
            fields=spec.definition.sampling,
            max_steps=MAX_STEPS,
            reading=span,
        )
        note = {"cursor": span.cursor, "upto": span.upto, "exchanges": span.exchanges}
        note["is_more"] = batch.is_more
        with QueueTicket() as ticket:
            await self.services.keeper.queues.enter(QueueName(spec.uid, conversation_name), ticket)
            accepted = AcceptedRun(self.reading.run, orjson.dumps(note), self.job.job)
            return await self.services.agent_runs.perform_accepted(
                request, accepted, ticket, lambda _: UnseenView, UnseenSink()
            )

    async def _conclude_attempt(self, fault: str) -> tuple[Run, bool]:
        """Counts the tokens of this attempt, and fails a run that has no attempt left.

        Returns the run as it is now, and whether its model refused to read.

        fault: the kind of error of the last call; "": the call had no error.

        Raises: JobFailed if an upstream failed and the run goes on, or if the agent is gone; StoreError.
        """
        run = self.reading.run
        current_run = await self.services.keeper.store.runs.find_run(run.agent_row, run.id)
        if current_run is None:
            raise JobFailed("the sleeptime agent is gone")
        if tokens := current_run.counts.total - run.counts.total:
            self.services.budget.count_call("ok", tokens)  # the receipt of the run has them
        if current_run.is_over:
            # A run ends by such a fault only if the model refused the messages; otherwise its step stays open.
            return current_run, current_run.state is RunState.FAILED and current_run.stop in UPSTREAM_FAULTS
        if self.job.job.tries < LIMITS.tries:
            raise JobFailed(f"the upstream of a sleeptime agent failed: {fault or 'unusable reply'}")
        return await self._fail(StopReason.UPSTREAM_ERROR, ERROR_WITHHELD), False

    async def _fail(self, stop: StopReason, error_message: str = "") -> Run:
        """Fails the run. Returns it as it is now."""
        run, keeper, job = self.reading.run, self.services.keeper, self.job.job
        return await keeper.store.runs.end_run(
            run.agent_row, run.id, RunState.FAILED, stop, keeper.now(), error_message=error_message, job=job
        )


async def read_unread(
    keeper: MemoryKeeper, memory: Agent, reader: ReaderEntry, limit_chars: int
) -> UnreadMessages:
    """Returns the next messages of a memory that an agent has not read.

    limit_chars: the most characters of messages in one batch, which has one exchange at least.

    Raises: JobFailed if the memory is gone.
    """
    unread = await keeper.store.readers.find_unread(
        memory.id,
        reader.agent_row,
        now=keeper.now(),
        idle_s=keeper.settings.idle_s,
        limit_chars=limit_chars,
        message_chars=MESSAGE_CHARS,
    )
    if unread is None:
        raise JobFailed("the memory is gone")
    return unread
