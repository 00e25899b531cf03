"""The leases of jobs: a worker claims a lease, and renews it while the job runs; an expired lease is taken over.

A job's row has its lease, and the clock by which the lease is measured. Processes that share a database go by the
database's clock. A process that owns its file goes by a monotonic clock of its own, so it can claim at once the jobs
that an earlier process left running.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from storage.database import Connection, Database, Row, begin_work
from storage.errors import StoreError
from storage.job_records import Job
from storage.sql.group import StoreGroup, reads
from storage.sql.job_rows import delete_job, make_dead_letter, make_job
from storage.sql.statements import load

SQL = load("jobs.sql")

# The longest pause between two reads of a queue that processes share, since a notification may be lost.
_MAX_WAIT_S = 60.0


class _Attempt(NamedTuple):
    """An attempt at a job."""

    # The number of the job.
    job_id: int
    # The number of the attempt, as `Job.attempt`.
    number: int


class _AwaitedJobs(NamedTuple):
    """The jobs that a request waits for."""

    # The kind of the jobs.
    kind: str
    # The row of the jobs' agent.
    agent_row: int


class JobLeases(StoreGroup):
    """The leases of this process: claims, renews and releases them."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], float | None],
        tick: Callable[[], float | None],
        wake_here: Callable[[], None],
    ) -> None:
        """Makes the group.

        now, tick: the clocks, as in `Jobs`.
        wake_here: a function that wakes the workers of this process.
        """
        super().__init__(database)
        self._now = now
        self._tick = tick
        self._wake_here = wake_here
        # The name of the clock by which leases are measured.
        self._clock_name = "database" if database.is_shared else uuid.uuid4().hex
        # The attempts that the next claim releases, each with the end of its lease; None: any end. An attempt that
        # ended while the database was out of reach has None. An attempt that got no answer to its claim has the end of
        # its lease, since another process may have claimed the job with the same attempt number.
        self._attempts_to_release: dict[_Attempt, float | None] = {}
        # False once `stop_claiming` was called.
        self._may_claim = True
        # The numbers of requests of this process that wait for jobs.
        self._waiter_counts: Counter[_AwaitedJobs] = Counter()

    @reads
    async def find_due_in(self, connection: Connection, kinds: Sequence[str]) -> float | None:
        """Returns the seconds until a job of these kinds can be claimed or a lease expires; None: no job waits."""
        if self._attempts_to_release:
            return 0.0
        if not self._may_claim:
            # `claim` finds out whether awaited jobs are due. It is called again soon, or when one of them has ended.
            return 0.0 if self._list_awaited(kinds) else None
        now = self._now()
        # A shared database has a clock of its own.
        if now is not None and await connection.fetch_value(SQL["is_clock_set_back"], (now,)):
            return 0.0
        values = (now, kinds, self._clock_name, self._tick())
        wait: float | None = await connection.fetch_value(SQL["due_in"], values)
        if self._database.is_shared:
            # The process that enqueued a job may have died before its notification.
            wait = _MAX_WAIT_S if wait is None else min(_MAX_WAIT_S, wait)
        return None if wait is None else max(0.0, wait)

    def stop_claiming(self) -> None:
        """Stops claiming, except for jobs that requests of this process wait for. Jobs that are running go on."""
        self._may_claim = False

    @contextmanager
    def mark_awaited(self, kind: str, agent_row: int) -> Iterator[None]:
        """Marks an agent's jobs of a kind as awaited by a request of this process."""
        awaited = _AwaitedJobs(kind, agent_row)
        self._waiter_counts[awaited] += 1
        if not self._may_claim:
            self._wake_here()
        try:
            yield
        finally:
            self._waiter_counts[awaited] -= 1
            if not self._waiter_counts[awaited]:
                del self._waiter_counts[awaited]

    def _list_awaited(self, kinds: Sequence[str]) -> list[_AwaitedJobs]:
        return [awaited for awaited in self._waiter_counts if awaited.kind in kinds]

    def begin_attempts(self) -> None:
        """Begins the work of the jobs that this task claims next, as `storage.database.begin_work`."""
        begin_work(self._database)

    async def claim(
        self, kinds: Sequence[str], *, lease_s: float, tries: int, running: Collection[int] = ()
    ) -> Job | None:
        """Claims the next job of these kinds for the time of the lease; None: no job is due in a free serial group.

        A job with an expired lease is taken over, but not right after an outage, during which no process could renew
        its lease (`Database.is_settled`).

        lease_s: the seconds of the lease.
        tries: the most attempts at a job that never come to an end; after these the job is dead.
        running: the ids of jobs that the caller runs itself, which are not taken over even after their leases.
        """
        attempts_to_release = dict(self._attempts_to_release)
        claimed_attempts: dict[_Attempt, float | None] = {}

        async def claim_job(connection: Connection) -> Job | None:
            claimed_attempts.clear()  # a failed attempt at this transaction may have added to it
            for (job_id, attempt), held_until in attempts_to_release.items():
                await connection.run(SQL["release"], (job_id, attempt, held_until))
            if not self._may_claim:
                row = await self._claim_awaited(connection, kinds, lease_s)
            else:
                row = await self._take_over(connection, kinds, lease_s, tries, running)
                row = row or await self._claim_due(connection, kinds, lease_s)
            if row is None:
                return None
            *columns, held_until, _ = row
            job = make_job(columns)
            claimed_attempts[_Attempt(job.id, job.attempt)] = held_until
            return job

        try:
            job = await asyncio.shield(self._database.bulk_write(claim_job))
        except StoreError:
            # The claim may be on disk; then nothing performs the job until its lease ends.
            self._attempts_to_release.update(claimed_attempts)
            raise
        for released_attempt in attempts_to_release:
            self._attempts_to_release.pop(released_attempt, None)
        return job

    async def _take_over(
        self,
        connection: Connection,
        kinds: Sequence[str],
        lease_s: float,
        tries: int,
        running: Collection[int],
    ) -> Row | None:
        """Claims a job after its lease has expired or was released. A job tried too often becomes a dead letter.

        Returns the row of the job, with the columns of the piece `claimed`.
        """
        tick = self._tick()
        for job_id, past_attempts, is_released in await connection.fetch_rows(
            SQL["expired"], (kinds, self._clock_name, tick)
        ):
            # `is_settled` is read after the leases, since the server may have paused in between.
            if job_id in running or not (is_released or self._database.is_settled):
                continue
            if past_attempts >= tries:
                await make_dead_letter(
                    connection, job_id, f"it did not end in {past_attempts} attempts: killed, or hung"
                )
                continue
            row = await connection.fetch_row(SQL["take_over"], (job_id, self._clock_name, tick, lease_s))
            if row is not None and await _is_current(connection, row):
                return row
        return None

    async def _claim_due(self, connection: Connection, kinds: Sequence[str], lease_s: float) -> Row | None:
        """Claims a job that is due and that no process has. Returns as `_take_over`."""
        tick = self._tick()
        now = self._now()
        remaining_kinds = [*kinds]
        if now is not None:
            await connection.run(SQL["make_due"], (now,))
        while kind := await connection.fetch_value(SQL["next"], (now, remaining_kinds)):
            row = await connection.fetch_row(SQL["claim"], (now, kind, self._clock_name, tick, lease_s))
            if row is None:
                # Other processes are claiming the due jobs of this kind.
                remaining_kinds.remove(kind)
            elif await _is_current(connection, row):
                return row
        return None

    async def _claim_awaited(
        self, connection: Connection, kinds: Sequence[str], lease_s: float
    ) -> Row | None:
        """Claims a due job that a request of this process waits for. Returns as `_take_over`."""
        for kind, agent_row in self._list_awaited(kinds):
            values = (self._now(), kind, self._clock_name, self._tick(), lease_s, agent_row)
            row = await connection.fetch_row(SQL["claim_of"], values)
            if row is not None and await _is_current(connection, row):
                return row
        return None

    async def renew(self, job: Job, lease_s: float) -> bool:
        """Renews a job's lease. Returns False if this attempt no longer holds the job, or its memory has changed."""
        if _Attempt(job.id, job.attempt) in self._attempts_to_release:
            return False
        values = (job.id, job.attempt, self._tick(), lease_s)
        return bool(await asyncio.shield(self._database.write_one(SQL["renew_lease"], values)))

    @reads
    async def is_held(self, connection: Connection, job: Job) -> bool:
        """Returns whether this attempt still holds the job, and its memory has not changed."""
        return bool(await connection.fetch_value(SQL["is_held"], (job.id, job.attempt)))

    def release_later(self, job: Job) -> None:
        """Ends a lease while the database is out of reach. The next claim of this process writes the end."""
        self._attempts_to_release[_Attempt(job.id, job.attempt)] = None


async def _is_current(connection: Connection, row: Row) -> bool:
    """Returns whether a job that was claimed may run. A job from before a forgetting is deleted instead."""
    if not row[-1]:
        await delete_job(connection, row[0])
    return bool(row[-1])
