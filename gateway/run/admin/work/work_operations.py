"""The work of the background as the page shows it: jobs, batches, and the tokens that they have used today."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal, get_args

from msgspec import Struct
from msgspec.structs import asdict, replace

from gateway.core import ids
from gateway.core.dates import DAY_S
from gateway.errors import Conflict, UnknownId
from gateway.run.admin.list_page import ListPage, make_cursor_error, make_next_cursor, parse_cursor
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.memory_names import get_memory_name
from gateway.run.admin.records.memory_records import MemoryKind
from gateway.run.admin.work.job_operations import cancel_job
from gateway.run.background.learner import LEARN_JOB
from storage.batch_records import Batch
from storage.errors import NotFound, StaleWrite
from storage.job_records import Job, JobState
from storage.listing import LAST_NUMBER, JobEntry, Page
from storage.sql.store import Store

# The beginning of a cursor of jobs: the page before ended among the jobs that failed for good.
_DEAD_PREFIX = "dead-"
# The same if the page before ended among the other jobs.
_OTHER_PREFIX = "job-"
# The most failed jobs that are tried again together: each is a transaction, half a millisecond over PostgreSQL.
MAX_RETRIED = 500

# now: facts are being learned, or will be at once. waiting: the job is not due yet. retrying: its last attempt failed.
# failed: it has failed for good. idle: there is no job. by_rule: there is no job, and no background model.
LearningState = Literal["now", "waiting", "retrying", "failed", "idle", "by_rule"]


class JobRecord(Struct, frozen=True):
    """A job of the background."""

    id: int
    kind: str
    # Dead: it has failed for good.
    state: JobState
    due: float
    # The time at which it was enqueued.
    created: float
    # The attempts that have failed or run.
    tries: int
    # The reason why the last attempt failed, without content.
    error: str | None
    # The name of the memory that the job works on; None: the job works on no memory.
    name: str | None
    # The public id of this memory; None: the job works on no memory, or on one that has no page.
    memory: str | None


class BatchRecord(Struct, frozen=True):
    """A batch of sends to agents."""

    id: str
    state: str
    created: float
    # The number of its items in each state, and their total.
    counts: dict[str, int]


class RetriedJobs(Struct, frozen=True):
    """The jobs that were tried again together."""

    retried: int
    # The number of failed jobs that were not.
    left: int


class WorkRecord(Struct, frozen=True):
    """The work of the background."""

    # Jobs that failed for good come first, then the newest.
    jobs: ListPage[JobRecord]
    # The newest first.
    batches: ListPage[BatchRecord]
    # The tokens of background calls today.
    spent_today: int
    # The tokens that a project may use in a day; None: any number.
    bound: int | None


class WorkOperations(Struct, frozen=True):
    """Lists jobs and batches, tries jobs again, and cancels.

    The parameter `project` is the only project with jobs and batches that a method sees; None: all projects.

    Each method raises: UnknownId: the project has no such job or batch; Conflict; BadRequest.
    """

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Tokens of a day; 0: no bound.
    daily_tokens: int = 0
    # True: a background model learns facts; without one a rule alone does.
    has_model: bool = False

    async def get_learning(self, project: str | None, uid: str) -> LearningState:
        """Returns the state of learning from a memory. Raises: UnknownId: there is no such memory."""
        agent = await get_agent(self.store, project, uid)
        job = await self.store.jobs.find_status(agent.id, LEARN_JOB)
        if job is None:
            return "idle" if self.has_model else "by_rule"
        if job.state is JobState.DEAD:
            return "failed"
        if job.state is JobState.RETRYING:
            return "retrying"
        return "now" if job.state is JobState.RUNNING or job.due <= self.now() else "waiting"

    async def show(
        self,
        project: str | None,
        *,
        after: str | None = None,
        after_batch: str | None = None,
        limit: int = 50,
    ) -> WorkRecord:
        """Returns a page of jobs and one of batches.

        after: `next` of the previous page of jobs; None: the first page.
        after_batch: `next` of the previous page of batches; None: the first page.
        """
        jobs = await self._list_jobs(project, after, limit)
        before = parse_cursor(after_batch, None)
        batches = await self.store.batches.list_page(project, Page(after=before, limit=limit + 1))
        batch_page = ListPage(
            tuple([await self._make_batch_record(batch) for batch in batches[:limit]]),
            make_next_cursor(batches, limit, lambda batch: str(batch.id)),
        )
        spent_tokens = await self.store.usage.count_background_tokens(project, int(self.now() // DAY_S))
        return WorkRecord(jobs, batch_page, spent_tokens, self.daily_tokens or None)

    async def retry_job(self, project: str | None, id: int) -> JobRecord:
        """Has a job run now. Returns the job, or a newer one in its place."""
        entry = await self._get_job(project, id)
        try:
            return _make_job_record(replace(entry, job=await self.store.jobs.retry(id)))
        except NotFound as error:
            raise _make_no_job_error() from error
        except StaleWrite as error:
            raise Conflict(f"{error.message}.") from error

    async def count_failed(self, project: str | None) -> int:
        """Returns the number of jobs that have failed for good."""
        return (await self.store.jobs.count_by_state(project))[JobState.DEAD]

    async def retry_failed(self, project: str | None) -> RetriedJobs:
        """Has jobs run now that have failed for good: the newest `MAX_RETRIED`.

        A job that has ended meanwhile is passed over, and so is one from before something was forgotten: it stays in
        the list of failed jobs.
        """
        retried_count = 0
        before = LAST_NUMBER
        while room := MAX_RETRIED - retried_count:
            entries = await self.store.jobs.list_page(
                is_dead=True, before=before, project=project, limit=room
            )
            if not entries:
                break
            before = entries[-1].job.id
            for entry in entries:
                with suppress(NotFound, StaleWrite):
                    await self.store.jobs.retry(entry.job.id)
                    retried_count += 1
        if not retried_count:
            raise UnknownId("There is no failed job that can be tried again.")
        return RetriedJobs(retried_count, await self.count_failed(project))

    async def cancel_job(self, project: str | None, id: int) -> JobRecord:
        """Deletes a job and returns it. If it is the job of a batch, the batch ends too."""
        entry = await self._get_job(project, id)
        try:
            return _make_job_record(replace(entry, job=await cancel_job(self.store, id, self.now())))
        except NotFound as error:
            raise _make_no_job_error() from error

    async def cancel_batch(self, project: str | None, id: str) -> BatchRecord:
        """Cancels the items of a batch that have not ended. id: the public id of the batch."""
        try:
            batch = await self.store.batches.get(project, ids.parse_uid("job", id) or id)
        except NotFound as error:
            raise UnknownId("There is no such batch.") from error
        return await self._make_batch_record(await self.store.batches.cancel(batch, self.now()))

    async def _list_jobs(self, project: str | None, after: str | None, limit: int) -> ListPage[JobRecord]:
        """Returns a page of jobs: first the dead ones, then the others, each with the newest first."""
        is_dead = True
        before = LAST_NUMBER
        if after is not None:
            is_dead = after.startswith(_DEAD_PREFIX)
            prefix = _DEAD_PREFIX if is_dead else _OTHER_PREFIX
            if not after.startswith(prefix):
                raise make_cursor_error()
            before = parse_cursor(after.removeprefix(prefix), before)
        read_page = self.store.jobs.list_page
        entries = await read_page(is_dead=is_dead, before=before, project=project, limit=limit + 1)
        if is_dead and len(entries) <= limit:
            room = limit + 1 - len(entries)
            entries += await read_page(is_dead=False, before=LAST_NUMBER, project=project, limit=room)
        records = tuple(map(_make_job_record, entries[:limit]))
        return ListPage(records, make_next_cursor(entries, limit, lambda last: _make_cursor(last.job)))

    async def _get_job(self, project: str | None, id: int) -> JobEntry:
        """Returns a job by its row. Raises: UnknownId: there is none, or it is of another project."""
        for is_dead in (True, False):
            page = await self.store.jobs.list_page(is_dead=is_dead, before=id + 1, project=project, limit=1)
            if page and page[0].job.id == id:
                return page[0]
        raise _make_no_job_error()

    async def _make_batch_record(self, batch: Batch) -> BatchRecord:
        counts = await self.store.batch_items.count(batch.id)
        counts_by_state = {"total": counts.total, **asdict(counts)}
        return BatchRecord(ids.make_id("job", batch.uid), batch.state.value, batch.created, counts_by_state)


def _make_job_record(entry: JobEntry) -> JobRecord:
    job, scope = entry.job, entry.scope
    has_page = scope is not None and scope.subject.partition(":")[0] in get_args(MemoryKind)
    return JobRecord(
        id=job.id,
        kind=job.kind,
        state=job.state,
        due=job.due,
        created=job.created,
        tries=job.tries,
        error=job.error,
        name=None if scope is None else get_memory_name(scope),
        memory=entry.memory_uid if has_page else None,
    )


def _make_cursor(last_job: Job) -> str:
    """Returns `after` for the page that follows this job."""
    return f"{_DEAD_PREFIX if last_job.state is JobState.DEAD else _OTHER_PREFIX}{last_job.id}"


def _make_no_job_error() -> UnknownId:
    return UnknownId("There is no such job. It may have ended meanwhile.")
