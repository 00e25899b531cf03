"""Job `run`: runs that go on without their clients, with a worker of their own.

Runs have slots and connections of their own, so that long ones delay neither summaries nor live turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson

from gateway.agents.runs.background.background_runs import BackgroundRuns
from gateway.agents.runs.background.callbacks import CALLBACK_JOB, Callbacks, enqueue_callback
from gateway.agents.runs.background.ends import RUN_JOB
from gateway.run.background.tasks import PeriodicTask
from gateway.run.background.worker import JobContext, Worker, WorkerLimits
from storage.database import POLL_S
from storage.sql.store import Store

# Bounds the connections to upstreams, which each run holds for minutes. Chosen, not measured.
MAX_RUNS_AT_ONCE = 16
# Short, since requests to the conversation wait for a run that is tried again. Chosen, not measured.
BACKOFF_S = 10.0
# No limit: `BackgroundRuns.perform` counts the attempts itself, since it has to end the run after the last.
_ANY_NUMBER = 1_000_000
# The least seconds between two looks at the runs that wait: thousands may, and each change of a job wakes the look.
_SWEEP_PAUSE_S = 0.25
# Seconds between two searches for runs that another process left when it died, where gateways share a database.
_RECOVER_S = 30.0


class RunService:
    """Performs the jobs of runs and their callbacks.

    recover: fails the live runs that no process performs.
    count: called with the kind and the outcome of each attempt.
    idle: as in `Worker`.
    """

    def __init__(
        self,
        background_runs: BackgroundRuns,
        recover: Callable[[], Awaitable[None]],
        store: Store,
        callbacks: Callbacks,
        count: Callable[[str, str], None],
        idle: Callable[[], int],
    ) -> None:
        self._background_runs = background_runs
        self._store = store
        self._is_shared = store.database.is_shared
        limits = WorkerLimits(
            concurrency=MAX_RUNS_AT_ONCE, tries=_ANY_NUMBER, backoff_first_s=1.0, backoff_max_s=BACKOFF_S
        )
        self.worker = Worker(store.jobs, {RUN_JOB: self._handle}, limits, count, idle)
        # Callbacks without an answer must not take the slots of runs.
        self.callers = Worker(store.jobs, {CALLBACK_JOB: callbacks.handle}, count_outcome=count)
        self._sweeping = PeriodicTask("begin runs without a job", self._sweep)
        self._recover = recover
        self._recovering = PeriodicTask("end abandoned runs", self._fail_left)
        store.database.when_recovered(self._recovering.wake)

    def tasks(self, *, performs_jobs: bool = True) -> list[Coroutine[Any, Any, None]]:
        """Returns its tasks, which run until they are cancelled. performs_jobs: runs are performed, too."""
        if not performs_jobs:
            return [self._watch()]
        return [self.worker.run(), self.callers.run(), self._watch(), self._recovering.run()]

    async def _handle(self, job: JobContext) -> None:
        row = orjson.loads(job.payload)["run"]
        done = await self._background_runs.perform(job.job, row)
        if done is not None and done.callback is not None:
            run = (done.run.agent_row, done.run.id)
            callback = enqueue_callback(self._store, done.callback, done.run.uid, run=run)
            await job.finish(callback, enqueues=(CALLBACK_JOB,))

    async def _watch(self) -> None:
        """Looks for runs without a job, after a change of jobs."""
        unwatch = self._store.jobs.watch(self._sweeping.wake)
        try:
            await self._sweeping.run()
        finally:
            unwatch()

    async def _sweep(self) -> float | None:
        await self._background_runs.sweep()
        await asyncio.sleep(_SWEEP_PAUSE_S)
        return POLL_S if self._is_shared else None

    async def _fail_left(self) -> float | None:
        await self._recover()
        await self._background_runs.cancel_dropped()
        return _RECOVER_S if self._is_shared else None
