"""Forgetting as a person decides it: a preview of what will go and what stays, a number to confirm, the forgetting.

A forgetting is written down before it begins (`storage/sql/forget.py`). If it takes long, it goes on after its request
was answered. If the process ends before it is done, the next start resumes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Literal
from urllib.parse import quote

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from gateway.core.words import letters_of
from gateway.errors import Conflict, UnknownId
from gateway.run.admin.audit_operations import audited_part
from gateway.run.admin.exchange_messages import message_records, shorten
from gateway.run.admin.fact_views import FactPage
from gateway.run.admin.forget_operations import CALL_S, Part, PartKind, find_target
from gateway.run.admin.hits import kind_of, message_href, speaker_of, text_href
from gateway.run.admin.memory_edits import Editor
from gateway.run.admin.memory_lists import flags_of, other_profiles
from gateway.run.admin.memory_records import FactRecord, MessageRecord, SourceKind, SourceRecord
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.page_paths import page_path
from gateway.run.admin.plain_text import shell_word
from storage.commands import ForgetTarget
from storage.errors import StoreError, TooSlow
from storage.listing import LAST_NUMBER, ErasedFact, ForgetCounts, FoundMemory
from storage.recall_record import unpack
from storage.records import Exchange, Message, Scope
from storage.sql.recalls import StoredRecall
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

TargetKind = Literal["message", "exchange", "conversation", "fact", "passage", "texts", "all"]
# The number of a message, exchange, fact or passage; a conversation's id; for "texts" the numbers of messages, facts
# and passages; for "all" None.
TargetValue = int | str | tuple[int, ...] | None
# The most texts that are forgotten at once: a preview shows them all.
MAX_TEXTS = 50
# The names that the command line has for them.
_PART_KINDS: dict[TargetKind, PartKind] = {
    "message": "message",
    "exchange": "exchange",
    "conversation": "in",
    "fact": "fact",
    "passage": "passage",
}
# The characters of a text that a search for its repetitions is given.
_QUERY_CHARS = 120
# The most replaced facts that are listed.
_MAX_REPLACED = 20
# The newest recalls that are searched for replies made with what goes, and the most replies that are listed.
_MAX_RECALLS, _MAX_REPLIES = 100, 5
# Replies that quote a text are found by its first words. The most texts for which they are looked for (a client's first
# list may have hundreds), the most messages with these words that are compared with a text, and the fewest letters that
# count as a quotation.
_QUOTED_WORDS, _MAX_QUOTED_TEXTS, _MAX_COMPARED, _MIN_LETTERS = 8, 8, 20, 12
_DEADLINE_MS = 50.0
# Characters of a text that is shown before it is forgotten.
_SHOWN_CHARS = 300


class TargetRecord(Struct, frozen=True):
    """The part of a memory that is to be forgotten."""

    kind: TargetKind
    # The number of the part, or the numbers of the texts; for a conversation or a whole memory its public name.
    id: str
    # The beginning of its text; for a conversation of the user's first message. None: the part has no text.
    text: str | None = None


class RemainingRecord(Struct, frozen=True):
    """Something that stays."""

    text: str
    # The page that shows it, relative to /ui/; None: no page does.
    href: str | None = None
    # For a reply: its number.
    message: int | UnsetType = UNSET
    # For a reply or a question: the beginning of its text.
    quote: str | UnsetType = UNSET
    # For a reply or a question: whether it has the words for which texts are forgotten. Not set if there are none.
    has_words: bool | UnsetType = UNSET


class ChangedBlockText(Struct, frozen=True):
    """A block that a forgetting changes."""

    label: str
    # The text of the block now, and after the forgetting.
    before: str
    after: str


class ErasedFactRecord(SourceRecord, frozen=True, kw_only=True):
    """A fact that goes with messages."""

    # Who corrected the fact; not set: it was not corrected, or is no longer true.
    corrected_by: Literal["operator", "person"] | UnsetType = UNSET


class ForgetPreview(Struct, frozen=True):
    """The extent of a forgetting: what it will take, and what it leaves."""

    target: TargetRecord
    will_go: ForgetCounts
    stays: tuple[RemainingRecord, ...]
    # The number of messages, or of the texts, which has to be typed to confirm; None: nothing has to be typed.
    confirm: str | None
    # The command lines that do the same; None: the visitor is a person, who has no command line.
    command: str | None
    # The newest facts that go with messages; not set: no fact goes.
    facts: tuple[ErasedFactRecord, ...] | UnsetType = UNSET
    # The changed blocks that can be rebuilt at once; not set: there are none.
    blocks: tuple[ChangedBlockText, ...] | UnsetType = UNSET
    # The texts that are there of those that were named, the newest first; not set: another kind of target.
    texts: tuple[SourceRecord, ...] | UnsetType = UNSET


class ForgetResult(Struct, frozen=True):
    """The end of a forgetting."""

    # False: the forgetting goes on by itself, at once or when the store works again.
    done: bool
    # The database has no old copies of what was forgotten.
    swept: bool
    messages: int
    command: str | None
    # How many texts were named, of a target of several.
    texts: int | UnsetType = UNSET


class _TargetDetails(Struct, frozen=True):
    """A part that is to be forgotten, as its preview describes it."""

    # How many messages go.
    messages: int
    stays: Sequence[RemainingRecord]
    # As in `TargetRecord`, but with the whole text.
    id: str
    text: str | None = None
    texts: tuple[SourceRecord, ...] = ()
    # The rows of the exchanges that several texts are of, which need not be looked up for each.
    exchange_rows: Sequence[int] = ()


class MemoryForgetting:
    """Shows what a forgetting takes, and forgets. There is one in a process."""

    def __init__(
        self, store: Store, views: MemoryViews, now: Callable[[], float], call_s: float = CALL_S
    ) -> None:
        """now: returns seconds since the epoch.

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
        value: TargetValue = None,
        *,
        words: str = "",
    ) -> ForgetPreview:
        """Returns what forgetting a part takes and leaves.

        project: the project whose memories the caller sees; None: the caller sees all.
        words: the words for which one text after another is forgotten, as a query; "": they are not known.

        Raises: UnknownId: there is no such memory, or no such part.
        """
        memory = await self._views.find(project, uid)
        target = await self._find_target(memory, kind, value)
        return await self._preview(memory, kind, value, target, words)

    async def list_remaining(
        self, project: str | None, uid: str, kind: TargetKind, value: TargetValue, *, words: str = ""
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
        value: TargetValue = None,
        *,
        confirm: str | None = None,
    ) -> ForgetResult:
        """Forgets a part. confirm: `ForgetPreview.confirm`, as the person typed it.

        Raises: Conflict: the number is wrong, or was right before and is not now; UnknownId.
        """
        memory = await self._views.find(editor.project, uid)
        target = await self._find_target(memory, kind, value)
        preview = await self._preview(memory, kind, value, target)
        if preview.confirm is not None and (confirm or "").strip() != preview.confirm:
            what = "texts" if kind == "texts" else "messages"
            raise Conflict(
                f"Nothing was forgotten: {preview.confirm} {what} would go now, not {(confirm or '').strip()!r}.",
                param="confirm",
            )
        id = await self._store.forgetting.begin(memory.id, target, keeps_pause=True)
        task = asyncio.create_task(self._carry_out(id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        whole = "all" if kind == "all" else audited_part(kind, preview.target.id)
        for what in [audited_part(each.kind, each.seq) for each in preview.texts or ()] or [whole]:
            await self._store.audit.add(self._now(), editor.actor, "forget", uid, what)
        done, _ = await asyncio.wait({task}, timeout=self._call_s)
        swept = task.result() if done else None
        return ForgetResult(
            swept is not None,
            bool(swept),
            preview.will_go.messages,
            preview.command,
            len(preview.texts) if preview.texts else UNSET,
        )

    async def aclose(self) -> None:
        """Stops the forgettings that are under way. The next start resumes them."""
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # -- parts

    async def _carry_out(self, id: int) -> bool | None:
        """Performs a forgetting that was begun. Returns whether the database has no old copies of what went.

        Returns None if the store failed: then the store resumes the forgetting later.
        """
        try:
            await self._store.forgetting.run(id)
            return await self._store.forgetting.sweep()
        except StoreError as error:
            _log.warning("Forgetting %d is not finished, and is resumed later: %s", id, error.message)
            return None

    async def _find_target(self, memory: FoundMemory, kind: TargetKind, value: TargetValue) -> ForgetTarget:
        """Returns a part in the form that the store forgets. Raises: UnknownId."""
        if kind == "all":
            return ForgetTarget(is_all=True)
        if isinstance(value, tuple):
            return _target_of(await self._load_texts(memory, value))
        assert value is not None  # only "all" comes without one
        target = await find_target(self._store, memory.id, Part(_PART_KINDS[kind], value))
        if target is None:
            raise _unknown(kind)
        return target

    async def _load_texts(self, memory: FoundMemory, seqs: tuple[int, ...]) -> list[Message]:
        """Returns those of some messages, facts and passages that are there, the newest first. Raises: UnknownId."""
        found = await self._store.recall.load(memory.id, sorted(set(seqs)))
        if not found:
            raise UnknownId("None of these texts is there.")
        return [found[seq] for seq in sorted(found, reverse=True)]

    async def _preview(
        self,
        memory: FoundMemory,
        kind: TargetKind,
        value: TargetValue,
        target: ForgetTarget,
        words: str = "",
    ) -> ForgetPreview:
        details = await self._read_details(memory, kind, target, value, words)
        if details.exchange_rows:
            target = replace(target, messages=(), exchanges=details.exchange_rows)
        extent = await self._store.forget_previews.counts(memory.id, target, details.messages)
        stays = [*details.stays]
        if extent.remade:
            versions = f"{extent.remade} later version{'' if extent.remade == 1 else 's'} of blocks"
            change = (
                "without what came from this, and without lines that repeat its words, whoever wrote them"
            )
            stays.insert(0, RemainingRecord(f"{versions}, {change}."))
        parts: list[tuple[TargetKind, TargetValue]] = [(each.kind, each.seq) for each in details.texts]
        return ForgetPreview(
            target=_target_record(kind, details),
            will_go=extent.counts,
            stays=tuple(stays),
            confirm=_number_to_confirm(kind, details, extent.counts),
            command="\n".join(_command(memory.scope, *each) for each in parts or [(kind, value)]),
            facts=tuple(
                _fact_record(memory.uid, each) for each in extent.facts if each.seq not in target.facts
            )
            or UNSET,
            blocks=tuple(ChangedBlockText(*each) for each in extent.changes) or UNSET,
            texts=details.texts or UNSET,
        )

    async def _read_details(
        self,
        memory: FoundMemory,
        kind: TargetKind,
        target: ForgetTarget,
        value: TargetValue,
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
                assert isinstance(value, int)
                page = await self._views.facts.show(memory.scope.project, uid, value)
                return _TargetDetails(
                    0, await self._list_remaining_of_fact(memory, page, words), str(value), page.fact.text
                )
            case "passage":
                return _TargetDetails(0, [_other_mentions(uid, None)], str(value))
            case "message" | "exchange":
                assert isinstance(value, int)
                return await self._read_message_details(memory, kind, target, value, words)
            case "texts":
                assert isinstance(value, tuple)
                return await self._read_texts_details(memory, value, words)

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
        """Returns the facts that a fact replaced, and those that they replaced: one of them may say the same."""
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
        (exchange,) = await self._store.memory_pages.path(memory.id, rows.exchange_row, limit=1)
        conversation = extent.conversation_uid or ""
        records = [each for each in message_records(exchange, None) if each.text is not None]
        stays = []
        if kind == "message" and extent.remaining:
            stays.append(self._other_half(memory.uid, conversation, exchange, records, seq, words))
        going_records = [each for each in records if kind == "exchange" or each.seq == seq]
        going = {each.seq: each.text or "" for each in going_records}
        stays += await self._list_replies_made_with(memory, going, words, exchange.id)
        stays.append(
            RemainingRecord(
                "The rest of the conversation.",
                message_href(memory.uid, conversation, exchange, exchange.seq),
            )
        )
        stays.append(_other_mentions(memory.uid, going_records[0].text if going_records else None))
        text = "\n\n".join(each.text or "" for each in going_records) or None
        first_seq = going_records[0].seq if going_records else seq
        return _TargetDetails(extent.messages, stays, str(first_seq), text)

    async def _read_texts_details(
        self, memory: FoundMemory, seqs: tuple[int, ...], words: str
    ) -> _TargetDetails:
        """Reads of several texts what their preview shows.

        Replies that quote them are not looked for: they have the words of the texts, by which these were found.
        """
        messages = await self._load_texts(memory, seqs)
        target = _target_of(messages)
        exchange_rows = sorted({each.exchange_row for each in messages if each.seq in target.messages})
        places = await self._store.memory_pages.places(memory.id, exchange_rows)
        texts = tuple(
            SourceRecord(
                kind_of(each),
                each.seq,
                each.text,
                each.at,
                href=text_href(memory.uid, each, places.get(each.exchange_row)),
                speaker=speaker_of(each),
            )
            for each in messages
        )
        with_going_reply = {each.exchange_row for each in messages if each.role == "assistant"}
        noted = await self._find_made_with(memory, {each.seq for each in messages})
        stays = await self._list_replies(
            memory, [row for row in noted if row not in with_going_reply], (), words
        )
        if target.messages:
            stays.append(
                RemainingRecord("The rest of their conversations, also what answers these messages.")
            )
        stays.append(_other_mentions(memory.uid, words or messages[0].text))
        numbers = " ".join(str(each.seq) for each in texts)
        return _TargetDetails(len(target.messages), stays, numbers, texts=texts, exchange_rows=exchange_rows)

    def _other_half(
        self,
        uid: str,
        conversation: str,
        exchange: Exchange,
        records: Sequence[MessageRecord],
        seq: int,
        words: str,
    ) -> RemainingRecord:
        """Returns what stays of an exchange of which one message goes: its reply, or its question.

        The record links to what should be done about it.

        conversation: its public name.
        records: all messages of the exchange with text.
        seq: the number of the message that goes.
        """
        others = [each for each in records if each.seq != seq]
        other = others[-1]
        is_reply = all(each.role == "assistant" for each in others)
        numbers = ", ".join(str(each.seq) for each in others)
        text = f"Its {'reply' if is_reply else 'question'}: message {numbers}."
        remaining = self._with_quote(RemainingRecord(text), other, words)
        going_text = next((each.text for each in records if each.seq == seq), None) or ""
        forget_page = page_path("m", uid, "forget")
        if not words or self._store.recall.has_words(going_text, words) == remaining.has_words:
            href = f"{forget_page}?exchange={seq}"
        # If only one of both has the words, they are not offered together: what is right would go too.
        elif remaining.has_words:
            href = f"{forget_page}?message={other.seq}"
        else:
            href = message_href(uid, conversation, exchange, other.seq)
        return replace(remaining, href=href, message=other.seq if is_reply else UNSET)

    async def _list_replies_made_with(
        self, memory: FoundMemory, texts: Mapping[int, str], words: str, own: int | None = None
    ) -> list[RemainingRecord]:
        """Returns the newest replies that quote one of some texts, or that were made with one in their note.

        texts: by the numbers of their messages or facts.
        words: as for `preview`.
        own: the exchange whose reply is left out.
        """
        quoting = await self._find_quoting(memory, texts.values())
        return await self._list_replies(
            memory, await self._find_made_with(memory, texts), quoting, words, own
        )

    async def _find_made_with(self, memory: FoundMemory, seqs: Collection[int]) -> list[int]:
        """Returns the newest exchanges whose replies had one of some messages or facts in their note."""
        since = self._views.conversations.noted_since()
        recalls = await self._store.recalls.list(memory.id, since, before=LAST_NUMBER, limit=_MAX_RECALLS)
        return [each.exchange_row for each in recalls if _has_in_note(each, seqs)]

    async def _list_replies(
        self,
        memory: FoundMemory,
        noted: Sequence[int],
        quoting: Sequence[int],
        words: str,
        own: int | None = None,
    ) -> list[RemainingRecord]:
        """Returns the first replies of some exchanges. noted, quoting: those with a text in their note, or a quotation.

        words, own: as for `_list_replies_made_with`.
        """
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
        """Returns the exchanges of the newest replies that have one of the last of some texts, letter by letter."""
        agent = await self._store.agents.load(memory.id)
        if agent is None:
            return []
        recall, rows = self._store.recall, list[int]()
        with_letters = ((text, letters_of(text)) for text in reversed([*texts]))
        quotable = (each for each in with_letters if len(each[1]) >= _MIN_LETTERS)
        for text, letters in islice(quotable, _MAX_QUOTED_TEXTS):
            with suppress(TooSlow):
                query = " ".join(recall.words_of(text)[:_QUOTED_WORDS])
                hits = await recall.find_containing(
                    agent, query, limit=_MAX_COMPARED, deadline_ms=_DEADLINE_MS
                )
                # In a thread, since a long text takes some milliseconds.
                rows += await asyncio.to_thread(_replies_with, hits.messages, letters)
        return rows

    def _with_quote(self, record: RemainingRecord, message: MessageRecord, words: str) -> RemainingRecord:
        """Returns the record of a message with its number and the beginning of its words.

        words: as for `preview`.
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


def _target_of(texts: Sequence[Message]) -> ForgetTarget:
    by_kind: dict[SourceKind, list[int]] = {"message": [], "fact": [], "passage": []}
    for each in texts:
        by_kind[kind_of(each)].append(each.seq)
    return ForgetTarget(messages=by_kind["message"], facts=by_kind["fact"], passages=by_kind["passage"])


def _number_to_confirm(kind: TargetKind, details: _TargetDetails, counts: ForgetCounts) -> str | None:
    match kind:
        case "all" | "conversation":
            return str(counts.messages)
        case "texts":
            return str(len(details.texts))
        case _:
            return None


def _command(scope: Scope, kind: TargetKind, value: TargetValue) -> str:
    """Returns the command line that forgets a part of a memory."""
    command = ["mnemogate", "memory", "forget", *map(shell_word, flags_of(scope))]
    if kind != "all":
        command.append(shell_word(f"--{_PART_KINDS[kind]}={value}"))
    return " ".join(command)


def _target_record(kind: TargetKind, details: _TargetDetails) -> TargetRecord:
    texts = (" ".join(each.split()) for each in (details.text or "").split("\n\n"))
    return TargetRecord(kind, details.id, shorten("\n\n".join(filter(None, texts)), _SHOWN_CHARS) or None)


def _has_in_note(recall: StoredRecall, seqs: Collection[int]) -> bool:
    """Returns whether a message or fact with one of these numbers went into the note of a recall."""
    entries = unpack(recall.data).entries
    return any(each.seq in seqs and not each.reason and not each.is_forgotten for each in entries)


def _replies_with(messages: Sequence[Message], letters: str) -> list[int]:
    """Returns the exchanges of the replies among some messages that have these letters in a row."""
    return [
        each.exchange_row
        for each in messages
        if each.role == "assistant" and letters in letters_of(each.text)
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
