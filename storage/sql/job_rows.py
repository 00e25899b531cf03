"""The rows of jobs, as the transactions of the queue (jobs.py) and others lock, check and delete them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from storage.database import Connection
from storage.errors import StaleWrite
from storage.job_records import NO_AGENT, Job, JobState
from storage.sql.epochs import lock_epoch
from storage.sql.statements import load

SQL = load("jobs.sql")


async def raise_epoch(connection: Connection, agent_row: int) -> None:
    """Raises a memory's epoch: writes that were planned before are refused, and the memory's jobs begin again."""
    await connection.run(SQL["raise_epoch"], (agent_row,))
    await forget_jobs(connection, agent_row, keep=lambda job: job.payload)


async def forget_jobs(
    connection: Connection, agent_row: int, keep: Callable[[Job], bytes | None] | None = None
) -> None:
    """Ends an agent's jobs within the transaction that forgets, so that no job brings back forgotten content.

    The transaction has raised the epoch before.

    keep: a function that returns the payload with which a job starts again under the new epoch, or None to have it
        deleted. Without `keep` all jobs are deleted. Results of steps and texts of errors are deleted in any case.
    """
    epoch = await lock_epoch_of_jobs(connection, agent_row)
    for row in await connection.fetch_rows(SQL["of_agent"], (agent_row,)):
        job = make_job(row)
        payload = None if keep is None or epoch is None else keep(job)
        if payload is None:
            await delete_job(connection, job.id)
            continue
        await connection.run(SQL["steps_delete"], (job.id,))
        await connection.run(SQL["restart"], (epoch, payload, job.id))


async def drop_jobs(connection: Connection, agent_row: int, kind: str) -> None:
    """Deletes an agent's jobs of a kind. A job that is running loses its lease."""
    for row in await connection.fetch_rows(SQL["of_agent"], (agent_row,)):
        if (job := make_job(row)).kind == kind:
            await delete_job(connection, job.id)


async def check_attempt(connection: Connection, job: Job | None) -> None:
    """Locks a job, so that no other process claims it until the transaction ends. Its agent must be locked before.

    job: the attempt that alone may write; None: any process may.

    Raises: StaleWrite if this attempt no longer holds the job.
    """
    if job is not None and not await is_attempt(connection, job):
        raise StaleWrite(f"job {job.id} is not attempt {job.attempt}'s any more")


async def is_attempt(connection: Connection, job: Job) -> bool:
    """Returns whether this attempt still holds a job, and locks the job as `check_attempt` does."""
    return await connection.fetch_row(SQL["fence"], (job.id, job.attempt)) is not None


async def lock_epoch_of_jobs(connection: Connection, agent_row: int) -> int | None:
    """Locks an agent, and returns the epoch that its jobs must have; None if the agent is gone."""
    return 0 if agent_row == NO_AGENT else await lock_epoch(connection, agent_row)


def make_job(row: Sequence[Any]) -> Job:
    """Returns the job of a row."""
    job_id, kind, agent_row, key, payload, epoch, state, attempt, tries, due, created, error = row
    return Job(
        id=job_id,
        kind=kind,
        agent_row=agent_row,
        key=key,
        payload=payload,
        epoch=epoch,
        state=JobState(state),
        attempt=attempt,
        tries=tries,
        due=due,
        created=created,
        error=error,
    )


async def make_dead_letter(connection: Connection, job_id: int, error: str) -> None:
    """Makes a dead letter of a job, and deletes an older dead letter of its key."""
    for (older_id,) in await connection.fetch_rows(SQL["older_dead"], (job_id,)):
        await delete_job(connection, older_id)
    await connection.run(SQL["dead"], (error, job_id))


async def delete_job(connection: Connection, job_id: int) -> None:
    """Deletes a job with its steps."""
    await connection.run(SQL["steps_delete"], (job_id,))
    await connection.run(SQL["delete"], (job_id,))
