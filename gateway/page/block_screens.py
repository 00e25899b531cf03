"""The screen of a block: its text in a form, and its history. Its changes: an edit, an undo, an earlier version.

A change names the version that its form showed. It is refused if someone else has changed the block since.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Annotated, ClassVar
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
from gateway.run.admin.block_views import BlockDiff, BlockPage
from gateway.run.admin.memory_edits import MemoryEdits
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.word_search import Remaining, WordSearches

_Number = Annotated[int, Meta(ge=1, lt=1 << 62)]
# The origins of versions that correct the version before. Undo is none of them: what an undo takes out may be right.
_CORRECTIONS = ("operator", "person")
# The longest text for which there is always room in a form, in characters: each takes 12 bytes at most.
_FORM_CHARS = MAX_BODY_BYTES // 12 - 1_000


class BlockQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"from_": "from"}):
    """Two versions to compare. Without them the newest version is compared with the one before it."""

    page_limit: ClassVar[int] = 20
    from_: _Number | None = None
    to: _Number | None = None
    # The words of a search for what is wrong, which led here; "": nothing was searched for.
    words: str = ""


class EditForm(Struct, frozen=True, forbid_unknown_fields=True):
    """A new text."""

    value: str
    # The version that the form showed.
    version: _Number


class UndoForm(Struct, frozen=True, forbid_unknown_fields=True):
    """Takes back the last change."""

    # The version that the form showed.
    version: _Number


class RestoreForm(UndoForm, frozen=True, forbid_unknown_fields=True):
    """Brings back an earlier version."""

    to: _Number


class _BlockScreens(Struct, frozen=True):
    """The screen of a block and its changes, each as it is called for a request."""

    views: MemoryViews
    edits: MemoryEdits
    word_searches: WordSearches
    audit: AuditOperations

    async def show(self, request: ScreenRequest, query: BlockQuery) -> View:
        access = access_of(request)
        page = await self._read_page(request, access, query)
        await request.note_read(access.uid)
        if request.is_twin:
            return access.twin(page)
        is_compared = query.from_ is not None or query.to is not None
        return await self._make_view(page, access, words=query.words, is_compared=is_compared)

    async def edit(self, request: ScreenRequest, form: EditForm) -> Answer:
        access = access_of(request)
        try:
            await self.edits.edit_block(
                access.editor, access.uid, _label_of(request), form.value, form.version
            )
        except (Conflict, BadRequest) as error:
            page = await self._read_page(request, access)
            conflict = None
            if isinstance(error, Conflict):
                if page.block.value == form.value and not request.is_twin:
                    return await self._redirect(request, access)  # the form was sent twice
                conflict = shortened_diff(await asyncio.to_thread(diff_words, form.value, page.block.value))
            words = _find_sought_words(request, access, page)
            return await self._make_view(
                page, access, unsaved_text=form.value, error=error, words=words, conflict=conflict
            )
        return await self._redirect(request, access)

    async def undo(self, request: ScreenRequest, form: UndoForm) -> Answer:
        access = access_of(request)
        try:
            await self.edits.undo_block(access.editor, access.uid, _label_of(request), form.version)
        except (Conflict, BadRequest) as error:
            return await self._refuse(request, access, error, form)
        return await self._redirect(request, access)

    async def restore(self, request: ScreenRequest, form: RestoreForm) -> Answer:
        access = access_of(request)
        try:
            await self.edits.restore_block(
                access.editor, access.uid, _label_of(request), form.version, form.to
            )
        except (Conflict, BadRequest) as error:
            return await self._refuse(request, access, error, form)
        return await self._redirect(request, access)

    # -- parts

    async def _read_page(
        self, request: ScreenRequest, access: MemoryAccess, query: BlockQuery | None = None
    ) -> BlockPage:
        """Returns the block with its versions. query: None for the newest ones, as after a change."""
        query = query or BlockQuery(limit=BlockQuery.page_limit)
        page = await self.views.blocks.show(
            access.project,
            access.uid,
            _label_of(request),
            from_=query.from_,
            to=query.to,
            after=query.after,
            limit=query.limit,
        )
        if access.is_person and page.block.shared:
            # A person may not read what others have written into a shared block before.
            return replace(page, versions=(), next=None, diff=None)
        return page

    async def _make_view(
        self,
        page: BlockPage,
        access: MemoryAccess,
        *,
        words: str = "",
        is_compared: bool = False,
        unsaved_text: str | None = None,
        error: GatewayError | None = None,
        conflict: tuple[DiffPart, ...] | None = None,
    ) -> View:
        """Returns the screen.

        words: as of `BlockQuery`.
        is_compared: whether the difference of the page's two versions is shown.
        unsaved_text, error: the text of an edit that was refused, and why.
        conflict: how this text differs from the block's, if someone else has changed the block.
        """
        label = page.block.label
        name = await self.views.name(access.project, access.uid)
        # In a thread: the differences of long texts take some 10 ms each, for which replies would wait.
        changes = await asyncio.to_thread(_diff_versions, page)
        undo = await self._find_undo(access, label)
        remaining, is_taken_out = await self._find_remaining(page, access, words)
        editors = {} if access.is_person else await self.audit.editors(access.uid, label)
        return access.view(
            page,
            "block.html",
            label,
            error,
            memory_name=name,
            form_chars=_FORM_CHARS,
            unsaved_text=unsaved_text,
            conflict=conflict,
            undo=undo,
            changes=changes,
            is_compared=is_compared,
            remaining=remaining,
            is_taken_out=is_taken_out,
            editors=editors,
        )

    async def _find_undo(self, access: MemoryAccess, label: str) -> BlockDiff | None:
        """Returns what an undo of the last change would change; None: there is nothing that the visitor may undo."""
        if access.is_person or not access.may("correct"):
            return None
        undo = (await self.views.blocks.list_undos(access.project, access.uid, label)).get(label)
        return None if undo is None else replace(undo, parts=shortened_diff(undo.parts))

    async def _find_remaining(
        self, page: BlockPage, access: MemoryAccess, words: str
    ) -> tuple[Remaining | None, bool]:
        """Returns which other texts have some words, and whether the block's last change has taken these out of it.

        None: the last change corrects nothing.

        words: the words that led to the screen; "": the words that the last change took out are looked for.
        """
        if len(page.versions) < 2:
            return None, False
        newest, previous = page.versions[:2]
        if newest.origin not in _CORRECTIONS or newest.version != page.block.version:
            return None, False
        is_sought = bool(words) and not access.is_person
        if is_sought:
            remaining = await self.word_searches.remaining(access.project, access.uid, words)
        else:
            remaining = access.filter(
                await self.word_searches.still_say(access.project, access.uid, previous.value, newest.value)
            )
        if remaining is None:
            return None, False
        other_blocks = tuple(each for each in remaining.blocks if each.label != page.block.label)
        is_taken_out = not is_sought or await self.word_searches.are_taken_out(
            words, previous.value, newest.value
        )
        return replace(remaining, blocks=other_blocks), is_taken_out

    async def _refuse(
        self, request: ScreenRequest, access: MemoryAccess, error: GatewayError, form: UndoForm
    ) -> Answer:
        """Answers an undo or a restore that was refused. A form that was sent twice was done the first time."""
        page = await self._read_page(request, access)
        newest = page.versions[0]
        asked_version = form.to if isinstance(form, RestoreForm) else newest.restores
        was_done = (
            newest.version == form.version + 1
            and newest.restores is not None
            and newest.restores == asked_version
        )
        if was_done and isinstance(error, Conflict) and not request.is_twin:
            return await self._redirect(request, access)
        return await self._make_view(page, access, error=error)

    async def _redirect(self, request: ScreenRequest, access: MemoryAccess) -> ActionResult:
        """Returns the block after a change, and leads back to its screen."""
        page = await self._read_page(request, access)
        words = _find_sought_words(request, access, page)
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


def _label_of(request: ScreenRequest) -> str:
    """Returns the label of the block that the path names."""
    return str(request.params["label"])


def _find_sought_words(request: ScreenRequest, access: MemoryAccess, page: BlockPage) -> str:
    """Returns the words that led to the screen with the form of a change (`BlockQuery.words`); "": none did."""
    path, _, query = request.referrer.partition("?")
    if path != access.path("b", page.block.label):
        return ""
    return next(iter(parse_qs(query).get("words", ())), "")


def _diff_versions(page: BlockPage) -> dict[int, tuple[DiffPart, ...]]:
    """Returns what each version of a page has changed, by its number; the oldest one of the page has no entry."""
    return {
        new.version: shortened_diff(diff_words(old.value, new.value)) for new, old in pairwise(page.versions)
    }
