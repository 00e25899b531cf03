"""The exports of a memory: as lines of JSON, and as a page to read."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct

from gateway.page.memory_access import make_access
from gateway.page.memory_routes import OPERATOR_ROUTES, MemoryRoutes
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Download, HtmlDownload, NoFields, Screen, ScreenRequest
from gateway.run.admin.memory_names import get_memory_name
from gateway.run.admin.transfer.memory_export import ReadablePart

# What is left out of a name in the name of a file, and the most characters that are left.
_NO_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_FILE_NAME_CHARS = 40


class _ExportScreens(Struct, frozen=True):
    """The exports, each as it is called for a request."""

    operations: PageOperations

    async def export(self, request: ScreenRequest, query: NoFields) -> Download:
        access = make_access(request)
        pages = await self.operations.export.render_line_pages(access.project, access.uid)
        await self.operations.audit.add(request.visitor.actor, "export", access.uid)
        return Download("application/x-ndjson", _join_lines(pages), f"memory-{access.uid[:8]}.jsonl")

    async def export_readable(self, request: ScreenRequest, query: NoFields) -> HtmlDownload:
        access = make_access(request)
        parts = await self.operations.export.render_readable_parts(access.project, access.uid)
        await self.operations.audit.add(request.visitor.actor, "export", access.uid)
        # An operator's copy is for the person, so it has the same words.
        name = access.uid[:8]
        if not access.is_person:  # the name distinguishes several saved copies
            memory = await self.operations.memories.get(access.project, access.uid)
            user = _NO_FILE_NAME.sub("", get_memory_name(memory.scope))
            name = f"{user[:_FILE_NAME_CHARS]}-{name}" if user else name
        return HtmlDownload("me_export.html", _part_contexts(parts), f"memory-{name}.html")


def make_screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    export = _ExportScreens(operations)
    return [
        routes.make_screen("export.jsonl", export.export, right="export", has_twin=False),
        routes.make_screen("export.html", export.export_readable, right="export", has_twin=False),
    ]


async def _join_lines(pages: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    """Yields the lines of each page as one text."""
    async for lines in pages:
        if lines:
            yield b"".join(line + b"\n" for line in lines)


async def _part_contexts(parts: AsyncIterator[ReadablePart]) -> AsyncIterator[dict[str, Any]]:
    """Yields, for each part of an export, the names that the template knows and their values."""
    async for part, record in parts:
        yield {"part": part, "record": record}
