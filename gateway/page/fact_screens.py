"""The facts of a memory: their list, the screen of each with its history and its sources, and their changes.

A fact is added, corrected, muted, or shown before each reply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import quote, urlencode

from msgspec import Struct

from gateway.core.dates import parse_moment
from gateway.errors import BadRequest, Conflict, GatewayError
from gateway.page.memory_access import MemoryAccess, make_access, open_memory
from gateway.page.memory_routes import OPERATOR_ROUTES, MemoryRoutes
from gateway.page.page_operations import PageOperations
from gateway.page.page_request import read_searched_words, safe_next
from gateway.page.screen import (
    ALWAYS_SAVED,
    MUTE_SAVED,
    SAVED,
    Action,
    ActionResult,
    Answer,
    ListQuery,
    Screen,
    ScreenRequest,
    View,
)
from gateway.run.admin.memory.fact_views import FactPage, list_corrected_texts
from gateway.run.admin.memory.memory_edits import FactExists, MemoryEdits
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_names import make_memory_label
from gateway.run.admin.records.memory_records import FactRecord
from gateway.run.admin.words.lost_words import LostWords, has_lost_words
from gateway.run.admin.words.word_counts import Remaining


class FactsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which facts are listed."""

    # Also the facts that are no longer true.
    all: bool = False
    # Only the facts that were true at this time: seconds since the epoch, or a day, which stands for its end.
    as_of: str | None = None
    # The fields of a new fact's form that were sent after the session had ended, as in `AddFactForm`.
    always: bool = False
    back: str = ""


class AddFactForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The new fact."""

    # The fields that `FactsQuery` takes over if the session has ended. The text is copied.
    resumed: ClassVar = {"always": "always", "back": "back"}

    text: str
    # True: the fact is shown to the model before each reply.
    always: bool = False
    # The screen to go on with from the fact's own screen, relative to /ui/.
    back: str = ""


class FactQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a fact's screen: what led there."""

    # The screen to go on with, relative to /ui/, where a fact was added on the way to it; "": none.
    back: str = ""
    # True: the fact was just typed, and has the text of an earlier fact by that: no correction was taken back.
    typed: bool = False
    # The words of a search for what is wrong, which led here; "": nothing was searched for.
    words: str = ""


class CorrectForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The text that the fact should have."""

    text: str
    # True: the text is that of the fact before, which the visitor did not type.
    undo: bool = False


class MuteForm(Struct, frozen=True, forbid_unknown_fields=True):
    """Mutes a fact, or has it mentioned again."""

    muted: bool


class AlwaysForm(Struct, frozen=True, forbid_unknown_fields=True):
    """Has a fact shown before each reply, or only when a question fits."""

    always: bool


class _FactScreens(Struct, frozen=True):
    """The screens and the changes of facts. The methods are called with a request."""

    views: MemoryViews
    edits: MemoryEdits
    lost_words: LostWords

    async def show_list(self, request: ScreenRequest, query: FactsQuery) -> View:
        resumed = AddFactForm("", query.always, query.back) if query.always or query.back else None
        return await self._make_list_view(request, query, unsaved=resumed)

    async def add(self, request: ScreenRequest, form: AddFactForm) -> Answer:
        access = make_access(request)
        try:
            fact = await self.edits.add_fact(access.editor, access.uid, form.text, always=form.always)
        except (BadRequest, Conflict) as error:
            return await self._make_list_view(request, FactsQuery(), unsaved=form, error=error)
        page = await self.views.facts.show(access.project, access.uid, fact.seq)
        query = f"?back={quote(form.back, safe='')}" if form.back else ""
        return ActionResult(access.filter(page.fact), access.path("f", fact.seq) + query + SAVED)

    async def show(self, request: ScreenRequest, query: FactQuery) -> View:
        access, seq = make_access(request), _read_fact_seq(request)
        page = await self.views.facts.show(access.project, access.uid, seq)
        await request.note_read(access.uid)
        if request.is_twin:
            return access.twin(page)
        return await self._make_view(
            access, page, back=safe_next(query.back), is_typed=query.typed, words=query.words
        )

    async def correct(self, request: ScreenRequest, form: CorrectForm) -> Answer:
        access, seq = make_access(request), _read_fact_seq(request)
        words = read_searched_words(request.referrer, access.path("f", seq))
        try:
            new_fact = await self.edits.correct_fact(access.editor, access.uid, seq, form.text)
        except (BadRequest, Conflict) as error:
            page = await self.views.facts.show(access.project, access.uid, seq)
            next_fact = page.after
            is_resent = next_fact is not None and next_fact.text == " ".join(form.text.split())
            if next_fact is not None and is_resent and not request.is_twin:
                return await self._redirect(access, next_fact.seq, form, words)
            return await self._make_view(access, page, unsaved_text=form.text, error=error, words=words)
        return await self._redirect(access, new_fact.seq, form, words)

    async def mute(self, request: ScreenRequest, form: MuteForm) -> ActionResult:
        access, seq = make_access(request), _read_fact_seq(request)
        await self.edits.mute_fact(access.editor, access.uid, seq, is_muted=form.muted)
        page = await self.views.facts.show(access.project, access.uid, seq)
        own_screen = access.path("f", seq)
        screen = request.referrer or own_screen
        # In a long list the focus goes back to the button.
        fragment = MUTE_SAVED if screen.partition("?")[0] == own_screen else f"#mute-{seq}"
        return ActionResult(access.filter(page.fact), screen + fragment)

    async def set_always(self, request: ScreenRequest, form: AlwaysForm) -> Answer:
        access, seq = make_access(request), _read_fact_seq(request)
        try:
            await self.edits.set_always(access.editor, access.uid, seq, is_always=form.always)
        except (BadRequest, Conflict) as error:
            page = await self.views.facts.show(access.project, access.uid, seq)
            return await self._make_view(access, page, error=error)
        page = await self.views.facts.show(access.project, access.uid, seq)
        screen = request.referrer or access.path("f", seq)
        return ActionResult(access.filter(page.fact), screen + ALWAYS_SAVED)

    async def _make_list_view(
        self,
        request: ScreenRequest,
        query: FactsQuery,
        *,
        unsaved: AddFactForm | None = None,
        error: GatewayError | None = None,
    ) -> View:
        """Returns a list of facts.

        unsaved: the form of a new fact that was refused, or sent after the session had ended.
        error: why it was refused.
        """
        access, memory = await open_memory(request, self.views)
        page = await self.views.facts.list_page(
            access.project,
            access.uid,
            includes_ended=query.all,
            as_of=_parse_time(query.as_of) if query.as_of else None,
            after=query.after,
            limit=query.limit,
        )
        return access.view(
            page,
            "facts.html",
            "Facts",
            error,
            unsaved=unsaved,
            # The number of the fact that has the text of a new one already.
            existing=error.seq if isinstance(error, FactExists) else None,
            memory_name=make_memory_label(memory),
            includes_ended=query.all,
            has_ended=query.all or await self.views.facts.has_ended(memory),
            as_of=query.as_of,
        )

    async def _redirect(self, access: MemoryAccess, seq: int, form: CorrectForm, words: str) -> ActionResult:
        """Answers a correction that was made.

        seq: the number of the new fact.
        words: the field `words` of `FactQuery`.
        """
        page = await self.views.facts.show(access.project, access.uid, seq)
        query = {"words": words} if words else {}
        if not form.undo:
            replaced = await self.views.facts.list_replaced(access.project, access.uid, page)
            query |= {"typed": "1"} if _find_restored(page, replaced) else {}
        screen = access.path("f", seq) + ("?" + urlencode(query) if query else "")
        return ActionResult(access.filter(page.fact), screen + SAVED)

    async def _make_view(
        self,
        access: MemoryAccess,
        page: FactPage,
        *,
        unsaved_text: str | None = None,
        error: GatewayError | None = None,
        back: str = "",
        is_typed: bool = False,
        words: str = "",
    ) -> View:
        """Returns the screen.

        unsaved_text, error: the text of a correction that was refused, and why.
        back, is_typed, words: the fields of `FactQuery`.
        """
        name = await self.views.get_name(access.project, access.uid)
        replaced = await self.views.facts.list_replaced(access.project, access.uid, page)
        restored = _find_restored(page, replaced)
        is_undone = restored is not None and not is_typed
        is_redone = is_undone and _is_newer(restored, page.before[0], replaced)
        remaining = await self._find_remaining(access, page, replaced, words)
        # What an undo took out may be right.
        is_taken_out = remaining is not None and (is_redone or not is_undone)
        if remaining is None:
            remaining = await self._find_with_old_words(access, page, replaced)
        remaining_of_fact: Sequence[int] = ()
        if remaining is not None:
            messages = [each.seq for each in remaining.items if each.kind == "message"]
            remaining_of_fact = await self.views.facts.list_source_messages(
                access.project, access.uid, page.fact.seq, messages
            )
        return access.view(
            page,
            "fact.html",
            f"Fact {page.fact.seq}",
            error,
            unsaved_text=unsaved_text,
            back=back,
            sought_words=words,
            memory_name=name,
            restored=restored,
            is_undone=is_undone,
            is_redone=is_redone,
            true_successor=await self.views.facts.find_true_successor(access.project, access.uid, page),
            remaining=remaining,
            is_taken_out=is_taken_out,
            remaining_of_fact=remaining_of_fact,
            has_room=not page.fact.always or await self._has_room(access, page.fact.seq),
        )

    async def _has_room(self, access: MemoryAccess, seq: int) -> bool:
        """Returns whether a standing fact is one of those that are shown before each reply."""
        return any(fact.seq == seq for fact in await self.views.facts.list_standing(access.uid))

    async def _find_remaining(
        self, access: MemoryAccess, page: FactPage, replaced: Sequence[FactRecord], words: str
    ) -> Remaining | None:
        """Returns the texts that still have the words that this correction and those before it took out of a fact.

        None: the fact corrects no fact, or is no longer true.

        words: the field of `FactQuery`; if the correction took them out, other lost words are not looked for.
        """
        if page.fact.until is not None or not page.before:
            return None
        old_texts = list_corrected_texts(page, replaced)
        is_sought = words and old_texts and not access.is_person
        if is_sought and await has_lost_words(words, old_texts[0], page.fact.text):
            return await self.lost_words.word_counts.count_remaining(access.project, access.uid, words)
        return access.filter(
            await self.lost_words.count_remaining(access.project, access.uid, old_texts, page.fact.text)
        )

    async def _find_with_old_words(
        self, access: MemoryAccess, page: FactPage, replaced: Sequence[FactRecord]
    ) -> Remaining | None:
        """Returns the other texts with the words of the text that this correction replaced.

        None: the same as for `_find_remaining`.
        """
        old_texts = list_corrected_texts(page, replaced)
        if page.fact.until is not None or not old_texts:
            return None
        return access.filter(
            await self.lost_words.count_with_distinctive_words(
                access.project, access.uid, old_texts[0], page.fact.seq
            )
        )


def make_screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    facts = _FactScreens(operations.memories, operations.edits, operations.lost_words)
    return [
        routes.make_screen("facts", facts.show_list, FactsQuery),
        routes.make_action("facts", facts.add, AddFactForm, "correct"),
        routes.make_screen("f/{seq:int}", facts.show, FactQuery),
        routes.make_action("f/{seq:int}/correct", facts.correct, CorrectForm, "correct"),
        routes.make_action("f/{seq:int}/mute", facts.mute, MuteForm, "correct"),
        routes.make_action("f/{seq:int}/always", facts.set_always, AlwaysForm, "correct"),
    ]


def _parse_time(text: str) -> float:
    """Returns seconds since the epoch. text: their number, or a day (2026-11-24), for its end. Raises: BadRequest."""
    try:
        if "-" not in text[1:]:  # before the digits it is the sign of a number
            seconds = float(text)
            if not math.isfinite(seconds):
                raise ValueError(text)
            return seconds
        return parse_moment(text, is_end=True)
    except ValueError as error:
        raise BadRequest(
            "as_of is a number of seconds since 1970, or a day like 2026-11-24.", param="as_of"
        ) from error


def _find_restored(page: FactPage, replaced: Sequence[FactRecord]) -> FactRecord | None:
    """Returns the fact that a correction had replaced, if this fact takes that correction back.

    It then has the same text as this fact. replaced: the result of `FactViews.list_replaced`.
    """
    earlier = [fact for fact in replaced if page.before and fact.successor == page.before[0].seq]
    return next((fact for fact in earlier if fact.text == page.fact.text), None)


def _is_newer(restored: FactRecord | None, other: FactRecord, replaced: Sequence[FactRecord]) -> bool:
    """Returns whether a text that was restored came after the other text, so that an undo was taken back."""
    texts = [fact.text for fact in sorted(replaced, key=lambda fact: fact.seq)]
    return restored is not None and texts.index(restored.text) > texts.index(other.text)


def _read_fact_seq(request: ScreenRequest) -> int:
    """Returns the number of the fact that the path names."""
    return int(request.params["seq"])
