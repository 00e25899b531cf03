"""A block: its text, its form, its history; edits, undo, and what happens where someone else was faster."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, ClassVar
from urllib.parse import parse_qs, quote

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.core.memory.word_diff import DiffPart, diff_words
from gateway.errors import BadRequest, Conflict, GatewayError
from gateway.page.memory_access import OPERATOR_ROUTES, MemoryAccess, MemoryRoutes, access_of
from gateway.page.page_operations import PageOperations
from gateway.page.page_request import MAX_BODY_BYTES
from gateway.page.screen import SAVED, Action, ActionResult, Answer, ListQuery, Screen, ScreenRequest, View
from gateway.page.shown_text import shortened_diff
from gateway.run.admin.audit_operations import AuditOperations
from gateway.run.admin.block_views import BlockPage
from gateway.run.admin.memory_edits import MemoryEdits
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.word_search import Remaining, WordSearches

_Number = Annotated[int, Meta(ge=1, lt=1 << 62)]
# Who has made a version that corrects the one before it. What an undo takes out may be right.
_CORRECTIONS = ("operator", "person")
# Characters of a text that a form always carries: each takes 12 bytes at most.
_FORM_CHARS = MAX_BODY_BYTES // 12 - 1_000


class BlockQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"from_": "from"}):
    """The versions that are compared. Without them the newest is, with the one before it."""

    page_limit: ClassVar[int] = 20
    from_: _Number | None = None
    to: _Number | None = None
    # The words of a search for what is wrong, which led here; "": nothing was searched for.
    words: str = ""


class EditForm(Struct, frozen=True, forbid_unknown_fields=True):
    """A new text. version: the one that was seen."""

    value: str
    version: _Number


class UndoForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The version that was seen."""

    version: _Number


class RestoreForm(UndoForm, frozen=True, forbid_unknown_fields=True):
    """The version that was seen, and the one that is brought back."""

    to: _Number


