"""About me: what is remembered of a person, shown to that person by a link from the application, in plain words.

The screens of the parts are those of operators, under paths of their own (`PERSON_ROUTES`) and with templates of
their own (`me_...`).
"""

from __future__ import annotations

from msgspec import Struct

from gateway.page import (
    block_screens,
    conversation_screens,
    export_screens,
    fact_screens,
    forget_screens,
    memory_screens,
)
from gateway.page.memory_access import make_access, open_memory
from gateway.page.memory_routes import PERSON_ROUTES
from gateway.page.page_operations import PageOperations
from gateway.page.screen import SAVED, Action, ActionResult, NoFields, Screen, ScreenRequest, View
from gateway.run.admin.memory.conversation_views import ConversationRecord
from gateway.run.admin.records.memory_records import BlockRecord, FactRecord

HEADING = "What is remembered about you"


class PersonPage(Struct, frozen=True):
    """The memory of a person on one page: all blocks, and the newest of each list."""

    # The rights that the link gives.
    rights: tuple[str, ...]
    # When the link ends, in seconds since the epoch.
    expires_at: float
    # True if the memory is paused: nothing is remembered or recalled.
    paused: bool
    # All blocks, in their order in the prompt.
    blocks: tuple[BlockRecord, ...]
    # The newest facts.
    facts: tuple[FactRecord, ...]
    # The newest conversations.
    conversations: tuple[ConversationRecord, ...]


class PauseForm(Struct, frozen=True, forbid_unknown_fields=True):
    """Pauses the memory, or resumes it."""

    paused: bool


class _PersonScreens(Struct, frozen=True):
    """Handles requests for the screens that only persons have, and for pausing."""

    operations: PageOperations

    async def show(self, request: ScreenRequest, query: NoFields) -> View:
        link, views = request.visitor.link, self.operations.memories
        assert link is not None  # only a link opens the screens of persons
        access, memory = await open_memory(request, views)
        memory_page = await views.show(access.project, access.uid)
        conversations = memory_page.conversations
        page = PersonPage(
            rights=link.rights,
            expires_at=link.expires_at,
            paused=link.paused_at is not None,
            blocks=memory_page.blocks,
            facts=memory_page.facts,
            conversations=conversations,
        )
        if request.is_twin:
            return access.twin(page)
        return access.view(
            page,
            "memory.html",
            HEADING,
            # `view` filters the record alone. Of the other values only passages have links to screens of operators.
            passages=access.filter(memory_page.passages),
            memory=memory_page.memory,
            has_ended=await views.facts.has_ended(memory),
            paused_since=link.paused_at,
            openings=await views.questions.load_openings(
                access.project, access.uid, [each.id for each in conversations]
            ),
        )

    async def pause(self, request: ScreenRequest, form: PauseForm) -> ActionResult:
        access = make_access(request)
        await self.operations.edits.pause(access.editor, access.uid, is_paused=form.paused)
        return ActionResult({"paused": form.paused}, access.path() + ("#paused" if form.paused else SAVED))


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    person = _PersonScreens(operations)
    return [
        PERSON_ROUTES.make_screen("", person.show),
        PERSON_ROUTES.make_action("pause", person.pause, PauseForm, "pause"),
        *memory_screens.make_screens(operations, PERSON_ROUTES),
        *export_screens.make_screens(operations, PERSON_ROUTES),
        *block_screens.make_screens(operations, PERSON_ROUTES),
        *fact_screens.make_screens(operations, PERSON_ROUTES),
        *conversation_screens.make_screens(operations, PERSON_ROUTES),
        *forget_screens.make_screens(operations, PERSON_ROUTES),
    ]
