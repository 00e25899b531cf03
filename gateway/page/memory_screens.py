"""The page of a memory, its lists of conversations and passages, and the search for words in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import asdict, replace

from gateway.page.memory_access import MemoryAccess, open_memory
from gateway.page.memory_routes import OPERATOR_ROUTES, MemoryRoutes
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ListQuery, NoFields, Screen, ScreenRequest, View
from gateway.page.shown_text import shorten_diff
from gateway.run.admin.forgetting.forgetting_preview import MAX_TEXTS
from gateway.run.admin.list_page import parse_time_bound
from gateway.run.admin.memory.block_versions import BlockDiff
from gateway.run.admin.memory.conversation_views import ConversationRecord
from gateway.run.admin.memory.memory_views import AgentMemoryPage, MemoryViews
from gateway.run.admin.memory_names import choose_searched_name, make_memory_label, name_user_role
from gateway.run.admin.plain_text import quote_shell_word
from gateway.run.admin.records.memory_records import MemoryRecord
from gateway.run.admin.words.word_counts import Remaining
from gateway.settings import DEFAULT_PROFILE
from storage.search.text_words import find_spans_with_words

# Where the undo of a block is shown in a list: the unchanged characters around each change, and all characters.
_UNDO_AROUND = 30
_UNDO_CHARS = 300
# How long a person's link is good, as `_link_command` makes it.
_LINK_TTL_S = 86_400


class WordsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The words that are looked for."""

    page_limit: ClassVar[int] = 20
    q: str = ""
    # The day or time with whose texts the first page begins; a day means its end. "": it begins with the newest texts.
    until: str = ""


class _MemoryScreens(Struct, frozen=True):
    """The screens of a memory, each as it is called for a request."""

    operations: PageOperations
    views: MemoryViews

    async def show_conversations(self, request: ScreenRequest, query: ListQuery) -> View:
        access, memory = await open_memory(request, self.views)
        page = await self.views.conversations.list_page(
            access.project, access.uid, after=query.after, limit=query.limit
        )
        if request.is_twin:
            return access.twin(page)
        openings = await self._load_openings(access, page.items)
        return access.view(
            page,
            "conversations.html",
            "Conversations",
            memory_name=make_memory_label(memory),
            openings=openings,
        )

    async def show_passages(self, request: ScreenRequest, query: ListQuery) -> View:
        access, memory = await open_memory(request, self.views)
        page = await self.views.list_passages(
            access.project, access.uid, after=query.after, limit=query.limit
        )
        return access.view(page, "passages.html", "Passages", memory_name=make_memory_label(memory))

    async def search_words(self, request: ScreenRequest, query: WordsQuery) -> View:
        access, memory = await open_memory(request, self.views)
        after = query.after
        until = parse_time_bound("until", query.until, is_end=True) if query.until else None
        if after is None and until is not None:
            after = await self.operations.words.make_cursor_until(access.project, access.uid, until)
        search = await self.operations.words.search(
            access.project,
            access.uid,
            query.q,
            after=after,
            limit=query.limit,
            # Among these are earlier versions of shared blocks, which others may have written.
            finds_hidden=not access.is_person,
        )
        if request.is_twin:
            return access.twin(search)
        alone: list[tuple[str, Remaining | None]] = []
        has_found = search.items or search.blocks or search.next
        if search.words[1:] and not (access.is_person or has_found or after):
            alone = await self.operations.word_counts.count_alone(access.project, access.uid, search.words)
        almost: Remaining | None = None
        if not (search.next or after):
            almost = access.filter(
                await self.operations.word_counts.count_almost(access.project, access.uid, query.q, search)
            )
        return access.view(
            search,
            "words.html",
            "Where it is said",
            memory_name=make_memory_label(memory),
            spans=lambda text: find_spans_with_words(text, query.q),
            speaker=name_user_role(memory.scope),
            after=after,
            until=query.until[:10],
            alone=alone,
            # The texts with all words but one; None: they were not looked for.
            almost=almost,
            max_texts=MAX_TEXTS,
        )

    # -- for operators alone: a person has other screens for this, or none

    async def show_memory(self, request: ScreenRequest, query: NoFields) -> View:
        access, memory = await open_memory(request, self.views)
        page = await self.views.show(access.project, access.uid)
        if page.memory.kind == "agent":
            runs = await self.operations.runs.list_newest(await self.views.get(access.project, access.uid))
            page = AgentMemoryPage(**asdict(page), runs=runs)
        if request.is_twin:
            return access.twin(page)
        learning = name_line = None
        if page.memory.kind == "user":
            blocks = ((each.label, each.value) for each in page.blocks if not each.shared)
            name_line = await self.views.find_name_line_with(memory.id, blocks)
        if not page.facts:
            learning = await self.operations.work.get_learning(access.project, access.uid)
        undos = redos = dict[str, BlockDiff]()
        if access.may("correct"):
            undos, redos = await self.views.blocks.versions.list_undos(access.project, access.uid)
        return access.view(
            page,
            "memory.html",
            # The title has the words of the heading.
            f"{page.memory.agent_name} {page.memory.name}" if page.memory.agent_name else page.memory.name,
            openings=await self._load_openings(access, page.conversations),
            undos=_shorten(undos),
            redos=_shorten(redos),
            has_ended=await self.views.facts.has_ended(memory),
            paused=memory.paused_at,
            learning=learning,
            name_line=name_line,
            searched_name=choose_searched_name(memory.scope, name_line),
            link_command=_link_command(page.memory, request.origin) if page.memory.kind == "user" else None,
        )

    # -- parts

    async def _load_openings(
        self, access: MemoryAccess, conversations: Iterable[ConversationRecord]
    ) -> dict[str, str]:
        """Returns the first words of conversations, by their ids."""
        return await self.views.questions.load_openings(
            access.project, access.uid, [each.id for each in conversations]
        )


def make_screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    memory = _MemoryScreens(operations, operations.memories)
    shared: list[Screen | Action] = [
        routes.make_screen("conversations", memory.show_conversations, ListQuery),
        routes.make_screen("passages", memory.show_passages, ListQuery),
        routes.make_screen("words", memory.search_words, WordsQuery, searches=True),
    ]
    if routes.is_for_person:
        return shared
    return [*shared, routes.make_screen("", memory.show_memory)]


def _link_command(memory: MemoryRecord, origin: str) -> str:
    """Returns the command with which an application's key makes a link to a person's page, for a day."""
    body: dict[str, str | int] = {"user": memory.name, "ttl_s": _LINK_TTL_S}
    if memory.profile != DEFAULT_PROFILE:
        body["profile"] = memory.profile
    return (
        f"curl {quote_shell_word(origin + '/v1/memory/links')}"
        ' -H "authorization: Bearer KEY" -H "content-type: application/json"'
        f" -d {quote_shell_word(json.dumps(body))}"
    )


def _shorten(diffs: dict[str, BlockDiff]) -> dict[str, BlockDiff]:
    """Returns what undos or redos of blocks would change, cut around the changes."""
    return {
        label: replace(diff, parts=shorten_diff(diff.parts, _UNDO_AROUND, _UNDO_CHARS))
        for label, diff in diffs.items()
    }
