"""Durable jobs: claimed under a lease, fenced by their attempt, with a journal of what they have done.

    enqueue -> pending -> claim -> running -> finish (deleted, its steps with it)
                            ^         |
                            '--- retrying <- fail, release          fail for good -> dead -> retry -> pending

A serial group is an agent's jobs of one kind. Only its first job is claimed, and it stays the first while it runs or
waits to be tried again. When it has ended, the schema makes the next job the first, so that the next job is found at
once, however many follow. Among jobs that belong to no memory each key has a serial group of its own.

A job's row has its lease, and the clock by which the lease is measured. Processes that share a database go by the
database's clock. A process that owns its file goes by a monotonic clock of its own, so it can claim at once the jobs
that an earlier process left running.

Every commit of a job checks in its transaction that this attempt still runs and that the agent's epoch has not changed
since the job was made: what was forgotten meanwhile does not come back through work in flight.
"""

from __future__ import annotations

import asyncio
import builtins
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Container, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

from storage.database import WORK, Connection, Database, Effect, Operation, Row, begin_work
from storage.errors import NotFound, Stale, StoreError
from storage.listing import JobEntry
from storage.records import Job, JobState, JobStep, Scope
from storage.sql.epochs import lock_epoch
from storage.sql.group import StoreGroup, long_reads, reads
from storage.sql.statements import load, load_rows

P = ParamSpec("P")
T = TypeVar("T")
# Returns one payload for two jobs of the same key. Its arguments: the payloads of the waiting job and of the new job.
MergePayloads = Callable[[bytes, bytes], bytes]
SQL = load("jobs.sql")

# The `agent_row` of a job that belongs to no memory.
NO_AGENT = 0
# The longest pause between two reads of a queue that processes share, since a notification may be lost.
_LONGEST_WAIT_S = 60.0

# The outcome of an attempt. dropped: the job is deleted, since its memory has changed; lost: another attempt holds it.
JobOutcome = Literal["retrying", "dead", "dropped", "lost"]


async def raise_epoch(connection: Connection, agent_row: int) -> None:
    """Raises a memory's epoch: writes that were planned before are refused, and the memory's jobs begin again."""
    await connection.run(SQL["raise_epoch"], (agent_row,))
    await forget_jobs(connection, agent_row, keep=lambda job: job.payload)


async def forget_jobs(
    connection: Connection, agent_row: int, keep: Callable[[Job], bytes | None] | None = None
) -> None:
    """Ends an agent's jobs within the transaction that forgets, after the epoch was raised.

    So no job brings back what was forgotten.

    keep: returns the payload with which a job starts again under the new epoch, or None to delete it; without it, all
        jobs are deleted. Results of steps and texts of errors are deleted in any case.
    """
    epoch = await _lock_epoch(connection, agent_row)
    for row in await connection.rows(SQL["of_agent"], (agent_row,)):
        job = _make_job(row)
        payload = None if keep is None or epoch is None else keep(job)
        if payload is None:
            await _delete_job(connection, job.id)
            continue
        await connection.run(SQL["steps_delete"], (job.id,))
        await connection.run(SQL["renew"], (epoch, payload, job.id))


async def drop_jobs(connection: Connection, agent_row: int, kind: str) -> None:
    """Deletes an agent's jobs of a kind. A job that is running loses its lease."""
    for row in await connection.rows(SQL["of_agent"], (agent_row,)):
        if (job := _make_job(row)).kind == kind:
            await _delete_job(connection, job.id)


async def check_attempt(connection: Connection, job: Job | None) -> None:
    """Keeps other processes from claiming a job until the transaction ends, after its agent was locked.

    job: the attempt that alone may write; None: any process may.

    Raises: Stale if this attempt no longer holds the job.
    """
    if job is not None and not await is_attempt(connection, job):
        raise Stale(f"job {job.id} is not attempt {job.attempt}'s any more")


async def is_attempt(connection: Connection, job: Job) -> bool:
    """Returns whether this attempt still holds a job, as `check_attempt`."""
    return await connection.row(SQL["fence"], (job.id, job.attempt)) is not None


