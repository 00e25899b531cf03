"""The screen of a block: its text in a form, and its history. Its changes: an edit, an undo, an earlier version.

A change names the version that its form showed. It is refused if someone else has changed the block since.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Annotated, ClassVar
from urllib.parse import quote

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.core.memory.word_diff import DiffPart, diff_words
from gateway.errors import BadRequest, Conflict, GatewayError
from gateway.page.memory_access import MemoryAccess, make_access
from gateway.page.memory_routes import OPERATOR_ROUTES, MemoryRoutes
from gateway.page.page_operations import PageOperations
from gateway.page.page_request import MAX_BODY_BYTES, read_searched_words
from gateway.page.screen import (
    SAVED,
    UNCHANGED,
    Action,
    ActionResult,
    Answer,
    ListQuery,
    Screen,
    ScreenRequest,
    View,
)
from gateway.page.shown_text import shorten_diff
from gateway.run.admin.audit_operations import AuditOperations
from gateway.run.admin.memory.block_views import BlockPage, find_correction, list_with_lost_lines
from gateway.run.admin.memory.memory_edits import MemoryEdits
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.words.lost_words import LostWords, has_lost_words
from gateway.run.admin.words.word_counts import Remaining, WordCounts

_Number = Annotated[int, Meta(ge=1, lt=1 << 62)]
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


class _RefusedEdit(Struct, frozen=True):
    """An edit that was refused."""

    # The new text, which the form still shows.
    text: str
    # How this text differs from the block's, if someone else has changed the block.
    conflict: tuple[DiffPart, ...] | None


class _RemainingTexts(Struct, frozen=True):
    """Other texts that still have the words that led to the screen, or those that a correction took out."""

    texts: Remaining
    # True: the words were taken out of the block, and by no undo: they are wrong.
    is_taken_out: bool


class _BlockScreens(Struct, frozen=True):
    """The screen of a block and its changes, each as it is called for a request."""

    views: MemoryViews
    edits: MemoryEdits
    word_counts: WordCounts
    lost_words: LostWords
    audit: AuditOperations

    async def show(self, request: ScreenRequest, query: BlockQuery) -> View:
        access = make_access(request)
        block_page = await self._read_block_page(request, access, query)
        await request.note_read(access.uid)
        if request.is_twin:
            return access.twin(block_page)
        is_compared = query.from_ is not None or query.to is not None
        return await self._make_view(block_page, access, words=query.words, is_compared=is_compared)

    async def edit(self, request: ScreenRequest, form: EditForm) -> Answer:
        access = make_access(request)
        try:
            block = await self.edits.blocks.edit(
                access.editor, access.uid, _read_label(request), form.value, form.version
            )
        except (Conflict, BadRequest) as error:
            block_page = await self._read_block_page(request, access)
            conflict = None
            if isinstance(error, Conflict):
                if block_page.block.value == form.value and not request.is_twin:
                    return await self._redirect(request, access)  # the form was sent twice
                parts = await asyncio.to_thread(diff_words, form.value, block_page.block.value)
                conflict = shorten_diff(parts)
            words = read_searched_words(request.referrer, access.path("b", block_page.block.label))
            refused = _RefusedEdit(form.value, conflict)
            return await self._make_view(block_page, access, words=words, error=error, refused_edit=refused)
        return await self._redirect(request, access, UNCHANGED if block.version == form.version else SAVED)

    async def undo(self, request: ScreenRequest, form: UndoForm) -> Answer:
        access = make_access(request)
        try:
            await self.edits.blocks.undo(access.editor, access.uid, _read_label(request), form.version)
        except (Conflict, BadRequest) as error:
            return await self._answer_refused(request, access, error, form)
        return await self._redirect(request, access)

    async def restore(self, request: ScreenRequest, form: RestoreForm) -> Answer:
        access = make_access(request)
        try:
            await self.edits.blocks.restore(
                access.editor, access.uid, _read_label(request), form.version, form.to
            )
        except (Conflict, BadRequest) as error:
            return await self._answer_refused(request, access, error, form)
        return await self._redirect(request, access)

    # -- parts

    async def _read_block_page(
        self, request: ScreenRequest, access: MemoryAccess, query: BlockQuery | None = None
    ) -> BlockPage:
        """Returns the block with its versions. query: None for the newest ones, as after a change."""
        query = query or BlockQuery(limit=BlockQuery.page_limit)
        block_page = await self.views.blocks.show(
            access.project,
            access.uid,
            _read_label(request),
            from_=query.from_,
            to=query.to,
            after=query.after,
            limit=query.limit,
        )
        if access.is_person and block_page.block.shared:
            # A person may not read what others have written into a shared block before.
            return replace(block_page, versions=(), next=None, diff=None)
        return block_page

    async def _make_view(
        self,
        block_page: BlockPage,
        access: MemoryAccess,
        *,
        words: str = "",
        is_compared: bool = False,
        error: GatewayError | None = None,
        refused_edit: _RefusedEdit | None = None,
    ) -> View:
        """Returns the screen.

        words: the field `words` of `BlockQuery`.
        is_compared: True if the difference of the two versions that `block_page` compares is shown.
        error: why a change was refused.
        refused_edit: the refused change, if it was an edit.
        """
        label = block_page.block.label
        name = await self.views.get_name(access.project, access.uid)
        # In a thread: the differences of long texts take some 10 ms each, for which replies would wait.
        changes = await asyncio.to_thread(_diff_versions, block_page)
        undo = redo = None
        if not access.is_person and access.may("correct"):
            undos, redos = await self.views.blocks.versions.list_undos(access.project, access.uid, label)
            undo, redo = undos.get(label), redos.get(label)
        remaining = await self._find_remaining(block_page, access, words)
        correction = find_correction(block_page)
        editors = {} if access.is_person else await self.audit.load_editors(access.uid, label)
        return access.view(
            block_page,
            "block.html",
            label,
            error,
            memory_name=name,
            form_chars=_FORM_CHARS,
            unsaved_text=refused_edit and refused_edit.text,
            conflict=refused_edit and refused_edit.conflict,
            # What an undo and a redo would change; None: there is none, or the visitor may not.
            undo=undo and replace(undo, parts=shorten_diff(undo.parts)),
            redo=redo and replace(redo, parts=shorten_diff(redo.parts)),
            changes=changes,
            # The numbers of the versions with lines that the block no longer has, which can be forgotten.
            with_lost_lines=list_with_lost_lines(block_page),
            is_compared=is_compared,
            remaining=remaining and remaining.texts,
            is_taken_out=remaining is not None and remaining.is_taken_out,
            # The lines that the last change corrected; other texts may have them in other words. "": none.
            replaced_text=correction.replaced_lines if correction and not correction.is_undo else "",
            editors=editors,
        )

    async def _find_remaining(
        self, block_page: BlockPage, access: MemoryAccess, words: str
    ) -> _RemainingTexts | None:
        """Returns which other texts still have some words after a correction of the block.

        None: the last change corrects nothing, or the search found no answer.

        words: the words that led to the screen; "": the words that the correction took out are looked for.
        """
        correction = find_correction(block_page)
        if correction is None:
            return None
        texts: Remaining | None
        if words and not access.is_person:
            texts = await self.word_counts.count_remaining(access.project, access.uid, words)
            is_taken_out = await has_lost_words(words, correction.old, correction.new)
        else:
            found = await self.lost_words.count_remaining(
                access.project, access.uid, [correction.old], correction.new
            )
            is_taken_out = found is not None and not correction.is_undo
            if found is None:
                found = await self.lost_words.count_with_distinctive_words(
                    access.project, access.uid, correction.replaced_lines, block_page.block.label
                )
            texts = access.filter(found)
        if texts is None:
            return None
        other_blocks = tuple(each for each in texts.blocks if each.label != block_page.block.label)
        return _RemainingTexts(replace(texts, blocks=other_blocks), is_taken_out)

    async def _answer_refused(
        self, request: ScreenRequest, access: MemoryAccess, error: GatewayError, form: UndoForm
    ) -> Answer:
        """Answers an undo or a restore that was refused: with the error, unless the form was sent twice."""
        block_page = await self._read_block_page(request, access)
        if isinstance(error, Conflict) and _was_done(block_page, form) and not request.is_twin:
            return await self._redirect(request, access)
        return await self._make_view(block_page, access, error=error)

    async def _redirect(
        self, request: ScreenRequest, access: MemoryAccess, fragment: str = SAVED
    ) -> ActionResult:
        """Answers a change that was made: for a program the block, for a browser a redirect to its screen."""
        block_page = await self._read_block_page(request, access)
        words = read_searched_words(request.referrer, access.path("b", block_page.block.label))
        query = f"?words={quote(words, safe='')}" if words else ""
        return ActionResult(block_page.block, access.path("b", block_page.block.label) + query + fragment)


def make_screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    block_screens = _BlockScreens(
        operations.memories, operations.edits, operations.word_counts, operations.lost_words, operations.audit
    )
    screens_for_all: list[Screen | Action] = [
        routes.make_screen("b/{label}", block_screens.show, BlockQuery),
        routes.make_action("b/{label}", block_screens.edit, EditForm, "correct"),
    ]
    if routes.is_for_person:
        return screens_for_all
    return [
        *screens_for_all,
        routes.make_action("b/{label}/undo", block_screens.undo, UndoForm, "correct"),
        routes.make_action("b/{label}/restore", block_screens.restore, RestoreForm, "correct"),
    ]


def _read_label(request: ScreenRequest) -> str:
    """Returns the label of the block that the path names."""
    return str(request.params["label"])


def _was_done(block_page: BlockPage, form: UndoForm) -> bool:
    """Returns whether the newest version is what an undo or a restore has made, so that its form was sent twice."""
    newest = block_page.versions[0]
    if newest.version != form.version + 1:
        return False
    if isinstance(form, RestoreForm):
        return newest.restores == form.to
    return newest.restores is not None  # an undo brings back a version that its form does not name


def _diff_versions(block_page: BlockPage) -> dict[int, tuple[DiffPart, ...]]:
    """Returns what each version of a page has changed, by its number; the oldest one shown has no entry."""
    return {
        new.version: shorten_diff(diff_words(old.value, new.value))
        for new, old in pairwise(block_page.versions)
    }
