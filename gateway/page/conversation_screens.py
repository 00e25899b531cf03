"""The screen of a conversation, read as a chat: all its branches or one, with the newest message at the end."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.page.memory_access import MemoryAccess, make_access
from gateway.page.memory_routes import OPERATOR_ROUTES, MemoryRoutes
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, Answer, Download, LimitQuery, Screen, ScreenRequest, View
from gateway.run.admin.audit_operations import AuditOperations, AuditRecord
from gateway.run.admin.audited_parts import render_audited_part
from gateway.run.admin.memory.conversation_views import ConversationPage, LaterMessages, can_be_merged
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_names import make_memory_label, name_user_role
from gateway.run.admin.plain_text import count_noun

_Number = Annotated[int, Meta(ge=0, lt=1 << 62)]
# Characters of all texts of a page, so that it stays below 100 kB.
_MAX_CHARS = 24_000
# Bytes of the text of one message, where it is shown alone.
_MAX_BYTES = 1_000_000


class BranchQuery(LimitQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of a conversation to read."""

    # The exchange with which the branch ends; None: all branches. For the twin, and where there are too many messages:
    # the branch that was spoken in last.
    branch: _Number | None = None
    # The `next` of the page with the messages after these; None: the last page.
    before: str | None = None
    # Only this message, as text/plain.
    message: _Number | None = None


class _ConversationScreens(Struct, frozen=True):
    """The screen of a conversation, as it is called for a request."""

    views: MemoryViews
    audit: AuditOperations

    async def show(self, request: ScreenRequest, query: BranchQuery) -> Answer:
        access = make_access(request)
        if query.message is not None:
            answer: Answer = await self._show_message(request, access, query.message)
        elif request.is_twin:
            answer = access.twin(await self._read_page(request, access, query))
        else:
            answer = await self._show_chat(request, access, query)
        await request.note_read(access.uid)
        return answer

    async def _show_message(self, request: ScreenRequest, access: MemoryAccess, seq: int) -> Download:
        """Returns the text of one message as a file."""
        id = str(request.params["id"])
        return _make_text_file(await self.views.messages.read_text(access.project, access.uid, id, seq))

    async def _show_chat(self, request: ScreenRequest, access: MemoryAccess, query: BranchQuery) -> View:
        """Returns the screen of a branch, or of all branches."""
        page, later = await self._read_to_end(request, access, query)
        merged = None
        if query.branch is None:
            merged = await self.views.conversations.merge_branches(
                access.project, access.uid, page, before=query.before, limit=query.limit, max_chars=_MAX_CHARS
            )
        if merged is not None:
            page, later = merged.page, None
        memory = await self.views.get(access.project, access.uid)
        id = page.conversation.id
        openings = await self.views.questions.load_openings(access.project, access.uid, [id])
        opening = openings.get(id, "")
        return access.view(
            page,
            "conversation.html",
            f"{opening} Conversation {id}" if opening else f"Conversation {id}",
            memory_name=make_memory_label(memory),
            speaker=name_user_role(memory.scope),
            later=later,
            opening=opening,
            forgotten={} if access.is_person else await self._find_forgettings(access, page),
            noted_since=self.views.retention.since,
            keep=count_noun(self.views.retention.days, "days"),
            can_be_merged=can_be_merged(page),
            # The first message that each branch alone has.
            beginnings=await self.views.conversations.load_branch_beginnings(
                access.project, access.uid, page
            ),
            # The exchanges of a page of all branches that do not follow the one above; None: it has one branch.
            followed=None if merged is None else merged.followed,
            is_cut=query.before is not None,
        )

    async def _find_forgettings(
        self, access: MemoryAccess, page: ConversationPage
    ) -> dict[int, AuditRecord | None]:
        """Returns the forgetting of each forgotten message of a page, by its number; None: the audit has none.

        A gap may also be a message that was sent with memory off. The result leaves it out.
        """
        gaps = [each for each in page.items if each.text is None and each.state == "forgotten"]
        if not gaps:
            return {}
        forgettings = await self.audit.list_forgettings(access.uid)
        found_forgettings: dict[int, AuditRecord | None] = {}
        for gap in gaps:
            parts = (
                render_audited_part("message", gap.seq),
                render_audited_part("exchange", gap.exchange),
                render_audited_part("conversation", page.conversation.id),
            )
            # A conversation may go on after it was forgotten.
            forgetting = next(
                (each for each in forgettings if each.what in parts and each.at >= gap.at), None
            )
            if forgetting is not None or not gap.role:  # a turn without roles was certainly forgotten
                found_forgettings[gap.seq] = forgetting
        return found_forgettings

    async def _read_to_end(
        self, request: ScreenRequest, access: MemoryAccess, query: BranchQuery
    ) -> tuple[ConversationPage, LaterMessages | None]:
        """Returns the page that a query asks for, and the page after it; None: it is the last one.

        A link to a message leads to the end of its exchange. Of a short conversation the rest is on the page as well.
        """
        page = await self._read_page(request, access, query)
        later = await self._find_later(access, query, page)
        if later is None or page.next is not None or query.before is not None:
            return page, later
        longer_page = await self._read_page(request, access, replace(query, branch=later.branch))
        if longer_page.next is not None:
            return page, later
        return longer_page, await self._find_later(access, query, longer_page)

    async def _read_page(
        self, request: ScreenRequest, access: MemoryAccess, query: BranchQuery
    ) -> ConversationPage:
        """Returns a page of a branch."""
        return await self.views.conversations.show(
            access.project,
            access.uid,
            str(request.params["id"]),
            branch=query.branch,
            before=query.before,
            limit=query.limit,
            max_chars=None if request.is_twin else _MAX_CHARS,
        )

    async def _find_later(
        self, access: MemoryAccess, query: BranchQuery, page: ConversationPage
    ) -> LaterMessages | None:
        """Returns the page after a page; None: it is the last one."""
        return await self.views.conversations.find_later(
            access.project, access.uid, page, is_cut=query.before is not None, limit=query.limit
        )


def make_screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    conversation = _ConversationScreens(operations.memories, operations.audit)
    return [routes.make_screen("c/{id}", conversation.show, BranchQuery)]


def _make_text_file(text: str) -> Download:
    """Returns a text as a file, cut where it has more than `_MAX_BYTES`."""
    cut_bytes = text.encode("utf-8", "replace")[:_MAX_BYTES]
    # The last character may have been cut in two.
    return Download("text/plain; charset=utf-8", cut_bytes.decode("utf-8", "ignore").encode())
