"""The page of a memory, its lists, new facts, its export, and the trial of recall."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from msgspec import UNSET, Struct
from msgspec.structs import asdict, replace

from gateway.core.dates import parse_moment
from gateway.errors import BadRequest, Conflict, GatewayError, UnknownId
from gateway.page.memory_access import MemoryAccess, make_access
from gateway.page.memory_routes import OPERATOR_ROUTES, MemoryRoutes
from gateway.page.page_operations import PageOperations
from gateway.page.screen import (
    SAVED,
    Action,
    ActionResult,
    Answer,
    Download,
    HtmlDownload,
    ListQuery,
    NoFields,
    Screen,
    ScreenRequest,
    View,
)
from gateway.page.shown_text import shorten_diff
from gateway.run.admin.block_versions import BlockDiff
from gateway.run.admin.conversation_views import ConversationRecord
from gateway.run.admin.memory_edits import FactExists
from gateway.run.admin.memory_export import ReadablePart
from gateway.run.admin.memory_names import name_of, name_user_role
from gateway.run.admin.memory_records import MemoryRecord
from gateway.run.admin.memory_views import AgentMemoryPage, MemoryViews
from gateway.run.admin.plain_text import quote_shell_word
from gateway.run.admin.recall_trials import TrialRecord
from gateway.run.admin.trial_changes import describe_changes
from gateway.run.admin.word_counts import Remaining
from gateway.settings import DEFAULT_PROFILE
from storage.search.text_words import find_spans_with_words

# Where the undo of a block is shown in a list: the unchanged characters around each change, and all characters.
_UNDO_AROUND = 30
_UNDO_CHARS = 300
# What is left out of a name in the name of a file, and the most characters that are left.
_NO_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_FILE_NAME_CHARS = 40
# The last questions of a user, which the trial of recall offers to try.
_LAST_QUESTIONS = 3
# How long a person's link is good, as `_link_command` makes it.
_LINK_TTL_S = 86_400


class FactsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which facts are listed."""

    # Also the facts that are no longer true.
    all: bool = False
    # Only the facts that were true at this time: seconds since the epoch, or a day, which stands for its end.
    as_of: str | None = None
    # The fields of a new fact's form that were sent after the session had ended, as in `AddFactForm`.
    always: bool = False
    back: str = ""


class AddFactForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The new fact."""

    # The fields that `FactsQuery` takes over if the session has ended. The text is copied.
    resumed: ClassVar = {"always": "always", "back": "back"}

    text: str
    # The fact is shown to the model before each reply.
    always: bool = False
    # The screen to go on with from the fact's own screen, relative to /ui/.
    back: str = ""


class SearchQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sentence that is tried."""

    page_limit: ClassVar[int] = 10  # the page has two more tables
    q: str = ""
    # The id of a request that asked the same, with which the trial is compared.
    request: str = ""


class WordsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The words that are looked for."""

    page_limit: ClassVar[int] = 20
    q: str = ""


class _OpenedMemory(NamedTuple):
    """A memory that a visitor has opened."""

    access: MemoryAccess
    # The row of the memory.
    row: int
    name: str
    # Since when the memory is paused; None: it is not paused.
    paused_at: float | None
    # The name under which a user's messages are shown: that of the memory's person, else "user".
    speaker: str


class _MemoryScreens(Struct, frozen=True):
    """The screens of a memory, each as it is called for a request."""

    operations: PageOperations

    @property
    def views(self) -> MemoryViews:
        return self.operations.memories

    async def show_facts(self, request: ScreenRequest, query: FactsQuery) -> View:
        resumed = AddFactForm("", query.always, query.back) if query.always or query.back else None
        return await self._make_facts_view(await self._open_memory(request), query, unsaved=resumed)

    async def add_fact(self, request: ScreenRequest, form: AddFactForm) -> Answer:
        access = make_access(request)
        try:
            fact = await self.operations.edits.add_fact(
                access.editor, access.uid, form.text, always=form.always
            )
        except (BadRequest, Conflict) as error:
            memory = await self._open_memory(request)
            return await self._make_facts_view(memory, FactsQuery(), unsaved=form, error=error)
        page = await self.views.facts.show(access.project, access.uid, fact.seq)
        query = f"?back={quote(form.back, safe='')}" if form.back else ""
        return ActionResult(access.filter(page.fact), access.path("f", fact.seq) + query + SAVED)

    async def _make_facts_view(
        self,
        memory: _OpenedMemory,
        query: FactsQuery,
        *,
        unsaved: AddFactForm | None = None,
        error: GatewayError | None = None,
    ) -> View:
        """Returns a list of facts.

        unsaved: the form of a new fact that was refused, or sent after the session had ended.
        error: why it was refused.
        """
        access = memory.access
        page = await self.views.facts.list_page(
            access.project,
            access.uid,
            is_all=query.all,
            as_of=_parse_time(query.as_of) if query.as_of else None,
            after=query.after,
            limit=query.limit,
        )
        return access.view(
            page,
            "facts.html",
            "Facts",
            error,
            unsaved=unsaved,
            # The number of the fact that has the text of a new one already.
            existing=error.seq if isinstance(error, FactExists) else None,
            memory_name=memory.name,
            is_all=query.all,
            as_of=query.as_of,
        )

    async def show_conversations(self, request: ScreenRequest, query: ListQuery) -> View:
        memory = await self._open_memory(request)
        access = memory.access
        page = await self.views.conversations.list_page(
            access.project, access.uid, after=query.after, limit=query.limit
        )
        if request.is_twin:
            return access.twin(page)
        openings = await self._load_openings(access, page.items)
        return access.view(
            page, "conversations.html", "Conversations", memory_name=memory.name, openings=openings
        )

    async def show_passages(self, request: ScreenRequest, query: ListQuery) -> View:
        memory = await self._open_memory(request)
        access = memory.access
        page = await self.views.list_passages(
            access.project, access.uid, after=query.after, limit=query.limit
        )
        return access.view(page, "passages.html", "Passages", memory_name=memory.name)

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
        if not access.is_person:  # who has saved several copies knows whose each is
            user = _NO_FILE_NAME.sub("", await self.views.get_name(access.project, access.uid))
            name = f"{user[:_FILE_NAME_CHARS]}-{name}" if user else name
        return HtmlDownload("me_export.html", _part_contexts(parts), f"memory-{name}.html")

    # -- for operators alone: a person has other screens for this, or none

    async def show_memory(self, request: ScreenRequest, query: NoFields) -> View:
        memory = await self._open_memory(request)
        access = memory.access
        page = await self.views.show(access.project, access.uid)
        if page.memory.kind == "agent":
            runs = await self.operations.runs.list_newest(await self.views.get(access.project, access.uid))
            page = AgentMemoryPage(**asdict(page), runs=runs)
        if request.is_twin:
            return access.twin(page)
        learning = name_line = None
        if page.memory.kind == "user":
            blocks = ((each.label, each.value) for each in page.blocks if not each.shared)
            name_line = await self.views.find_name_line_with(memory.row, blocks)
        if not page.facts:
            learning = await self.operations.work.get_learning(access.project, access.uid)
        undos = redos = dict[str, BlockDiff]()
        if access.may("correct"):
            undos, redos = await self.views.blocks.versions.list_undos(access.project, access.uid)
        return access.view(
            page,
            "memory.html",
            page.memory.name,
            openings=await self._load_openings(access, page.conversations),
            undos=_shorten(undos),
            redos=_shorten(redos),
            paused=memory.paused_at,
            learning=learning,
            name_line=name_line,
            link_command=_link_command(page.memory, request.origin) if page.memory.kind == "user" else None,
        )

    async def try_recall(self, request: ScreenRequest, query: SearchQuery) -> View:
        memory = await self._open_memory(request)
        access = memory.access
        trial = await self.operations.trials.try_recall(
            access.project, access.uid, query.q, after=query.after, limit=query.limit
        )
        if query.request and query.q.strip():
            trial = replace(
                trial, differs=await self._describe_changes(access, query.request, trial) or UNSET
            )
        if request.is_twin:
            return access.twin(trial)
        all_blocks = await self.views.blocks.list_by_uid(access.project, access.uid)
        blocks = {each.label: each.value for each in all_blocks if each.value}
        standing = await self.views.facts.list_standing(access.uid)
        if not query.q.strip():
            last_questions = await self.views.questions.list_last_questions(
                access.project, access.uid, _LAST_QUESTIONS
            )
            return access.view(
                trial,
                "search.html",
                "What would be recalled",
                memory_name=memory.name,
                paused=memory.paused_at,
                last_questions=last_questions,
                blocks=blocks,
                standing=standing,
            )
        hits = (*trial.chosen, *trial.left_out, *trial.found)
        outdated = await self.operations.lost_words.find_outdated(
            access.project, access.uid, standing, trial.chosen
        )
        return access.view(
            trial,
            "search.html",
            "What would be recalled",
            memory_name=memory.name,
            has_embedder=self.operations.trials.has_embedder,
            blocks=blocks,
            after=query.after,
            paused=memory.paused_at,
            standing=standing,
            outdated=outdated,
            speakers=await self.views.messages.load_speakers(access.project, access.uid, hits),
        )

    async def search_words(self, request: ScreenRequest, query: WordsQuery) -> View:
        memory = await self._open_memory(request)
        access = memory.access
        search = await self.operations.words.search(
            access.project,
            access.uid,
            query.q,
            after=query.after,
            limit=query.limit,
            # Among these are earlier versions of shared blocks, which others may have written.
            finds_hidden=not access.is_person,
        )
        if request.is_twin:
            return access.twin(search)
        alone: list[tuple[str, Remaining | None]] = []
        has_found = search.items or search.blocks or search.next
        if search.words[1:] and not (access.is_person or has_found or query.after):
            alone = await self.operations.word_counts.count_alone(access.project, access.uid, search.words)
        almost: Remaining | None = None
        if not (search.next or query.after):
            almost = access.filter(
                await self.operations.word_counts.count_almost(access.project, access.uid, query.q, search)
            )
        return access.view(
            search,
            "words.html",
            "Where it is said",
            memory_name=memory.name,
            spans=lambda text: find_spans_with_words(text, query.q),
            speaker=memory.speaker,
            after=query.after,
            alone=alone,
            # The texts with all words but one; None: they were not looked for.
            almost=almost,
        )

    # -- parts

    async def _open_memory(self, request: ScreenRequest) -> _OpenedMemory:
        """Notes in the audit that the request reads its memory, and returns what its screens show of the memory.

        Raises: UnknownId: there is no such memory.
        """
        access = make_access(request)
        memory = await self.views.get(access.project, access.uid)
        await request.note_read(access.uid)
        return _OpenedMemory(
            access, memory.id, name_of(memory.scope), memory.paused_at, name_user_role(memory.scope)
        )

    async def _describe_changes(self, access: MemoryAccess, id: str, trial: TrialRecord) -> str:
        """Returns why a request chose other texts than a trial (`describe_changes`); "": it has no record here."""
        try:
            explained = await self.operations.requests.explain(id, access.project)
        except UnknownId:
            return ""
        has_record = explained.memory == access.uid and explained.window.parts
        return describe_changes(explained, trial) if has_record else ""

    async def _load_openings(
        self, access: MemoryAccess, conversations: Iterable[ConversationRecord]
    ) -> dict[str, str]:
        """Returns the first words of conversations, by their ids."""
        return await self.views.questions.load_openings(
            access.project, access.uid, [each.id for each in conversations]
        )


def screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    memory = _MemoryScreens(operations)
    shared: list[Screen | Action] = [
        routes.make_screen("facts", memory.show_facts, FactsQuery),
        routes.make_action("facts", memory.add_fact, AddFactForm, "correct"),
        routes.make_screen("conversations", memory.show_conversations, ListQuery),
        routes.make_screen("passages", memory.show_passages, ListQuery),
        routes.make_screen("words", memory.search_words, WordsQuery, searches=True),
        routes.make_screen("export.jsonl", memory.export, right="export", has_twin=False),
        routes.make_screen("export.html", memory.export_readable, right="export", has_twin=False),
    ]
    if routes.is_for_person:
        return shared
    return [
        *shared,
        routes.make_screen("", memory.show_memory),
        routes.make_screen("search", memory.try_recall, SearchQuery, searches=True),
    ]


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


async def _part_contexts(parts: AsyncIterator[ReadablePart]) -> AsyncIterator[dict[str, Any]]:
    """Yields, for each part of an export, the names that the template knows and their values."""
    async for part, record in parts:
        yield {"part": part, "record": record}
