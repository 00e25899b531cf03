"""Operations on durable jobs, of all projects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from gateway.errors import BadRequest
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from storage.batch_records import BATCH_JOB
from storage.errors import NotFound, StaleWrite
from storage.job_records import Job, JobState
from storage.sql.store import Store

# The most jobs of a list if the caller names no limit.
LISTED_JOBS = 100


class JobOperations(Struct, frozen=True):
    """Lists and changes durable jobs."""

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]

    async def show_all(self, raw: RawArguments) -> list[dict[str, Any]]:
        """Returns jobs, the newest first. `state`: only jobs in this state; `job`: only the job with this number."""
        arguments = Arguments(raw)
        if (job_id := arguments.read_optional_number("job")) is not None:
            job = await self.store.jobs.find(job_id)
            return [] if job is None else [_render_job(job)]
        state = arguments.read_raw("state")
        if state is not None and state not in list(JobState):
            raise BadRequest(f"state must be one of {', '.join(JobState)}, saw {state!r}.", param="state")
        limit = arguments.read_optional_number("limit") or LISTED_JOBS
        return [
            _render_job(job)
            for job in await self.store.jobs.list_newest(None if state is None else JobState(state), limit)
        ]

    async def show(self, raw: RawArguments) -> dict[str, Any]:
        """Returns a job with its steps. Raises: BadRequest: there is no such job."""
        job_id = Arguments(raw).read_number("job")
        job = await self.store.jobs.find(job_id)
        if job is None:
            raise BadRequest(f"there is no job {job_id}; `mnemogate jobs` shows them", param="job")
        steps = await self.store.jobs.list_steps(job_id)
        return {**_render_job(job), "steps": [asdict(step) for step in steps]}

    async def retry(self, raw: RawArguments) -> dict[str, Any]:
        """Makes a job due now, even if it has failed for good. Raises: BadRequest: there is no such job to run."""
        return await self._change_job(raw, self.store.jobs.retry)

    async def cancel(self, raw: RawArguments) -> dict[str, Any]:
        """Deletes a job. Raises: BadRequest: there is no such job."""
        return await self._change_job(raw, lambda job_id: cancel_job(self.store, job_id, self.now()))

    async def _change_job(self, raw: RawArguments, change: Callable[[int], Awaitable[Job]]) -> dict[str, Any]:
        """Returns the job that the argument `job` names, after a change. Raises: BadRequest."""
        try:
            return _render_job(await change(Arguments(raw).read_number("job")))
        except (NotFound, StaleWrite) as error:
            raise BadRequest(f"{error.message}; `mnemogate jobs` shows them", param="job") from error


async def cancel_job(store: Store, job_id: int, at: float) -> Job:
    """Deletes a job. A batch ends with its job, since nothing else would end the batch. Raises: NotFound."""
    job = await store.jobs.find(job_id)
    if job is None or job.kind != BATCH_JOB:
        return await store.jobs.cancel(job_id)
    await store.batches.cancel(await store.batches.get(None, job.key), at, deletes_job=True)
    return job


def _render_job(job: Job) -> dict[str, Any]:
    """Returns a job without its payload, which only the handler of its kind can read."""
    fields: dict[str, Any] = msgspec.to_builtins(job)
    del fields["payload"]
    return fields
