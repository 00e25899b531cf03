"""A conversation, read as a chat: the newest at the end, a branch at a time."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gateway.page.memory_access import OPERATOR_ROUTES, MemoryRoutes, access_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Download, LimitQuery, Screen, ScreenRequest

_Number = Annotated[int, Meta(ge=0, lt=1 << 62)]
# Characters of all texts of a page, so that it stays below 100 kB.
_MAX_CHARS = 24_000
# Bytes of the whole text of a message.
_MAX_BYTES = 1_000_000


class TalkQuery(LimitQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of a conversation to read. message: its whole text alone, as text/plain."""

    branch: _Number | None = None
    before: str | None = None
    message: _Number | None = None


def screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    views = operations.memories

    async def show(request: ScreenRequest, query: TalkQuery) -> Answer:
        access, id = access_of(request), str(request.params["id"])
        if query.message is not None:
            text = await views.message(access.project, access.uid, id, query.message)
            await request.note_read(access.uid)
            raw = text.encode("utf-8", "replace")[:_MAX_BYTES]
            return Download("text/plain; charset=utf-8", raw.decode("utf-8", "ignore").encode())
        page = await views.conversation(
            access.project,
            access.uid,
            id,
            branch=query.branch,
            before=query.before,
            limit=query.limit,
            most_chars=None if request.is_twin else _MAX_CHARS,
        )
        await request.note_read(access.uid)
        name = await views.name(access.project, access.uid)
        heading = f"Conversation {page.conversation.id}"
        later = await views.later(
            access.project, access.uid, page, is_cut=query.before is not None, limit=query.limit
        )
        return access.view(page, "conversation.html", heading, memory_name=name, later=later)

    return [routes.screen("c/{id}", show, TalkQuery)]
