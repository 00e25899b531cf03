"""The preview of a forgetting: what it will take, what it leaves, and the number that confirms it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from gateway.errors import UnknownId
from gateway.run.admin.block_versions import VersionId
from gateway.run.admin.exchange_messages import make_message_records, shorten
from gateway.run.admin.forget_operations import Part, PartKind, find_forget_target
from gateway.run.admin.memory_names import make_memory_flags
from gateway.run.admin.memory_records import SourceKind, SourceRecord, get_source_kind, read_speaker
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.page_paths import make_message_href, make_text_href, page_path
from gateway.run.admin.plain_text import quote_shell_word
from gateway.run.admin.remaining_texts import SHOWN_CHARS, RemainingRecord, RemainingTexts
from storage.commands import ForgetTarget
from storage.listing import ErasedFact, ExchangeRef, ForgetCounts, FoundMemory, RebuiltBlock
from storage.records import Message, Scope, list_lost_lines
from storage.sql.store import Store

TargetKind = Literal["message", "exchange", "conversation", "fact", "passage", "texts", "version", "all"]
# The number of a message, exchange, fact or passage; a conversation's id; for "texts" the numbers of messages, facts
# and passages; an earlier version of a block as the text of its `VersionId`; for "all" None.
TargetValue = int | str | tuple[int, ...] | None
# The most texts that are forgotten at once: a preview shows them all.
MAX_TEXTS = 50
# The options of `mnemogate memory forget` for these kinds. Its option `--in` names a conversation.
_PART_KINDS: dict[TargetKind, PartKind] = {
    "message": "message",
    "exchange": "exchange",
    "conversation": "in",
    "fact": "fact",
    "passage": "passage",
}


class TargetRecord(Struct, frozen=True):
    """The part of a memory that is to be forgotten."""

    kind: TargetKind
    # The `TargetValue` as text; for a whole memory its public id.
    id: str
    # The beginning of its text, or of a conversation's first message of the user; None: the part has no text.
    text: str | None = None


class ErasedFactRecord(SourceRecord, frozen=True, kw_only=True):
    """A fact that goes with messages."""

    # No other fact has replaced it, so it can be retained.
    is_true: bool
    # Who corrected the fact; not set: it was not corrected, or is no longer true.
    corrected_by: Literal["operator", "person"] | UnsetType = UNSET


class ForgetPreview(Struct, frozen=True):
    """The extent of a forgetting: what it will take, and what it leaves."""

    target: TargetRecord
    will_go: ForgetCounts
    stays: tuple[RemainingRecord, ...]
    # The number of messages, or of the texts, which has to be typed to confirm; None: nothing has to be typed.
    confirm: str | None
    # The command lines that do the same; None: there are none, or the visitor is a person, who has no command line.
    command: str | None
    # How many facts go with messages, besides a fact that is itself the target; 0 where the whole memory goes.
    more_facts: int
    # The newest facts that go with messages; not set: no fact goes.
    facts: tuple[ErasedFactRecord, ...] | UnsetType = UNSET
    # The changed blocks that can be rebuilt at once; not set: there are none.
    blocks: tuple[RebuiltBlock, ...] | UnsetType = UNSET
    # For "texts": the texts that are not gone yet, the newest first.
    texts: tuple[SourceRecord, ...] | UnsetType = UNSET
    # The newest replies that stay and can no longer show what the model was shown, without their texts; not set: none.
    replies_without_note: tuple[SourceRecord, ...] | UnsetType = UNSET
    # For a reply of which the question stays: the question's number. The facts may have come from it.
    question: int | UnsetType = UNSET


class _TargetDetails(Struct, frozen=True, kw_only=True):
    """A part that is to be forgotten, as its preview describes it."""

    # The id that `TargetRecord` has.
    id: str
    # How many messages go.
    messages: int
    stays: Sequence[RemainingRecord]
    # The whole text of the part; None: the part has no text.
    text: str | None = None
    # The texts, if several texts are to be forgotten.
    texts: tuple[SourceRecord, ...] = ()
    # The exchanges of these texts, so that the extent need not be looked up for each text.
    exchange_rows: Sequence[int] = ()
    # The number of the last message of the user that the text answers, and that stays.
    question: int | UnsetType = UNSET


class ForgettingPreviews(Struct, frozen=True):
    """Shows what a forgetting would take. Nothing is written."""

    store: Store
    views: MemoryViews

    async def show(
        self,
        project: str | None,
        uid: str,
        kind: TargetKind,
        value: TargetValue = None,
        *,
        words: str = "",
    ) -> ForgetPreview:
        """Returns what forgetting a part takes and leaves. What stays has the true facts that are most like what goes.

        project: the only project that the caller sees; None: all projects.
        words: the words for which one text after another is forgotten, as a query; "": they are not known.

        Raises: UnknownId: there is no such memory, or no such part.
        """
        memory = await self.views.get(project, uid)
        target = await self.get_target(memory, kind, value)
        preview = await self.make(memory, kind, value, target, words)
        going = {each.seq for each in preview.facts or ()}
        # If more facts go than are listed, it is not known which ones stay.
        if kind == "all" or preview.more_facts > len(going):
            return preview
        texts = [each.text or "" for each in preview.texts or ()] or [preview.target.text or ""]
        remaining = RemainingTexts(self.store, self.views, memory, words)
        facts = await remaining.list_facts(going.union(target.facts), texts)
        listed = {each.href for each in preview.stays}
        return replace(preview, stays=(*preview.stays, *(each for each in facts if each.href not in listed)))

    async def list_remaining(
        self, project: str | None, uid: str, kind: TargetKind, value: TargetValue, *, words: str = ""
    ) -> Sequence[RemainingRecord]:
        """Returns what stays if a part goes: `ForgetPreview.stays`, without the other figures of `show`."""
        memory = await self.views.get(project, uid)
        target = await self.get_target(memory, kind, value)
        return (await self._read_details(memory, kind, target, value, words)).stays

    async def get_target(self, memory: FoundMemory, kind: TargetKind, value: TargetValue) -> ForgetTarget:
        """Returns a part in the form that the store forgets. Raises: UnknownId."""
        if kind == "all":
            return ForgetTarget(is_all=True)
        if kind == "version":
            earlier = await self.views.blocks.versions.get_earlier(memory, VersionId.parse(str(value)))
            return ForgetTarget(version=(earlier.block.id, earlier.version))
        if isinstance(value, tuple):
            return _target_of(await self._load_texts(memory, value))
        assert value is not None  # all kinds but "all" have a value
        target = await find_forget_target(self.store, memory.id, Part(_PART_KINDS[kind], value))
        if target is None:
            raise _unknown(kind)
        return target

    async def _load_texts(self, memory: FoundMemory, seqs: tuple[int, ...]) -> list[Message]:
        """Returns messages, facts and passages by their numbers, the newest first, without those that are gone.

        Raises: UnknownId: all are gone.
        """
        found = await self.store.recall.load(memory.id, sorted(set(seqs)))
        # Recall loads no fact that is no longer true.
        for fact in await self.store.facts.load(memory.id, sorted(set(seqs).difference(found))):
            found[fact.seq] = Message(
                fact.seq, fact.exchange_row or 0, "", fact.text, fact.at, 0, source="fact"
            )
        if not found:
            raise UnknownId("None of these texts is there.")
        return [found[seq] for seq in sorted(found, reverse=True)]

    async def make(
        self,
        memory: FoundMemory,
        kind: TargetKind,
        value: TargetValue,
        target: ForgetTarget,
        words: str = "",
    ) -> ForgetPreview:
        details = await self._read_details(memory, kind, target, value, words)
        if details.exchange_rows:
            target = replace(target, exchanges=details.exchange_rows)
        extent = await self.store.forget_previews.count(memory.id, target, details.messages)
        refs = await self.store.memory_pages.load_exchange_refs(memory.id, extent.noted_rows)
        stays = [*details.stays]
        if extent.remade:
            versions = f"{extent.remade} later version{'' if extent.remade == 1 else 's'} of blocks"
            change = "without what came from this, and without lines that say it again"
            stays.insert(0, RemainingRecord(f"{versions}, {change}."))
        parts: list[tuple[TargetKind, TargetValue]] = [(each.kind, each.seq) for each in details.texts]
        return ForgetPreview(
            target=_make_target_record(kind, details),
            will_go=extent.counts,
            stays=tuple(stays),
            confirm=_number_to_confirm(kind, details, extent.counts),
            command=None
            if kind == "version"
            else "\n".join(_render_command(memory.scope, *each) for each in parts or [(kind, value)]),
            more_facts=0 if kind == "all" else extent.counts.facts - len(target.facts),
            facts=tuple(
                _fact_record(memory.uid, each) for each in extent.facts if each.seq not in target.facts
            )
            or UNSET,
            blocks=tuple(extent.changes) or UNSET,
            texts=details.texts or UNSET,
            replies_without_note=tuple(
                _reply_record(memory.uid, refs[row]) for row in extent.noted_rows if row in refs
            )
            or UNSET,
            question=details.question,
        )

    async def _read_details(
        self,
        memory: FoundMemory,
        kind: TargetKind,
        target: ForgetTarget,
        value: TargetValue,
        words: str,
    ) -> _TargetDetails:
        remaining = RemainingTexts(self.store, self.views, memory, words)
        match kind:
            case "all":
                return _TargetDetails(id=memory.uid, messages=0, stays=await remaining.list_of_memory())
            case "conversation":
                conversation = await self.store.memory_pages.find_conversation(memory.id, str(value))
                if conversation is None or not conversation.messages:
                    raise _unknown(kind)
                uid = conversation.uid
                openings = await self.views.questions.load_openings_by_row(memory.id, [uid])
                stays = [remaining.make_other_mentions(None)]
                return _TargetDetails(
                    id=uid, messages=conversation.messages, stays=stays, text=openings.get(uid)
                )
            case "fact":
                assert isinstance(value, int)  # `TargetValue` says what each kind has
                page = await self.views.facts.show(memory.scope.project, memory.uid, value)
                stays = await remaining.list_of_fact(page)
                return _TargetDetails(id=str(value), messages=0, stays=stays, text=page.fact.text)
            case "passage":
                return _TargetDetails(id=str(value), messages=0, stays=[remaining.make_other_mentions(None)])
            case "version":
                earlier = await self.views.blocks.versions.get_earlier(memory, VersionId.parse(str(value)))
                lines = list_lost_lines(earlier.value, earlier.block.value)
                return _TargetDetails(
                    id=str(value),
                    messages=0,
                    stays=[remaining.make_other_mentions(lines[0])],
                    text="\n\n".join(lines),
                )
            case "message" | "exchange":
                assert isinstance(value, int)
                return await self._read_message_details(memory, kind, target, value, remaining)
            case "texts":
                assert isinstance(value, tuple)
                return await self._read_texts_details(memory, value, remaining)

    async def _read_message_details(
        self,
        memory: FoundMemory,
        kind: TargetKind,
        target: ForgetTarget,
        seq: int,
        remaining: RemainingTexts,
    ) -> _TargetDetails:
        extent = await self.store.forget_targets.measure(memory.id, target)
        rows = await self.store.memory_pages.find_exchange_of_message(memory.id, seq)
        if rows is None or not extent.messages:
            raise _unknown(kind)
        (exchange,) = await self.store.memory_pages.load_path(memory.id, rows.exchange_row, limit=1)
        records = [record for record in make_message_records(exchange, None) if record.text is not None]
        texts = {
            record.seq: record.text or "" for record in records if kind == "exchange" or record.seq == seq
        }
        rest = [record for record in records if record.seq not in texts] if extent.remaining else []
        questions = [record.seq for record in rest if record.role == "user" and record.seq < seq]
        return _TargetDetails(
            id=str(next(iter(texts), seq)),
            messages=extent.messages,
            stays=await remaining.list_of_message(exchange, extent.conversation_uid or "", seq, texts, rest),
            text="\n\n".join(texts.values()) or None,
            question=questions[-1] if questions else UNSET,
        )

    async def _read_texts_details(
        self, memory: FoundMemory, seqs: tuple[int, ...], remaining: RemainingTexts
    ) -> _TargetDetails:
        messages = await self._load_texts(memory, seqs)
        target = _target_of(messages)
        exchange_rows = sorted({each.exchange_row for each in messages if each.seq in target.messages})
        refs = await self.store.memory_pages.load_exchange_refs(memory.id, exchange_rows)
        texts = tuple(
            SourceRecord(
                get_source_kind(message),
                message.seq,
                message.text,
                message.at,
                href=make_text_href(memory.uid, message, refs.get(message.exchange_row)),
                speaker=read_speaker(message),
            )
            for message in messages
        )
        return _TargetDetails(
            id=" ".join(str(text.seq) for text in texts),
            messages=len(target.messages),
            stays=await remaining.list_of_texts(messages),
            texts=texts,
            exchange_rows=exchange_rows,
        )


def _target_of(texts: Sequence[Message]) -> ForgetTarget:
    by_kind: dict[SourceKind, list[int]] = {"message": [], "fact": [], "passage": []}
    for each in texts:
        by_kind[get_source_kind(each)].append(each.seq)
    return ForgetTarget(messages=by_kind["message"], facts=by_kind["fact"], passages=by_kind["passage"])


def _number_to_confirm(kind: TargetKind, details: _TargetDetails, counts: ForgetCounts) -> str | None:
    match kind:
        case "all" | "conversation":
            return str(counts.messages)
        case "texts":
            return str(len(details.texts))
        case _:
            return None


def _render_command(scope: Scope, kind: TargetKind, value: TargetValue) -> str:
    """Returns the command line that forgets a part of a memory."""
    command = ["mnemogate", "memory", "forget", *map(quote_shell_word, make_memory_flags(scope))]
    if kind != "all":
        command.append(quote_shell_word(f"--{_PART_KINDS[kind]}={value}"))
    return " ".join(command)


def _make_target_record(kind: TargetKind, details: _TargetDetails) -> TargetRecord:
    texts = (" ".join(each.split()) for each in (details.text or "").split("\n\n"))
    return TargetRecord(kind, details.id, shorten("\n\n".join(filter(None, texts)), SHOWN_CHARS) or None)


def _fact_record(uid: str, fact: ErasedFact) -> ErasedFactRecord:
    href = page_path("m", uid, "f", fact.seq)
    record = ErasedFactRecord("fact", fact.seq, fact.text, None, href=href, is_true=fact.is_true)
    match fact.origin:
        case "operator" | "person" as writer if fact.is_true:
            return replace(record, corrected_by=writer)
    return record


def _reply_record(uid: str, ref: ExchangeRef) -> SourceRecord:
    href = make_message_href(uid, ref.conversation_uid, ref, ref.reply_seq)
    return SourceRecord("message", ref.reply_seq, None, None, href=href)


def _unknown(kind: TargetKind) -> UnknownId:
    return UnknownId(f"There is no such {kind}.")
