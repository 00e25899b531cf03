"""A run of an agent, step by step."""

from __future__ import annotations

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, ListQuery, Screen, ScreenRequest, View


def screens(operations: PageOperations) -> list[Screen | Action]:
    async def show(request: ScreenRequest, query: ListQuery) -> Answer:
        uid, found = await operations.runs.show(
            request.visitor.project, request.params["id"], after=query.after, limit=query.limit
        )
        await request.note_read(uid)
        longest = max(
            (each.ended - each.begun for each in found.steps if each.ended is not None), default=0.0
        )
        return View(found, "run.html", f"Run {found.run.id}", {"uid": uid, "longest": longest})

    return [Screen("runs/{id}", show, ListQuery)]
