"""Forgetting: the preview, its confirmation, and the end."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from gateway.core.memory.word_diff import DiffPart, diff_words
from gateway.errors import BadRequest, Conflict, MemoryNotFound, UnknownId
from gateway.page.memory_access import OPERATOR_ROUTES, MemoryAccess, MemoryRoutes, access_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ActionResult, Answer, Screen, ScreenRequest, View, fields_of
from gateway.page.shown_text import shortened_diff
from gateway.run.admin.memory_forgetting import ForgetPreview, TargetKind

_Number = Annotated[int, Meta(ge=1, lt=1 << 62)]


class ForgetQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The target of forgetting: one of these."""

    message: _Number | None = None
    exchange: _Number | None = None
    conversation: str | None = None
    fact: _Number | None = None
    passage: _Number | None = None
    all: bool | None = None

    @property
    def target(self) -> tuple[TargetKind, int | str | None]:
        """The one part that is named. Raises: BadRequest."""
        kinds: tuple[TargetKind, ...] = ("message", "exchange", "conversation", "fact", "passage", "all")
        named = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(named) != 1 or self.all is False:
            raise BadRequest(
                f"Say what to forget, one of: {', '.join(kinds)} (all=1).",
                param=named[1] if named[1:] else None,
            )
        return named[0], None if named[0] == "all" else getattr(self, named[0])


class ForgetForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The number of messages, where the preview asks for it."""

    confirm: str | int | None = None


def screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    views, forgetting = operations.memories, operations.forgetting

    async def preview(request: ScreenRequest, error: Conflict | None = None) -> View:
        access = access_of(request)
        kind, value = request.query.target
        page = access.filter(await forgetting.preview(access.project, access.uid, kind, value))
        # In a thread: the differences of long texts take some 10 ms each, for which replies would wait.
        changes = await asyncio.to_thread(_changes, page) if page.blocks else []
        name = "you" if access.is_person else await views.name(access.project, access.uid)
        fields, back = fields_of(request.query), _back(access, page)
        return access.view(
            page,
            "forget.html",
            _heading(page, name),
            error,
            fields=fields,
            back=back,
            memory_name=name,
            changes=changes,
        )

    async def show(request: ScreenRequest, query: ForgetQuery) -> View:
        view = await preview(request)
        await request.note_read(access_of(request).uid)
        return view

    async def forget(request: ScreenRequest, form: ForgetForm) -> Answer:
        access = access_of(request)
        kind, value = request.query.target
        confirm = None if form.confirm is None else str(form.confirm)
        elsewhere = None
        try:
            if not (request.is_twin or access.is_person or kind == "all"):
                elsewhere = await forgetting.find_elsewhere(access.project, access.uid, kind, value)
            result = await forgetting.forget(access.editor, access.uid, kind, value, confirm=confirm)
        except Conflict as error:
            return await preview(request, error)
        except MemoryNotFound:
            raise
        except UnknownId as error:
            if request.is_twin:
                raise
            # The form may have been sent twice, and the first answer not been shown.
            raise UnknownId(f"{error.message.removesuffix('.')}. If there was, it is forgotten.") from error
        if request.is_twin:
            return ActionResult(access.filter(result), "")
        to = "people" if kind == "all" else access.path()
        return access.view(
            result, "forgotten.html", "Forgotten", to=to, is_all=kind == "all", elsewhere=elsewhere
        )

    return [
        routes.screen("forget", show, ForgetQuery, right="forget"),
        routes.action("forget", forget, ForgetForm, "forget", ForgetQuery),
    ]


def _changes(page: ForgetPreview) -> list[tuple[str, tuple[DiffPart, ...]]]:
    """Returns the blocks that change, by their labels, each with its difference."""
    return [(each.label, shortened_diff(diff_words(each.before, each.after))) for each in page.blocks or ()]


def _heading(page: ForgetPreview, name: str) -> str:
    if page.target.kind == "all":
        return f"Forget everything about {name}"
    if page.target.kind == "exchange":
        return f"Forget message {page.target.id} and its reply"
    return f"Forget {page.target.kind} {page.target.id}"


def _back(access: MemoryAccess, page: ForgetPreview) -> str:
    """Returns where one comes from, mostly, and goes back to."""
    match page.target.kind:
        case "fact":
            return access.path("f", page.target.id)
        case "conversation":
            return access.path("c", page.target.id)
        case "message" | "exchange":
            hrefs = [each.href for each in page.stays if each.href is not None and "/c/" in each.href]
            return hrefs[0] if hrefs else access.path()
        case _:
            return access.path()
