"""A run of an agent, step by step."""

from __future__ import annotations

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, ListQuery, Screen, ScreenRequest, View
from gateway.run.admin.memory_names import label_of


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    async def show(request: ScreenRequest, query: ListQuery) -> Answer:
        found = await operations.runs.show(
            request.visitor.project, request.params["id"], after=query.after, limit=query.limit
        )
        await request.note_read(found.memory.uid)
        page = found.page
        longest_s = max(
            (step.ended - step.begun for step in page.steps if step.ended is not None), default=0.0
        )
        context = {
            "uid": found.memory.uid,
            "agent": label_of(found.memory),
            "longest_s": longest_s,
            "failure": found.failure,
        }
        return View(page, "run.html", f"Run {page.run.id}", context)

    return [Screen("runs/{id}", show, ListQuery)]
