"""Forgetting: the preview, its confirmation, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, NamedTuple
from urllib.parse import quote, unquote

from msgspec import Meta, Struct, UnsetType
from msgspec.structs import replace

from gateway.core.memory.word_diff import DiffPart, diff_words
from gateway.errors import BadRequest, Conflict, MemoryNotFound, UnknownId
from gateway.page.memory_access import MemoryAccess, make_access
from gateway.page.memory_routes import OPERATOR_ROUTES, MemoryRoutes
from gateway.page.page_operations import PageOperations
from gateway.page.page_request import read_query_field, safe_next
from gateway.page.screen import Action, ActionResult, Answer, Redirect, Screen, ScreenRequest, View, fields_of
from gateway.page.shown_text import shorten_diff
from gateway.run.admin.forgetting.forgetting_preview import MAX_TEXTS, ForgetPreview, TargetKind, TargetValue
from gateway.run.admin.forgetting.memory_forgetting import ForgetResult, MemoryForgetting
from gateway.run.admin.forgetting.remaining_texts import RemainingRecord
from gateway.run.admin.memory.block_versions import VersionId
from gateway.run.admin.memory.block_views import BlockPage, find_correction
from gateway.run.admin.memory.exchange_messages import shorten
from gateway.run.admin.memory.fact_views import FactPage
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_names import choose_searched_name, make_memory_label
from gateway.run.admin.page_paths import parse_part
from gateway.run.admin.plain_text import count_noun
from gateway.run.admin.records.memory_records import BlockRecord
from gateway.run.admin.requests.recall_trials import RecallTrials
from gateway.run.admin.words.hidden_texts import HiddenTexts
from gateway.run.admin.words.lost_words import LostWords
from gateway.run.admin.words.texts_with_words import TextWithWords
from gateway.run.admin.words.word_counts import Remaining, WordCounts
from gateway.run.admin.words.word_search import WordSearches
from storage.search.text_words import find_spans_with_words

_Number = Annotated[int, Meta(ge=1, lt=1 << 62)]
_Version = Annotated[str, Meta(pattern=r"(?s)^.+/[0-9]{1,18}\Z")]
# The names of screens that lead to a preview, by the first part of their path below the memory's, or of requests.
_SCREEN_NAMES = {
    "b": "the block",
    "c": "the conversation",
    "conversations": "the conversations",
    "f": "the fact",
    "facts": "the facts",
    "passages": "the passages",
    "r": "the request",
    "search": "the search",
    "words": "the words",
}
# The fragment of the words on a screen that are shown once nothing was ticked there.
_UNTICKED = "#unticked"
# Characters of a block that stays.
_BLOCK_CHARS = 200
# The screen of each item of a list, and that of the list, by the kind of target.
_OWN_SCREENS = {"fact": ("f", "facts"), "conversation": ("c", "conversations")}


class _NamedTarget(NamedTuple):
    """The part that a query names."""

    kind: TargetKind
    value: TargetValue


class ForgetQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The target of forgetting: one of these."""

    # The fields that may come several times.
    repeated: ClassVar = ("texts", "version", "keep")

    message: _Number | None = None
    exchange: _Number | None = None
    conversation: str | None = None
    fact: _Number | None = None
    passage: _Number | None = None
    # Earlier versions of blocks, as LABEL/NUMBER. Several are "texts", also with those below.
    version: Annotated[tuple[_Version, ...], Meta(min_length=1)] | None = None
    # The numbers of messages, facts and passages.
    texts: Annotated[tuple[_Number, ...], Meta(min_length=1)] | None = None
    all: bool | None = None
    # The id of what to go on with, on the screen that led here.
    then: Annotated[str, Meta(pattern=r"^[a-z-]{1,40}-[0-9]{1,18}\Z")] | None = None
    # The screen to go back to, relative to /ui/, where the one that led here is the end of a forgetting or the sign-in.
    back: str | None = None
    # The facts that were ticked before a session ended, as in `ForgetForm`.
    keep: Annotated[tuple[_Number, ...], Meta(max_length=MAX_TEXTS)] = ()

    @property
    def target(self) -> _NamedTarget:
        """The one part that is named. Raises: BadRequest."""
        kinds: tuple[TargetKind, ...] = (
            "message", "exchange", "conversation", "fact", "passage", "texts", "version", "all",
        )  # fmt: skip
        named = [kind for kind in kinds if getattr(self, kind) is not None]
        if named in (["texts"], ["version"], ["texts", "version"]):
            values: tuple[int | str, ...] = (*(self.texts or ()), *(self.version or ()))
            if len(values) > MAX_TEXTS:
                raise BadRequest(
                    f"At most {MAX_TEXTS} texts are forgotten at once, not {len(values)}. "
                    f"Go back, and untick {len(values) - MAX_TEXTS}.",
                    param="texts" if self.texts else "version",
                )
            return (
                _NamedTarget("texts", values)
                if self.texts or values[1:]
                else _NamedTarget("version", values[0])
            )
        if len(named) != 1 or self.all is False:
            raise BadRequest(
                f"Say what to forget, one of: {', '.join(kinds)} (all=1).",
                param=named[1] if named[1:] else None,
            )
        return _NamedTarget(named[0], None if named[0] == "all" else getattr(self, named[0]))


