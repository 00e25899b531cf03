"""Forgetting: the preview, its confirmation, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, NamedTuple
from urllib.parse import parse_qs, quote

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.core.memory.word_diff import DiffPart, diff_words
from gateway.errors import BadRequest, Conflict, MemoryNotFound, UnknownId
from gateway.page.memory_access import OPERATOR_ROUTES, MemoryAccess, MemoryRoutes, access_of
from gateway.page.page_operations import PageOperations
from gateway.page.page_request import safe_next
from gateway.page.screen import Action, ActionResult, Answer, Screen, ScreenRequest, View, fields_of
from gateway.page.shown_text import shortened_diff
from gateway.run.admin.exchange_messages import shorten
from gateway.run.admin.fact_views import FactPage
from gateway.run.admin.memory_forgetting import (
    ForgetPreview,
    MemoryForgetting,
    RemainingRecord,
    TargetKind,
)
from gateway.run.admin.memory_search import SearchOperation
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.word_search import TextWithWords, WordSearches

_Number = Annotated[int, Meta(ge=1, lt=1 << 62)]
# The names of screens that lead to a preview, by the first part of their path below the memory's, or of requests.
_SCREEN_NAMES = {
    "b": "the block",
    "c": "the conversation",
    "conversations": "the conversations",
    "f": "the fact",
    "facts": "the facts",
    "passages": "the passages",
    "r": "the request",
    "search": "the search",
    "words": "the words",
}
# Characters of a block that stays.
_BLOCK_CHARS = 200
# The screen of each item of a list, and that of the list, by the kind of target.
_OWN_SCREENS = {"fact": ("f", "facts"), "conversation": ("c", "conversations")}


class ForgetQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The target of forgetting: one of these."""

    message: _Number | None = None
    exchange: _Number | None = None
    conversation: str | None = None
    fact: _Number | None = None
    passage: _Number | None = None
    all: bool | None = None
    # The id of what to go on with, on the screen that led here.
    then: Annotated[str, Meta(pattern=r"^[a-z-]{1,40}-[0-9]{1,18}\Z")] | None = None
    # The screen to go back to, relative to /ui/, where the one that led here is itself the end of a forgetting.
    back: str | None = None

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
    """The confirmation."""

    # The number of messages, where the preview asks for it.
    confirm: str | int | None = None
    # The screen that led to the preview, relative to /ui/.
    came_from: str = ""


