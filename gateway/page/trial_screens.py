"""The trial of recall: what of a memory a sentence would recall, and what is shown to the model in any case."""

from __future__ import annotations

from typing import ClassVar

from msgspec import UNSET, Struct
from msgspec.structs import replace

from gateway.errors import UnknownId
from gateway.page.memory_access import MemoryAccess, open_memory
from gateway.page.memory_routes import OPERATOR_ROUTES
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ListQuery, Screen, ScreenRequest, View
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_names import make_memory_label
from gateway.run.admin.requests.recall_trials import TrialRecord
from gateway.run.admin.requests.trial_changes import describe_changes

# The last questions of a user, which the trial of recall offers to try.
_LAST_QUESTIONS = 3


class SearchQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sentence that is tried."""

    page_limit: ClassVar[int] = 10  # the page has two more tables
    q: str = ""
    # The id of a request that asked the same, with which the trial is compared.
    request: str = ""


class _TrialScreens(Struct, frozen=True):
    """The trial of recall, as it is called for a request."""

    operations: PageOperations
    views: MemoryViews

    async def try_recall(self, request: ScreenRequest, query: SearchQuery) -> View:
        access, memory = await open_memory(request, self.views)
        trial = await self.operations.trials.try_recall(
            access.project, access.uid, query.q, after=query.after, limit=query.limit
        )
        if query.request and query.q.strip():
            trial = replace(
                trial, differs=await self._describe_changes(access, query.request, trial) or UNSET
            )
        if request.is_twin:
            return access.twin(trial)
        all_blocks = await self.views.blocks.list_by_uid(access.project, access.uid)
        blocks = {each.label: each.value for each in all_blocks if each.value}
        standing = await self.views.facts.list_standing(access.uid)
        if not query.q.strip():
            last_questions = await self.views.questions.list_last_questions(
                access.project, access.uid, _LAST_QUESTIONS
            )
            return access.view(
                trial,
                "search.html",
                "What would be recalled",
                memory_name=make_memory_label(memory),
                paused=memory.paused_at,
                last_questions=last_questions,
                blocks=blocks,
                standing=standing,
            )
        hits = (*trial.chosen, *trial.left_out, *trial.found)
        outdated = await self.operations.lost_words.find_outdated(
            access.project, access.uid, standing, trial.chosen
        )
        return access.view(
            trial,
            "search.html",
            "What would be recalled",
            memory_name=make_memory_label(memory),
            has_embedder=self.operations.trials.has_embedder,
            blocks=blocks,
            after=query.after,
            paused=memory.paused_at,
            standing=standing,
            outdated=outdated,
            speakers=await self.views.messages.load_speakers(access.project, access.uid, hits),
        )

    async def _describe_changes(self, access: MemoryAccess, id: str, trial: TrialRecord) -> str:
        """Returns why a request chose other texts than a trial (`describe_changes`); "": it has no record here."""
        try:
            explained = await self.operations.requests.explain(id, access.project)
        except UnknownId:
            return ""
        has_record = explained.memory == access.uid and explained.window.parts
        return describe_changes(explained, trial) if has_record else ""


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    trials = _TrialScreens(operations, operations.memories)
    return [OPERATOR_ROUTES.make_screen("search", trials.try_recall, SearchQuery, searches=True)]