class ForgetForm(Struct, frozen=True, forbid_unknown_fields=True):
    """The confirmation."""

    repeated: ClassVar = ("keep",)
    # The fields that `ForgetQuery` takes over if the session has ended. The number is typed again.
    resumed: ClassVar = {"keep": "keep", "came_from": "back"}

    # The number of messages, where the preview asks for it.
    confirm: str | int | None = None
    # The screen that led to the preview, relative to /ui/.
    came_from: str = ""
    # The numbers of facts that stay, and rest on no message.
    keep: Annotated[tuple[_Number, ...], Meta(max_length=MAX_TEXTS)] = ()


class _BeforeForgetting(NamedTuple):
    """Holds what was read before a forgetting for the page of its result."""

    memory_name: str = ""
    # The words that the visitor wants to be rid of, text by text; "": they are not known.
    sought_words: str = ""
    # What stays of the part that is forgotten.
    stays: Sequence[RemainingRecord] = ()
    # The texts of the blocks, by their labels.
    blocks: Mapping[str, str] = {}
    # The words by which others may call the person that is wholly forgotten; "": a part goes, or the memory is no
    # person's.
    searched_name: str = ""


class _TextsWithWords(NamedTuple):
    """The texts that still have the words of a forgotten text. The template has the fields by these names."""

    # The counted texts with all of the words; None: there are no words, or they could not be counted.
    remaining: Remaining | None = None
    # The stored texts that are never recalled; None: they were not looked for.
    hidden: HiddenTexts | None = None
    # The texts with all of these words but one; None: they were not looked for.
    almost: Remaining | None = None
    # The counted texts that may be forgotten next.
    next_texts: Sequence[TextWithWords] = ()
    # The counted texts that were written by hand, maybe a moment ago. They must not go with a second press of the same
    # button.
    written_texts: Sequence[TextWithWords] = ()


class _BlockChange(NamedTuple):
    """How a forgetting changes a block."""

    label: str
    parts: tuple[DiffPart, ...]


