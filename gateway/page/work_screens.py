"""The work of the background: jobs and batches, tried again or cancelled."""

from __future__ import annotations

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Ask, Done, ListQuery, NoFields, Screen, View


class WorkQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of the work. after: of jobs. after_batch: of batches."""

    after_batch: str | None = None


def screens(operations: PageOperations) -> list[Screen | Action]:
    work, note = operations.work, operations.sign_in.note

    async def show(ask: Ask, query: WorkQuery) -> Answer:
        found = await work.show(
            ask.visitor.project, after=query.after, after_batch=query.after_batch, limit=query.limit
        )
        return View(found, "work.html", "Work")

    async def retry(ask: Ask, form: NoFields) -> Answer:
        id = ask.params["id"]
        job = await work.retry_job(ask.visitor.project, id)
        await note(ask.visitor.actor, "job_retry", what=f"job {id}")
        return Done(job, "work")

    async def cancel(ask: Ask, form: NoFields) -> Answer:
        id = ask.params["id"]
        job = await work.cancel_job(ask.visitor.project, id)
        await note(ask.visitor.actor, "job_cancel", what=f"job {id}")
        return Done(job, "work")

    async def cancel_batch(ask: Ask, form: NoFields) -> Answer:
        batch = await work.cancel_batch(ask.visitor.project, ask.params["id"])
        await note(ask.visitor.actor, "job_cancel", what=f"batch {batch.id}")
        return Done(batch, "work")

    return [
        Screen("work", show, WorkQuery),
        Action("jobs/{id:int}/retry", retry),
        Action("jobs/{id:int}/cancel", cancel),
        Action("batches/{id}/cancel", cancel_batch),
    ]
