"""A job as its handler has it: its payload, its commits, and the errors by which an attempt ends.

A handler is a coroutine function that takes a `JobContext` and may be ended at any await. What must not be done twice
is a step of the job:

    async def learn(job: JobContext) -> None:
        reply = await job.step("ask", lambda: ask(job.payload))  # journaled: not asked again after a crash
        await job.finish(make_effect(job.agent_row, reply))  # the effect and the job's end: one transaction

`ask` returns bytes, and `make_effect` an `Effect`, as `Facts.make_learn_effect` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from storage.database import Effect
from storage.job_records import Job
from storage.sql.jobs import Jobs


class JobFailed(Exception):
    """An attempt failed. message: the reason for the database and the operator, without content of conversations."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class JobGivenUp(JobFailed):
    """An attempt failed, and another one would: the job becomes a dead letter at once."""


class JobPostponed(JobFailed):
    """The job cannot run now, by no fault of its own. It runs later, and this attempt does not count."""

    def __init__(self, message: str, delay_s: float, *, is_planned: bool = False) -> None:
        """Postpones the job.

        delay_s: the seconds until the next attempt.
        is_planned: True if jobs of this kind wait as a matter of course, so the wait is not logged.
        """
        super().__init__(message)
        self.delay_s = delay_s
        self.is_planned = is_planned


@dataclass(slots=True, eq=False)
class JobContext:
    """One attempt of a job: the payload for its handler, and the ways in which the handler commits.

    Every commit raises StaleWrite once the attempt has lost its lease. A handler does not catch that.
    """

    # The claimed job.
    job: Job
    # The queue of jobs, in which the attempt commits.
    jobs: Jobs
    # True as soon as the commit of the end begins.
    has_ended: bool = field(default=False, init=False)
    # Set by the worker when the lease is lost: nothing of this attempt would be committed any more.
    lease_lost: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    # True: the last heartbeat failed, since the database did not answer.
    is_overdue: bool = field(default=False, init=False)

    @property
    def agent_row(self) -> int:
        return self.job.agent_row

    @property
    def payload(self) -> bytes:
        return self.job.payload

    async def step(
        self,
        name: str,
        perform: Callable[[], Awaitable[bytes]],
        make_effect: Callable[[bytes], Effect] | None = None,
    ) -> bytes:
        """Returns the journaled result of a step. If there is none, performs the step and journals its result.

        name: the name of the step within its job.
        perform: the function that performs the step and returns its result.
        make_effect: the function that makes the effect of the result, which is committed together with the journal;
            None: the step has no effect.
        """
        journaled_result = await self.jobs.find_step(self.job, name)
        if journaled_result is not None:
            return journaled_result
        result = await perform()
        return await self.jobs.journal(self.job, name, result, make_effect(result) if make_effect else None)

    async def commit(self, effect: Effect) -> None:
        """Commits an effect now. If the process is killed before the job ends, the effect is committed again."""
        await self.jobs.commit(self.job, effect)

    async def finish(self, effect: Effect | None = None, enqueues: Sequence[str] = ()) -> None:
        """Commits the last effect and the job's end in one transaction. Else the job ends when its handler returns.

        enqueues: the other kinds of jobs that the effect enqueues.
        """
        self.has_ended = True
        try:
            await self.jobs.finish(self.job, effect, enqueues)
        except BaseException:
            self.has_ended = False
            raise


Handler = Callable[[JobContext], Awaitable[None]]