class _ShownPreview(NamedTuple):
    """A preview, with what its screen shows in addition."""

    preview: ForgetPreview
    changes: list[_BlockChange]
    # The numbers of facts that have the words for which texts are forgotten.
    wordy_facts: frozenset[int]

    @property
    def corrections(self) -> list[int]:
        """The numbers of the facts that would go, are true and were written by hand."""
        facts = self.preview.facts or ()
        return [fact.seq for fact in facts if fact.is_true and not isinstance(fact.corrected_by, UnsetType)]

    @property
    def ticked_beforehand(self) -> list[int]:
        """The numbers of the facts that rest on more than what goes.

        They are corrections, or true facts where only replies go and their questions stay. Of a fact that has the
        sought words the visitor may want to be rid as well.
        """
        seqs = self.corrections
        speakers = {each.speaker for each in self.preview.texts or () if each.kind == "message"}
        if not isinstance(self.preview.question, UnsetType) or speakers == {"assistant"}:
            seqs = [fact.seq for fact in self.preview.facts or () if fact.is_true]
        return [seq for seq in seqs if seq not in self.wordy_facts]


class _NextLink(NamedTuple):
    """The link by which a visitor goes on after a forgetting."""

    # Relative to /ui/.
    path: str
    name: str
    # True: it leads to the next item of a list.
    is_to_next: bool = False


