"""The page of a memory, its lists, its export, and the trial of recall."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import ClassVar, NamedTuple

from msgspec.structs import asdict, replace

from gateway.core.dates import parse_moment
from gateway.errors import BadRequest
from gateway.page.memory_access import OPERATOR_ROUTES, MemoryAccess, MemoryRoutes, access_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Download, ListQuery, Screen, ScreenRequest, View
from gateway.page.shown_text import shortened_diff
from gateway.run.admin.memory_views import AgentMemoryPage, MemoryViews
from gateway.run.admin.page_records import MemoryRecord
from gateway.run.admin.plain_text import shell_word
from gateway.run.admin.request_operations import name_of
from gateway.settings import DEFAULT_PROFILE

# Characters around each change that an undo of a block would bring, and of all of them.
_UNDO_AROUND, _UNDO_CHARS = 30, 300
# How long a link to a page lives.
_LINK_S = 86_400


class FactsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which facts are listed."""

    # Those that are no longer true are listed as well.
    all: bool = False
    # Only facts that were true then: seconds since the epoch, or a day, which stands for its end.
    as_of: str | None = None


class SearchQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sentence that is tried."""

    page_limit: ClassVar[int] = 10  # the page has two more tables
    q: str = ""


def screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    views = operations.memories

    async def facts(request: ScreenRequest, query: FactsQuery) -> View:
        access, name, _ = await _open_memory(request, views)
        page = await views.facts(
            access.project,
            access.uid,
            is_all=query.all,
            as_of=_parse_time(query.as_of) if query.as_of else None,
            after=query.after,
            limit=query.limit,
        )
        return access.view(page, "facts.html", "Facts", memory_name=name, is_all=query.all, as_of=query.as_of)

    async def conversations(request: ScreenRequest, query: ListQuery) -> View:
        access, name, _ = await _open_memory(request, views)
        page = await views.conversations(access.project, access.uid, after=query.after, limit=query.limit)
        openings = await views.openings(access.project, access.uid, [each.id for each in page.items])
        return access.view(page, "conversations.html", "Conversations", memory_name=name, openings=openings)

    async def passages(request: ScreenRequest, query: ListQuery) -> View:
        access, name, _ = await _open_memory(request, views)
        page = await views.passages(access.project, access.uid, after=query.after, limit=query.limit)
        return access.view(page, "passages.html", "Passages", memory_name=name)

    async def export(request: ScreenRequest, query: object) -> Answer:
        access = access_of(request)
        pages = await operations.export.line_pages(access.project, access.uid)
        await operations.sign_in.note(request.visitor.actor, "export", access.uid)
        return Download("application/x-ndjson", _join_lines(pages), f"memory-{access.uid[:8]}.jsonl")

    shared: list[Screen | Action] = [
        routes.screen("facts", facts, FactsQuery),
        routes.screen("conversations", conversations, ListQuery),
        routes.screen("passages", passages, ListQuery),
        routes.screen("export.jsonl", export, right="export", has_twin=False),
    ]
    return shared if routes.is_for_person else [*shared, *_operator_screens(operations)]


def _operator_screens(operations: PageOperations) -> list[Screen | Action]:
    """Returns the screens that a person does not have, or has in another form."""
    views = operations.memories

    async def show(request: ScreenRequest, query: object) -> View:
        access, _, paused = await _open_memory(request, views)
        page = await views.memory(access.project, access.uid)
        if page.memory.kind == "agent":
            runs = await operations.runs.newest(await views.find(access.project, access.uid))
            page = AgentMemoryPage(**asdict(page), runs=runs)
        openings = await views.openings(access.project, access.uid, [each.id for each in page.conversations])
        undos = {}
        if access.may("correct") and not request.is_twin:
            undos = {
                label: replace(undo, parts=shortened_diff(undo.parts, _UNDO_AROUND, _UNDO_CHARS))
                for label, undo in (await views.undos(access.project, access.uid)).items()
            }
        return access.view(
            page,
            "memory.html",
            page.memory.name,
            openings=openings,
            undos=undos,
            paused=paused,
            link_command=_link_command(page.memory) if page.memory.kind == "user" else None,
        )

    async def search(request: ScreenRequest, query: SearchQuery) -> View:
        access, name, paused = await _open_memory(request, views)
        page = await operations.search.try_recall(
            access.project, access.uid, query.q, after=query.after, limit=query.limit
        )
        return access.view(
            page,
            "search.html",
            "What would be recalled",
            memory_name=name,
            has_embedder=operations.search.has_embedder,
            blocks=[each for each in await views.blocks(access.project, access.uid) if each.value],
            after=query.after,
            paused=paused,
            standing=await views.standing_facts(access.uid),
            speakers=await views.speakers(
                access.project, access.uid, (*page.chosen, *page.left_out, *page.found)
            ),
        )

    return [
        OPERATOR_ROUTES.screen("", show),
        OPERATOR_ROUTES.screen("search", search, SearchQuery, searches=True),
    ]


def _link_command(memory: MemoryRecord) -> str:
    """Returns the command with which an application's key makes a link to a person's page, for a day."""
    body: dict[str, str | int] = {"user": memory.name, "ttl_s": _LINK_S}
    if memory.profile != DEFAULT_PROFILE:
        body["profile"] = memory.profile
    return (
        'curl http://GATEWAY/v1/memory/links -H "authorization: Bearer KEY" -H "content-type: application/json"'
        f" -d {shell_word(json.dumps(body))}"
    )


class _OpenedMemory(NamedTuple):
    access: MemoryAccess
    name: str
    # Since when it is paused; None: it is not.
    paused: float | None


async def _open_memory(request: ScreenRequest, views: MemoryViews) -> _OpenedMemory:
    """Returns a memory as its visitor may open it, and notes that it is read. Raises: UnknownId: it is not there."""
    access = access_of(request)
    memory = await views.find(access.project, access.uid)
    await request.note_read(access.uid)
    return _OpenedMemory(access, name_of(memory.scope), memory.paused)


async def _join_lines(pages: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    """Yields the lines of each page as one text."""
    async for lines in pages:
        if lines:
            yield b"".join(line + b"\n" for line in lines)


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
