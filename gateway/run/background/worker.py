"""The worker: claims durable jobs, has their handlers perform them, and renews their leases meanwhile.

It sleeps until something falls due or it is woken; it never polls. A handler that fails is tried again, each time
later, until its job is a dead letter. The jobs of its serial group wait meanwhile. Texts of foreign errors never reach
the database or the log, since they may have a user's words.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from gateway.errors import GatewayError
from gateway.run.background.job_context import Handler, JobContext, JobFailed, JobGivenUp, JobPostponed
from gateway.run.receipt import Receipt
from gateway.run.receipts import Receipts
from storage.errors import StaleWrite, StoreError, StoreUnavailable, is_known
from storage.job_records import Job
from storage.sql.jobs import Jobs

_log = logging.getLogger("mnemogate")

# None of these times is measured.
# The pause after a fault; a store that works again wakes the worker earlier.
_AFTER_FAULT_S = 30.0
# The shortest wait for a job to fall due, so that jobs that do so together are claimed together.
_MIN_PAUSE_S = 0.05
# The pause after a job that seemed due could not be claimed: another worker was faster, or an outage has just ended.
_NOTHING_FOUND_S = 5.0
# The time that releasing a job may take at shutdown.
_RELEASE_S = 2.0
# The most characters of an error that are stored with its job.
_ERROR_CHARS = 500
# The line of the log for a failed attempt.
_ATTEMPT_FAILED = "Job %d (%s) failed in attempt %d; %s: %s"
# The clauses of the log by the outcome of a failed attempt (`Jobs.fail`).
_OUTCOMES = {
    "retrying": "it is tried again later",
    "dead": "it is not tried again, unless by `mnemogate jobs retry`",
    "dropped": "it is dropped, since its memory has changed",
    "lost": "it was cancelled, forgotten or taken over meanwhile",
}
# `WorkerLimits.tries` of jobs that no worker gives up: their handlers do, since they have to end the run of the job.
UNLIMITED_TRIES = 1_000_000


class WorkerLimits(Struct, frozen=True):
    """Limits of a worker. None is measured."""

    # The most jobs that one process performs at a time.
    concurrency: int = 4
    # The seconds for which a job stays claimed without a heartbeat; then another worker takes it over.
    lease_s: float = 30.0
    # The seconds between two renewals of a lease.
    heartbeat_s: float = 10.0
    # The most attempts at a job; with these waits the eighth attempt comes some ten minutes after the first.
    tries: int = 8
    # The seconds of the wait after the first failure. The wait doubles with each failure.
    backoff_first_s: float = 5.0
    # The seconds of the longest wait.
    backoff_max_s: float = 3600.0


LIMITS = WorkerLimits()


@dataclass(eq=False)
class Worker:
    """Performs jobs, several at a time."""

    # The queue of jobs.
    jobs: Jobs
    # The handlers by the kind of job, filled before `run`. Jobs of other kinds are not claimed.
    handlers: Mapping[str, Handler]
    # The bounds of the worker.
    limits: WorkerLimits = LIMITS
    # Called with the kind of job and the outcome of each attempt.
    count_outcome: Callable[[str, str], None] = lambda kind, outcome: None
    # Returns the number of running jobs that only wait for other jobs, which may be queued after them. They do not
    # count towards the concurrency. Call `Jobs.wake_here` after a change of the number.
    count_waiting: Callable[[], int] = lambda: 0
    # Returns the seconds for which no job of a kind is claimed, because all jobs of the kind would wait for the same
    # thing; 0 or less: jobs of the kind are claimed.
    pause_s: Callable[[str], float] = lambda kind: 0.0
    # Waits for some seconds, by a clock that does not jump.
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    # Opens the receipt of an attempt, with calls that the daily budget counts; its value is None for a job without one.
    open_receipt: Callable[[Job], AbstractContextManager[Receipt | None]] = lambda job: nullcontext()
    # Returns a random number from 0 to 1.
    jitter: Callable[[], float] = random.random
    # Set when a job may be due.
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    # The attempts that are under way.
    _running: set[JobContext] = field(default_factory=set, init=False)

    @property
    def running_count(self) -> int:
        """The number of attempts that are under way."""
        return len(self._running)

    async def run(self) -> None:
        """Runs until it is cancelled. Jobs under way are then cancelled, too, and given back."""
        remove_listener = self.jobs.add_listener(self._wake.set, self.handlers)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._wake.clear()
                    await self._sleep(await self._claim_due(tasks))
        finally:
            remove_listener()

    async def _claim_due(self, tasks: asyncio.TaskGroup) -> float | None:
        """Claims due jobs while there is room.

        Returns the seconds until more may be due, or None if only a wake-up can show that.
        """
        self.jobs.leases.begin_attempts()  # the tasks of the jobs inherit the context
        try:
            while True:
                await self._update_leases()
                if not self._may_claim():
                    return None  # the end of a running job wakes the worker
                pauses = {kind: self.pause_s(kind) for kind in self.handlers}
                kinds = tuple(kind for kind, pause_s in pauses.items() if pause_s <= 0)
                due_in_s = await self.jobs.leases.find_due_in(kinds) if kinds else None
                if due_in_s is None or due_in_s > 0:
                    return _find_shortest_wait(due_in_s, *pauses.values())
                job = await self._claim(kinds)
                if job is None:
                    return _NOTHING_FOUND_S
                context = JobContext(job, self.jobs)
                self._running.add(context)
                tasks.create_task(self._run_job(context), name=f"job-{job.id}")
        except Exception as error:
            # Background work must not end for good, whatever the error is.
            if not is_known(error):
                _log.warning("Jobs could not be read; trying again: %s", _describe(error))
            return _AFTER_FAULT_S

    async def _claim(self, kinds: Sequence[str]) -> Job | None:
        """Claims the next job. If the claim is cancelled meanwhile, the job is given back."""
        limits = self.limits
        running_ids = [each.job.id for each in self._running]
        claim_task = asyncio.ensure_future(
            self.jobs.leases.claim(kinds, lease_s=limits.lease_s, tries=limits.tries, running=running_ids)
        )
        try:
            return await asyncio.shield(claim_task)
        except asyncio.CancelledError:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_RELEASE_S):
                    if (job := await claim_task) is not None:
                        await self.jobs.release(job)
            raise

    def _may_claim(self) -> bool:
        """Returns whether there is room for a job, and no running job has lost its lease.

        The serial group of a job without its lease may be free in the database already, but none of the group's jobs
        may run before this one ends.
        """
        has_room = len(self._running) - self.count_waiting() < self.limits.concurrency
        return has_room and not any(context.lease_lost.is_set() for context in self._running)

    async def _update_leases(self) -> None:
        """Ends jobs that have lost their leases (cancelled, forgotten, taken over).

        Renews the leases that could not be renewed during an outage, before another process takes these jobs over.
        """
        for context in tuple(self._running):
            if context.is_overdue:
                await self._renew_lease(context)
            elif (
                not context.has_ended
                and not await self.jobs.leases.is_held(context.job)
                and not context.has_ended
            ):
                context.lease_lost.set()

    async def _sleep(self, seconds: float | None) -> None:
        if seconds is None:
            await self._wake.wait()
        elif not self._wake.is_set():
            await _wait_for_first(self._wake.wait(), self.sleep(seconds))

    async def _renew_lease(self, context: JobContext) -> None:
        """Renews a lease, or notes that it is lost. Raises: StoreError."""
        if not context.has_ended:
            is_held = await self.jobs.leases.renew(context.job, self.limits.lease_s)
            context.is_overdue = False
            if not is_held and not context.has_ended:
                context.lease_lost.set()

    async def _run_job(self, context: JobContext) -> None:
        """Makes one attempt at a claimed job, and counts its outcome. Raises nothing but CancelledError."""
        job = context.job
        try:
            outcome = await self._make_attempt(context)
        except asyncio.CancelledError:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_RELEASE_S):
                    await self.jobs.release(job)
            raise
        except Exception as error:
            # The outcome cannot be written. The next claim takes the job over, when the store is back.
            _log.warning(
                "The outcome of job %d (%s) could not be stored, so it is performed again: %s",
                job.id, job.kind, _describe(error),
            )  # fmt: skip
            self.jobs.leases.release_later(job)
            outcome = "unwritten"
        finally:
            self._running.discard(context)
            self._wake.set()
        self.count_outcome(job.kind, outcome)

    async def _make_attempt(self, context: JobContext) -> str:
        """Makes one attempt, and writes and returns its outcome. Raises: StoreError: it could not be written."""
        job = context.job
        try:
            with self.open_receipt(job):
                is_held = await self._perform(context)
            if not is_held:
                return await self.jobs.fail(job, "its lease was lost", 0.0)
            if not context.has_ended:
                await context.finish()
            return "finished"
        except JobPostponed as error:
            if not error.is_planned:
                # Without the job's number: if many jobs wait for one thing, the log has one line.
                _log.warning("Jobs of the kind %r wait: %s", job.kind, error)
            return await self.jobs.release(job, error.delay_s, str(error))
        except Exception as error:
            reason = _describe(error)
            is_last = isinstance(error, JobGivenUp) or job.tries >= self.limits.tries
            outcome = await self.jobs.fail(job, reason, None if is_last else self._choose_backoff(job.tries))
            _log.warning(
                _ATTEMPT_FAILED, job.id, job.kind, job.tries, _OUTCOMES.get(outcome, outcome), reason
            )
            return outcome

    async def _perform(self, context: JobContext) -> bool:
        """Runs the handler, with heartbeats. Returns False if the lease was lost, so that the handler was cancelled."""
        lease_lost: asyncio.Future[Any] = asyncio.ensure_future(context.lease_lost.wait())
        handler_task: asyncio.Future[Any] = asyncio.ensure_future(self.handlers[context.job.kind](context))
        try:
            while not handler_task.done():
                pause: asyncio.Future[Any] = asyncio.ensure_future(self.sleep(self.limits.heartbeat_s))
                waits = (handler_task, pause) if lease_lost.done() else (handler_task, pause, lease_lost)
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    pause.cancel()
                # While the end of a job is being written, the job is gone from the queue, but its lease is not lost.
                if handler_task.done() or context.has_ended:
                    continue
                if lease_lost.done():
                    return False
                try:
                    await self._renew_lease(context)
                except StoreUnavailable:
                    # A database that is down does not end the lease, which is renewed when it answers again.
                    context.is_overdue = True
        finally:
            lease_lost.cancel()
            if not handler_task.done():
                handler_task.cancel()
                await asyncio.gather(handler_task, return_exceptions=True)
        if handler_task.cancelled():
            raise JobFailed("its handler was cancelled from within")
        handler_task.result()
        return True

    def _choose_backoff(self, tries: int) -> float:
        """Returns the seconds before the next attempt, which double with each attempt.

        Up to half of the time is random, so that jobs that failed together are not tried again together.
        """
        limits = self.limits
        doublings = min(tries - 1, 64)  # a job that is never given up may have failed thousands of times
        longest_s = min(limits.backoff_max_s, limits.backoff_first_s * 2.0**doublings)
        return longest_s * (0.5 + self.jitter() / 2)


def make_receipt_opener(
    receipts: Receipts, *kinds: str
) -> Callable[[Job], AbstractContextManager[Receipt | None]]:
    """Returns a value for `Worker.open_receipt`: only jobs of these kinds have a receipt, that of their memory."""

    def open_receipt(job: Job) -> AbstractContextManager[Receipt | None]:
        return receipts.work("", job.agent_row, job.kind) if job.kind in kinds else nullcontext()

    return open_receipt


def _find_shortest_wait(*waits: float | None) -> float | None:
    """Returns the shortest wait that is not over, in seconds; None: there is none."""
    pending_waits = [wait for wait in waits if wait is not None and wait > 0]
    return max(min(pending_waits), _MIN_PAUSE_S) if pending_waits else None


async def _wait_for_first(*waits: Awaitable[object]) -> None:
    """Waits until one of the awaitables is done, and cancels the others."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _describe(error: BaseException) -> str:
    """Returns an error in words: the gateway's own error by its message, any other by its type and line of code."""
    if isinstance(error, JobFailed | GatewayError | StoreUnavailable | StaleWrite):
        return str(error)[:_ERROR_CHARS]
    where = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f" ({code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} in {code.co_name})"
        trace = trace.tb_next
    return f"{type(error).__name__}{where}"[:_ERROR_CHARS]