class _ForgetScreens(Struct, frozen=True):
    """The screen of a preview and the forgetting itself, each as it is called for a request."""

    views: MemoryViews
    forgetting: MemoryForgetting
    word_searches: WordSearches
    word_counts: WordCounts
    lost_words: LostWords
    trials: RecallTrials
    # The days for which the audit is stored.
    audit_days: float

    async def show_preview(self, request: ScreenRequest, query: ForgetQuery) -> Answer:
        access = make_access(request)
        _check_may_target(access, query)
        if request.is_twin:
            preview = await self.forgetting.previews.show(access.project, access.uid, *query.target)
            await request.note_read(access.uid)
            return access.twin(preview)
        if query == ForgetQuery() and _is_word_search(access, request.referrer):
            return Redirect(request.referrer + _UNTICKED)
        view = await self._make_preview_view(request, query.back or request.referrer, keep=query.keep or None)
        await request.note_read(access.uid)
        return view

    async def forget(self, request: ScreenRequest, form: ForgetForm) -> Answer:
        access = make_access(request)
        _check_may_target(access, request.query)
        if request.query.keep:
            raise BadRequest("Facts that stay are named in the form, not in the address.", param="keep")
        came_from = _read_screen_before(access, form.came_from)
        confirm = None if form.confirm is None else str(form.confirm)
        try:
            before = await self._read_before(request, access, came_from)
            result = await self.forgetting.forget(
                access.editor, access.uid, *request.query.target, confirm=confirm, keep=form.keep
            )
        except Conflict as error:
            return await self._make_preview_view(request, form.came_from, error, form.keep)
        except MemoryNotFound:
            raise
        except UnknownId as error:
            if request.is_twin:
                raise
            # The form may have been sent twice, and the first answer not been shown.
            raise UnknownId(f"{error.message.removesuffix('.')}. If there was, it is forgotten.") from error
        if request.is_twin:
            return ActionResult(access.filter(result), "")
        return await self._make_result_view(request, result, came_from, before)

    async def _read_before(
        self, request: ScreenRequest, access: MemoryAccess, came_from: str
    ) -> _BeforeForgetting:
        """Returns what the page of the result needs, and what can be read only before the forgetting."""
        kind, value = request.query.target
        if request.is_twin or access.is_person:
            return _BeforeForgetting()
        memory = await self.views.get(access.project, access.uid)
        name = make_memory_label(memory)
        if kind == "all":
            return _BeforeForgetting(
                name,
                searched_name=choose_searched_name(memory.scope, await self.views.find_name_line(memory)),
            )
        sought_words = await self._read_sought_words(access, came_from)
        stays = await self.forgetting.previews.list_remaining(
            access.project, access.uid, kind, value, words=sought_words
        )
        blocks = await self.views.blocks.list_by_uid(access.project, access.uid)
        return _BeforeForgetting(name, sought_words, stays, {each.label: each.value for each in blocks})

    async def _make_result_view(
        self, request: ScreenRequest, result: ForgetResult, came_from: str, before: _BeforeForgetting
    ) -> View:
        """Returns the screen of the result: what is gone, what is left, and where to go on."""
        access, query = make_access(request), request.query
        is_all = query.target.kind == "all"
        sought_words = before.sought_words
        next_link = _NextLink("people", "All people")
        if not is_all:
            next_link = await self._choose_next_link(access, query, came_from, sought_words)
        correction = "" if is_all else await self._read_correction(access, query, came_from)
        words = _TextsWithWords()
        if not access.is_person:
            words = await self._load_texts_with_words(access, sought_words)
        elif not is_all and access.may("see"):
            words = _TextsWithWords(await self._count_searched(access, came_from))
        next_preview = None
        # A visitor who ticked texts of a list, or an earlier version of a block, may have left the others on purpose.
        if words.next_texts and query.target.kind not in ("texts", "version"):
            next_preview = await self._preview_next(access, words.next_texts[0], sought_words)
        next_numbers = {each.seq for each in words.next_texts}
        return access.view(
            result,
            "forgotten.html",
            "Forgotten",
            memory_name=before.memory_name,
            searched_name=before.searched_name,
            audit_days=count_noun(self.audit_days, "days"),
            is_all=is_all,
            next_link=next_link,
            # The text of the correction that led here, if it is still true; "": there is none.
            correction=correction,
            # Where the forgetting of another text, begun on this page, leads back to.
            back=next_link.path.partition("#")[0],
            replies=[each for each in before.stays if each.message and each.message not in next_numbers],
            # The conversation of what went; None: it went as a whole, or there are several.
            conversation=_find_conversation(before.stays),
            search_path=_find_search_path(access, before),
            has_embedder=self.trials.has_embedder,
            changed_blocks=await self._list_changed_blocks(access, before),
            next_preview=next_preview,
            **words._asdict(),
        )

    async def _count_searched(self, access: MemoryAccess, came_from: str) -> Remaining | None:
        """Returns the texts that still have the words of the search that led to a forgetting; None: no search did."""
        if not _is_word_search(access, came_from):
            return None
        return await self.word_counts.count_remaining(
            access.project, access.uid, read_query_field(came_from, "q")
        )

    async def _load_texts_with_words(self, access: MemoryAccess, sought_words: str) -> _TextsWithWords:
        """Returns the texts that still have the words. sought_words: the field of `_BeforeForgetting`."""
        project, uid = access.project, access.uid
        remaining = None
        if sought_words:
            remaining = await self.word_counts.count_remaining(project, uid, sought_words)
        if remaining is None:
            return _TextsWithWords()
        hidden = await self.word_searches.hidden_texts.search(project, uid, sought_words)
        almost = None
        if not remaining.total:
            almost = await self.word_counts.count_almost(project, uid, sought_words)
        fact_seqs = [text.seq for text in remaining.items if text.kind == "fact"]
        written_seqs = await self.views.facts.list_written(project, uid, fact_seqs)
        return _TextsWithWords(
            remaining,
            hidden,
            almost,
            next_texts=[text for text in remaining.items if text.seq not in written_seqs],
            written_texts=[text for text in remaining.items if text.seq in written_seqs],
        )

    async def _list_changed_blocks(
        self, access: MemoryAccess, before: _BeforeForgetting
    ) -> list[BlockRecord]:
        """Returns the blocks that a forgetting has changed."""
        if not before.blocks:
            return []
        blocks = await self.views.blocks.list_by_uid(access.project, access.uid)
        return [block for block in blocks if block.value != before.blocks.get(block.label)]

    async def _choose_next_link(
        self, access: MemoryAccess, query: ForgetQuery, came_from: str, sought_words: str
    ) -> _NextLink:
        """Returns where the page of a forgetting leads. sought_words: the field of `_BeforeForgetting`."""
        if query.target.kind == "fact" or not await self._shows_forgotten_fact(access, came_from):
            return _link_back(access, query, came_from)
        return _link_to_words(access, sought_words) if sought_words else _link_back(access, query, "")

    async def _read_correction(self, access: MemoryAccess, query: ForgetQuery, screen: str) -> str:
        """Returns the text of the fact or block that was corrected on a screen, as far as it is left; "": none was."""
        if block_page := await self._find_block(access, screen):
            # The screen of a block leads to a forgetting only after a correction.
            return block_page.block.value
        fact_page = await self._find_fact(access, screen)
        # A correction that was taken back is forgotten from the screen of the fact that is true again.
        if fact_page is None or not (fact_page.is_correction or query.target.kind == "fact"):
            return ""
        return "" if fact_page.fact.until is not None else fact_page.fact.text

    async def _preview_next(
        self, access: MemoryAccess, text: TextWithWords, sought_words: str
    ) -> _ShownPreview:
        """Returns the preview of a text for the screen of a result.

        The page itself links to a search, so the preview does not.
        """
        shown = await self._preview_with_changes(access, text.kind, text.seq, sought_words)
        stays = tuple(each for each in shown.preview.stays if not _is_search(access, each.href))
        return shown._replace(preview=replace(shown.preview, stays=stays))

    async def _read_sought_words(self, access: MemoryAccess, came_from: str) -> str:
        """Returns the words that the visitor wants to be rid of, text by text; "": they are not known.

        A search has looked for these words, which may have led to a fact or a block, or a correction has taken them
        out of it. The sentence of a trial of recall is a question: its words are not those for which a text is
        forgotten.
        """
        if _is_word_search(access, came_from):
            return read_query_field(came_from, "q")
        fact_page = await self._find_fact(access, came_from)
        block_page = await self._find_block(access, came_from)
        words = read_query_field(came_from, "words")
        if fact_page is not None:
            return words or await self.lost_words.collect_words_of_fact(access.project, access.uid, fact_page)
        return "" if block_page is None else words or await self._collect_lost_words(access, block_page)

    async def _collect_lost_words(self, access: MemoryAccess, block_page: BlockPage) -> str:
        """Returns the words that the last change of a block took out; "": none."""
        correction = find_correction(block_page)
        if correction is None or (access.is_person and block_page.block.shared):
            return ""
        return await self.lost_words.collect_words(
            access.project, access.uid, [correction.old], correction.new
        )

    async def _shows_forgotten_fact(self, access: MemoryAccess, screen: str) -> bool:
        """Returns whether a screen shows a fact that is gone: a correction goes with its sources."""
        is_of_fact = screen.startswith(access.path("f") + "/")
        return is_of_fact and await self._find_fact(access, screen) is None

    async def _find_block(self, access: MemoryAccess, screen: str) -> BlockPage | None:
        """Returns the block that a screen shows, with its last change; None: the screen shows none, or it is gone."""
        path, blocks_path = screen.partition("?")[0], access.path("b") + "/"
        if not path.startswith(blocks_path):
            return None
        label = parse_part(unquote(path.removeprefix(blocks_path)))
        try:
            return await self.views.blocks.show(access.project, access.uid, label, limit=2)
        except UnknownId:
            return None

    async def _find_fact(self, access: MemoryAccess, screen: str) -> FactPage | None:
        """Returns the fact that a screen shows; None: the screen shows no fact, or the fact is gone."""
        seq = screen.partition("?")[0].removeprefix(access.path("f") + "/")
        if not seq.isdecimal() or len(seq) > 18:  # the store has no longer numbers
            return None
        try:
            return await self.views.facts.show(access.project, access.uid, int(seq))
        except UnknownId:
            return None

    async def _preview_with_changes(
        self, access: MemoryAccess, kind: TargetKind, value: TargetValue, sought_words: str
    ) -> _ShownPreview:
        """Returns what a forgetting takes, and how it changes blocks."""
        preview = access.filter(
            await self.forgetting.previews.show(access.project, access.uid, kind, value, words=sought_words)
        )
        if sought_words and not access.is_person:
            blocks = await self._list_staying_blocks(access, preview)
            preview = replace(preview, stays=(*blocks, *preview.stays))
        # In a thread: the differences of long texts take some 10 ms each, for which replies would wait.
        changes = await asyncio.to_thread(_diff_blocks, preview) if preview.blocks else []
        wordy_facts = frozenset(
            each.seq
            for each in preview.facts or ()
            if sought_words and find_spans_with_words(each.text or "", sought_words)
        )
        return _ShownPreview(preview, changes, wordy_facts)

    async def _list_staying_blocks(
        self, access: MemoryAccess, preview: ForgetPreview
    ) -> list[RemainingRecord]:
        """Returns the blocks, since they may have what is right in a message that goes.

        Returns none if a block may lose its text. A preview does not show how a long block changes, nor how blocks
        change where everything goes.
        """
        if preview.will_go.versions or preview.target.kind == "all":
            return []
        return [
            RemainingRecord(
                f"Block {each.label}, which each reply is told:",
                access.path("b", each.label),
                kind="block",
                quote=shorten(" ".join(each.value.split()), _BLOCK_CHARS),
            )
            for each in await self.views.blocks.list_by_uid(access.project, access.uid)
            if each.value
        ]

    async def _make_preview_view(
        self,
        request: ScreenRequest,
        came_from: str,
        error: Conflict | None = None,
        keep: Sequence[int] | None = None,
    ) -> View:
        """Returns the screen of a preview.

        error: why the forgetting that it shows was refused.
        keep: the numbers of the facts that are ticked; None: those of `ticked_beforehand`.
        """
        access = make_access(request)
        kind, value = request.query.target
        came_from = _read_screen_before(access, came_from)
        sought_words = await self._read_sought_words(access, came_from)
        shown = await self._preview_with_changes(access, kind, value, sought_words)
        preview = shown.preview
        name, name_line, searched_name = "you", None, ""
        if not access.is_person:
            memory = await self.views.get(access.project, access.uid)
            name, name_line = make_memory_label(memory), await self.views.find_name_line(memory)
            searched_name = choose_searched_name(memory.scope, name_line)
        fragment = {"texts": "", "all": "#forget-all"}.get(kind, f"#forget-{kind}-{value}")
        return access.view(
            preview,
            "forget.html",
            _make_heading(preview, name),
            error,
            fields=fields_of(replace(request.query, keep=())),
            came_from=came_from,
            back=came_from + fragment if came_from else _choose_usual_screen(access, preview),
            memory_name=name,
            name_line=name_line,
            searched_name=searched_name,
            changes=shown.changes,
            wordy_facts=shown.wordy_facts,
            keep=shown.ticked_beforehand if keep is None else keep,
            sought_words=sought_words,
            spans=lambda text: find_spans_with_words(text, sought_words) if sought_words else (),
        )


