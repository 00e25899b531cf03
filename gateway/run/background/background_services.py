"""Puts the background services together: the worker and its jobs, the schedules of jobs, maintenance, retention.

The only service for which replies wait makes the vector of a question (gateway.run.background.question_embedder).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from adapters.base import Embedder, Provider
from gateway.core.definition import Sleeptime
from gateway.core.prompt.summary import SummaryPlan
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.run.background.background_model import BackgroundModels, find_background_route
from gateway.run.background.budget import DailyBudget
from gateway.run.background.compact import COMPACT_JOB, Compactor
from gateway.run.background.embed import EMBED_JOB, EmbeddingService
from gateway.run.background.embedder import MeteredEmbedder, read_upstream_kind
from gateway.run.background.indexing import IndexingService
from gateway.run.background.job_context import Handler, JobContext
from gateway.run.background.job_metrics import JobMetrics
from gateway.run.background.learner import LEARN_JOB, LearningService
from gateway.run.background.maintenance import Maintenance
from gateway.run.background.question_embedder import QuestionEmbedder
from gateway.run.background.retention import RETENTION, make_retention
from gateway.run.background.run_cleaning import RunCleaning
from gateway.run.background.schedule import NEVER, Schedule
from gateway.run.background.tasks import PeriodicTask
from gateway.run.background.worker import Worker, make_receipt_opener
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.run.upstream.route import Route
from gateway.run.usage.accounting import Accounting
from gateway.settings import Settings
from storage.commands import CommittedTurn
from storage.sql.store import Store

# The number of processes that are assumed to serve one memory in turns; each counts only its own turns. Not measured:
# with more processes than this an agent reads later than its `every` asks, with fewer the store is read more often.
_PROCESSES_PER_MEMORY = 4
# The interval at which the work of processes that have ended is recovered. Not measured: that work waits as long at
# most, and each recovery reads the store.
_RECOVERY_INTERVAL_S = 600.0


class BackgroundServices:
    """The background services of a process. Turns report new work to them, by the methods of `TurnEvents`."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        now: Callable[[], float],
        make_provider: Callable[[Route], Provider],
        embedder: Embedder | None,
        limits: Limits,
        accounting: Accounting,
    ) -> None:
        """Makes the services; `start` runs them.

        now: returns the seconds since the epoch.
        make_provider: returns the provider of a route, with connections that no live turn uses.
        embedder: the embedder, with such connections; None: texts have no vectors.

        Raises: SettingsError.
        """
        memory = settings.memory
        job_metrics = JobMetrics(metrics, store.jobs.count_by_state)
        self._store = store
        # True: other processes use the database, too.
        self._is_shared = store.database.is_shared
        # Counts an attempt of a job, by its kind and outcome.
        self.count_attempt = job_metrics.count_attempt
        # The handlers of durable jobs, by kind. The agents' component adds handlers of its own.
        self.handlers: dict[str, Handler] = {}
        # The schedules of the services that there are.
        self._schedules: list[Schedule] = []
        # Performs the durable jobs.
        self.worker = Worker(
            store.jobs,
            self.handlers,
            count_outcome=job_metrics.count_attempt,
            pause_s=self._pause_s,
            open_receipt=make_receipt_opener(accounting.receipts, LEARN_JOB, COMPACT_JOB, EMBED_JOB),
        )
        # Indexes new messages.
        self.indexing = IndexingService(store)
        store.growth.add_listener(self._schedule_growth)
        # Confirms turns after the idle time.
        self.maintenance = Maintenance(store, memory.idle_s, now)
        # Forgets what is older than the settings allow.
        self.retention = make_retention(settings, store, now)
        self.handlers[RETENTION] = lambda job: self.retention.perform(job.job.key)
        # Drops the texts of runs that have ended.
        self.run_cleaning = RunCleaning(store, now)
        # Finds the work that ended processes have left undone.
        self.recovery = PeriodicTask("recovery", self.recover)
        # The tokens that background calls may use in a day.
        self.budget = DailyBudget(
            accounting.meter, now, memory.background_daily_tokens, job_metrics.count_call
        )
        # The models that the settings route to, with connections of their own.
        self.models = BackgroundModels(settings, make_provider, self.budget, limits.background_calls)
        route = find_background_route(settings)
        # The background model of the settings; None: no such model.
        self.model = None if route is None else self.models.get_model(route)
        # Both are None if there is no model for embeddings, and memory is searched by words alone.
        self.embedding: EmbeddingService | None = None
        self.question_embedder: QuestionEmbedder | None = None
        if embedder is not None:
            metered_embedder = MeteredEmbedder(
                embedder, accounting.meter, read_upstream_kind(settings, embedder)
            )
            self.question_embedder = QuestionEmbedder(store, metered_embedder, memory.embedder_wait_ms)
            self.embedding = EmbeddingService(
                store,
                metered_embedder,
                memory,
                now,
                concurrency=limits.background_calls,
                count_call=job_metrics.count_call,
                meter=accounting.meter,
            )
            self.handlers[EMBED_JOB] = self.embedding.run_job
            self._schedules.append(self.embedding.schedule)
        # The schedule of the agents that read memories after their turns (`add_sleeptime`); None: no such agents.
        self.sleeptime: Schedule | None = None
        # The service that learns facts; None: the settings switch learning off.
        self.learning: LearningService | None = None
        if memory.learn_every:
            read_by_agents = tuple(profile.name for profile in settings.profiles if profile.sleeptime)
            self.learning = LearningService(store, self.model, memory, now, read_by_agents)
            self.handlers[LEARN_JOB] = partial(self._learn, self.learning)
            self._schedules.append(self.learning.schedule)
        # Makes summaries.
        self.compactor = Compactor(store, settings, self.models, self.model, now)
        self.handlers[COMPACT_JOB] = self.compactor.run_job

    def add_sleeptime(self, schedule: Schedule) -> None:
        """Adds the schedule of the agents that read memories after their turns; before the start."""
        self.sleeptime = schedule
        self._schedules.append(schedule)

    def start(self, *, performs_jobs: bool = True) -> list[asyncio.Task[None]]:
        """Starts the tasks of the services, which run until they are cancelled.

        performs_jobs: False: jobs are only made due.
        """
        tasks = [self.indexing.task, self.maintenance.task, *(each.task for each in self._schedules)]
        runs = [task.run() for task in tasks]
        if self.embedding is not None:
            runs.append(self.embedding.embedder.warm())
        if performs_jobs:
            runs += [
                self.retention.run(),
                self.run_cleaning.run(),
                self.worker.run(),
                self.recovery.run(),
            ]
        return [asyncio.create_task(each) for each in runs]

    async def recover(self) -> float:
        """Finds the work that ended processes have left undone. Returns the seconds until the next time.

        Raises: StoreError.
        """
        await self.indexing.recover()
        for schedule in self._schedules:
            await schedule.recover()
        if self._is_shared:
            await self._store.conversation_locks.delete_expired()
        self.maintenance.note_pending_edits()
        return _RECOVERY_INTERVAL_S

    def _pause_s(self, kind: str) -> float:
        """Returns the seconds for which no job of a kind should begin."""
        return self.embedding.pause_s if self.embedding is not None and kind == EMBED_JOB else 0.0

    async def drain(self, timeout_s: float) -> None:
        """Waits until the summaries that turns have requested are in the queue as jobs, for `timeout_s` at most."""
        await self.compactor.drain(timeout_s)

    async def aclose(self) -> None:
        await self.models.aclose()

    @property
    def embed_query(self) -> EmbedQuery | None:
        """The function that makes the vector of a question; None: memory is searched by words alone."""
        return None if self.question_embedder is None else self.question_embedder.embed_query

    def _schedule_growth(self, agent_row: int, added: int) -> None:
        """Schedules the work for texts that were added to a memory other than by a turn. `Growth` calls it.

        added: the number of texts.
        """
        self.indexing.add_unchecked(agent_row)
        if self.embedding is not None:
            self.embedding.schedule.add(agent_row, added)

    # -- TurnEvents (gateway.run.memory.turn_writer)

    @property
    def makes_summaries(self) -> bool:
        return self.model is not None

    def report_outdated_index(self, agent_row: int, messages: int | None) -> None:
        self.indexing.add(agent_row, messages)

    def report_pending_edits(self) -> None:
        self.maintenance.note_pending_edits()

    def report_stored_turn(
        self, agent_row: int, messages: int, sleeptime: Sleeptime | None, seq: int | None
    ) -> None:
        """Schedules the jobs for the messages of a turn."""
        # A process that owns its file counts all turns itself, so it needs no number to compare with.
        seq = seq if self._is_shared else None
        if self.embedding is not None:
            self.embedding.schedule.add(agent_row, messages, seq=seq)
        if sleeptime is not None and self.sleeptime is not None:
            # This count only decides when to read the store. If other processes serve the memory as well, this process
            # reads it earlier.
            every = sleeptime.every or NEVER
            self.sleeptime.add(
                agent_row, 1, max(1, every // _PROCESSES_PER_MEMORY) if self._is_shared else every
            )
        elif self.learning is not None:
            self.learning.schedule.add(agent_row, messages, seq=seq)

    def report_filling_window(self, turn: CommittedTurn, summary_plan: SummaryPlan) -> None:
        self.compactor.enqueue_after(turn, summary_plan)

    async def _learn(self, learning: LearningService, job: JobContext) -> None:
        """Performs a job of learning, and has the new facts indexed and embedded."""
        await learning.run_job(job)
        self.indexing.add_unchecked(job.agent_row)
        if self.embedding is not None:
            # Facts are numbered along with messages, and are embedded as they are.
            self.embedding.schedule.enqueue_now([job.agent_row])
