"""Job `run`: runs that go on without their clients, with a worker of their own.

Runs have slots and connections of their own, so that long runs delay neither summaries nor live turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson

from gateway.agents.runs.background.background_runs import BackgroundRuns
from gateway.agents.runs.background.callbacks import CALLBACK_JOB, CallbackJobs, enqueue_callback
from gateway.agents.runs.background.run_ends import RUN_JOB
from gateway.run.background.job_context import JobContext
from gateway.run.background.tasks import PeriodicTask
from gateway.run.background.worker import UNLIMITED_TRIES, Worker, WorkerLimits
from storage.database import POLL_S
from storage.sql.store import Store

# Bounds the connections to upstreams, which each run holds for minutes. Not measured: fewer runs wait longer for a
# slot, more hold more connections.
_MAX_RUNS_AT_ONCE = 16
# The longest wait before another attempt at a run. Short, since requests to its conversation wait too. Not measured.
_MAX_BACKOFF_S = 10.0
# The least seconds between two searches for runs without a job: each change of a job asks for a search, which reads
# all runs that have not ended.
_SEARCH_PAUSE_S = 0.25
# Seconds between two searches for runs that another process left when it died, where gateways share a database.
_RECOVER_S = 30.0


class RunService:
    """Performs the jobs of runs and their callbacks."""

    def __init__(
        self,
        background_runs: BackgroundRuns,
        fail_abandoned_runs: Callable[[], Awaitable[None]],
        store: Store,
        callbacks: CallbackJobs,
        count_outcome: Callable[[str, str], None],
        count_waiting: Callable[[], int],
    ) -> None:
        """Creates the workers.

        fail_abandoned_runs: the function that fails the live runs that no process performs.
        count_outcome: the function to call with the kind and the outcome of each attempt.
        count_waiting: the function that returns the number of runs that may start in place of waiting runs.
        """
        self._background_runs = background_runs
        self._store = store
        self._is_shared = store.database.is_shared
        limits = WorkerLimits(
            _MAX_RUNS_AT_ONCE, tries=UNLIMITED_TRIES, backoff_first_s=1.0, backoff_max_s=_MAX_BACKOFF_S
        )
        run_handlers = {RUN_JOB: self._perform_run}
        self.run_worker = Worker(store.jobs, run_handlers, limits, count_outcome, count_waiting)
        # Callbacks without an answer must not take the slots of runs.
        callback_handlers = {CALLBACK_JOB: callbacks.handle}
        self._callback_worker = Worker(store.jobs, callback_handlers, count_outcome=count_outcome)
        self._jobless_runs = PeriodicTask("close runs without a job", self._close_jobless_runs)
        self._fail_abandoned_runs = fail_abandoned_runs
        self._abandoned_runs = PeriodicTask("end abandoned runs", self._end_abandoned_runs)
        store.database.add_recovery_listener(self._abandoned_runs.wake)

    def make_coroutines(self, *, performs_jobs: bool = True) -> list[Coroutine[Any, Any, None]]:
        """Returns the coroutines of the service, which run until they are cancelled.

        performs_jobs: this process performs runs; False: it only closes runs that have lost their job.
        """
        coroutines = [self._watch_jobs()]
        if performs_jobs:
            coroutines += [self.run_worker.run(), self._callback_worker.run(), self._abandoned_runs.run()]
        return coroutines

    async def _perform_run(self, job: JobContext) -> None:
        row = orjson.loads(job.payload)["run"]
        ended_run = await self._background_runs.perform(job.job, row)
        if ended_run is not None and ended_run.callback is not None:
            callback = enqueue_callback(self._store, ended_run.callback, ended_run.run.uid, run=ended_run.run)
            await job.finish(callback, enqueues=(CALLBACK_JOB,))

    async def _watch_jobs(self) -> None:
        """Closes the runs that have lost their job, after each change of jobs."""
        unwatch = self._store.jobs.add_listener(self._jobless_runs.wake)
        try:
            await self._jobless_runs.run()
        finally:
            unwatch()

    async def _close_jobless_runs(self) -> float | None:
        await self._background_runs.recovery.close_jobless()
        await asyncio.sleep(_SEARCH_PAUSE_S)
        return POLL_S if self._is_shared else None

    async def _end_abandoned_runs(self) -> float | None:
        await self._fail_abandoned_runs()
        await self._background_runs.recovery.cancel_jobless()
        return _RECOVER_S if self._is_shared else None