def make_screens(operations: PageOperations, routes: MemoryRoutes = OPERATOR_ROUTES) -> list[Screen | Action]:
    forget = _ForgetScreens(
        operations.memories,
        operations.forgetting,
        operations.words,
        operations.word_counts,
        operations.lost_words,
        operations.trials,
        operations.audit.days,
    )
    return [
        routes.make_screen("forget", forget.show_preview, ForgetQuery, right="forget"),
        routes.make_action("forget", forget.forget, ForgetForm, "forget", ForgetQuery),
    ]


def _check_may_target(access: MemoryAccess, query: ForgetQuery) -> None:
    """Raises: BadRequest: only operators forget versions of blocks, which others may share."""
    if access.is_person and query.version is not None:
        raise BadRequest(
            "Earlier versions of a note are forgotten by those who run the application.", param="version"
        )


def _diff_blocks(preview: ForgetPreview) -> list[_BlockChange]:
    return [
        _BlockChange(each.label, shorten_diff(diff_words(each.before, each.after)))
        for each in preview.blocks or ()
    ]


def _make_heading(preview: ForgetPreview, name: str) -> str:
    target = preview.target
    if target.kind == "all":
        return f"Forget everything about {name}"
    if target.kind == "exchange":
        others = "its reply" if preview.will_go.messages <= 2 else "what came with it"
        return f"Forget message {target.id} and {others}"
    if target.kind == "version":
        label, version = VersionId.parse(target.id)
        return f"Forget version {version} of {label}"
    if preview.texts:
        return f"Forget {len(preview.texts)} {'text' if len(preview.texts) == 1 else 'texts'}"
    return f"Forget {target.kind} {target.id}"


