"""Performs the job of a batch: submits items that are ready, polls for results, writes them, and repeats.

Each attempt does all that can be done now, and postpones the job until the next poll of a provider. Each action is on
disk before the next begins, so the attempt after a killed attempt continues where that one stopped: it looks up by its
mark a part that may have been submitted, and writes no result twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import asdict

from adapters.batch.batch_provider import BatchProvider
from adapters.errors import BatchOutcomeUnknown, ProviderError, ProviderRefused, UnreadableResults
from gateway.agents.batches.batch_ids import make_public_id
from gateway.agents.batches.batch_log import BatchLog
from gateway.agents.batches.items import ItemReplayer
from gateway.agents.batches.outcomes import ItemOutcomes
from gateway.agents.batches.parts import FailedRequest, PartJournal, ProviderPart, describe_cause
from gateway.agents.batches.results import PartResults
from gateway.agents.batches.submission import PartSubmitter
from gateway.agents.runs.background.callbacks import CALLBACK_JOB, enqueue_callback
from gateway.core.turn.stop_reason import StopReason
from gateway.metrics import Counter
from gateway.run.background.job_context import JobContext, JobPostponed
from gateway.run.memory.keeper import MemoryKeeper
from gateway.settings import BatchSettings
from storage.batch_records import READY_PART, Batch, BatchCounts, BatchState
from storage.errors import NotFound, StaleWrite, StoreUnavailable, WriteConflict
from storage.run_records import RunState
from storage.sql.store import Store

# The attempts in a row that may end with an internal error before the batch is given up.
MAX_FAULTS: Final = 8
# Errors of the database, or of the disk with the files of requests, that a later attempt may not have.
_TRANSIENT_ERRORS: Final = (StoreUnavailable, NotFound, WriteConflict, StaleWrite, OSError)
# The statuses of a poll that mean that the provider has deleted the results.
_DELETED_STATUSES: Final = (404, 410)
# The statuses of a look-up that mean that the key is refused, or that the provider has no list. They do not show
# whether the part exists.
_LOOK_UP_REFUSED_STATUSES: Final = (400, 401, 402, 403, 404, 405, 410, 422)


@dataclass(eq=False)
class BatchJobs:
    """Performs the jobs of batches."""

    # The store with the batches.
    store: Store
    # The memory, with the queues of conversations.
    keeper: MemoryKeeper
    # Composes the requests of items, and feeds replies to their turns.
    replayer: ItemReplayer
    # The batch APIs, by the names of upstreams.
    providers: Mapping[str, BatchProvider]
    # The settings of batches: the seconds between polls, and the daily tokens of a project.
    settings: BatchSettings
    # Counts the tokens of all batches.
    tokens: Counter
    # The counts of items that were logged last, by the rows of the batches whose jobs this process performs.
    logged_counts: dict[int, BatchCounts] = field(default_factory=dict)
    # The attempts in a row that have ended with an internal error in this process, by the rows of jobs.
    faults: dict[int, int] = field(default_factory=dict)
    # The number of jobs that only wait for their next poll.
    waiting_jobs: int = 0

    async def run(self, job: JobContext) -> None:
        """Performs one attempt. Raises: JobPostponed if the batch waits for its providers or for tokens."""
        journal = await PartJournal.load(job, self.store, self.keeper.now, self.settings.poll_s)
        try:
            # Other processes do not know which requests this process sends itself, and would repeat them. So the job
            # stays in this process.
            while (wait_s := await self._perform_attempt(job, journal)) is not None:
                await self._wait_for_poll(wait_s)
        finally:
            await self._stop_calls(journal)

    async def _perform_attempt(self, job: JobContext, journal: PartJournal) -> float | None:
        """Does all that can be done now. Returns the seconds until this process polls again; None: the job has ended.

        Raises: JobPostponed, with the time after which any process may continue the job.
        """
        batch = await self.store.batches.get(None, job.job.key)
        outcomes = ItemOutcomes(self.store, self.keeper, self.replayer, job, batch, self.tokens)
        results = PartResults(self.store, self.replayer, batch, outcomes)
        daily_tokens = self.settings.daily_tokens
        submitter = PartSubmitter(
            self.store, self.replayer, batch, self.providers, daily_tokens, journal, outcomes, results
        )
        attempt = _Attempt(self, job, batch, journal, outcomes, results, submitter)
        faults = self.faults.pop(job.job.id, 0)
        try:
            if faults < MAX_FAULTS:
                await attempt.run()
            else:
                await attempt.fail_batch()
        except JobPostponed as error:
            if not attempt.has_local_part:
                raise
            return error.delay_s
        except _TRANSIENT_ERRORS:
            self.faults[job.job.id] = faults
            raise
        except Exception:
            # An internal error must not leave items open for ever.
            BatchLog(batch).exception(
                "an attempt failed by a fault in the gateway. The batch is given up after %d attempts.",
                MAX_FAULTS,
            )
            self.faults[job.job.id] = faults + 1
            raise
        return None

    async def _wait_for_poll(self, wait_s: float) -> None:
        """Waits within the attempt, and lets the worker perform another job meanwhile."""
        self.waiting_jobs += 1
        self.store.jobs.wake_here()
        try:
            await asyncio.sleep(wait_s)
        finally:
            self.waiting_jobs -= 1

    async def _stop_calls(self, journal: PartJournal) -> None:
        """Stops the requests that this process sends itself. The process that claims the job next repeats them."""
        for part in journal.parts:
            provider = self.providers.get(part.upstream)
            if provider is None or provider.is_durable:
                continue
            # The provider's id of the part may not be noted yet.
            if (provider_id := await provider.find(part.submission, ())) is not None:
                await provider.cancel(provider_id)

    async def aclose(self) -> None:
        """Closes the connections to the providers."""
        for provider in self.providers.values():
            await provider.aclose()


@dataclass(eq=False, slots=True)
class _Attempt:
    """One attempt of one batch's job."""

    # The jobs of all batches, with the services that attempts use.
    jobs: BatchJobs
    # The job of the batch, in this attempt.
    job: JobContext
    # The batch as it was before the attempt.
    batch: Batch
    # The journal of the batch's job, with the parts of the batch.
    journal: PartJournal
    # Writes the outcomes of items.
    outcomes: ItemOutcomes
    # Makes the outcomes of the providers' results.
    results: PartResults
    # Composes and submits parts.
    submitter: PartSubmitter

    async def run(self) -> None:
        """Makes the attempt, and ends writes that still wait for busy conversations. Raises: JobPostponed."""
        try:
            await self._perform_due()
        finally:
            await self.outcomes.aclose()

    async def _perform_due(self) -> None:
        """Performs all actions that are due, then ends the batch or postpones its job. Raises: JobPostponed."""
        if self.batch.is_over:
            await self._finish_cancelled()
            return
        # Submitted parts come first: their results make room in the providers' queues for parts that wait.
        now = asyncio.get_running_loop().time()
        for part in sorted(self.journal.open_parts, key=lambda part: part.id is None):
            # Requests that this process sends are polled each second, and a provider's parts when they are due.
            if part.next_poll <= now:
                await self._continue_part(part)
        await self._delete_data()
        budget_wait_s = await self.submitter.submit_ready()
        waits = self._plan_polls()
        if budget_wait_s is not None:
            waits.append(budget_wait_s)
        await self.outcomes.wait_for_deferred()
        items = self.jobs.store.batch_items
        if await self.jobs.store.batches.is_over(self.batch.id):
            await self._finish_cancelled()
        elif await items.has_open(self.batch.id):
            await self._log_progress()
            if budget_wait_s is None and await items.count_in_part(self.batch.id, READY_PART):
                waits.append(0.0)  # some items have become ready meanwhile
            raise JobPostponed("its providers are asked again", min(waits, default=0.0), is_planned=True)
        else:
            await self._finish()

    @property
    def has_local_part(self) -> bool:
        """True if this process sends requests of an open part itself. Such requests end with the process."""
        providers = (self.jobs.providers.get(part.upstream) for part in self.journal.open_parts)
        return any(not provider.is_durable for provider in providers if provider is not None)

    async def _finish_cancelled(self) -> None:
        """Cancels the items of a batch that is over already, and ends it. Raises: JobPostponed."""
        await self.results.cancel_items()
        await self._finish()

    async def fail_batch(self) -> None:
        """Fails all items that have not ended, and ends the batch. Raises: JobPostponed."""
        items = self.jobs.store.batch_items
        await items.end(self.batch.id, RunState.FAILED, StopReason.ERROR, self.jobs.keeper.now())
        await self._finish()

    # -- the end

    async def _finish(self) -> None:
        """Ends the batch, then its parts and data at providers, then the job. Raises: JobPostponed."""
        await self._end_batch()
        waits: list[float] = []
        # A part is still open if its results broke off after the last result that was needed.
        for part in self.journal.open_parts:
            provider = self.jobs.providers.get(part.upstream)
            if provider is not None and not await self._stop_part(part, provider):
                waits.append(self._choose_poll_wait_s(part))
            else:
                await self.journal.note_over(part)
        if (wait_s := await self._delete_data()) is not None:
            waits.append(wait_s)
        if waits:
            raise JobPostponed("its providers stop, and delete their data", min(waits), is_planned=True)
        await self.job.finish()
        self.jobs.logged_counts.pop(self.batch.id, None)

    async def _end_batch(self) -> None:
        """Ends the batch, unless it is over, and enqueues the callback of its creator once."""
        batches = self.jobs.store.batches
        at = self.jobs.keeper.now()
        await self.job.commit(batches.make_finish_effect(self.batch.id, BatchState.COMPLETED, at))
        batch = await batches.get(None, self.batch.uid)
        if batch.callback is not None:
            counts = await self.jobs.store.batch_items.count(batch.id)
            body = {
                "job_id": make_public_id(self.batch),
                "status": batch.state.value,
                "completed_at": datetime.fromtimestamp(batch.ended or at, UTC).isoformat(),
                "counts": {"total": counts.total, **asdict(counts)},
            }
            callback = enqueue_callback(self.jobs.store, batch.callback, batch.uid, body=body)
            await self.job.jobs.journal(self.job.job, "end", b"{}", callback)
            # The end of this job wakes the workers of batches alone.
            self.jobs.store.jobs.wake(CALLBACK_JOB)
        await self._log_progress()

    async def _stop_part(self, part: ProviderPart, provider: BatchProvider) -> bool:
        """Cancels a part at its provider, and counts the tokens of the results until then.

        Returns True if the part has ended, or if its provider is not asked again.
        """
        try:
            if part.id is None:
                provider_id = await self.submitter.find(part, provider, includes_ended=True)
                if provider_id is None:
                    return True
                await self.journal.note_provider_id(part, provider_id)
            assert part.id is not None  # by `note_provider_id`
            state = await provider.poll(part.id)
            if state.has_results:
                await self.results.record(part, provider.read_results(part.id))
            if state.is_over:
                return True
            await provider.cancel(part.id)
        except ProviderError as error:
            self._log.warning(
                "%s could not stop a part, and is asked again: %s", part.upstream, describe_cause(error)
            )
            # Some providers can find a part only after its end, perhaps a day later.
            kind = FailedRequest.ANY if isinstance(error, BatchOutcomeUnknown) else FailedRequest.CANCEL
            return await self.journal.note_failed_request(part, kind)
        return False

    async def _log_progress(self) -> None:
        """Logs how many items have ended, if the number has changed."""
        counts = await self.jobs.store.batch_items.count(self.batch.id)
        if self.jobs.logged_counts.get(self.batch.id) == counts:
            return
        self.jobs.logged_counts[self.batch.id] = counts
        self._log.info(
            "%(ended)d of %(total)d items have ended (%(completed)d completed, %(failed)d failed, "
            "%(expired)d expired, %(cancelled)d cancelled); %(running)d are running.",
            {**asdict(counts), "ended": counts.ended, "total": counts.total},
        )

    @property
    def _log(self) -> BatchLog:
        return BatchLog(self.batch)

    # -- parts

    async def _continue_part(self, part: ProviderPart) -> None:
        """Submits a part unless its provider has it already, and writes the results that the provider has."""
        provider = self.jobs.providers.get(part.upstream)
        if provider is None:
            # The settings name the upstream no longer.
            await self.submitter.fail(part, f"There is no upstream {part.upstream!r} any more.")
            return
        if part.id is None and self.journal.choose_submission_wait_s(part) > 0:
            return
        try:
            if part.id is not None or await self.submitter.find_or_submit(part, provider):
                await self._read_results(part, provider)
        except BatchOutcomeUnknown as error:
            self._log.info(
                "it is not known yet whether %s has a part: %s", part.upstream, describe_cause(error)
            )
        except ProviderError as error:
            self._log.warning("%s could not be asked about a part: %s", part.upstream, describe_cause(error))
            await self._handle_error(part, error)

    async def _handle_error(self, part: ProviderPart, error: ProviderError) -> None:
        """Notes a failed request about a part. Fails the part if its provider has lost it, or fails for too long."""
        statuses = _LOOK_UP_REFUSED_STATUSES if part.id is None else _DELETED_STATUSES
        is_final = isinstance(error, ProviderRefused) and error.status in statuses
        if is_final or isinstance(error, UnreadableResults):
            kind = FailedRequest.LOOK_UP if part.id is None else FailedRequest.RESULTS
            message = error.message
        else:
            kind = FailedRequest.ANY
            message = f"For three days the provider gave nothing but errors, the last one: {error.message}"
        if await self.journal.note_failed_request(part, kind):
            await self.submitter.fail(part, message)

    async def _read_results(self, part: ProviderPart, provider: BatchProvider) -> None:
        """Writes the results of a part that its provider has. Raises: ProviderError."""
        assert part.id is not None  # the caller has submitted the part
        state = await provider.poll(part.id)
        if state.has_results:
            try:
                await self.results.record(part, provider.read_results(part.id))
            except UnreadableResults:
                await self.outcomes.wait_for_deferred()
                if await self.jobs.store.batch_items.count_in_part(self.batch.id, part.number):
                    raise
        if not state.is_over:
            return
        await self.outcomes.wait_for_deferred()
        if state.exceeds_queue and not state.has_results:
            await self.submitter.divide(part, state.message, state.queue_tokens)
            return
        if state.message and not state.has_results:
            await self.submitter.note_failure(part, state.message, is_refused=True)
            return
        if state.is_gone or not provider.is_durable:
            # A fault may have ended the calls of this process before all were made.
            await self.results.resend(part, was_lost_by_restart=state.is_gone and not provider.is_durable)
        await self.results.end_without_result(part, state.unreported)
        await self.journal.note_over(part)

    async def _delete_data(self) -> float | None:
        """Deletes the files of parts that are over at their providers.

        Returns the seconds until the next try; None: no file is left.
        """
        waits: list[float] = []
        for part in self.journal.parts:
            provider = self.jobs.providers.get(part.upstream)
            for refusals, provider_id in part.undeleted_ids.items():
                wait_s = self.journal.choose_delete_wait_s(part)
                if wait_s > 0:
                    waits.append(wait_s)
                    continue
                try:
                    if provider is not None:
                        await provider.discard(provider_id, part.make_submission(refusals))
                except ProviderError as error:
                    message = "%s could not delete what it has of %s, and is asked again: %s"
                    self._log.warning(message, part.upstream, provider_id, describe_cause(error))
                    if not await self.journal.note_failed_request(part, FailedRequest.DELETE):
                        waits.append(self.journal.choose_delete_wait_s(part))
                        continue
                await self.journal.note_deleted(part, refusals)
        return min(waits, default=None)

    def _choose_poll_wait_s(self, part: ProviderPart) -> float:
        """Returns the seconds until a provider is asked again."""
        provider = self.jobs.providers.get(part.upstream)
        if provider is not None and provider.poll_interval_s is not None:
            return min(self.jobs.settings.poll_s, provider.poll_interval_s)
        return self.journal.choose_poll_wait_s(part)

    def _plan_polls(self) -> list[float]:
        """Plans the next poll of each open part without a planned poll. Returns the seconds until each poll."""
        now = asyncio.get_running_loop().time()
        for part in self.journal.open_parts:
            if part.next_poll <= now:
                part.next_poll = now + self._choose_poll_wait_s(part)
        return [part.next_poll - now for part in self.journal.open_parts]
