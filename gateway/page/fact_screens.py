"""The screen of a fact with its history and its sources, and its changes: corrected, muted."""

from __future__ import annotations

from msgspec import Struct

from gateway.errors import BadRequest, Conflict, GatewayError
from gateway.page.memory_door import OPERATORS, MemoryDoor, Way, door_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Ask, Done, Screen, View


class CorrectForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The text that the fact should have."""

    text: str


class MuteForm(Struct, frozen=True, forbid_unknown_fields=True):
    """Mutes a fact, or has it mentioned again."""

    muted: bool


def screens(operations: PageOperations, way: Way = OPERATORS) -> list[Screen | Action]:
    views, edits = operations.memories, operations.edits

    async def shown(
        door: MemoryDoor, seq: int, *, typed: str | None = None, error: GatewayError | None = None
    ) -> View:
        page = await views.fact(door.project, door.uid, seq)
        name = views.name_of(await views.find(door.project, door.uid))
        return door.view(page, "fact.html", f"Fact {seq}", error, typed=typed, memory_name=name)

    async def show(ask: Ask, query: object) -> View:
        door = door_of(ask)
        view = await shown(door, int(ask.params["seq"]))
        await ask.note_read(door.uid)
        return view

    async def correct(ask: Ask, form: CorrectForm) -> Answer:
        door, seq = door_of(ask), int(ask.params["seq"])
        try:
            new = await edits.correct_fact(door.editor, door.uid, seq, form.text)
        except (BadRequest, Conflict) as error:
            return await shown(door, seq, typed=form.text, error=error)
        page = await views.fact(door.project, door.uid, new.seq)
        return Done(door.seen(page.fact), door.path("f", new.seq))

    async def mute(ask: Ask, form: MuteForm) -> Done:
        door, seq = door_of(ask), int(ask.params["seq"])
        await edits.mute_fact(door.editor, door.uid, seq, is_muted=form.muted)
        page = await views.fact(door.project, door.uid, seq)
        return Done(door.seen(page.fact), ask.referrer or door.path("f", seq))

    return [
        way.screen("f/{seq:int}", show),
        way.action("f/{seq:int}/correct", correct, CorrectForm, "correct"),
        way.action("f/{seq:int}/mute", mute, MuteForm, "correct"),
    ]