class _BlockScreens(Struct, frozen=True):
    """The screen of a block and its changes, each as it is called for a request."""

    views: MemoryViews
    edits: MemoryEdits
    words: WordSearches
    audit: AuditOperations

    async def read_page(
        self, request: ScreenRequest, access: MemoryAccess, query: BlockQuery | None = None
    ) -> BlockPage:
        query = query or BlockQuery(limit=BlockQuery.page_limit)
        page = await self.views.blocks.show(
            access.project,
            access.uid,
            str(request.params["label"]),
            from_=query.from_,
            to=query.to,
            after=query.after,
            limit=query.limit,
        )
        if access.is_person and page.block.shared:
            # What others have written into it before is not this person's to read.
            return replace(page, versions=(), next=None, diff=None)
        return page

    async def view(
        self,
        page: BlockPage,
        access: MemoryAccess,
        *,
        typed: str | None = None,
        error: GatewayError | None = None,
        words: str = "",
        **more: Any,
    ) -> View:
        """Returns the screen.

        typed, error: the text of an edit that was refused, and why.
        words: as of `BlockQuery`.
        """
        name = await self.views.name(access.project, access.uid)
        # In a thread: the differences of long texts take some 10 ms each, for which replies would wait.
        changes = await asyncio.to_thread(_changes, page)
        undo = None
        label = page.block.label
        if access.may("correct") and not access.is_person:
            undo = (await self.views.blocks.list_undos(access.project, access.uid, label)).get(label)
        if undo is not None:
            undo = replace(undo, parts=shortened_diff(undo.parts))
        context = {
            "changes": changes,
            "undo": undo,
            "is_compared": False,
            "conflict": None,
            "remaining": await self._find_old_words(page, access, words),
            "editors": {} if access.is_person else await self.audit.editors(access.uid, page.block.label),
            **more,
        }
        return access.view(
            page,
            "block.html",
            page.block.label,
            error,
            typed=typed,
            memory_name=name,
            form_chars=_FORM_CHARS,
            **context,
        )

    async def _find_old_words(self, page: BlockPage, access: MemoryAccess, words: str) -> Remaining | None:
        """Returns where words are left after a correction: those that led to it, else those that it took out."""
        new, *older = page.versions[:2] or (None,)
        if new is None or not older or new.origin not in _CORRECTIONS:
            return None
        if new.version != page.block.version:
            return None
        if words and not access.is_person:
            return await self.words.remaining(access.project, access.uid, words)
        old = older[0].value
        return access.filter(await self.words.still_say(access.project, access.uid, old, new.value))

    async def show(self, request: ScreenRequest, query: BlockQuery) -> View:
        access = access_of(request)
        page = await self.read_page(request, access, query)
        await request.note_read(access.uid)
        if request.is_twin:
            return access.twin(page)
        is_compared = query.from_ is not None or query.to is not None
        return await self.view(page, access, words=query.words, is_compared=is_compared)

    async def edit(self, request: ScreenRequest, form: EditForm) -> Answer:
        access = access_of(request)
        try:
            await self.edits.edit_block(
                access.editor, access.uid, str(request.params["label"]), form.value, form.version
            )
        except Conflict as error:
            page = await self.read_page(request, access)
            if page.block.value == form.value and not request.is_twin:
                return await self.result(request, access)  # it was sent twice
            conflict = shortened_diff(await asyncio.to_thread(diff_words, form.value, page.block.value))
            words = _sought_words(request, access, page)
            return await self.view(
                page, access, typed=form.value, error=error, words=words, conflict=conflict
            )
        except BadRequest as error:
            page = await self.read_page(request, access)
            words = _sought_words(request, access, page)
            return await self.view(page, access, typed=form.value, error=error, words=words)
        return await self.result(request, access)

    async def undo(self, request: ScreenRequest, form: UndoForm) -> Answer:
        access = access_of(request)
        try:
            await self.edits.undo_block(access.editor, access.uid, str(request.params["label"]), form.version)
        except (Conflict, BadRequest) as error:
            return await self._refuse(request, access, error, form)
        return await self.result(request, access)

    async def restore(self, request: ScreenRequest, form: RestoreForm) -> Answer:
        access = access_of(request)
        try:
            await self.edits.restore_block(
                access.editor, access.uid, str(request.params["label"]), form.version, form.to
            )
        except (Conflict, BadRequest) as error:
            return await self._refuse(request, access, error, form)
        return await self.result(request, access)

    async def _refuse(
        self, request: ScreenRequest, access: MemoryAccess, error: GatewayError, form: UndoForm
    ) -> Answer:
        """Answers an undo or a restore that was not done; of a form that was sent twice, the first one was."""
        page = await self.read_page(request, access)
        newest = page.versions[0]
        restored = form.to if isinstance(form, RestoreForm) else newest.restores
        was_done = (
            newest.version == form.version + 1 and newest.restores is not None and newest.restores == restored
        )
        if was_done and isinstance(error, Conflict) and not request.is_twin:
            return await self.result(request, access)
        return await self.view(page, access, error=error)

    async def result(self, request: ScreenRequest, access: MemoryAccess) -> ActionResult:
        page = await self.read_page(request, access)
        words = _sought_words(request, access, page)
        query = f"?words={quote(words, safe='')}" if words else ""
        return ActionResult(page.block, access.path("b", page.block.label) + query + SAVED)


def screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    block = _BlockScreens(operations.memories, operations.edits, operations.words, operations.audit)
    shared: list[Screen | Action] = [
        routes.screen("b/{label}", block.show, BlockQuery),
        routes.action("b/{label}", block.edit, EditForm, "correct"),
    ]
    if routes.is_for_person:
        return shared
    return [
        *shared,
        routes.action("b/{label}/undo", block.undo, UndoForm, "correct"),
        routes.action("b/{label}/restore", block.restore, RestoreForm, "correct"),
    ]


def _sought_words(request: ScreenRequest, access: MemoryAccess, page: BlockPage) -> str:
    """Returns the words that led to the screen with the form of a change; "": none did."""
    path, _, query = request.referrer.partition("?")
    if path != access.path("b", page.block.label):
        return ""
    return next(iter(parse_qs(query).get("words", ())), "")


def _changes(page: BlockPage) -> dict[int, tuple[DiffPart, ...]]:
    """Returns what each version of a page has changed, by its number; the oldest one of the page has no entry."""
    following = zip(page.versions, page.versions[1:], strict=False)
    return {new.version: shortened_diff(diff_words(old.value, new.value)) for new, old in following}
