"""The service of batches: the worker that performs them, and the clean-up after an interrupted acceptance."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from adapters.batch.batch_provider import BatchProvider
from gateway.agents.batches.batch_jobs import BatchJobs
from gateway.agents.batches.batch_metrics import BatchMetrics
from gateway.agents.batches.items import ItemReplayer
from gateway.metrics import Metrics
from gateway.run.background.retention import YOUNG_S
from gateway.run.background.tasks import PeriodicTask
from gateway.run.background.worker import UNLIMITED_TRIES, Worker, WorkerLimits, make_receipt_opener
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.receipts import Receipts
from gateway.settings import BatchSettings
from storage.batch_records import BATCH_JOB


class BatchService:
    """Performs the batches of one gateway."""

    def __init__(
        self,
        keeper: MemoryKeeper,
        replayer: ItemReplayer,
        providers: Mapping[str, BatchProvider],
        settings: BatchSettings,
        *,
        metrics: Metrics,
        count_outcome: Callable[[str, str], None],
        receipts: Receipts,
    ) -> None:
        """Creates the service.

        providers: the batch APIs, by the names of upstreams.
        count_outcome: the function to call with the kind and the outcome of each attempt of a job.
        """
        store = keeper.store
        self._batches = store.batches
        self._is_shared = store.database.is_shared
        self._now = keeper.now
        self._clean_up = PeriodicTask("half-accepted batches", self._fail_half_accepted)
        tokens = BatchMetrics(metrics, store.batches.count_open).tokens
        self._jobs = jobs = BatchJobs(store, keeper, replayer, providers, settings, tokens)
        # A job that crashes the process is tried again without limit, since its progress is on disk. Its failures add
        # up over days, so the wait for the next attempt grows no longer than the wait for a poll.
        limits = WorkerLimits(concurrency=4, tries=UNLIMITED_TRIES, backoff_max_s=settings.poll_s)
        self._worker = Worker(
            store.jobs,
            {BATCH_JOB: jobs.run},
            limits,
            count_outcome=count_outcome,
            count_waiting=lambda: jobs.waiting_jobs,
            open_receipt=make_receipt_opener(receipts, BATCH_JOB),
        )

    def make_coroutines(self) -> list[Coroutine[Any, Any, None]]:
        """Returns the coroutines that perform batches, to be run as tasks: the worker and the clean-up."""
        return [self._worker.run(), self._clean_up.run()]

    async def _fail_half_accepted(self) -> float | None:
        """Fails the batches that a process began to accept before it died.

        Returns the seconds until the next search; None: no other search follows.
        """
        # Another gateway may be accepting a young batch now.
        await self._batches.fail_half_accepted(self._now() - YOUNG_S, self._now())
        # No other gateway uses a SQLite file, so none leaves a batch in it later. Over PostgreSQL a batch fails before
        # it is one and a half times YOUNG_S old.
        return YOUNG_S / 2 if self._is_shared else None

    async def aclose(self) -> None:
        await self._jobs.aclose()