class _ForgetScreens(Struct, frozen=True):
    """The screen of a preview and the forgetting itself, each as it is called for a request."""

    views: MemoryViews
    forgetting: MemoryForgetting
    words: WordSearches
    search: SearchOperation

    async def show_preview(self, request: ScreenRequest, query: ForgetQuery) -> View:
        access = access_of(request)
        if request.is_twin:
            page = await self.forgetting.preview(access.project, access.uid, *query.target)
            await request.note_read(access.uid)
            return access.twin(page)
        view = await self._view_preview(request, query.back or request.referrer)
        await request.note_read(access.uid)
        return view

    async def forget(self, request: ScreenRequest, form: ForgetForm) -> Answer:
        access = access_of(request)
        kind, value = request.query.target
        confirm = None if form.confirm is None else str(form.confirm)
        came_from = _screen_before(access, form.came_from)
        stays: Sequence[RemainingRecord] = ()
        sought = name = ""
        try:
            if not (request.is_twin or access.is_person or kind == "all"):
                name = await self.views.name(access.project, access.uid)
                sought = await self._find_sought_words(access, came_from)
                stays = await self.forgetting.list_remaining(
                    access.project, access.uid, kind, value, words=sought
                )
            result = await self.forgetting.forget(access.editor, access.uid, kind, value, confirm=confirm)
        except Conflict as error:
            return await self._view_preview(request, form.came_from, error)
        except MemoryNotFound:
            raise
        except UnknownId as error:
            if request.is_twin:
                raise
            # The form may have been sent twice, and the first answer not been shown.
            raise UnknownId(f"{error.message.removesuffix('.')}. If there was, it is forgotten.") from error
        if request.is_twin:
            return ActionResult(access.filter(result), "")
        way = await self._find_way_on(access, request.query, came_from, sought)
        search = access.path("search") + "?q="
        elsewhere = next((each.href for each in stays if (each.href or "").startswith(search)), None)
        if elsewhere and sought:
            elsewhere = search + quote(sought, safe="")
        left = await self.words.remaining(access.project, access.uid, sought) if sought else None
        hidden = next_question = None
        if left is not None and not left.total:
            hidden = await self.words.hidden(access.project, access.uid, sought)
            questions = await self.views.conversations.last_questions(access.project, access.uid, 1)
            next_question = next(iter(questions), "")
        # One who came from a trial goes on with its hits, which have a way of their own.
        is_trial = came_from.partition("?")[0] == access.path("search")
        listed = left.items if left and not is_trial else ()
        numbers = {each.seq for each in listed}
        return access.view(
            result,
            "forgotten.html",
            "Forgotten",
            memory_name=name,
            next_question=next_question,
            to="people" if kind == "all" else way.to,
            to_name=way.name,
            goes_on=way.is_to_next,
            is_all=kind == "all",
            elsewhere=elsewhere,
            has_embedder=self.search.has_embedder,
            replies=[each for each in stays if each.message and each.message not in numbers],
            back=way.to.partition("#")[0],
            left=left,
            listed=listed,
            following=await self._preview_next(access, listed[0], sought, search) if listed else None,
            hidden=hidden,
        )

    async def _find_way_on(
        self, access: MemoryAccess, query: ForgetQuery, came_from: str, words: str
    ) -> _WayOn:
        """Returns where the page of a forgetting leads. words: those that were searched for; "": none were."""
        kind, _ = query.target
        if kind == "fact" or not await self._is_gone(access, came_from):
            return _way_on(access, query, came_from)
        return _way_to_words(access, words) if words else _way_on(access, query, "")

    async def _preview_next(
        self, access: MemoryAccess, text: TextWithWords, words: str, search: str
    ) -> tuple[ForgetPreview, list[tuple[str, tuple[DiffPart, ...]]]]:
        """Returns the preview of a text for the page that says what is gone, with the changes of blocks.

        search: what the paths of searches begin with. The page itself links to one, so the preview does not.
        """
        page, changes = await self._preview(access, text.kind, text.seq, words)
        stays = tuple(each for each in page.stays if not (each.href or "").startswith(search))
        return replace(page, stays=stays), changes

    async def _find_sought_words(self, access: MemoryAccess, screen: str) -> str:
        """Returns the words for which one text after the other is forgotten; "": they are not known.

        They are those of a search, or those that a correction has taken out of a fact.
        """
        path, _, query = screen.partition("?")
        if path in (access.path("words"), access.path("search")):
            return next(iter(parse_qs(query).get("q", ())), "")
        if path.startswith(access.path("b") + "/"):
            return next(iter(parse_qs(query).get("words", ())), "")
        page = await self._find_fact(access, screen)
        if page is None or not page.before:
            return ""
        return self.words.lost_words(page.before[0].text, page.fact.text)

    async def _is_gone(self, access: MemoryAccess, screen: str) -> bool:
        """Returns whether a screen is that of a fact that is gone: a correction goes with its sources."""
        is_of_fact = screen.startswith(access.path("f") + "/")
        return is_of_fact and await self._find_fact(access, screen) is None

    async def _find_fact(self, access: MemoryAccess, screen: str) -> FactPage | None:
        """Returns the fact that a screen shows; None: it shows none, or it is gone."""
        seq = screen.partition("?")[0].removeprefix(access.path("f") + "/")
        if not seq.isdecimal() or len(seq) > 18:  # the store has no longer numbers
            return None
        try:
            return await self.views.facts.show(access.project, access.uid, int(seq))
        except UnknownId:
            return None

    async def _preview(
        self, access: MemoryAccess, kind: TargetKind, value: int | str | None, words: str
    ) -> tuple[ForgetPreview, list[tuple[str, tuple[DiffPart, ...]]]]:
        """Returns what a forgetting takes, and how it changes blocks, by their labels. words: those sought."""
        page = access.filter(
            await self.forgetting.preview(access.project, access.uid, kind, value, words=words)
        )
        if words and not access.is_person:
            blocks = await self._list_staying_blocks(access, page)
            page = replace(page, stays=(*blocks, *page.stays))
        # In a thread: the differences of long texts take some 10 ms each, for which replies would wait.
        return page, await asyncio.to_thread(_changes, page) if page.blocks else []

    async def _list_staying_blocks(self, access: MemoryAccess, page: ForgetPreview) -> list[RemainingRecord]:
        """Returns the blocks, since what is right in a message may stand there; none where a block may lose its text.

        How a long block changes is not in the preview, nor how blocks change where everything goes.
        """
        if page.will_go.versions or page.target.kind == "all":
            return []
        return [
            RemainingRecord(
                f"Block {each.label}, which each reply is told:",
                access.path("b", each.label),
                quote=shorten(each.value, _BLOCK_CHARS),
            )
            for each in await self.views.blocks.list_all(access.project, access.uid)
            if each.value
        ]

    async def _view_preview(
        self, request: ScreenRequest, came_from: str, error: Conflict | None = None
    ) -> View:
        """Returns the screen of a preview. error: why the forgetting that it shows was refused."""
        access = access_of(request)
        kind, value = request.query.target
        came_from = _screen_before(access, came_from)
        sought = await self._find_sought_words(access, came_from)
        page, changes = await self._preview(access, kind, value, sought)
        name = "you" if access.is_person else await self.views.name(access.project, access.uid)
        return access.view(
            page,
            "forget.html",
            _heading(page, name),
            error,
            fields=fields_of(request.query),
            came_from=came_from,
            back=f"{came_from}#forget-{kind}-{value}" if came_from else _usual_screen(access, page),
            memory_name=name,
            changes=changes,
        )


def screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    forget = _ForgetScreens(operations.memories, operations.forgetting, operations.words, operations.search)
    return [
        routes.screen("forget", forget.show_preview, ForgetQuery, right="forget"),
        routes.action("forget", forget.forget, ForgetForm, "forget", ForgetQuery),
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


class _WayOn(NamedTuple):
    """The link that leads on after a forgetting."""

    # Relative to /ui/.
    to: str
    name: str
    # It leads to the next item of a list.
    is_to_next: bool = False


def _screen_before(access: MemoryAccess, address: str) -> str:
    """Returns the screen that led to a preview, relative to /ui/; "": it is unknown, or none to go back to."""
    address = safe_next(address)
    path, home = address.partition("?")[0], access.path()
    is_of_memory = path == home or path.startswith(f"{home}/")
    is_request = path.startswith("r/") and not access.is_person
    is_preview = path == access.path("forget")
    return address if (is_of_memory or is_request) and not is_preview else ""


def _way_on(access: MemoryAccess, query: ForgetQuery, came_from: str) -> _WayOn:
    """Returns the way back to the list or search that led to a preview, as it was; else to the memory."""
    kind, value = query.target
    screen = _screen_before(access, came_from)
    then = query.then if screen else None
    own, items = _OWN_SCREENS.get(kind, (None, ""))
    if own is not None and screen.partition("?")[0] == access.path(own, str(value)):
        # It is gone with what was forgotten.
        screen, then = access.path(items), None
    part = screen.partition("?")[0].removeprefix(f"{access.path()}/").partition("/")[0]
    name = _SCREEN_NAMES.get(part)
    if name is None:
        screen, name = access.path(), "what is remembered about you" if access.is_person else "the memory"
    return _WayOn(f"{screen}#{then}" if then else screen, f"Back to {name}", then is not None)


def _way_to_words(access: MemoryAccess, words: str) -> _WayOn:
    return _WayOn(f"{access.path('words')}?q={quote(words, safe='')}", f"On to {_SCREEN_NAMES['words']}")


def _usual_screen(access: MemoryAccess, page: ForgetPreview) -> str:
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
