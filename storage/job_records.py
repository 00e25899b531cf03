"""Durable jobs, and the steps that they have performed, as frozen values."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

# The `agent_row` of a job that belongs to no memory.
NO_AGENT = 0


class JobState(StrEnum):
    """The state of a job."""

    PENDING = "pending"
    RUNNING = "running"
    # The job failed and will be tried again; until then no other job runs in its serial group.
    RETRYING = "retrying"
    # The job failed for good. A finished job is deleted.
    DEAD = "dead"


class Job(Struct, frozen=True):
    """Durable background work."""

    # The row of the job.
    id: int
    # The kind of work.
    kind: str
    # The row of the memory that the job works on; 0: none. For each memory one job of a kind runs at a time.
    agent_row: int = field(name="agent")
    # A job that is enqueued while another waits under the same key is merged with it.
    key: str
    # JSON with ids and numbers, never text of messages.
    payload: bytes
    # The agent's epoch when the job was made; on another epoch it commits nothing.
    epoch: int
    # The state of the job.
    state: JobState
    # The number of the present attempt, which rises with every claim. Only the newest attempt can commit.
    attempt: int
    # The attempts that count towards the dead letter.
    tries: int
    # The time from which on the job may begin, in seconds since the epoch.
    due: float
    # The time at which the job was made, in seconds since the epoch.
    created: float
    # The reason why the last attempt failed, without content; None: no attempt has failed.
    error: str | None = None


class JobStep(Struct, frozen=True):
    """A step that a job has performed."""

    # The id of the job.
    job: int
    # The name of the step.
    name: str
    # The time at which the step was performed, in seconds since the epoch.
    at: float
    # The bytes of the step's result.
    size: int
