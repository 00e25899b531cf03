"""Compaction: a job summarises the messages that will soon leave a conversation's window.

A turn enqueues the job after it has been written, if its window fills up. Nothing waits for the job, which reads the
conversation from the store. While the model is down, refuses or answers nonsense, the window is cut without a summary,
and the job is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from gateway.core.prompt.summary import SummaryPlan
from gateway.core.prompt.summary_options import SummaryOptions
from gateway.errors import BadRequest, GatewayError, Overloaded, UpstreamError
from gateway.run.background.background_model import BackgroundModel, BackgroundModels
from gateway.run.background.job_context import JobContext, JobFailed, JobPostponed
from gateway.run.background.summary_path import SummaryPath, SummarySpan
from gateway.run.background.summary_writer import SummaryWriter
from gateway.run.upstream.route import Route, resolve_agent_model
from gateway.run.usage.planned_call import PlannedCall
from gateway.settings import Settings
from storage.commands import CommittedTurn
from storage.errors import StaleWrite, StoreError
from storage.records import Agent, Conversation, Exchange, Summary
from storage.sql.store import Store
from storage.task_set import TaskSet

_log = logging.getLogger("mnemogate")

# The kind of the job.
COMPACT_JOB = "compact"
# The share of a conversation's tokens that stays when it is compacted at once; Letta's default.
_RETAINED_SHARE = 0.30
# The first clause is Letta's, by which its clients recognise that nothing has failed.
_NOTHING_TO_SUMMARISE = (
    "Summarization failed to reduce the number of messages: there is nothing to summarise yet. The last turn stays as "
    "it is, unless the mode is 'all'."
)


class CompactJob(
    Struct,
    frozen=True,
    rename={
        "exchange_row": "exchange",
        "retained_tokens": "keep",
        "max_tokens": "size",
        "retained_messages": "messages",
        "newest_summary_row": "newest",
    },
):
    """The payload of a job: a turn's `SummaryPlan`, stored as JSON with the names of `rename`."""

    # The row of the last exchange of the path.
    exchange_row: int
    # The fewest tokens at the end of the path that stay word for word.
    retained_tokens: int
    # The most tokens of the summary.
    max_tokens: int
    # The fewest messages at the end of the path that stay word for word.
    retained_messages: int = 0
    # The row of the newest summary of the path at the time of the turn; 0: there was none. None: an operator has
    # requested the job.
    newest_summary_row: int | None = None

    @property
    def is_manual(self) -> bool:
        """True if an operator or a client has requested the summary."""
        return self.newest_summary_row is None

    @property
    def payload(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def parse(cls, payload: bytes) -> CompactJob:
        return msgspec.json.decode(payload, type=cls)


@dataclass(eq=False)
class Compactor:
    """Enqueues summaries of conversations with windows that fill up, and makes them."""

    # The store of the conversations.
    store: Store
    # The settings of the process.
    settings: Settings
    # The models that write summaries.
    models: BackgroundModels
    # Writes the summaries of agents that name no model of their own; None: such agents get no summaries.
    default_model: BackgroundModel | None
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # The jobs that are being enqueued.
    _enqueuing: TaskSet = field(default_factory=TaskSet, init=False)

    def enqueue_after(self, turn: CommittedTurn, summary_plan: SummaryPlan) -> None:
        """Enqueues a summary of the turn's conversation, and returns at once.

        If a job of the conversation still waits, it takes the new payload.
        """
        self._enqueuing.start(self._enqueue(turn, summary_plan))

    async def drain(self, timeout_s: float) -> None:
        """Waits until all jobs are in the queue, for `timeout_s` at most."""
        await self._enqueuing.drain(timeout_s)

    async def _enqueue(self, turn: CommittedTurn, summary_plan: SummaryPlan) -> None:
        """Enqueues the job. If the store fails, the next turn requests the summary again."""
        payload = CompactJob(turn.exchange_row, **asdict(summary_plan)).payload
        agent = turn.agent
        conversation = str(turn.conversation_row)
        try:
            await self.store.jobs.enqueue(COMPACT_JOB, agent.id, conversation, payload, epoch=agent.epoch)
        except StaleWrite:
            # Something was forgotten since. The next turn requests the summary again.
            pass
        except StoreError as error:
            _log.warning(
                "A summary could not be scheduled; the next turn of its conversation tries again: %s",
                error.message,
            )

    async def run_job(self, job: JobContext) -> None:
        """Summarises the exchanges that may leave the window. Raises: JobFailed, JobPostponed, StoreError."""
        compact_job = CompactJob.parse(job.payload)
        project = await self.store.summaries.find_project(job.agent_row)
        exchanges = await self.store.summaries.load_path(job.agent_row, compact_job.exchange_row)
        if project is None or not exchanges:
            return
        options = await read_summary_options(self.store, job.agent_row)
        model = self.find_model(options)
        if model is None:
            return
        path = await SummaryPath.measure(self.store, job.agent_row, exchanges)
        span = path.find_next_span(options, compact_job.retained_tokens, compact_job.retained_messages)
        if span is None:
            # The whole path is covered already, or the whole path stays.
            return
        if _was_summarised_since(compact_job, span):
            # Another summary so soon would cover little more.
            return
        writer = SummaryWriter(
            project=project,
            agent_row=job.agent_row,
            model=model,
            options=options,
            max_tokens=compact_job.max_tokens,
            is_manual=compact_job.is_manual,
            run_step=job.step,
        )
        summary = await writer.write(span)
        if summary is None:
            return
        await job.finish(
            self.store.summaries.make_add_effect(
                job.agent_row,
                span.end,
                summary.text,
                tokens=summary.tokens,
                at=self.now(),
                model=model.model,
            )
        )

    def find_model(self, options: SummaryOptions) -> BackgroundModel | None:
        """Returns the model that writes an agent's summaries, if there is one.

        Raises: JobFailed: the agent names an unknown model.
        """
        if options.model is None:
            return self.default_model
        try:
            return self.models.get_model(resolve_agent_model(self.settings, options.model))
        except GatewayError as error:
            raise JobFailed(f"the model of an agent's summaries: {error.message}") from error

    async def compact_now(
        self,
        agent: Agent,
        conversation: Conversation,
        options: SummaryOptions,
        fallback: Callable[[], Route],
        max_tokens: int,
        admit: Callable[[PlannedCall], Awaitable[None]],
    ) -> str:
        """Summarises a stored conversation now, and returns the text. From then on its window begins after the summary.

        Call it with the conversation locked.

        options: the options of the summary, instead of the agent's own.
        fallback: returns the route of the model to ask if neither the options nor the settings name a model.
        max_tokens: the most tokens of the summary.
        admit: the value of `SummaryWriter.admit`.

        Raises:
            BadRequest: there is nothing to summarise.
            UpstreamError, Overloaded: there is no summary.
            StoreError; the errors of `fallback` and `admit`.
        """
        path = await self._load_whole_path(agent, conversation)
        # A share of the conversation's tokens here; for a job, it is one of the model's window.
        share = _RETAINED_SHARE if options.own_retained_share is None else options.own_retained_share
        try:
            model = self.find_model(options) or self.models.get_model(fallback())
            span = path.find_next_span(options, int(path.tokens * share))
            if span is None:
                raise BadRequest(_NOTHING_TO_SUMMARISE)
            writer = SummaryWriter(
                project=agent.scope.project,
                agent_row=agent.id,
                model=model,
                options=options,
                max_tokens=max_tokens,
                is_manual=True,
                admit=admit,
            )
            written_summary = await writer.write(span)
        except JobPostponed as error:
            raise Overloaded(f"There is no summary: {error.message}.", retry_after_s=error.delay_s) from error
        except JobFailed as error:
            raise UpstreamError(f"There is no summary: {error.message}.") from error
        if written_summary is None:
            raise BadRequest(_NOTHING_TO_SUMMARISE)
        summary = Summary(
            id=0,
            exchange=span.end,
            text=written_summary.text,
            tokens=written_summary.tokens,
            at=self.now(),
            model=model.model,
        )
        await self.store.summaries.put(agent, conversation, summary, span.evicted)
        return written_summary.text

    async def _load_whole_path(self, agent: Agent, conversation: Conversation) -> SummaryPath:
        """Returns the path of a stored conversation. Raises: BadRequest: the conversation has no path; StoreError."""
        exchanges: Sequence[Exchange] = []
        if conversation.has_stored_path:
            exchanges = await self.store.summaries.load_path(agent.id, conversation.last_exchange)
        if not exchanges:
            raise BadRequest(_NOTHING_TO_SUMMARISE)
        return await SummaryPath.measure(self.store, agent.id, exchanges)


def _was_summarised_since(job: CompactJob, span: SummarySpan) -> bool:
    """Returns whether the path has a newer summary than at the turn that enqueued a job; False for a job by hand."""
    if job.newest_summary_row is None or span.earlier_summary is None:
        return False
    return span.earlier_summary.id > job.newest_summary_row


async def read_summary_options(store: Store, agent_row: int) -> SummaryOptions:
    """Returns an agent's own options for its summaries, or the default options."""
    entries = await store.defined_agents.load_entries([agent_row])
    definition = entries[0].definition if entries else None
    return SummaryOptions.of({} if definition is None else definition.body.get("compaction") or {})
