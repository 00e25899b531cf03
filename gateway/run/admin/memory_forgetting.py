"""Forgetting as a person decides it: what will go, what stays, and the number that confirms it; then it is done.

What is to go is written down first (`storage/sql/forget.py`). A forgetting that takes long goes on by itself after its
answer, and where the process ends before, the next start resumes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Literal
from urllib.parse import quote

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from gateway.core.words import letters_of
from gateway.errors import Conflict, UnknownId
from gateway.run.admin.exchange_messages import message_records, shorten
from gateway.run.admin.fact_views import FactPage
from gateway.run.admin.forget_operations import CALL_S, Part, PartKind, find_target
from gateway.run.admin.hits import message_href
from gateway.run.admin.memory_edits import Editor
from gateway.run.admin.memory_lists import flags_of, other_profiles
from gateway.run.admin.memory_records import FactRecord, MessageRecord, SourceRecord
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.page_paths import page_path
from gateway.run.admin.plain_text import shell_word
from storage.commands import ForgetTarget
from storage.errors import StoreError, TooSlow
from storage.listing import LAST_NUMBER, ErasedFact, ForgetCounts, FoundMemory
from storage.recall_record import unpack
from storage.records import Message
from storage.sql.recalls import StoredRecall
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

TargetKind = Literal["message", "exchange", "conversation", "fact", "passage", "all"]
# As the command line names them.
_PART_KINDS: dict[TargetKind, PartKind] = {
    "message": "message",
    "exchange": "exchange",
    "conversation": "in",
    "fact": "fact",
    "passage": "passage",
}
# Characters of a text with which one looks for what may repeat it.
_QUERY_CHARS = 120
# Facts that another one replaced, as far as they are listed.
_MAX_REPLACED = 20
# The last recalls among which one looks for replies that were made with what goes, and the most such replies.
_MAX_RECALLS, _MAX_REPLIES = 100, 5
# The first words of what goes by which one looks for replies that quote it, the newest messages with these that are
# compared, and the fewest letters that count as a quotation.
_QUOTED_WORDS, _MAX_COMPARED, _LEAST_LETTERS = 8, 20, 12
_DEADLINE_MS = 50.0
# Characters of what goes, as it is shown before it does.
_SHOWN_CHARS = 300


class TargetRecord(Struct, frozen=True):
    """The part of a memory that is to be forgotten."""

    kind: TargetKind
    # Its number, or a conversation's or the memory's public name.
    id: str
    # The beginning of its words, of a conversation those of the user; None: it has none of its own.
    text: str | None = None


class RemainingRecord(Struct, frozen=True):
    """Something that stays."""

    text: str
    # Where to look for it, relative to /ui/.
    href: str | None = None
    # The number of a reply; not set: it is none.
    message: int | UnsetType = UNSET
    # The beginning of the words of a reply or a question; not set: it is neither.
    quote: str | UnsetType = UNSET
    # Whether a reply or a question has the words for which texts are forgotten; not set: these are not known.
    has_words: bool | UnsetType = UNSET


class ChangedBlockText(Struct, frozen=True):
    """A block that a forgetting changes."""

    label: str
    # Its text now, and after the forgetting.
    before: str
    after: str


class ErasedFactRecord(SourceRecord, frozen=True, kw_only=True):
    """A fact that goes with messages."""

    # Who corrected it; not set: nobody, or it is no longer true.
    corrected_by: Literal["operator", "person"] | UnsetType = UNSET


class ForgetPreview(Struct, frozen=True):
    """The extent of a forgetting: what it will take, and what it leaves."""

    target: TargetRecord
    will_go: ForgetCounts
    stays: tuple[RemainingRecord, ...]
    # What has to be typed: the number of messages; None: nothing.
    confirm: str | None
    # The command that does the same; None: of a person, who has none.
    command: str | None
    # The newest facts that go with messages; not set: none does.
    facts: tuple[ErasedFactRecord, ...] | UnsetType = UNSET
    # The blocks that change, as far as they can be rebuilt at once; not set: none does.
    blocks: tuple[ChangedBlockText, ...] | UnsetType = UNSET


class ForgetResult(Struct, frozen=True):
    """The end of a forgetting."""

    # False: it goes on by itself, at once or when the store works again.
    done: bool
    # The database has no old copies of it either.
    swept: bool
    messages: int
    command: str | None


class _TargetDetails(Struct, frozen=True):
    """A part that is to be forgotten, as its preview describes it."""

    # How many messages go.
    messages: int
    stays: Sequence[RemainingRecord]
    # As in `TargetRecord`; the text is whole.
    id: str
    text: str | None = None


class MemoryForgetting:
    """Shows what a forgetting takes, and forgets. One serves the process; the next start resumes what it leaves."""

    def __init__(
        self, store: Store, views: MemoryViews, now: Callable[[], float], call_s: float = CALL_S
    ) -> None:
        """Begins nothing.

        now: seconds since the epoch.
        call_s: the time after which an answer says that a forgetting goes on.
        """
        self._store = store
        self._views = views
        self._now = now
        self._call_s = call_s
        self._tasks: set[asyncio.Task[bool | None]] = set()

    async def preview(
        self,
        project: str | None,
        uid: str,
        kind: TargetKind,
        value: int | str | None = None,
        *,
        words: str = "",
    ) -> ForgetPreview:
        """Returns what forgetting a part takes.

        project: of the caller; None: of any.
        value: the number of a message, exchange, fact or passage, or a conversation's id; None for all.
        words: those for which one text after the other is forgotten, as a query; "": they are not known.

        Raises: UnknownId: there is no such memory, or no such part.
        """
        memory = await self._views.find(project, uid)
        target = await self._find_target(memory, kind, value)
        return await self._preview(memory, kind, value, target, words)

    async def list_remaining(
        self, project: str | None, uid: str, kind: TargetKind, value: int | str | None, *, words: str = ""
    ) -> Sequence[RemainingRecord]:
        """Returns what stays of a part. project, value, words, Raises: as for `preview`."""
        memory = await self._views.find(project, uid)
        target = await self._find_target(memory, kind, value)
        return (await self._read_details(memory, kind, target, value, words)).stays

    async def forget(
        self,
        editor: Editor,
        uid: str,
        kind: TargetKind,
        value: int | str | None = None,
        *,
        confirm: str | None = None,
    ) -> ForgetResult:
        """Forgets a part. confirm: as the preview had it.

        Raises: Conflict: another number is right now; UnknownId.
        """
        memory = await self._views.find(editor.project, uid)
        target = await self._find_target(memory, kind, value)
        preview = await self._preview(memory, kind, value, target)
        if preview.confirm is not None and (confirm or "").strip() != preview.confirm:
            raise Conflict(
                f"Nothing was forgotten: {preview.confirm} messages would go now, not {(confirm or '').strip()!r}.",
                param="confirm",
            )
        id = await self._store.forgetting.begin(memory.id, target, keeps_pause=True)
        task = asyncio.create_task(self._carry_out(id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        what = "all" if kind == "all" else f"{kind} {preview.target.id}"
        await self._store.audit.add(self._now(), editor.actor, "forget", uid, what)
        done, _ = await asyncio.wait({task}, timeout=self._call_s)
        swept = task.result() if done else None
        return ForgetResult(swept is not None, bool(swept), preview.will_go.messages, preview.command)

    async def aclose(self) -> None:
        """Stops what goes on. It is written down, and the next start resumes it."""
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # -- parts

    async def _carry_out(self, id: int) -> bool | None:
        """Forgets what was begun. Returns whether the database has no old copies of it either.

        None: it is not finished, and goes on by itself.
        """
        try:
            await self._store.forgetting.run(id)
            return await self._store.forgetting.sweep()
        except StoreError as error:
            _log.warning("Forgetting %d is not finished, and is resumed later: %s", id, error.message)
            return None

    async def _find_target(
        self, memory: FoundMemory, kind: TargetKind, value: int | str | None
    ) -> ForgetTarget:
        """Returns a part as the store forgets it. Raises: UnknownId."""
        if kind == "all":
            return ForgetTarget(is_all=True)
        assert value is not None
        target = await find_target(self._store, memory.id, Part(_PART_KINDS[kind], value))
        if target is None:
            raise _unknown(kind)
        return target

    async def _preview(
        self,
        memory: FoundMemory,
        kind: TargetKind,
        value: int | str | None,
        target: ForgetTarget,
        words: str = "",
    ) -> ForgetPreview:
        details = await self._read_details(memory, kind, target, value, words)
        extent = await self._store.forget_previews.counts(memory.id, target, details.messages)
        stays = [*details.stays]
        if extent.remade:
            versions = f"{extent.remade} later version{'' if extent.remade == 1 else 's'} of blocks"
            change = (
                "without what came from this, and without lines that repeat its words, whoever wrote them"
            )
            stays.insert(0, RemainingRecord(f"{versions}, {change}."))
        command = ["mnemogate", "memory", "forget", *map(shell_word, flags_of(memory.scope))]
        if kind != "all":
            command.append(shell_word(f"--{_PART_KINDS[kind]}={value}"))
        return ForgetPreview(
            _target_record(kind, details),
            extent.counts,
            tuple(stays),
            str(extent.counts.messages) if kind in ("all", "conversation") else None,
            " ".join(command),
            tuple(_fact_record(memory.uid, each) for each in extent.facts) or UNSET,
            tuple(ChangedBlockText(*each) for each in extent.changes) or UNSET,
        )

    async def _read_details(
        self,
        memory: FoundMemory,
        kind: TargetKind,
        target: ForgetTarget,
        value: int | str | None,
        words: str,
    ) -> _TargetDetails:
        uid = memory.uid
        match kind:
            case "all":
                return _TargetDetails(0, await self._list_remaining_of_memory(memory), uid)
            case "conversation":
                talk = await self._store.memory_pages.conversation(memory.id, str(value))
                if talk is None or not talk.messages:
                    raise _unknown(kind)
                openings = await self._views.conversations.openings_of(memory.id, [talk.uid])
                return _TargetDetails(
                    talk.messages, [_other_mentions(uid, None)], talk.uid, openings.get(talk.uid)
                )
            case "fact":
                page = await self._views.facts.show(memory.scope.project, uid, int(value or 0))
                return _TargetDetails(
                    0, await self._list_remaining_of_fact(memory, page, words), str(value), page.fact.text
                )
            case "passage":
                return _TargetDetails(0, [_other_mentions(uid, None)], str(value))
            case "message" | "exchange":
                return await self._read_message_details(memory, kind, target, int(value or 0), words)

    async def _list_remaining_of_fact(
        self, memory: FoundMemory, page: FactPage, words: str
    ) -> list[RemainingRecord]:
        """Returns what stays of a fact: its sources, the facts before and after it, and other messages."""
        stays = [
            RemainingRecord(
                f"Message {each.seq}, which it came from. It is not learned again from there.", each.href
            )
            for each in page.fact.sources
            if not each.forgotten
        ]
        stays += await self._list_replies_made_with(memory, {page.fact.seq: page.fact.text}, words)
        facts = [
            (f"Fact {each.seq}, which it replaced.", each) for each in await self._list_replaced(memory, page)
        ]
        if page.after is not None:
            facts.append((f"Fact {page.after.seq}, which is true instead.", page.after))
        stays += [RemainingRecord(text, page_path("m", memory.uid, "f", each.seq)) for text, each in facts]
        return [*stays, _other_mentions(memory.uid, page.fact.text)]

    async def _list_replaced(self, memory: FoundMemory, page: FactPage) -> list[FactRecord]:
        """Returns the facts whose place one took, and further back those that these did: one may say the same."""
        replaced = [*page.before]
        for fact in replaced:  # the list grows meanwhile
            if len(replaced) >= _MAX_REPLACED:
                break
            replaced += (await self._views.facts.show(memory.scope.project, memory.uid, fact.seq)).before
        return replaced

    async def _read_message_details(
        self, memory: FoundMemory, kind: TargetKind, target: ForgetTarget, seq: int, words: str
    ) -> _TargetDetails:
        extent = await self._store.forgetting.extent(memory.id, target)
        rows = await self._store.memory_pages.exchange_of_message(memory.id, seq)
        if rows is None or not extent.messages:
            raise _unknown(kind)
        (exchange,) = await self._store.memory_pages.path(memory.id, rows.exchange, limit=1)
        conversation = extent.conversation or ""
        records = [each for each in message_records(exchange, None) if each.text is not None]
        stays = []
        if kind == "message" and extent.remaining:
            others = [each for each in records if each.seq != seq]
            what = "reply" if all(each.role == "assistant" for each in others) else "question"
            numbers = ", ".join(str(each.seq) for each in others)
            remaining = self._with_quote(
                RemainingRecord(f"Its {what}: message {numbers}."), others[-1], words
            )
            going_text = next((each.text for each in records if each.seq == seq), None) or ""
            href = f"{page_path('m', memory.uid, 'forget')}?exchange={seq}"
            if words and self._store.recall.has_words(going_text, words) != remaining.has_words:
                # Both are offered together where both have the words, or none has: else what is right would go too.
                other = others[-1].seq
                href = message_href(memory.uid, conversation, exchange, other)
                if remaining.has_words:
                    href = f"{page_path('m', memory.uid, 'forget')}?message={other}"
            remaining = replace(remaining, href=href)
            stays.append(remaining if what == "reply" else replace(remaining, message=UNSET))
        going = {each.seq: each.text or "" for each in records if kind == "exchange" or each.seq == seq}
        stays += await self._list_replies_made_with(memory, going, words, exchange.id)
        stays.append(
            RemainingRecord(
                "The rest of the conversation.",
                message_href(memory.uid, conversation, exchange, exchange.seq),
            )
        )
        shown = records if kind == "exchange" else [each for each in records if each.seq == seq]
        stays.append(_other_mentions(memory.uid, shown[0].text if shown else None))
        text = "\n\n".join(each.text or "" for each in shown) or None
        return _TargetDetails(extent.messages, stays, str(shown[0].seq if shown else seq), text)

    async def _list_replies_made_with(
        self, memory: FoundMemory, texts: Mapping[int, str], words: str, own: int | None = None
    ) -> list[RemainingRecord]:
        """Returns the newest replies that quote one of some texts, and those for which one was recalled.

        Looks for the latter at the last `_MAX_RECALLS` recalls.

        texts: by the numbers of their messages or facts.
        words: as for `preview`.
        own: the exchange whose reply is left out.
        """
        since = self._views.conversations.noted_since()
        recalls = await self._store.recalls.list(memory.id, since, before=LAST_NUMBER, limit=_MAX_RECALLS)
        noted = [each.exchange for each in recalls if _has_in_note(each, texts)]
        quoting = await self._find_quoting(memory, texts.values())
        rows = [each for each in dict.fromkeys([*quoting, *noted]) if each != own][:_MAX_REPLIES]
        exchanges = await self._store.memory_pages.sources(memory.id, rows)
        replies = list[RemainingRecord]()
        for row in rows:
            each = exchanges.get(row)
            records = [] if each is None else message_records(each.exchange, None)
            reply = next((r for r in reversed(records) if r.role == "assistant" and r.text), None)
            if each is not None and reply is not None:
                href = message_href(memory.uid, each.conversation_uid, each.exchange, reply.seq)
                ways = [("was made with it", row in noted), ("quotes it", row in quoting)]
                how = " and ".join(way for way, is_so in ways if is_so)
                record = RemainingRecord(f"A reply that {how}: message {reply.seq}.", href)
                replies.append(self._with_quote(record, reply, words))
        return replies

    async def _find_quoting(self, memory: FoundMemory, texts: Iterable[str]) -> list[int]:
        """Returns the exchanges of the newest replies that have one of some texts, letter by letter."""
        agent = await self._store.agents.load(memory.id)
        rows = list[int]()
        for text in texts:
            letters = letters_of(text)
            if agent is None or len(letters) < _LEAST_LETTERS:
                continue
            with suppress(TooSlow):
                recall = self._store.recall
                query = " ".join(recall.words_of(text)[:_QUOTED_WORDS])
                hits = await recall.find_containing(
                    agent, query, limit=_MAX_COMPARED, deadline_ms=_DEADLINE_MS
                )
                # In a thread, since a long text takes some milliseconds.
                rows += await asyncio.to_thread(_replies_with, hits.messages, letters)
        return rows

    def _with_quote(self, record: RemainingRecord, message: MessageRecord, words: str) -> RemainingRecord:
        """Returns the record of a message with its number and the beginning of its words.

        words: those for which texts are forgotten; "": they are not known.
        """
        text = message.text or ""
        has_words = self._store.recall.has_words(text, words) if words else UNSET
        quote = shorten(" ".join(text.split()), _SHOWN_CHARS)
        return replace(record, message=message.seq, quote=quote, has_words=has_words)

    async def _list_remaining_of_memory(self, memory: FoundMemory) -> list[RemainingRecord]:
        others = await other_profiles(self._store, memory.scope)
        stays = [RemainingRecord(f"What the profile {name!r} remembers of the same user.") for name in others]
        if any(each.is_shared for each in await self._store.memory_pages.blocks(memory.id)):
            stays.append(RemainingRecord("What is shared with others, without what came from here."))
        stays.append(RemainingRecord("A note that it was forgotten: the memory's number and no words."))
        if memory.paused is not None:
            paused = "That the memory is paused, and its name: nothing new is remembered."
            stays.append(RemainingRecord(paused))
        return stays


def _target_record(kind: TargetKind, details: _TargetDetails) -> TargetRecord:
    texts = (" ".join(each.split()) for each in (details.text or "").split("\n\n"))
    return TargetRecord(kind, details.id, shorten("\n\n".join(filter(None, texts)), _SHOWN_CHARS) or None)


def _has_in_note(recall: StoredRecall, seqs: Collection[int]) -> bool:
    """Returns whether one of these went into the note of a recall."""
    entries = unpack(recall.data).entries
    return any(each.seq in seqs and not each.reason and not each.is_forgotten for each in entries)


def _replies_with(messages: Sequence[Message], letters: str) -> list[int]:
    """Returns the exchanges of the replies among some messages that have these letters in a row."""
    return [
        each.exchange for each in messages if each.role == "assistant" and letters in letters_of(each.text)
    ]


def _fact_record(uid: str, fact: ErasedFact) -> ErasedFactRecord:
    href = page_path("m", uid, "f", fact.seq)
    record = ErasedFactRecord("fact", fact.seq, fact.text, None, href=href)
    match fact.origin:
        case "operator" | "person" as writer if fact.is_true:
            return replace(record, corrected_by=writer)
    return record


def _other_mentions(uid: str, text: str | None) -> RemainingRecord:
    """Returns the remark that other messages may mention what goes, and where to look for them."""
    remark = "Whatever says it elsewhere, or in other words."
    if not (text or "").strip():
        return RemainingRecord(remark, page_path("m", uid, "search"))
    query = " ".join((text or "").split())[:_QUERY_CHARS]
    return RemainingRecord(remark, f"{page_path('m', uid, 'search')}?q={quote(query, safe='')}")


def _unknown(kind: TargetKind) -> UnknownId:
    return UnknownId(f"There is no such {kind}.")
