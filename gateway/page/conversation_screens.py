"""A conversation, read as a chat: the newest at the end, a branch at a time."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from gateway.page.memory_access import OPERATOR_ROUTES, MemoryAccess, MemoryRoutes, access_of
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Download, LimitQuery, Screen, ScreenRequest
from gateway.run.admin.audit_operations import AuditOperations, AuditRecord
from gateway.run.admin.conversation_views import ConversationPage, LaterMessages
from gateway.run.admin.memory_names import name_of, user_of
from gateway.run.admin.memory_views import MemoryViews

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


class _ConversationScreens(Struct, frozen=True):
    """The screen of a conversation, as it is called for a request."""

    views: MemoryViews
    audit: AuditOperations

    async def show(self, request: ScreenRequest, query: TalkQuery) -> Answer:
        access, id = access_of(request), str(request.params["id"])
        if query.message is not None:
            text = await self.views.conversations.read_text(access.project, access.uid, id, query.message)
            await request.note_read(access.uid)
            raw = text.encode("utf-8", "replace")[:_MAX_BYTES]
            return Download("text/plain; charset=utf-8", raw.decode("utf-8", "ignore").encode())
        page = await self._read(request, access, query, query.branch)
        if request.is_twin:
            await request.note_read(access.uid)
            return access.twin(page)
        later = await self._find_later(access, query, page)
        if later is not None and page.next is None and query.before is None:
            # A link to a message leads to the end of its exchange. Of a short conversation the rest is shown as well.
            longer_page = await self._read(request, access, query, later.branch)
            if longer_page.next is None:
                page, later = longer_page, await self._find_later(access, query, longer_page)
        await request.note_read(access.uid)
        scope = (await self.views.find(access.project, access.uid)).scope
        heading = f"Conversation {page.conversation.id}"
        id = page.conversation.id
        openings: dict[str, str] = {}
        if not access.is_person:
            openings = await self.views.conversations.openings(access.project, access.uid, [id])
        return access.view(
            page,
            "conversation.html",
            heading,
            memory_name=name_of(scope),
            speaker=user_of(scope),
            later=later,
            opening=openings.get(id, ""),
            forgotten={} if access.is_person else await self._find_forgettings(access, page),
        )

    async def _find_forgettings(
        self, access: MemoryAccess, page: ConversationPage
    ) -> dict[int, AuditRecord | None]:
        """Returns who has forgotten messages of a page, by their numbers; None: nobody knows.

        A message that is left out here may have been said with memory off.
        """
        gaps = [each for each in page.items if each.text is None and each.state == "forgotten"]
        if not gaps:
            return {}
        forgettings = await self.audit.forgettings(access.uid)
        found: dict[int, AuditRecord | None] = {}
        for each in gaps:
            parts = (
                f"message {each.seq}",
                f"exchange {each.exchange}",
                f"conversation {page.conversation.id}",
            )
            entries = [forgettings[part] for part in parts if part in forgettings]
            # A conversation may go on after it was forgotten.
            by = next((entry for entry in entries if entry.at >= each.at), None)
            if by is not None or not each.role:  # a turn without roles is forgotten whole
                found[each.seq] = by
        return found

    async def _read(
        self, request: ScreenRequest, access: MemoryAccess, query: TalkQuery, branch: int | None
    ) -> ConversationPage:
        """Returns a page of a branch."""
        return await self.views.conversations.show(
            access.project,
            access.uid,
            str(request.params["id"]),
            branch=branch,
            before=query.before,
            limit=query.limit,
            most_chars=None if request.is_twin else _MAX_CHARS,
        )

    async def _find_later(
        self, access: MemoryAccess, query: TalkQuery, page: ConversationPage
    ) -> LaterMessages | None:
        """Returns the page after a page; None: it is the last one."""
        return await self.views.conversations.find_later(
            access.project, access.uid, page, is_cut=query.before is not None, limit=query.limit
        )


def screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    conversation = _ConversationScreens(operations.memories, operations.audit)
    return [routes.screen("c/{id}", conversation.show, TalkQuery)]