def _read_screen_before(access: MemoryAccess, address: str) -> str:
    """Returns the screen that led to a preview, relative to /ui/; "": it is unknown, or none to go back to."""
    address = safe_next(address)
    path, memory_path = address.partition("?")[0], access.path()
    is_of_memory = path == memory_path or path.startswith(f"{memory_path}/")
    is_request = path.startswith("r/") and not access.is_person
    is_preview = path == access.path("forget")
    return address if (is_of_memory or is_request) and not is_preview else ""


def _link_back(access: MemoryAccess, query: ForgetQuery, came_from: str) -> _NextLink:
    """Returns the way to the list or search that led to a preview, as it was; if none did, to the memory."""
    kind, value = query.target
    screen = came_from
    next_item = query.then if screen else None
    item_screen, list_screen = _OWN_SCREENS.get(kind, (None, ""))
    if item_screen is not None and screen.partition("?")[0] == access.path(item_screen, str(value)):
        # This screen went with its item.
        screen, next_item = access.path(list_screen), None
    first_part = screen.partition("?")[0].removeprefix(f"{access.path()}/").partition("/")[0]
    screen_name = _SCREEN_NAMES.get(first_part)
    if screen_name is None:
        screen = access.path()
        screen_name = "what is remembered about you" if access.is_person else "the memory"
    path = f"{screen}#{next_item}" if next_item else screen
    return _NextLink(path, f"Back to {screen_name}", is_to_next=next_item is not None)


