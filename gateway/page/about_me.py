"""About me: what is remembered of a person, shown to that person by a link from the application, in plain words.

The screens of the parts are those of operators (`Way`), with templates of their own (`me_...`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct

from gateway.page import block_screens, conversation_screens, fact_screens, forgetting, memory_screens
from gateway.page.memory_door import PERSONS, door_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Ask, Done, Readable, Screen, View
from gateway.run.admin.memory_views import ConversationRecord
from gateway.run.admin.page_records import BlockRecord, FactRecord

HEADING = "What is remembered about you"


class PersonPage(Struct, frozen=True):
    """The memory of a person on one page: all blocks, and the newest of each list."""

    rights: tuple[str, ...]
    # When the link ends, in seconds since the epoch.
    expires_at: float
    # Nothing is remembered or recalled for now.
    paused: bool
    blocks: tuple[BlockRecord, ...]
    facts: tuple[FactRecord, ...]
    conversations: tuple[ConversationRecord, ...]


class PauseForm(Struct, frozen=True, forbid_unknown_fields=True):
    """Pauses the memory, or resumes it."""

    paused: bool


def screens(operations: PageOperations) -> list[Screen | Action]:
    views = operations.memories

    async def show(ask: Ask, query: object) -> View:
        door, link = door_of(ask), ask.visitor.link
        assert link is not None  # it is a person's door
        found = await views.memory(door.project, door.uid)
        await ask.note_read(door.uid)
        page = PersonPage(
            link.rights,
            link.expires,
            link.paused is not None,
            found.blocks,
            found.facts,
            found.conversations,
        )
        return door.view(
            page,
            "memory.html",
            HEADING,
            memory=found.memory,
            passages=door.seen(found.passages),
            paused_since=link.paused,
            openings=await views.openings(door.project, door.uid, found.conversations),
        )

    async def pause(ask: Ask, form: PauseForm) -> Done:
        door = door_of(ask)
        await operations.edits.pause(door.editor, door.uid, is_paused=form.paused)
        return Done({"paused": form.paused}, door.path())

    async def export(ask: Ask, query: object) -> Answer:
        door = door_of(ask)
        parts = await operations.export.readable(door.project, door.uid)
        await operations.sign_in.note(ask.visitor.actor, "export", door.uid)
        return Readable("me_export.html", _named(parts), f"memory-{door.uid[:8]}.html")

    return [
        PERSONS.screen("", show),
        PERSONS.screen("export.html", export, right="export", has_twin=False),
        PERSONS.action("pause", pause, PauseForm, "pause"),
        *memory_screens.screens(operations, PERSONS),
        *block_screens.screens(operations, PERSONS),
        *fact_screens.screens(operations, PERSONS),
        *conversation_screens.screens(operations, PERSONS),
        *forgetting.screens(operations, PERSONS),
    ]


async def _named(parts: AsyncIterator[tuple[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    async for part, record in parts:
        yield {"part": part, "record": record}
