"""The screen of background work: jobs and batches, which can be retried or cancelled."""

from __future__ import annotations

from msgspec import Struct

from gateway.core import ids
from gateway.page.page_operations import PageOperations
from gateway.page.screen import (
    Action,
    ActionResult,
    Answer,
    ListQuery,
    NoFields,
    Screen,
    ScreenRequest,
    View,
)
from gateway.run.admin.audit_operations import AuditOperations
from gateway.run.admin.audited_parts import render_audited_part
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.work.work_operations import MAX_RETRIED, WorkOperations

# The screen with the words that say what was done.
_RETRIED = "work#retried"
_CANCELLED = "work#cancelled"


class WorkQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of the screen. `after` is a cursor in the list of jobs."""

    # A cursor in the list of batches.
    after_batch: str | None = None


class _WorkScreens(Struct, frozen=True):
    """Handles requests for the screen, and for the changes of jobs and batches."""

    work: WorkOperations
    memories: MemoryViews
    audit: AuditOperations

    async def show(self, request: ScreenRequest, query: WorkQuery) -> Answer:
        record = await self.work.show(
            request.visitor.project, after=query.after, after_batch=query.after_batch, limit=query.limit
        )
        if request.is_twin:
            return View(record)
        parsed_uids = (ids.parse_uid("agent", job.name or "") for job in record.jobs.items)
        uids = {uid for uid in parsed_uids if uid is not None}
        names = await self.memories.load_labels(uids)
        failed_count = await self.work.count_failed(request.visitor.project)
        context = {
            "failed": failed_count,
            # The number of failed jobs that are tried again together.
            "retry_count": min(failed_count, MAX_RETRIED),
            # The names of agents with their ids, by their ids.
            "agents": {ids.make_id("agent", uid): name for uid, name in names.items()},
        }
        return View(record, "work.html", "Work", context)

    async def retry_failed(self, request: ScreenRequest, form: NoFields) -> Answer:
        done = await self.work.retry_failed(request.visitor.project)
        await self.audit.add(request.visitor.actor, "job_retry", what=f"failed jobs, {done.retried} retried")
        return ActionResult(done, _RETRIED)

    async def retry_job(self, request: ScreenRequest, form: NoFields) -> Answer:
        id = request.params["id"]
        job = await self.work.retry_job(request.visitor.project, id)
        await self.audit.add(request.visitor.actor, "job_retry", what=render_audited_part("job", id))
        return ActionResult(job, _RETRIED)

    async def cancel_job(self, request: ScreenRequest, form: NoFields) -> Answer:
        id = request.params["id"]
        job = await self.work.cancel_job(request.visitor.project, id)
        await self.audit.add(request.visitor.actor, "job_cancel", what=render_audited_part("job", id))
        return ActionResult(job, _CANCELLED)

    async def cancel_batch(self, request: ScreenRequest, form: NoFields) -> Answer:
        batch = await self.work.cancel_batch(request.visitor.project, request.params["id"])
        await self.audit.add(request.visitor.actor, "job_cancel", what=render_audited_part("batch", batch.id))
        return ActionResult(batch, _CANCELLED)


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    work = _WorkScreens(operations.work, operations.memories, operations.audit)
    return [
        Screen("work", work.show, WorkQuery),
        Action("jobs/retry", work.retry_failed),
        Action("jobs/{id:int}/retry", work.retry_job),
        Action("jobs/{id:int}/cancel", work.cancel_job),
        Action("batches/{id}/cancel", work.cancel_batch),
    ]
