"""Durable jobs: claimed under a lease (job_leases.py), fenced by the attempt's number, with a journal of their effects.

    enqueue -> pending -> claim -> running -> finish (deleted, its steps with it)
                            ^         |
                            '--- retrying <- fail, release          fail for good -> dead -> retry -> pending

A serial group is an agent's jobs of one kind. Only its first job is claimed, and it stays the first while it runs or
waits to be tried again. When it has ended, the schema makes the next job the first, so that the next job is found at
once, however many follow. Among jobs that belong to no memory each key has a serial group of its own.

Every commit of a job checks in its transaction that this attempt still runs and that the agent's epoch has not changed
since the job was made: content that was forgotten meanwhile does not come back through work in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Coroutine, Sequence
from functools import partial
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

from storage.database import WORK, Connection, Database, Effect, Operation
from storage.errors import NotFound, StaleWrite
from storage.job_records import Job, JobState, JobStep
from storage.listing import JobEntry
from storage.records import Scope
from storage.sql.group import StoreGroup, long_reads, reads
from storage.sql.job_leases import JobLeases
from storage.sql.job_rows import (
    check_attempt,
    delete_job,
    is_attempt,
    lock_epoch_of_jobs,
    make_dead_letter,
    make_job,
)
from storage.sql.statements import load, load_rows

SQL = load("jobs.sql")

P = ParamSpec("P")
T = TypeVar("T")
# Returns one payload for two jobs of the same key. Its arguments: the payloads of the waiting job and of the new job.
MergePayloads = Callable[[bytes, bytes], bytes]
# The outcome of an attempt. dropped: the job is deleted, since its memory has changed; lost: another attempt holds it.
JobOutcome = Literal["retrying", "dead", "dropped", "lost"]


def _wakes(
    method: Callable[Concatenate[Jobs, Connection, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Jobs, P], Coroutine[Any, Any, T]]:
    """Returns a method that runs in a transaction of its own, and then calls all watchers."""

    def writing(self: Jobs, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._write_and_wake(lambda connection: method(self, connection, *args, **kwargs))

    return writing


def _wakes_kind(
    method: Callable[Concatenate[Jobs, Connection, str, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Jobs, str, P], Coroutine[Any, Any, T]]:
    """Returns a method that runs in a transaction of its own, and then calls the watchers of a kind of jobs."""

    def writing(self: Jobs, kind: str, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._write_and_wake(lambda connection: method(self, connection, kind, *args, **kwargs), kind)

    return writing


class JobStatus(NamedTuple):
    """The state of a job, and when the job is due."""

    # The state of the job.
    state: JobState
    # When the job may begin, in seconds since the epoch.
    due: float


class Jobs(StoreGroup):
    """The queue of durable jobs. The store's clock decides which jobs are due and which leases have expired."""

    def __init__(
        self, database: Database, now: Callable[[], float | None], tick: Callable[[], float | None]
    ) -> None:
        """Makes the group.

        now: a clock, in seconds since the epoch, for due jobs; it returns None if the database's own clock counts.
        tick: a clock that never jumps, for leases; it returns None if the database's own clock counts.
        """
        super().__init__(database)
        self._now = now
        self.leases = JobLeases(database, now, tick, self.wake_here)
        # Each callback with the kinds of jobs for which it is called; None: all kinds.
        self._watchers: list[tuple[Callable[[], None], Container[str] | None]] = []
        database.add_listener(WORK, lambda kinds: self.wake_here(*(kinds or "").split()))

    # -- waiting for jobs ---------------------------------------------------------------------------------------------

    def add_listener(
        self, callback: Callable[[], None], kinds: Container[str] | None = None
    ) -> Callable[[], None]:
        """Registers a function that is called when a job may be due. Returns a function that removes it again.

        kinds: the kinds of the jobs for which `callback` is called; None: all.
        """
        watcher = (callback, kinds)
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def wake(self, *kinds: str) -> None:
        """Calls the watchers of all processes, after the caller's own transaction has enqueued jobs.

        kinds: the kinds of the jobs that may begin now; none: all kinds.
        """
        self.wake_here(*kinds)
        self._database.notify(WORK, " ".join(kinds))

    def wake_here(self, *kinds: str) -> None:
        """Calls the watchers of this process. kinds: the kinds of the jobs that may begin now; none: all kinds."""
        for callback, watched_kinds in tuple(self._watchers):
            if not kinds or watched_kinds is None or any(kind in watched_kinds for kind in kinds):
                callback()

    # -- a job's life -------------------------------------------------------------------------------------------------

    async def enqueue_in(
        self,
        connection: Connection,
        kind: str,
        agent_row: int,
        key: str,
        payload: bytes = b"{}",
        *,
        due: float | None = None,
        epoch: int | None = None,
        merge: MergePayloads | None = None,
    ) -> int:
        """Adds a job within the caller's own transaction; call `wake` when that is committed. Returns its number.

        A job that already waits under the same key takes over the payload and the earlier time of the two.

        agent_row: the row of the memory that the job belongs to; NO_AGENT: it belongs to none.
        payload: a JSON object with ids and numbers, never with text of messages.
        due: the time at which the job may begin, in seconds since the epoch; None: now.
        epoch: the memory's epoch that the caller read; None: the present one.
        merge: a function that makes the payload of a job that already waits; None: that job takes over the new payload.

        Raises: StaleWrite if the agent is gone, or its epoch is another one now.
        """
        current_epoch = await lock_epoch_of_jobs(connection, agent_row)
        if current_epoch is None or epoch not in (None, current_epoch):
            raise StaleWrite(
                f"the memory of agent {agent_row} has changed since this {kind} job was thought of"
            )
        now = self._now()
        row = await connection.fetch_row(SQL["pending"], (agent_row, kind, key))
        while row is None:
            values = (agent_row, kind, key, due, now, current_epoch, payload)
            new_id = await connection.fetch_value(SQL["insert"], values)
            if new_id is not None:
                return int(new_id)
            # Another process has enqueued a job with this key at the same time, and may have claimed it by now.
            row = await connection.fetch_row(SQL["pending"], (agent_row, kind, key))
        job_id, waiting_epoch, waiting_payload = row
        # An old epoch's payload may name forgotten content.
        if merge is not None and waiting_epoch == current_epoch:
            payload = merge(waiting_payload, payload)
        await connection.run(SQL["coalesce"], (current_epoch, due, now, payload, job_id))
        return int(job_id)

    # Adds a job in a transaction of its own.
    enqueue = _wakes_kind(enqueue_in)

    @reads
    async def find_step(self, connection: Connection, job: Job, name: str) -> bytes | None:
        """Returns the result of a step; None: no attempt at the job has performed the step."""
        return await connection.fetch_value(SQL["step"], (job.id, name))

    async def journal(self, job: Job, name: str, result: bytes, effect: Effect | None = None) -> bytes:
        """Writes step and effect in one transaction. Returns the result, or the result that was journaled before.

        Raises: StaleWrite if this attempt no longer holds the job; the errors of the effect.
        """

        async def write(connection: Connection) -> bytes:
            await _check_current(connection, job)
            journaled_result: bytes | None = await connection.fetch_value(SQL["step"], (job.id, name))
            if journaled_result is not None:
                return journaled_result
            if effect is not None:
                await effect(connection)
            await connection.run(SQL["step_insert"], (job.id, name, self._now(), result))
            return result

        return await asyncio.shield(self._database.bulk_write(write, size_bytes=len(result)))

    async def commit(self, job: Job, effect: Effect) -> None:
        """Commits an effect without a step. If the process is killed before the job ends, the effect is repeated.

        Raises: StaleWrite; the errors of the effect.
        """
        await asyncio.shield(
            self._database.bulk_write(lambda connection: _apply_effect(connection, job, effect))
        )

    async def finish(self, job: Job, effect: Effect | None = None, enqueues: Sequence[str] = ()) -> None:
        """Writes the last effect and the job's end in one transaction. Raises: StaleWrite; the errors of the effect.

        enqueues: the other kinds of jobs that the effect enqueues.
        """

        async def write(connection: Connection) -> None:
            await _apply_effect(connection, job, effect)
            await delete_job(connection, job.id)

        # The next job of the serial group may begin, which has the kind of this job.
        await self._write_and_wake(write, job.kind, *enqueues)

    async def fail(self, job: Job, error: str, retry_in_s: float | None) -> JobOutcome:
        """Ends an attempt that failed; the job is tried again later, and its serial group waits. Returns the outcome.

        error: the reason, without any content.
        retry_in_s: the seconds until the next attempt; None: the job becomes a dead letter.
        """
        return await self._end_attempt(job, error, retry_in_s, job.tries)

    async def release(self, job: Job, delay_s: float = 0.0, reason: str | None = None) -> JobOutcome:
        """Gives the job back as if this attempt had not been made. Returns the outcome.

        reason: the reason for which the job waits; None: its last error stays.
        """
        return await self._end_attempt(job, reason or job.error, delay_s, job.tries - 1)

    # -- operators and forgetting -------------------------------------------------------------------------------------

    @reads
    async def list_newest(
        self, connection: Connection, state: JobState | None = None, limit: int = 100
    ) -> tuple[Job, ...]:
        """Returns jobs, newest first. state: the state of the jobs; None: any state."""
        return tuple(
            map(make_job, await connection.fetch_rows(SQL["list"], ("" if state is None else state, limit)))
        )

    @reads
    async def list_page(
        self,
        connection: Connection,
        *,
        is_dead: bool,
        before: int,
        project: str | None = None,
        limit: int = 50,
    ) -> list[JobEntry]:
        """Returns a page of jobs, newest first.

        is_dead: True for the jobs that have failed for good; False for all others.
        before: the number of the last job on the previous page.
        project: the project of the jobs; None: all projects, and the jobs that belong to no memory.
        """
        statement = SQL["page_dead" if is_dead else "page_open"]
        rows = await connection.fetch_rows(statement, (before, project, limit))
        return [
            JobEntry(make_job(row[:12]), None if row[12] is None else Scope(*row[13:]), row[12])
            for row in rows
        ]

    @reads
    async def find(self, connection: Connection, job_id: int) -> Job | None:
        """Returns a job by its number; None: the job is gone."""
        row = await connection.fetch_row(SQL["find"], (job_id,))
        return None if row is None else make_job(row)

    @reads
    async def list_steps(self, connection: Connection, job_id: int) -> tuple[JobStep, ...]:
        """Returns the steps that a job has performed so far."""
        return tuple(JobStep(*row) for row in await connection.fetch_rows(SQL["step_list"], (job_id,)))

    @reads
    async def count_by_state(self, connection: Connection, project: str | None = None) -> dict[JobState, int]:
        """Counts the jobs in each state. project: the project of the jobs' memories; None: all jobs are counted."""
        counts = dict.fromkeys(JobState, 0)
        rows = await connection.fetch_rows(SQL["counts"], (project,))
        counts.update((JobState(state), count) for state, count in rows)
        return counts

    @reads
    async def count_failing(self, connection: Connection, project: str | None, tries: int) -> int:
        """Returns the number of jobs that are tried again after at least `tries` failures.

        project: the project of the jobs' memories; None: all jobs.
        """
        return int(await connection.fetch_value(SQL["count_failing"], (project, tries)))

    @reads
    async def find_status(self, connection: Connection, agent_row: int, kind: str) -> JobStatus | None:
        """Returns the status of a memory's job of a kind.

        Prefers a job that is tried again, then a job that is not dead. Returns None if there is no job.
        """
        row = await connection.fetch_row(SQL["state_of"], (agent_row, kind))
        return None if row is None else JobStatus(JobState(row[0]), row[1])

    @long_reads
    async def find_idle(
        self, connection: Connection, kind: str, agent_rows: Sequence[int], since: float
    ) -> list[int]:
        """Returns the memories among `agent_rows` that have had no turn since a time and have no dead job of a kind."""
        return [
            agent_row for (agent_row,) in await load_rows(connection, SQL["idle"], agent_rows, kind, since)
        ]

    @_wakes
    async def retry(self, connection: Connection, job_id: int) -> Job:
        """Makes a job due now. Returns the job.

        A running job runs again at once, unless its present attempt ends it. A dead job starts again with its first
        attempt, or is replaced by a newer waiting job with the same key.

        Raises: NotFound; StaleWrite if something was forgotten since the job was made.
        """
        job = await _get_job(connection, job_id)
        now = self._now()
        if await lock_epoch_of_jobs(connection, job.agent_row) != job.epoch:
            raise StaleWrite(
                f"job {job_id} was made before something was forgotten: it cannot be tried again"
            )
        if job.state is JobState.DEAD:
            newer_row = await connection.fetch_row(SQL["pending"], (job.agent_row, job.kind, job.key))
            if newer_row is None:
                await connection.run(SQL["revive"], (now, job_id))
                return await _get_job(connection, job_id)
            await delete_job(connection, job_id)
            job = await _get_job(connection, newer_row[0])
        await connection.run(SQL["hasten"], (now, job.id))
        return await _get_job(connection, job.id)

    @_wakes
    async def cancel(self, connection: Connection, job_id: int) -> Job:
        """Deletes a job with its steps. A job that is running commits nothing more. Raises: NotFound."""
        job = await _get_job(connection, job_id)
        await delete_job(connection, job_id)
        return job

    async def write_enqueuing(self, operation: Operation[T]) -> T:
        """Writes a transaction that also enqueues jobs (`enqueue_in`), and calls the watchers.

        Unlike the transaction of `enqueue`, this one does not give way to turns.
        """
        return await self._await_write(self._database.write(operation), self.wake)

    # -- transactions -------------------------------------------------------------------------------------------------

    async def _write_and_wake(self, operation: Operation[T], *kinds: str) -> T:
        """Writes, and calls the watchers. kinds: the kinds of the jobs that may begin then; without any, all."""
        return await self._await_write(self._database.bulk_write(operation), partial(self.wake, *kinds))

    async def _end_attempt(
        self, job: Job, error: str | None, delay_s: float | None, tries: int
    ) -> JobOutcome:
        """Ends an attempt. Returns the outcome. delay_s: the seconds until the next attempt; None: the job is dead."""

        async def write(connection: Connection) -> JobOutcome:
            epoch = await lock_epoch_of_jobs(connection, job.agent_row)
            if not await is_attempt(connection, job):
                return "lost"
            if epoch != job.epoch:
                await delete_job(connection, job.id)
                return "dropped"
            if delay_s is None:
                await make_dead_letter(connection, job.id, error or "")
                return "dead"
            await connection.run(SQL["retrying"], (self._now(), delay_s, tries, error, job.id))
            return "retrying"

        return await self._write_and_wake(write, job.kind)


async def _get_job(connection: Connection, job_id: int) -> Job:
    row = await connection.fetch_row(SQL["find"], (job_id,))
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return make_job(row)


async def _check_current(connection: Connection, job: Job) -> None:
    """Checks that an attempt holds its job. Raises: StaleWrite: it no longer does, or the memory has changed."""
    # The agent is locked before the job, as everywhere, so that there is no deadlock.
    epoch = await lock_epoch_of_jobs(connection, job.agent_row)
    await check_attempt(connection, job)
    if epoch != job.epoch:
        raise StaleWrite(f"something was forgotten while job {job.id} was under way")


async def _apply_effect(connection: Connection, job: Job, effect: Effect | None) -> None:
    await _check_current(connection, job)
    if effect is not None:
        await effect(connection)
