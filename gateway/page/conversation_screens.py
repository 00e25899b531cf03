"""A conversation, read as a chat: the newest at the end, a branch at a time."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gateway.page.memory_access import OPERATOR_ROUTES, MemoryRoutes, access_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Download, LimitQuery, Screen, ScreenRequest
from gateway.run.admin.memory_views import ConversationPage, LaterMessages

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
        most_chars = None if request.is_twin else _MAX_CHARS

        async def read(branch: int | None) -> tuple[ConversationPage, LaterMessages | None]:
            page = await views.conversation(
                access.project,
                access.uid,
                id,
                branch=branch,
                before=query.before,
                limit=query.limit,
                most_chars=most_chars,
            )
            is_cut = query.before is not None
            return page, await views.later(access.project, access.uid, page, is_cut=is_cut, limit=query.limit)

        page, later = await read(query.branch)
        if later is not None and page.next is None and query.before is None and not request.is_twin:
            # A link to a message leads to the end of its exchange. Of a short conversation the rest is shown as well.
            longer, after = await read(later.branch)
            if longer.next is None:
                page, later = longer, after
        await request.note_read(access.uid)
        name = await views.name(access.project, access.uid)
        heading = f"Conversation {page.conversation.id}"
        return access.view(page, "conversation.html", heading, memory_name=name, later=later)

    return [routes.screen("c/{id}", show, TalkQuery)]