def _wakes(
    method: Callable[Concatenate[Jobs, Connection, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Jobs, P], Coroutine[Any, Any, T]]:
    """Makes a method that runs in a transaction of its own, after which all watchers are called."""

    def writing(self: Jobs, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._write_and_wake(lambda connection: method(self, connection, *args, **kwargs))

    return writing


def _wakes_kind(
    method: Callable[Concatenate[Jobs, Connection, str, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Jobs, str, P], Coroutine[Any, Any, T]]:
    """Makes a method that runs in a transaction of its own, after which the watchers of a kind of jobs are called."""

    def writing(self: Jobs, kind: str, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._write_and_wake(lambda connection: method(self, connection, kind, *args, **kwargs), kind)

    return writing


class JobStatus(NamedTuple):
    """The state of a job, and when the job is due."""

    state: JobState
    # Seconds since the epoch.
    due: float


class Jobs(StoreGroup):
    """The queue of durable jobs. The store's clock decides which jobs are due and which leases have expired."""

    def __init__(
        self, database: Database, now: Callable[[], float | None], tick: Callable[[], float | None]
    ) -> None:
        """Makes the group.

        now: seconds since the epoch, for due jobs; returns None if the database's own clock counts.
        tick: a clock that never jumps, for leases; returns None as `now` does.
        """
        super().__init__(database)
        self._now = now
        self._tick = tick
        # The name of the clock that leases are measured by.
        self._holder = "database" if database.is_shared else uuid.uuid4().hex
        # Attempts to be released: (job, attempt) -> the end of the lease, or None. An attempt that ended while the
        # database was out of reach has None. An attempt that got no answer to its claim has the end of its lease, since
        # another process may have claimed the job with the same attempt number.
        self._released: dict[tuple[int, int], float | None] = {}
        self._may_claim = True
        # (kind, agent row) of the jobs that requests of this process wait for -> the number of these requests.
        self._awaited: Counter[tuple[str, int]] = Counter()
        # Each callback with the kinds of jobs for which it is called; None: all kinds.
        self._watchers: list[tuple[Callable[[], None], Container[str] | None]] = []
        database.add_listener(WORK, lambda kinds: self.wake_here(*(kinds or "").split()))

    # -- waiting for jobs ---------------------------------------------------------------------------------------------

    def add_listener(
        self, callback: Callable[[], None], kinds: Container[str] | None = None
    ) -> Callable[[], None]:
        """Has a function called when there may be something to do. Returns the function that removes it again.

        kinds: of the jobs for which `callback` is called; None: all.
        """
        watcher = (callback, kinds)
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def wake(self, *kinds: str) -> None:
        """Calls the watchers of all processes, after jobs were enqueued in a transaction of the caller's own.

        kinds: of the jobs that may begin now; none: any.
        """
        self.wake_here(*kinds)
        self._database.notify(WORK, " ".join(kinds))

    def wake_here(self, *kinds: str) -> None:
        """Calls the watchers of this process. kinds: of the jobs that may begin now; none: any."""
        for callback, watched_kinds in tuple(self._watchers):
            if not kinds or watched_kinds is None or any(kind in watched_kinds for kind in kinds):
                callback()

    @reads
    async def find_due_in(self, connection: Connection, kinds: Sequence[str]) -> float | None:
        """Returns the seconds until a job of these kinds can be claimed or a lease expires; None: no job waits."""
        if self._released:
            return 0.0
        if not self._may_claim:
            # `claim` finds out whether awaited jobs are due. It is called again soon, or when one of them has ended.
            return 0.0 if self._awaited_of(kinds) else None
        now = self._now()
        # A shared database has a clock of its own.
        if now is not None and await connection.value(SQL["put_back"], (now,)):
            return 0.0
        values = (now, kinds, self._holder, self._tick())
        wait: float | None = await connection.value(SQL["due_in"], values)
        if self._database.is_shared:
            # The process that enqueued a job may have died before its notification.
            wait = _LONGEST_WAIT_S if wait is None else min(_LONGEST_WAIT_S, wait)
        return None if wait is None else max(0.0, wait)

    def stop_claiming(self) -> None:
        """Stops claiming, except for jobs that requests of this process wait for. Jobs that are running go on."""
        self._may_claim = False

    @contextmanager
    def awaiting(self, kind: str, agent_row: int) -> Iterator[None]:
        """Marks an agent's jobs of a kind as awaited by a request of this process."""
        self._awaited[kind, agent_row] += 1
        if not self._may_claim:
            self.wake_here()
        try:
            yield
        finally:
            self._awaited[kind, agent_row] -= 1
            if not self._awaited[kind, agent_row]:
                del self._awaited[kind, agent_row]

    def _awaited_of(self, kinds: Sequence[str]) -> builtins.list[tuple[str, int]]:
        return [awaited for awaited in self._awaited if awaited[0] in kinds]

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
        postpone: bool = False,
    ) -> int:
        """Adds a job within the caller's own transaction; call `wake` when that is committed. Returns its number.

        A job that already waits under the same key takes over the payload and the earlier time of the two.

        agent_row: NO_AGENT for work that belongs to no memory.
        payload: ids and numbers, never text of messages.
        due: when it may begin; None for now.
        epoch: the one that the caller read; None for the present one.
        merge: makes the payload of a job that already waits; None: that job takes over the new payload.
        postpone: a job that already waits takes over the new time, even if it is later.

        Raises: Stale if the agent is gone, or its epoch is another one now.
        """
        current_epoch = await _lock_epoch(connection, agent_row)
        if current_epoch is None or epoch not in (None, current_epoch):
            raise Stale(f"the memory of agent {agent_row} has changed since this {kind} job was thought of")
        now = self._now()
        row = await connection.row(SQL["pending"], (agent_row, kind, key))
        while row is None:
            values = (agent_row, kind, key, due, now, current_epoch, payload)
            new_id = await connection.value(SQL["insert"], values)
            if new_id is not None:
                return int(new_id)
            # Another process has enqueued a job with this key at the same time, and may have claimed it by now.
            row = await connection.row(SQL["pending"], (agent_row, kind, key))
        id, waiting_epoch, waiting_payload = row
        # An old epoch's payload may name what was forgotten.
        if merge is not None and waiting_epoch == current_epoch:
            payload = merge(waiting_payload, payload)
        await connection.run(SQL["coalesce"], (current_epoch, due, now, int(postpone), payload, id))
        return int(id)

    # Adds a job in a transaction of its own.
    enqueue = _wakes_kind(enqueue_in)

    def begin_attempts(self) -> None:
        """As `storage.database.begin_work`, for the jobs that this task claims next."""
        begin_work(self._database)

    async def claim(
        self, kinds: Sequence[str], *, lease_s: float, tries: int, running: Collection[int] = ()
    ) -> Job | None:
        """Claims the next job of these kinds for the time of the lease; None: no job is due in a free serial group.

        A job with an expired lease is taken over, but not right after an outage, during which no process could renew
        its lease (`Database.is_settled`).

        tries: the most attempts of a job that never come to an end; after them it is dead.
        running: jobs that the caller runs itself, which are not taken over even if their leases have expired.
        """
        released = dict(self._released)
        claimed: dict[tuple[int, int], float | None] = {}

        async def take(connection: Connection) -> Job | None:
            claimed.clear()  # a failed attempt at this transaction may have added to it
            for (id, attempt), held_until in released.items():
                await connection.run(SQL["release"], (id, attempt, held_until))
            if not self._may_claim:
                row = await self._claim_awaited(connection, kinds, lease_s)
            else:
                row = await self._take_over(connection, kinds, lease_s, tries, running)
                row = row or await self._claim_due(connection, kinds, lease_s)
            if row is None:
                return None
            *columns, held_until, _ = row
            job = _make_job(columns)
            claimed[job.id, job.attempt] = held_until
            return job

        try:
            job = await asyncio.shield(self._database.bulk(take))
        except StoreError:
            # The claim may be on disk; then nothing performs the job until its lease ends.
            self._released.update(claimed)
            raise
        for released_attempt in released:
            self._released.pop(released_attempt, None)
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

        Returns the row of the job, as the piece `taken` names its columns.
        """
        tick = self._tick()
        for id, past_attempts, is_released in await connection.rows(
            SQL["expired"], (kinds, self._holder, tick)
        ):
            # `is_settled` is asked after the leases were read, since the server may have paused in between.
            if id in running or not (is_released or self._database.is_settled):
                continue
            if past_attempts >= tries:
                await _make_dead_letter(
                    connection, id, f"it did not end in {past_attempts} attempts: killed, or hung"
                )
                continue
            row = await connection.row(SQL["take_over"], (id, self._holder, tick, lease_s))
            if row is not None and await _is_current(connection, row):
                return row
        return None

    async def _claim_due(self, connection: Connection, kinds: Sequence[str], lease_s: float) -> Row | None:
        """Claims a job that is due and that no process has. Returns as `_take_over`."""
        tick = self._tick()
        now = self._now()
        remaining_kinds = [*kinds]
        if now is not None:
            await connection.run(SQL["due_now"], (now,))
        while kind := await connection.value(SQL["next"], (now, remaining_kinds)):
            row = await connection.row(SQL["claim"], (now, kind, self._holder, tick, lease_s))
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
        for kind, agent_row in self._awaited_of(kinds):
            values = (self._now(), kind, self._holder, self._tick(), lease_s, agent_row)
            row = await connection.row(SQL["claim_of"], values)
            if row is not None and await _is_current(connection, row):
                return row
        return None

    async def heartbeat(self, job: Job, lease_s: float) -> bool:
        """Renews the lease. Returns False if this attempt no longer holds the job, or its memory has changed."""
        if (job.id, job.attempt) in self._released:
            return False
        values = (job.id, job.attempt, self._tick(), lease_s)
        return bool(await asyncio.shield(self._database.write_one(SQL["prolong"], values)))

    @reads
    async def is_held(self, connection: Connection, job: Job) -> bool:
        """Returns whether this attempt still holds the job, and its memory has not changed."""
        return bool(await connection.value(SQL["is_held"], (job.id, job.attempt)))

    @reads
    async def find_step(self, connection: Connection, job: Job, name: str) -> bytes | None:
        """Returns the result of a step that this attempt or an earlier attempt has performed, or None."""
        return await connection.value(SQL["step"], (job.id, name))

    async def journal(self, job: Job, name: str, result: bytes, effect: Effect | None = None) -> bytes:
        """Writes step and effect in one transaction. Returns the result, or the one that was journaled before.

        Raises: Stale if this attempt no longer holds the job; what the effect raises.
        """

        async def write(connection: Connection) -> bytes:
            await _check_current(connection, job)
            journaled: bytes | None = await connection.value(SQL["step"], (job.id, name))
            if journaled is not None:
                return journaled
            if effect is not None:
                await effect(connection)
            await connection.run(SQL["step_insert"], (job.id, name, self._now(), result))
            return result

        return await asyncio.shield(self._database.bulk(write, size_bytes=len(result)))

    async def commit(self, job: Job, effect: Effect) -> None:
        """Commits an effect without a step. If the process is killed before the job ends, the effect is repeated.

        Raises: Stale; what the effect raises.
        """
        await asyncio.shield(self._database.bulk(lambda connection: _apply_effect(connection, job, effect)))

    async def finish(self, job: Job, effect: Effect | None = None, enqueues: Sequence[str] = ()) -> None:
        """Writes the last effect and the job's end in one transaction. Raises: Stale; what the effect raises.

        enqueues: the other kinds of jobs that the effect enqueues.
        """

        async def write(connection: Connection) -> None:
            await _apply_effect(connection, job, effect)
            await _delete_job(connection, job.id)

        # Its serial group has jobs of its own kind.
        await self._write_and_wake(write, job.kind, *enqueues)

    async def fail(self, job: Job, error: str, retry_in_s: float | None) -> JobOutcome:
        """Has the job tried again later. Its serial group waits meanwhile. Returns the outcome.

        error: the reason, which never has content.
        retry_in_s: None if it is not tried again, but becomes a dead letter.
        """
        return await self._end_attempt(job, error, retry_in_s, job.tries)

    async def release(self, job: Job, delay_s: float = 0.0, reason: str | None = None) -> JobOutcome:
        """Gives the job back as if this attempt had not been made. Returns the outcome.

        reason: why it waits; None if its last error stays.
        """
        return await self._end_attempt(job, reason or job.error, delay_s, job.tries - 1)

    def release_later(self, job: Job) -> None:
        """Ends a lease while the database is out of reach. The next claim of this process writes the end."""
        self._released[job.id, job.attempt] = None

    # -- operators and forgetting -------------------------------------------------------------------------------------

    @reads
    async def list(
        self, connection: Connection, state: JobState | None = None, limit: int = 100
    ) -> tuple[Job, ...]:
        """Returns jobs, newest first."""
        return tuple(
            map(_make_job, await connection.rows(SQL["list"], ("" if state is None else state, limit)))
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
    ) -> builtins.list[JobEntry]:
        """Returns a page of jobs, newest first.

        is_dead: list the jobs that have failed for good; otherwise all others.
        before: the number of the last job on the previous page.
        project: list this project's jobs; None for all jobs, including those that belong to no memory.
        """
        statement = SQL["page_dead" if is_dead else "page_open"]
        rows = await connection.rows(statement, (before, project, limit))
        return [JobEntry(_make_job(row[:12]), None if row[12] is None else Scope(*row[12:])) for row in rows]

    @reads
    async def find(self, connection: Connection, id: int) -> Job | None:
        """Returns a job by its number; None: it is gone."""
        row = await connection.row(SQL["find"], (id,))
        return None if row is None else _make_job(row)

    @reads
    async def list_steps(self, connection: Connection, id: int) -> tuple[JobStep, ...]:
        """Returns the steps that a job has performed so far."""
        return tuple(JobStep(*row) for row in await connection.rows(SQL["step_list"], (id,)))

    @reads
    async def count_by_state(self, connection: Connection, project: str | None = None) -> dict[JobState, int]:
        """Counts the jobs of a project's memories, or (None) all jobs, in each state."""
        counts = dict.fromkeys(JobState, 0)
        rows = await connection.rows(SQL["counts"], (project,))
        counts.update((JobState(state), count) for state, count in rows)
        return counts

    @reads
    async def find_status(self, connection: Connection, agent_row: int, kind: str) -> JobStatus | None:
        """Returns the status of a memory's job of a kind.

        Prefers a job that is not dead. Returns None if there is no job.
        """
        row = await connection.row(SQL["state_of"], (agent_row, kind))
        return None if row is None else JobStatus(JobState(row[0]), row[1])

    @long_reads
    async def find_at_rest(
        self, connection: Connection, kind: str, agent_rows: Sequence[int], since: float
    ) -> builtins.list[int]:
        """Returns the memories among `agent_rows` that have had no turn since a time and have no dead job of a kind."""
        return [id for (id,) in await load_rows(connection, SQL["at_rest"], agent_rows, kind, since)]

    @_wakes
    async def retry(self, connection: Connection, id: int) -> Job:
        """Makes a job due now. Returns the job.

        A running job runs again at once, unless its present attempt ends it. A dead job starts again with its first
        attempt, or is replaced by a newer waiting job with the same key.

        Raises: NotFound; Stale if something was forgotten since the job was made.
        """
        job = await _require_job(connection, id)
        now = self._now()
        if await _lock_epoch(connection, job.agent_row) != job.epoch:
            raise Stale(f"job {id} was made before something was forgotten: it cannot be tried again")
        if job.state is JobState.DEAD:
            newer = await connection.row(SQL["pending"], (job.agent_row, job.kind, job.key))
            if newer is None:
                await connection.run(SQL["revive"], (now, id))
                return await _require_job(connection, id)
            await _delete_job(connection, id)
            job = await _require_job(connection, newer[0])
        await connection.run(SQL["hasten"], (now, job.id))
        return await _require_job(connection, job.id)

    @_wakes
    async def cancel(self, connection: Connection, id: int) -> Job:
        """Deletes a job with its steps. A job that is running commits nothing more. Raises: NotFound."""
        job = await _require_job(connection, id)
        await _delete_job(connection, id)
        return job

    async def enqueuing(self, operation: Operation[T]) -> T:
        """Writes a transaction that also enqueues jobs (`enqueue_in`), and calls the watchers.

        Unlike that of `enqueue`, it does not give way to turns.
        """
        return await self._await_write(self._database.write(operation), self.wake)

    # -- transactions -------------------------------------------------------------------------------------------------

    async def _write_and_wake(self, operation: Operation[T], *kinds: str) -> T:
        """Writes, and calls the watchers. kinds: of the jobs that may begin then; none: any."""
        return await self._await_write(self._database.bulk(operation), partial(self.wake, *kinds))

    async def _end_attempt(
        self, job: Job, error: str | None, delay_s: float | None, tries: int
    ) -> JobOutcome:
        """Ends an attempt. Returns the outcome. delay_s: None: the job is dead."""

        async def write(connection: Connection) -> JobOutcome:
            epoch = await _lock_epoch(connection, job.agent_row)
            if await connection.row(SQL["fence"], (job.id, job.attempt)) is None:
                return "lost"
            if epoch != job.epoch:
                await _delete_job(connection, job.id)
                return "dropped"
            if delay_s is None:
                await _make_dead_letter(connection, job.id, error or "")
                return "dead"
            await connection.run(SQL["retrying"], (self._now(), delay_s, tries, error, job.id))
            return "retrying"

        return await self._write_and_wake(write, job.kind)


async def _lock_epoch(connection: Connection, agent_row: int) -> int | None:
    """Locks an agent, and returns the epoch that its jobs must have; None if the agent is gone."""
    return 0 if agent_row == NO_AGENT else await lock_epoch(connection, agent_row)


async def _is_current(connection: Connection, row: Row) -> bool:
    """Returns whether a job that was claimed may run. A job from before a forgetting is deleted instead."""
    if not row[-1]:
        await _delete_job(connection, row[0])
    return bool(row[-1])


async def _require_job(connection: Connection, id: int) -> Job:
    row = await connection.row(SQL["find"], (id,))
    if row is None:
        raise NotFound(f"there is no job {id}")
    return _make_job(row)


async def _make_dead_letter(connection: Connection, id: int, error: str) -> None:
    """Makes a dead letter of a job, and deletes an older dead letter of its key."""
    for (older_id,) in await connection.rows(SQL["older_dead"], (id,)):
        await _delete_job(connection, older_id)
    await connection.run(SQL["dead"], (error, id))


async def _delete_job(connection: Connection, id: int) -> None:
    await connection.run(SQL["steps_delete"], (id,))
    await connection.run(SQL["delete"], (id,))


def _make_job(row: Sequence[Any]) -> Job:
    id, kind, agent_row, key, payload, epoch, state, *rest = row
    return Job(id, kind, agent_row, key, payload, epoch, JobState(state), *rest)


async def _check_current(connection: Connection, job: Job) -> None:
    """Raises Stale if this attempt no longer holds the job, or its memory has changed."""
    # The agent is locked before the job, as everywhere, so that there is no deadlock.
    epoch = await _lock_epoch(connection, job.agent_row)
    await check_attempt(connection, job)
    if epoch != job.epoch:
        raise Stale(f"something was forgotten while job {job.id} was under way")


async def _apply_effect(connection: Connection, job: Job, effect: Effect | None) -> None:
    await _check_current(connection, job)
    if effect is not None:
        await effect(connection)
