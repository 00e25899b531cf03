"""The background services put together: the worker with its jobs, what makes them due, maintenance, retention.

No reply waits for any of it, but for the vector of a question (gateway.run.background.embed).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from adapters.base import BatchProvider, Embedder, Provider
from gateway.core.definition import SLEEP_EVERY, Sleeptime
from gateway.core.prompt.summary import Overfull
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.run.admin.forget import RETENTION, YOUNG_S, Retention
from gateway.run.agents.run import SLEEP
from gateway.run.background.batches.items import ItemTurns
from gateway.run.background.batches.job import BatchJobs
from gateway.run.background.budget import DailyBudget
from gateway.run.background.compact import COMPACT, Compactor
from gateway.run.background.embed import KIND as EMBED
from gateway.run.background.embed import Embedding
from gateway.run.background.indexing import Indexing
from gateway.run.background.job_metrics import BatchMetrics, JobMetrics
from gateway.run.background.learn import KIND as LEARN
from gateway.run.background.learn import MARGIN_S, Learning
from gateway.run.background.maintenance import Maintenance
from gateway.run.background.model import BackgroundModels, background_route
from gateway.run.background.schedule import AT_START, Schedule
from gateway.run.background.worker import Handler, JobContext, Worker, WorkerLimits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.recall import EmbedQuery
from gateway.run.upstream.route import Route
from gateway.settings import Settings
from storage.batches import BATCH
from storage.commands import Committed
from storage.errors import StoreError
from storage.sql.store import Store

# Batches that are served at once. A job that ends the process is tried again all the same: what it has done is on disk.
_BATCHES = WorkerLimits(concurrency=4, tries=1_000_000)
# So many processes are reckoned with that may serve a memory in turns.
_SHARES = 4
# So many turns make nothing due.
_NEVER = 2**62


class BackgroundServices:
    """Implements TurnEvents (gateway.run.memory.keeper), by which turns say that there is work.

    handlers: what durable jobs do, by kind; filled before the start. models: those that are called in the background;
    model: the one that the settings name, None where they name none.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        now: Callable[[], float],
        make_provider: Callable[[Route], Provider],
        embedder: Embedder | None,
        limits: Limits,
    ) -> None:
        """make_provider, embedder: never those of live turns. now: seconds since the epoch.

        Raises: SettingsError.
        """
        memory, job_metrics = settings.memory, JobMetrics(metrics, store.jobs.counts)
        self._settings, self._store, self._metrics, self._now = settings, store, metrics, now
        self._is_shared = store.database.is_shared
        self._batches: BatchJobs | None = None
        self._batch_worker: Worker | None = None
        self._begun = now()
        self.count_attempt = job_metrics.attempts.inc
        self.handlers: dict[str, Handler] = {}
        self.worker = Worker(store.jobs, self.handlers, count=job_metrics.attempts.inc, rests=self._rests_s)
        self.indexing = Indexing(store)
        self.maintenance = Maintenance(store, memory.idle_s, now, self.indexing)
        days = {name: each.retention_days for name, each in settings.projects.items()}
        self.retention = Retention(store, {n: d for n, d in days.items() if d is not None}, now)
        route = background_route(settings)
        self.models = BackgroundModels(
            make_provider,
            store.spending,
            now,
            concurrency=limits.background_calls,
            daily_tokens=memory.background_daily_tokens,
            count=job_metrics.call,
        )
        self.model = None if route is None else self.models.of(route)
        self.embedding: Embedding | None = None
        if embedder is not None:
            self.embedding = Embedding(
                store, embedder, memory, now, concurrency=limits.background_calls, count=job_metrics.call
            )
            self.handlers[EMBED] = self.embedding.handle
        self.budget = DailyBudget(store.spending, now, memory.background_daily_tokens, job_metrics.call)
        # The profiles whose users' memories sleeptime agents read.
        asleep = tuple(each.name for each in settings.profiles if each.sleeptime)
        self.sleep = self._sleep_schedule(memory.idle_s, asleep)
        self.learning: Learning | None = None
        if memory.learn_every and self.model is not None:
            self.learning = Learning(store, self.model, memory, now, asleep)
            self.handlers[LEARN] = self._learn
        self.compactor = Compactor(store, settings, self.models, self.model, now)
        self.handlers[COMPACT] = self.compactor.run
        self.handlers[RETENTION] = self._retain

    def _sleep_schedule(self, idle_s: float, asleep: Sequence[str]) -> Schedule:
        """Returns what makes runs of sleeptime agents due. asleep: the profiles whose users' memories they read."""

        async def look() -> None:
            schedule.enqueue_after_rest(await self._store.readers.unslept(AT_START, asleep))

        schedule = Schedule(
            "sleeptime",
            SLEEP,
            self._store.jobs,
            look,
            SLEEP_EVERY,
            idle_s + MARGIN_S,
            self._now,
            spares_last=True,
        )
        return schedule

    def serve_batches(
        self, keeper: MemoryKeeper, turns: ItemTurns, providers: Mapping[str, BatchProvider]
    ) -> None:
        """Has batches served, from the start on. providers: by the names of upstreams."""
        jobs = BatchJobs(
            self._store,
            keeper,
            turns,
            providers,
            self._settings.batch,
            self._now,
            BatchMetrics(self._metrics, self._store.batches.open_counts).tokens,
        )
        self._batches = jobs
        self._batch_worker = Worker(
            self._store.jobs, {BATCH: jobs.run}, _BATCHES, self.worker.count, lambda: jobs.resting
        )

    def start(self, *, works: bool = True) -> list[asyncio.Task[None]]:
        """Starts its tasks, which run until they are cancelled. works: jobs are performed here, besides made due."""
        runs: list[Coroutine[Any, Any, None]] = [
            self.indexing.run(),
            self.maintenance.run(),
            self.sleep.run(),
        ]
        if self.learning is not None:
            runs.append(self.learning.schedule.run())
        if self.embedding is not None:
            runs.append(self.embedding.run())
        if works:
            runs += [self.retention.run(), self.worker.run(), self.maintenance.look_again()]
        if works and self._batch_worker is not None:
            runs += [self._batch_worker.run(), self._drop_unstarted()]
        return [asyncio.create_task(each) for each in runs]

    def _rests_s(self, kind: str) -> float:
        return self.embedding.rests_s if self.embedding is not None and kind == EMBED else 0.0

    async def _drop_unstarted(self) -> None:
        """Fails the batches that were never accepted whole, since their process died."""
        before = self._begun
        while True:
            if self._is_shared:
                # Where others accept batches too, one that is young may be theirs.
                before = self._now() - YOUNG_S
            with suppress(StoreError):
                await self._store.batches.drop_unstarted(before, self._now())
            if not self._is_shared:
                return
            await asyncio.sleep(YOUNG_S / 2)

    async def drain(self, timeout_s: float) -> None:
        """Waits until the jobs that turns asked for are in the queue, for so long at most."""
        await self.compactor.drain(timeout_s)

    async def aclose(self) -> None:
        await self.models.aclose()
        if self._batches is not None:
            await self._batches.aclose()

    @property
    def embed_query(self) -> EmbedQuery | None:
        """Makes the vector of a question; None: memory is searched by words alone."""
        return None if self.embedding is None else self.embedding.embed_query

    # -- TurnEvents

    @property
    def makes_summaries(self) -> bool:
        return self.model is not None

    def index_lags(self, agent: int, messages: int | None = None) -> None:
        self.indexing.lags(agent, messages)

    def edits_wait(self) -> None:
        self.maintenance.edits_wait()

    def turn_kept(
        self, agent: int, messages: int, sleeptime: Sleeptime | None = None, seq: int | None = None
    ) -> None:
        # One process that owns its file knows what was said since the last job.
        seq = seq if self._is_shared else None
        if self.embedding is not None:
            self.embedding.schedule.add(agent, messages, seq=seq)
        if sleeptime is not None:
            # Its turns are counted here only to look at the store when it may be due: earlier where others count, too.
            every = sleeptime.every or _NEVER
            self.sleep.add(agent, 1, max(1, every // _SHARES) if self._is_shared else every)
        elif self.learning is not None:
            self.learning.schedule.add(agent, messages, seq=seq)

    def window_fills(self, turn: Committed, overfull: Overfull) -> None:
        self.compactor.want(turn, overfull)

    async def _retain(self, job: JobContext) -> None:
        await self.retention.step()

    async def _learn(self, job: JobContext) -> None:
        assert self.learning is not None
        await self.learning.handle(job)
        if self.embedding is not None:
            # Facts are numbered along with messages, and are embedded as they are.
            self.embedding.schedule.enqueue_now([job.agent])
