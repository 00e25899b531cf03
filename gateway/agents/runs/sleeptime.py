"""Sleeptime: the job that has sleeptime agents read the new messages of a memory, and edit its blocks.

Each batch of unread messages is a run of a sleeptime agent (agent_runs.py). Each step writes its edits into the blocks,
and the last step moves the agent's cursor. So an interrupted run goes on from its steps, and a failed run leaves the
cursor where it was. A run that is due because of a turn was stored with that turn; this job finds the runs that are due
because the memory was idle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.sleeper import SLEEP_JOB
from gateway.agents.registry.registry import Registry
from gateway.agents.registry.resolved_agents import ResolvedAgent
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.begin import MessageGone
from gateway.agents.runs.run import AcceptedRun, RunRequest, make_reading_run
from gateway.agents.runs.step_result import ERROR_WITHHELD, UPSTREAM_FAULTS
from gateway.core.definition import SLEEP_EVERY, Sleeptime
from gateway.core.memory.transcript import clean_messages, render_transcript
from gateway.core.turn.client_view import UnseenView
from gateway.core.turn.stop_reason import StopReason
from gateway.errors import GatewayError
from gateway.run.background.background_model import BackgroundModels
from gateway.run.background.budget import DailyBudget
from gateway.run.background.job_context import JobContext, JobFailed
from gateway.run.background.learner import BATCH_CHARS, MARGIN_S
from gateway.run.background.schedule import Schedule
from gateway.run.background.worker import Worker, WorkerLimits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.queue import QueueTicket
from gateway.run.sink import UnseenSink
from gateway.run.upstream.route import make_agent_route
from storage.commands import Unread
from storage.errors import NotFound
from storage.job_records import Job
from storage.listing import OpenReading, ReaderEntry
from storage.records import Agent
from storage.run_commands import ReadSpan, RunEnd
from storage.run_records import Run, RunState, RunTextKind
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

MAX_STEPS = 10
_PAGE = 16
# A longer message is cut in its middle, so that a message that fits no window does not block the next ones.
MESSAGE_CHARS = 200_000
# How often a failed run is tried again, each time with half as much to read.
_HALVINGS = 3
# Enough that summaries and learning do not wait for these runs, with fewer connections than clients' runs have.
_LIMITS = WorkerLimits(concurrency=8)


class _Batch(Struct, frozen=True):
    """The messages of a memory that a run reads."""

    span: ReadSpan
    # The memory has more to be read after the span.
    is_more: bool
    # The message for the agent; "" if the span has no words for a model.
    text: str = ""


def make_schedule(store: Store, idle_s: float, now: Callable[[], float], profiles: Sequence[str]) -> Schedule:
    """Returns the schedule that makes runs of sleeptime agents due.

    idle_s: seconds without a turn after which a memory is read.
    now: seconds since the epoch, as turns are dated.
    profiles: those of the settings with `sleeptime`.
    """
    return Schedule(
        "sleeptime",
        SLEEP_JOB,
        store.jobs,
        lambda limit: store.readers.load_unslept(limit, profiles),
        every=SLEEP_EVERY,
        idle_s=idle_s + MARGIN_S,
        now=now,
        leaves_out_last=True,
    )


class Sleeping:
    """Performs the runs of sleeptime agents."""

    def __init__(
        self,
        keeper: MemoryKeeper,
        registry: Registry,
        agent_runs: AgentRuns,
        budget: DailyBudget,
        models: BackgroundModels,
        count: Callable[[str, str], None],
    ) -> None:
        """count: is given each attempt's kind and outcome."""
        self._keeper = keeper
        self._store = keeper.store
        self._settings = keeper.settings
        self._registry = registry
        self._agent_runs = agent_runs
        self._budget = budget
        self._models = models
        self._now = keeper.now
        # The last attempt of a job ends a run that an upstream has failed.
        self._tries = _LIMITS.tries
        self.worker = Worker(keeper.store.jobs, {SLEEP_JOB: self.handle}, _LIMITS, count)

    async def handle(self, job: JobContext) -> None:
        """Has each agent that reads a memory read its next batch. Raises: JobFailed, Postponed, StoreError."""
        memory = await self._store.agents.find_by_id(job.agent_row)
        if memory is None or memory.paused_at is not None:
            return
        sleeptime = await self._find_sleeptime(memory)
        if sleeptime is None:
            return
        # A run that was cancelled while it waited for its next attempt has left its texts.
        await self._store.sleepers.empty_readings(memory.id, _PAGE)
        # Up to this number the memory is read now, however little of that is left; 0: only what is due.
        upto = orjson.loads(job.payload).get("upto", 0)
        batches: list[_Batch] = []
        for reader in await self._find_or_make_readers(memory, sleeptime, upto):
            reading = await self._find_or_accept_run(job, memory, sleeptime, reader, upto)
            if reading is not None and (batch := await self._perform_run(job, memory, reader, reading)):
                batches.append(batch)
        is_more = any(batch.is_more for batch in batches)
        readers = (await self._store.readers.load_by_memory([memory.id]))[memory.id] if batches else []
        # Messages that came while the agents read may have made another run due.
        if is_more or any(_is_due(reader, sleeptime) for reader in readers):
            # Enqueued before this job ends, so that a crash in between leaves nothing unread.
            payload = orjson.dumps({"upto": (upto or memory.next_seq - 1) if is_more else 0})
            await self._store.jobs.enqueue(SLEEP_JOB, job.agent_row, SLEEP_JOB, payload)

    async def _find_sleeptime(self, memory: Agent) -> Sleeptime | None:
        try:
            agent = await self._registry.resolver.resolve_uid(memory.scope.project, memory.uid)
            return agent.spec.sleeptime
        except NotFound:
            return None

    async def _find_or_make_readers(
        self, memory: Agent, sleeptime: Sleeptime, upto: int
    ) -> Sequence[ReaderEntry]:
        """Returns the agents that read a memory. If there is none, an agent is made once a run is due."""
        readers = await self._store.readers.load_by_memory([memory.id])
        if memory.scope.is_person and readers[memory.id]:
            # The settings may have given it further blocks.
            await self._store.sleepers.share_blocks(memory.id)
        if not readers[memory.id]:
            # Nothing has counted its turns yet; each has taken two numbers at least.
            is_due = 0 < sleeptime.every <= (memory.next_seq - 1) // 2
            if not (is_due or upto or await self._is_idle(memory)):
                return ()
            entry = await self._registry.get_entry(memory.scope.project, memory.uid)
            await self._registry.sleepers.turn_on(entry)
            readers = await self._store.readers.load_by_memory([memory.id])
        return readers[memory.id]

    # -- which run

    async def _find_or_accept_run(
        self, job: JobContext, memory: Agent, sleeptime: Sleeptime, reader: ReaderEntry, upto: int
    ) -> OpenReading | None:
        """Returns a reader's open run, or a new run if one is due; None if no run is due."""
        reading = await self._store.sleepers.find_reading(reader.sleeper_row)
        if reading is not None:
            return reading
        is_due = _is_due(reader, sleeptime) or reader.read_seq < upto or await self._is_idle(memory)
        if not is_due or not await self._has_words(job, memory, reader):
            return None
        command = replace(make_reading_run(reader.sleeper_row, memory.id, self._now()), kind="")
        await job.commit(self._store.sleepers.accept_effect(command))
        return await self._store.sleepers.find_reading(reader.sleeper_row)

    async def _has_words(self, job: JobContext, memory: Agent, reader: ReaderEntry) -> bool:
        """Returns whether there is anything for a model to read; what has no words is passed over."""
        is_more = True
        while is_more:
            unread = await self._read_unread(memory, reader, BATCH_CHARS)
            if clean_messages(unread.messages):
                return True
            span = ReadSpan(memory.id, reader.sleeper_row, unread.cursor, unread.upto)
            await job.commit(self._store.sleepers.advance_effect(span, self._now()))
            is_more = unread.is_more and unread.upto > unread.cursor
        return False

    async def _is_idle(self, memory: Agent) -> bool:
        at = await self._store.readers.find_last_at(memory.id)
        return at is not None and abs(self._now() - at) >= self._settings.idle_s

    # -- one run

    async def _perform_run(
        self, job: JobContext, memory: Agent, reader: ReaderEntry, reading: OpenReading
    ) -> _Batch | None:
        """Performs a run to its end. Returns what it has read; None if it has read nothing.

        Raises: JobFailed, Postponed, StoreError.
        """
        run = reading.run
        resolved = await self._registry.resolver.resolve_uid(memory.scope.project, reader.uid)
        batch = await self._find_batch(memory, reader, resolved, run)
        if batch is None:
            await self._fail_run(job, run, StopReason.ERROR)
        elif run.state is RunState.CREATED and not batch.text:
            end = RunEnd(
                run.agent_row, run.id, RunState.COMPLETED, StopReason.END_TURN, self._now(), reading=batch.span,
                job=job.job,
            )  # fmt: skip
            await self._store.stored_paths.end(end)
        else:
            await self._budget.check(memory.scope.project)
            await self._ask_or_fail(job, resolved, reading, batch)
        ended, is_refused = await self._load_ended(job, run)
        if batch is not None and is_refused:
            batch = await self._shrink_refused(job, run, batch, resolved)
        await self._store.sleepers.empty_reading(run.agent_row, run.conversation_row)
        is_read = batch is not None and batch.span.upto > batch.span.cursor
        return batch if is_read and (is_refused or ended.state is RunState.COMPLETED) else None

    async def _ask_or_fail(
        self, job: JobContext, resolved: ResolvedAgent, reading: OpenReading, batch: _Batch
    ) -> None:
        """Asks the agent to read. Fails its run if it cannot be asked. Raises: JobFailed: it is to be asked again."""
        run = reading.run
        try:
            await self._ask(resolved, run, reading.conversation_name, batch, job.job)
        except MessageGone:
            await self._fail_run(job, run, StopReason.ERROR)
        except GatewayError as error:
            if job.job.tries < self._tries:
                raise JobFailed(f"the run of a sleeptime agent cannot begin: {error.message}") from error
            await self._fail_run(job, run, StopReason.ERROR, error.message)

    async def _shrink_refused(
        self, job: JobContext, run: Run, batch: _Batch, resolved: ResolvedAgent
    ) -> _Batch | None:
        """Returns the batch after a model has refused it, if a smaller part is to be read next or the batch is skipped.

        A batch is skipped if it cannot be made smaller, and the model has answered the agent before and answers a
        greeting now. Otherwise the model may refuse everything, because of its settings or its account: returns None.
        """
        if await self._count_failed(run) < _HALVINGS:
            return replace(batch, is_more=True)
        if not await self._store.runs.has_answered(run) or not await self._answers(run, resolved):
            return None
        await job.commit(self._store.sleepers.advance_effect(batch.span, self._now()))
        _log.warning("Sleeptime: the model of an agent refuses to read a part of a memory, which is skipped.")
        return batch

    async def _answers(self, run: Run, resolved: ResolvedAgent) -> bool:
        """Returns whether the model of a run's agent answers a greeting."""
        model = self._models.get_model(make_agent_route(self._models.settings, resolved.spec))
        greeting = {"role": "user", "content": "Hello."}
        try:
            await model.ask(resolved.scope.project, [greeting], agent_row=run.agent_row)
        except JobFailed:
            return False
        return True

    async def _count_failed(self, run: Run) -> int:
        return await self._store.runs.count_failed_before(run, _HALVINGS)

    async def _find_batch(
        self, memory: Agent, reader: ReaderEntry, resolved: ResolvedAgent, run: Run
    ) -> _Batch | None:
        """Returns the messages that a run reads, unread or noted by its first step, or None if they are gone."""
        if run.state is not RunState.CREATED:
            texts = await self._store.run_texts.load_texts(run.agent_row, run.id, RunTextKind.REQUEST)
            noted = orjson.loads(texts[0].data) if texts else {}
            if "upto" not in noted:
                return None
            span = ReadSpan(memory.id, reader.sleeper_row, noted["cursor"], noted["upto"], noted["exchanges"])
            return _Batch(span, noted["is_more"])
        window = resolved.spec.context_window
        failed = await self._count_failed(run)
        # A quarter of the window, and a message half of it at most: a token has some four characters.
        batch_chars = min(BATCH_CHARS, window or BATCH_CHARS) >> failed
        message_chars = min(MESSAGE_CHARS, 2 * (window or MESSAGE_CHARS)) >> 2 * failed
        unread = await self._read_unread(memory, reader, batch_chars)
        messages = clean_messages(
            unread.messages,
            max_chars=message_chars,
            keeps_secrets=self._settings.learn_secrets,
            keeps_repeats=True,
        )
        exchanges = sorted({*(message.exchange_row for message in unread.messages), *unread.tools_used})
        span = ReadSpan(memory.id, reader.sleeper_row, unread.cursor, unread.upto, exchanges)
        transcript = render_transcript(messages, unread.tools_used) if messages else ""
        return _Batch(span, unread.is_more, transcript)

    async def _read_unread(self, memory: Agent, reader: ReaderEntry, limit_chars: int) -> Unread:
        """Returns the next messages. Raises: JobFailed if the memory is gone."""
        unread = await self._store.readers.find_unread(
            memory.id,
            reader.sleeper_row,
            now=self._now(),
            idle_s=self._settings.idle_s,
            limit_chars=limit_chars,
            message_chars=MESSAGE_CHARS,
        )
        if unread is None:
            raise JobFailed("the memory is gone")
        return unread

    async def _ask(
        self, resolved: ResolvedAgent, run: Run, conversation_name: str, batch: _Batch, attempt: Job
    ) -> None:
        """Has the model read and edit, as far as that was not done. Raises: GatewayError, StoreError, MessageGone."""
        span, spec = batch.span, resolved.spec
        request = RunRequest(
            spec,
            resolved.scope,
            conversation_name,
            messages=({"role": "user", "content": batch.text},),
            fields=spec.definition.sampling,
            max_steps=MAX_STEPS,
            reading=span,
        )
        noted = {
            "cursor": span.cursor, "upto": span.upto, "exchanges": span.exchanges, "is_more": batch.is_more,
        }  # fmt: skip
        with QueueTicket() as ticket:
            await self._keeper.queues.enter((spec.uid, conversation_name), ticket)
            accepted = AcceptedRun(run, orjson.dumps(noted), attempt)
            await self._agent_runs.perform_accepted(
                request, accepted, ticket, lambda _: UnseenView, UnseenSink()
            )

    async def _load_ended(self, job: JobContext, run: Run) -> tuple[Run, bool]:
        """Counts the tokens of a run that has ended. Returns the run, and whether its model has refused to read.

        Raises: JobFailed if an upstream failed, and the run goes on.
        """
        ended = await self._store.runs.find_run(run.agent_row, run.id)
        if ended is None:
            raise JobFailed("the sleeptime agent is gone")
        if tokens := _count_tokens(ended) - _count_tokens(run):
            self._budget.count_call("ok", tokens)  # the receipt of the run has them
        if ended.is_over:
            # After any other fault of an upstream the run would not have ended.
            return ended, ended.state is RunState.FAILED and ended.stop in UPSTREAM_FAULTS
        if job.job.tries < self._tries:
            raise JobFailed("the upstream of a sleeptime agent failed")
        return await self._fail_run(job, run, StopReason.UPSTREAM_ERROR, ERROR_WITHHELD), False

    async def _fail_run(self, job: JobContext, run: Run, stop: StopReason, error_message: str = "") -> Run:
        state, now = RunState.FAILED, self._now()
        return await self._store.runs.end_run(
            run.agent_row, run.id, state, stop, now, error_message=error_message, job=job.job
        )


def _is_due(reader: ReaderEntry, sleeptime: Sleeptime) -> bool:
    return 0 < sleeptime.every <= reader.unread_turns


def _count_tokens(run: Run) -> int:
    return run.counts.prompt + run.counts.completion
