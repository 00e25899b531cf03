"""The work of the background: jobs and batches, tried again or cancelled."""

from __future__ import annotations

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


class WorkQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of the work. after: of jobs. after_batch: of batches."""

    after_batch: str | None = None


def screens(operations: PageOperations) -> list[Screen | Action]:
    work, note = operations.work, operations.sign_in.note

    async def show(request: ScreenRequest, query: WorkQuery) -> Answer:
        found = await work.show(
            request.visitor.project, after=query.after, after_batch=query.after_batch, limit=query.limit
        )
        return View(found, "work.html", "Work")

    async def retry(request: ScreenRequest, form: NoFields) -> Answer:
        id = request.params["id"]
        job = await work.retry_job(request.visitor.project, id)
        await note(request.visitor.actor, "job_retry", what=f"job {id}")
        return ActionResult(job, "work")

    async def cancel(request: ScreenRequest, form: NoFields) -> Answer:
        id = request.params["id"]
        job = await work.cancel_job(request.visitor.project, id)
        await note(request.visitor.actor, "job_cancel", what=f"job {id}")
        return ActionResult(job, "work")

    async def cancel_batch(request: ScreenRequest, form: NoFields) -> Answer:
        batch = await work.cancel_batch(request.visitor.project, request.params["id"])
        await note(request.visitor.actor, "job_cancel", what=f"batch {batch.id}")
        return ActionResult(batch, "work")

    return [
        Screen("work", show, WorkQuery),
        Action("jobs/{id:int}/retry", retry),
        Action("jobs/{id:int}/cancel", cancel),
        Action("batches/{id}/cancel", cancel_batch),
    ]