def _link_to_words(access: MemoryAccess, words: str) -> _NextLink:
    return _NextLink(f"{access.path('words')}?q={quote(words, safe='')}", f"On to {_SCREEN_NAMES['words']}")


def _choose_usual_screen(access: MemoryAccess, preview: ForgetPreview) -> str:
    """Returns the screen that leads to a preview as a rule, where it is not known which one did."""
    match preview.target.kind:
        case "fact":
            return access.path("f", preview.target.id)
        case "conversation":
            return access.path("c", preview.target.id)
        case "version":
            return access.path("b", VersionId.parse(preview.target.id).label)
        case "message" | "exchange":
            return _find_conversation(preview.stays) or access.path()
        case _:
            return access.path()


def _find_conversation(stays: Sequence[RemainingRecord]) -> str | None:
    """Returns the path of the conversation that a message, or the words of a fact, went from; None: it is not known.

    A reply that stays may be in another conversation.
    """
    return next((each.href for each in stays if each.kind in ("source", "conversation")), None)


def _find_search_path(access: MemoryAccess, before: _BeforeForgetting) -> str | None:
    """Returns the path of a search for texts like the forgotten one; None: it has no text to search for."""
    path = next((each.href for each in before.stays if _is_search(access, each.href)), None)
    if path is not None and before.sought_words:
        return f"{access.path('search')}?q={quote(before.sought_words, safe='')}"
    return path


def _is_word_search(access: MemoryAccess, address: str) -> bool:
    return address.partition("?")[0] == access.path("words")


def _is_search(access: MemoryAccess, href: str | None) -> bool:
    return href is not None and href.startswith(f"{access.path('search')}?q=")
