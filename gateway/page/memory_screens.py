"""The page of a memory, its lists, its export, and the trial of recall."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from msgspec.structs import asdict

from gateway.errors import BadRequest
from gateway.page.memory_door import OPERATORS, MemoryDoor, Way, door_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Ask, Download, ListQuery, Screen, View
from gateway.run.admin.memory_views import AgentMemoryPage, MemoryViews


class FactsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which facts are listed. all: with those that are no longer true. as_of: seconds, or a day: true at its end."""

    all: bool = False
    as_of: str | None = None


class SearchQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sentence that is tried."""

    q: str = ""


def screens(operations: PageOperations, way: Way = OPERATORS) -> list[Screen | Action]:
    views = operations.memories

    async def facts(ask: Ask, query: FactsQuery) -> View:
        door = await _door_of_list(ask, views)
        page = await views.facts(
            door.project,
            door.uid,
            is_all=query.all,
            as_of=None if not query.as_of else _time_of(query.as_of),
            after=query.after,
            limit=query.limit,
        )
        name = await _named(door, views)
        return door.view(page, "facts.html", "Facts", memory_name=name, is_all=query.all, as_of=query.as_of)

    async def conversations(ask: Ask, query: ListQuery) -> View:
        door = await _door_of_list(ask, views)
        page = await views.conversations(door.project, door.uid, after=query.after, limit=query.limit)
        openings = await views.openings(door.project, door.uid, page.items)
        name = await _named(door, views)
        return door.view(page, "conversations.html", "Conversations", memory_name=name, openings=openings)

    async def passages(ask: Ask, query: ListQuery) -> View:
        door = await _door_of_list(ask, views)
        page = await views.passages(door.project, door.uid, after=query.after, limit=query.limit)
        return door.view(page, "passages.html", "Passages", memory_name=await _named(door, views))

    async def export(ask: Ask, query: object) -> Answer:
        door = door_of(ask)
        lines = await operations.export.lines(door.project, door.uid)
        await operations.sign_in.note(ask.visitor.actor, "export", door.uid)
        return Download("application/x-ndjson", _joined(lines), f"memory-{door.uid[:8]}.jsonl")

    made: list[Screen | Action] = [
        way.screen("facts", facts, FactsQuery),
        way.screen("conversations", conversations, ListQuery),
        way.screen("passages", passages, ListQuery),
        way.screen("export.jsonl", export, right="export", has_twin=False),
    ]
    return [*made, *_of_operators(operations)] if way.is_operators else made


def _of_operators(operations: PageOperations) -> list[Screen | Action]:
    """Returns the screens that a person's own page has not, or has otherwise."""
    views = operations.memories

    async def show(ask: Ask, query: object) -> View:
        door = await _door_of_list(ask, views)
        page = await views.memory(door.project, door.uid)
        if page.memory.kind == "agent":
            runs = await operations.runs.newest(await views.find(door.project, door.uid))
            page = AgentMemoryPage(**asdict(page), runs=runs)
        openings = await views.openings(door.project, door.uid, page.conversations)
        return door.view(page, "memory.html", page.memory.name, openings=openings)

    async def search(ask: Ask, query: SearchQuery) -> View:
        door = await _door_of_list(ask, views)
        page = await operations.search.try_recall(
            door.project, door.uid, query.q, after=query.after, limit=query.limit
        )
        return door.view(page, "search.html", "What would be recalled", memory_name=await _named(door, views))

    return [OPERATORS.screen("", show), OPERATORS.screen("search", search, SearchQuery)]


async def _door_of_list(ask: Ask, views: MemoryViews) -> MemoryDoor:
    """Returns the door of a memory that is there, and notes that it is read."""
    door = door_of(ask)
    await views.find(door.project, door.uid)
    await ask.note_read(door.uid)
    return door


async def _named(door: MemoryDoor, views: MemoryViews) -> str:
    return views.name_of(await views.find(door.project, door.uid))


async def _joined(lines: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    async for page in lines:
        if page:
            yield b"".join(line + b"\n" for line in page)


def _time_of(text: str) -> float:
    """Returns a time in seconds since the epoch. text: that number, or a day (2026-11-24). Raises: BadRequest."""
    try:
        if "-" in text[1:]:
            day = datetime.fromisoformat(text).replace(tzinfo=UTC)
            return (
                (day + timedelta(days=1)).timestamp() if len(text) == len("2026-11-24") else day.timestamp()
            )
        return float(text)
    except (ValueError, OverflowError) as error:
        raise BadRequest(
            "as_of is a number of seconds since 1970, or a day like 2026-11-24.", param="as_of"
        ) from error
