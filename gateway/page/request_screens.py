"""Requests: the list of the last ones, and why one was answered as it was."""

from __future__ import annotations

from msgspec import Struct

from gateway.errors import UnknownId
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ListQuery, NoFields, Screen, ScreenRequest, View
from gateway.run.admin.memory_views import ChangedBlock
from gateway.run.admin.page_records import ExplainedRequest, MessageRecord, WindowPart, WindowRecord
from gateway.run.admin.request_operations import name_of

# The cells of the bar that shows a window.
CELLS = 50
# The letter and the name of each part of a window, so that none is known by its colour alone.
PARTS: dict[WindowPart, tuple[str, str]] = {
    "system": ("s", "system"),
    "tools": ("T", "tools"),
    "section": ("B", "memory blocks"),
    "summary": ("u", "summary"),
    "history": ("h", "history"),
    "note": ("N", "note"),
    "message": ("m", "message"),
}
FREE = ("·", "free")


class _RequestsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # The uid of the memory whose requests are listed; None: all requests are.
    memory: str | None = None


class Cell(Struct, frozen=True):
    """A cell of the bar of a window. part: of the window, or "free"."""

    part: str
    letter: str


def screens(operations: PageOperations) -> list[Screen | Action]:
    async def requests(request: ScreenRequest, query: _RequestsQuery) -> View:
        page = await operations.requests.list(
            memory=query.memory, project=request.visitor.project, after=query.after, limit=query.limit
        )
        name = paused = None
        if query.memory is not None:
            await request.note_read(query.memory)
            found = await operations.memories.find(request.visitor.project, query.memory)
            name, paused = name_of(found.scope), found.paused
        context = {
            "memory": query.memory,
            "name": name,
            "paused": paused,
            "is_first": query.after is None,
            "keep": f"{operations.requests.keep_why_days:g} days",
        }
        return View(page, "requests.html", "Requests", context)

    async def explanation(request: ScreenRequest, query: NoFields) -> View:
        id = request.params["id"]
        found = await operations.requests.explain(id, request.visitor.project)
        if found.memory is not None:
            await request.note_read(found.memory)
        context = {
            "cells": window_cells(found.window),
            "parts": PARTS,
            "free": FREE,
            "turn": await _read_turn(operations, found),
            "speakers": await _find_speakers(operations, found),
            "changed": await _find_changed_blocks(operations, found),
        }
        return View(found, "request.html", f"Request {id}", context)

    return [Screen("requests", requests, _RequestsQuery), Screen("r/{id}", explanation)]


async def _read_turn(operations: PageOperations, found: ExplainedRequest) -> list[MessageRecord]:
    """Returns the question and the reply of a request, as far as they are stored."""
    if found.memory is None or found.exchange is None:
        return []
    try:
        messages = await operations.memories.exchange(None, found.memory, found.exchange)
    except UnknownId:
        return []  # it was forgotten meanwhile
    last = {each.role: each for each in messages if each.text}
    return [last[role] for role in ("user", "assistant") if role in last]


async def _find_speakers(operations: PageOperations, found: ExplainedRequest) -> dict[int, str]:
    hits = (*found.chosen, *found.left_out)
    try:
        return await operations.memories.speakers(None, found.memory, hits) if found.memory and hits else {}
    except UnknownId:
        return {}  # the memory was forgotten meanwhile


async def _find_changed_blocks(
    operations: PageOperations, found: ExplainedRequest
) -> dict[str, ChangedBlock]:
    """Returns the blocks that were changed since the model was told them, by their labels."""
    if found.memory is None or not any(each.part == "section" and each.tokens for each in found.window.parts):
        return {}
    try:
        # A recall is noted when its turn ends.
        return await operations.memories.blocks_changed(found.memory, found.at - found.ms / 1000)
    except UnknownId:
        return {}  # the memory was forgotten meanwhile


def window_cells(window: WindowRecord) -> list[Cell]:
    """Returns the bar of a window, in which each part that has tokens has at least one cell."""
    used = {each.part: each.tokens for each in window.parts if each.tokens}
    if not used:
        return []
    free = max(0, (window.context or 0) - sum(used.values()))
    whole = sum(used.values()) + free
    counts = {part: max(1, round(tokens * CELLS / whole)) for part, tokens in used.items()}
    while sum(counts.values()) > CELLS:  # small parts have a cell that they do not fill
        counts[max(counts, key=lambda part: counts[part])] -= 1
    if not free:
        # Where the others were rounded down, the largest part has the rest.
        counts[max(counts, key=lambda part: counts[part])] += CELLS - sum(counts.values())
    cells = [Cell(part, PARTS[part][0]) for part, count in counts.items() for _ in range(count)]
    return cells + [Cell("free", FREE[0])] * (CELLS - len(cells))
