"""The screen of a fact with its history and its sources, and its changes: corrected, muted."""

from __future__ import annotations

from msgspec import Struct

from gateway.errors import BadRequest, Conflict, GatewayError
from gateway.page.memory_access import OPERATOR_ROUTES, MemoryAccess, MemoryRoutes, access_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import SAVED, Action, ActionResult, Answer, Screen, ScreenRequest, View


class CorrectForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The text that the fact should have."""

    text: str


class MuteForm(Struct, frozen=True, forbid_unknown_fields=True):
    """Mutes a fact, or has it mentioned again."""

    muted: bool


def screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    views, edits = operations.memories, operations.edits

    async def view(
        access: MemoryAccess, seq: int, *, typed: str | None = None, error: GatewayError | None = None
    ) -> View:
        """Returns the screen. typed, error: the text of a correction that was refused, and why."""
        page = await views.fact(access.project, access.uid, seq)
        name = await views.name(access.project, access.uid)
        # A correction that was undone is a fact of its own, which says what the one before it replaced.
        older = (
            (await views.fact(access.project, access.uid, page.before[0].seq)).before if page.before else ()
        )
        restored = next((each for each in older if each.text == page.fact.text), None)
        return access.view(
            page, "fact.html", f"Fact {seq}", error, typed=typed, memory_name=name, restored=restored
        )

    async def show(request: ScreenRequest, query: object) -> View:
        access = access_of(request)
        shown = await view(access, int(request.params["seq"]))
        await request.note_read(access.uid)
        return shown

    async def correct(request: ScreenRequest, form: CorrectForm) -> Answer:
        access, seq = access_of(request), int(request.params["seq"])
        try:
            new = await edits.correct_fact(access.editor, access.uid, seq, form.text)
        except (BadRequest, Conflict) as error:
            refused = await view(access, seq, typed=form.text, error=error)
            after = refused.record.after
            if after is None or after.text != " ".join(form.text.split()) or request.is_twin:
                return refused
            return ActionResult(after, access.path("f", after.seq) + SAVED)  # it was sent twice
        page = await views.fact(access.project, access.uid, new.seq)
        return ActionResult(access.filter(page.fact), access.path("f", new.seq) + SAVED)

    async def mute(request: ScreenRequest, form: MuteForm) -> ActionResult:
        access, seq = access_of(request), int(request.params["seq"])
        await edits.mute_fact(access.editor, access.uid, seq, is_muted=form.muted)
        page = await views.fact(access.project, access.uid, seq)
        return ActionResult(access.filter(page.fact), request.referrer or access.path("f", seq))

    return [
        routes.screen("f/{seq:int}", show),
        routes.action("f/{seq:int}/correct", correct, CorrectForm, "correct"),
        routes.action("f/{seq:int}/mute", mute, MuteForm, "correct"),
    ]
