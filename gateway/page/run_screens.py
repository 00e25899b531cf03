"""The list of the runs of all agents, and a run of an agent, step by step."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, ListQuery, Screen, ScreenRequest, View
from gateway.run.admin.memory.run_operations import RunOperations
from gateway.run.admin.memory_names import make_memory_label


class RunListQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which runs are listed."""

    # The state of the listed runs; None: all runs are listed.
    only: Literal["failed"] | None = None


class _RunScreens(Struct, frozen=True):
    """The screens of runs, each as it is called for a request."""

    runs: RunOperations

    async def show_list(self, request: ScreenRequest, query: RunListQuery) -> Answer:
        page = await self.runs.list_page(
            request.visitor.project,
            is_failed=query.only == "failed",
            after=query.after,
            limit=query.limit,
        )
        return View(page, "runs.html", "Runs", {"selection": query.only})

    async def show(self, request: ScreenRequest, query: ListQuery) -> Answer:
        found = await self.runs.show(
            request.visitor.project, request.params["id"], after=query.after, limit=query.limit
        )
        await request.note_read(found.memory.uid)
        page = found.page
        longest_s = max(
            (step.ended - step.begun for step in page.steps if step.ended is not None), default=0.0
        )
        context = {
            "uid": found.memory.uid,
            "agent": make_memory_label(found.memory),
            "longest_s": longest_s,
            "failure": found.failure,
        }
        return View(page, "run.html", f"Run {page.run.id}", context)


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    runs = _RunScreens(operations.runs)
    return [Screen("runs", runs.show_list, RunListQuery), Screen("runs/{id}", runs.show, ListQuery)]
