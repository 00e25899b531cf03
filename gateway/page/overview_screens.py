"""The overview."""

from __future__ import annotations

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, NoFields, Screen, ScreenRequest, View


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    async def overview(request: ScreenRequest, query: NoFields) -> View:
        record = await operations.overview.show(request.visitor.project)
        context = {
            "agents": await operations.requests.lists.load_agent_names(record.replies),
            "projects": operations.requests.logged.find_projects(record.replies),
            "resent": operations.requests.logged.find_resent(record.replies),
            "unsearched": operations.requests.logged.find_unsearched(record.replies),
        }
        return View(record, "overview.html", "Overview", context)

    return [Screen("", overview)]
