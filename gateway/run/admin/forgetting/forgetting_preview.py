"""The preview of a forgetting: the texts that go and that stay, and the number that confirms it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from gateway.errors import UnknownId
from gateway.run.admin.forgetting.forget_operations import Part, PartKind, find_forget_target
from gateway.run.admin.forgetting.remaining_texts import SHOWN_CHARS, RemainingRecord, RemainingTexts
from gateway.run.admin.memory.block_versions import EarlierVersion, VersionId
from gateway.run.admin.memory.exchange_messages import make_message_records, shorten
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_names import make_memory_flags
from gateway.run.admin.page_paths import make_message_href, make_text_href, page_path
from gateway.run.admin.plain_text import quote_shell_word
from gateway.run.admin.records.memory_records import SourceKind, SourceRecord, get_source_kind, read_speaker
from storage.forget_commands import BlockVersionKey, ForgetTarget
from storage.operator_records import ErasedFact, ExchangeRef, ForgetCounts, FoundMemory, RebuiltBlock
from storage.records import Message, Scope, list_lost_lines
from storage.sql.store import Store

TargetKind = Literal["message", "exchange", "conversation", "fact", "passage", "texts", "version", "all"]
# The number of a message, exchange, fact or passage; a conversation's id; an earlier version of a block as the text of
# its `VersionId`; for "texts" the numbers of messages, facts and passages, and versions; for "all" None.
TargetValue = int | str | tuple[int | str, ...] | None
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


class ErasedVersionRecord(Struct, frozen=True):
    """An earlier version of a block that is forgotten among several texts."""

    # The number of the version.
    seq: int
    label: str
    # The lines that go: the block does not have them now.
    text: str
    href: str
    kind: Literal["version"] = "version"


class ErasedFactRecord(SourceRecord, frozen=True, kw_only=True):
    """A fact that goes with messages."""

    # True: no other fact has replaced it, so it can be retained.
    is_true: bool
    # The party that corrected the fact; not set: it was not corrected, or is no longer true.
    corrected_by: Literal["operator", "person"] | UnsetType = UNSET


class ForgetPreview(Struct, frozen=True):
    """The extent of a forgetting: the texts that go and that stay."""

    target: TargetRecord
    will_go: ForgetCounts
    stays: tuple[RemainingRecord, ...]
    # The number of messages, or of the texts, which has to be typed to confirm; None: nothing has to be typed.
    confirm: str | None
    # The command lines that do the same; None: no command does, or the visitor is a person without a command line.
    command: str | None
    # The number of facts that go with messages, without a fact that is itself the target; 0 if the whole memory goes.
    more_facts: int
    # The newest facts that go with messages; not set: no fact goes.
    facts: tuple[ErasedFactRecord, ...] | UnsetType = UNSET
    # The changed blocks that can be rebuilt at once; not set: there are none.
    blocks: tuple[RebuiltBlock, ...] | UnsetType = UNSET
    # For "texts": the texts that are not gone yet, the newest first, then versions of blocks.
    texts: tuple[SourceRecord | ErasedVersionRecord, ...] | UnsetType = UNSET
    # The newest replies that stay and can no longer show the texts of their prompt, without their texts; not set: none.
    replies_without_note: tuple[SourceRecord, ...] | UnsetType = UNSET
    # For a reply of which the question stays: the question's number. The facts may have come from it.
    question: int | UnsetType = UNSET
    # How many of the messages go along because the target replaced them; not set: none.
    replaced: int | UnsetType = UNSET


class FoundPart(Struct, frozen=True, kw_only=True):
    """A part of a memory that may be forgotten, as its preview describes it."""

    kind: TargetKind
    value: TargetValue
    # The part in the form in which the store forgets it.
    target: ForgetTarget
    # The id that `TargetRecord` has.
    id: str
    # The number of messages that go.
    messages: int = 0
    stays: Sequence[RemainingRecord]
    # The whole text of the part; None: the part has no text.
    text: str | None = None
    # The texts, if several texts are to be forgotten.
    texts: tuple[SourceRecord | ErasedVersionRecord, ...] = ()
    # The exchanges of these texts, so that the extent need not be looked up for each text.
    exchange_rows: Sequence[int] = ()
    # The number of the last message of the user that the text answers, and that stays.
    question: int | UnsetType = UNSET


class ForgettingPreviews(Struct, frozen=True):
    """Shows the extent of a forgetting. Nothing is written."""

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
        """Returns the extent of a part's forgetting. The texts that stay include true facts that are like lost ones.

        project: the only project that the caller sees; None: all projects.
        words: the words for which one text after another is forgotten, as a query; "": they are not known.

        Raises: UnknownId: there is no such memory, or no such part.
        """
        memory = await self.views.get(project, uid)
        part = await self.get_part(memory, kind, value, words)
        preview = await self.make(memory, part)
        going_seqs = {each.seq for each in preview.facts or ()}
        # If more facts go than are listed, it is not known which ones stay.
        if kind == "all" or preview.more_facts > len(going_seqs):
            return preview
        texts = [each.text or "" for each in part.texts] or [preview.target.text or ""]
        remaining = RemainingTexts(self.store, self.views, memory, words)
        facts = await remaining.list_facts(going_seqs.union(part.target.fact_seqs), texts)
        listed_hrefs = {each.href for each in preview.stays}
        other_facts = [each for each in facts if each.href not in listed_hrefs]
        return replace(preview, stays=(*preview.stays, *other_facts))

    async def list_remaining(
        self, project: str | None, uid: str, kind: TargetKind, value: TargetValue, *, words: str = ""
    ) -> Sequence[RemainingRecord]:
        """Returns the texts that stay if a part goes: `ForgetPreview.stays`, without the other figures of `show`."""
        memory = await self.views.get(project, uid)
        return (await self.get_part(memory, kind, value, words)).stays

    async def get_part(
        self, memory: FoundMemory, kind: TargetKind, value: TargetValue, words: str = ""
    ) -> FoundPart:
        """Returns a part of a memory. The parameters are those of `show`. Raises: UnknownId."""
        remaining = RemainingTexts(self.store, self.views, memory, words)
        return await _PartReader(self.store, self.views, memory, remaining).get(kind, value)

    async def make(self, memory: FoundMemory, part: FoundPart) -> ForgetPreview:
        """Returns the preview of a part, without the facts that stay."""
        target = part.target
        if part.exchange_rows:
            target = replace(target, exchange_rows=part.exchange_rows)
        extent = await self.store.forget_previews.count(memory.id, target, part.messages)
        refs = await self.store.memory_pages.load_exchange_refs(memory.id, extent.noted_rows)
        stays = [each for each in part.stays if each.message not in extent.replaced_seqs]
        if extent.rebuilt_count:
            versions = (
                f"{extent.rebuilt_count} later version{'' if extent.rebuilt_count == 1 else 's'} of blocks"
            )
            change = "without what came from this, and without lines that say it again"
            stays.insert(0, RemainingRecord(f"{versions}, {change}."))
        named_texts: list[tuple[TargetKind, TargetValue]] = [(text.kind, text.seq) for text in part.texts]
        return ForgetPreview(
            target=_make_target_record(part),
            will_go=extent.counts,
            stays=tuple(stays),
            confirm=_choose_number_to_confirm(part, extent.counts),
            command=None
            if target.block_versions
            else "\n".join(
                _render_command(memory.scope, *each) for each in named_texts or [(part.kind, part.value)]
            ),
            more_facts=0 if part.kind == "all" else extent.counts.facts - len(target.fact_seqs),
            facts=tuple(
                _make_fact_record(memory.uid, each)
                for each in extent.facts
                if each.seq not in target.fact_seqs
            )
            or UNSET,
            blocks=tuple(extent.changes) or UNSET,
            texts=part.texts or UNSET,
            replies_without_note=tuple(
                _make_reply_record(memory.uid, refs[row]) for row in extent.noted_rows if row in refs
            )
            or UNSET,
            question=part.question,
            replaced=len(extent.replaced_seqs) or UNSET,
        )


class _PartReader(Struct, frozen=True):
    """Reads parts of one memory. The methods raise UnknownId: there is no such part."""

    store: Store
    views: MemoryViews
    memory: FoundMemory
    remaining: RemainingTexts

    async def get(self, kind: TargetKind, value: TargetValue) -> FoundPart:
        """Returns a part of the memory."""
        match kind:
            case "all":
                return FoundPart(
                    kind=kind,
                    value=value,
                    target=ForgetTarget(is_all=True),
                    id=self.memory.uid,
                    stays=await self.remaining.list_for_memory(),
                )
            case "version":
                return await self._get_version(str(value))
            case "texts":
                assert isinstance(value, tuple)  # see `TargetValue`
                return await self._get_texts(value)
        assert isinstance(value, int | str)
        target = await find_forget_target(self.store, self.memory.id, Part(_PART_KINDS[kind], value))
        if target is None:
            raise _make_unknown_error(kind)
        match kind:
            case "conversation":
                return await self._get_conversation(target, str(value))
            case "fact":
                assert isinstance(value, int)
                return await self._get_fact(target, value)
            case "passage":
                stays = [self.remaining.make_other_mentions(None)]
                return FoundPart(kind=kind, value=value, target=target, id=str(value), stays=stays)
            case "message" | "exchange":
                assert isinstance(value, int)
                return await self._get_message(kind, target, value)

    async def _get_version(self, id: str) -> FoundPart:
        earlier = await self.views.blocks.versions.get_earlier(self.memory, VersionId.parse(id))
        lines = list_lost_lines(earlier.value, earlier.block.value)
        return FoundPart(
            kind="version",
            value=id,
            target=ForgetTarget(block_versions=[BlockVersionKey(earlier.block.id, earlier.version)]),
            id=id,
            stays=[self.remaining.make_other_mentions(lines[0])],
            text="\n\n".join(lines),
        )

    async def _get_conversation(self, target: ForgetTarget, uid: str) -> FoundPart:
        conversation = await self.store.memory_pages.find_conversation(self.memory.id, uid)
        if conversation is None or not conversation.messages:
            raise _make_unknown_error("conversation")
        openings = await self.views.questions.load_openings_by_row(self.memory.id, [conversation.uid])
        return FoundPart(
            kind="conversation",
            value=uid,
            target=target,
            id=conversation.uid,
            messages=conversation.messages,
            stays=[self.remaining.make_other_mentions(None)],
            text=openings.get(conversation.uid),
        )

    async def _get_fact(self, target: ForgetTarget, seq: int) -> FoundPart:
        page = await self.views.facts.show(self.memory.scope.project, self.memory.uid, seq)
        return FoundPart(
            kind="fact",
            value=seq,
            target=target,
            id=str(seq),
            stays=await self.remaining.list_for_fact(page),
            text=page.fact.text,
        )

    async def _get_message(
        self, kind: Literal["message", "exchange"], target: ForgetTarget, seq: int
    ) -> FoundPart:
        extent = await self.store.forget_targets.measure(self.memory.id, target)
        rows = await self.store.memory_pages.find_exchange_of_message(self.memory.id, seq)
        if rows is None or not extent.messages:
            raise _make_unknown_error(kind)
        (exchange,) = await self.store.memory_pages.load_path(self.memory.id, rows.exchange_row, limit=1)
        records = [record for record in make_message_records(exchange, None) if record.text is not None]
        texts = {
            record.seq: record.text or "" for record in records if kind == "exchange" or record.seq == seq
        }
        rest = [record for record in records if record.seq not in texts] if extent.remaining else []
        questions = [record.seq for record in rest if record.role == "user" and record.seq < seq]
        conversation_uid = extent.conversation_uid or ""
        return FoundPart(
            kind=kind,
            value=seq,
            target=target,
            id=str(next(iter(texts), seq)),
            messages=extent.messages,
            stays=await self.remaining.list_for_message(exchange, conversation_uid, seq, texts, rest),
            text="\n\n".join(texts.values()) or None,
            question=questions[-1] if questions else UNSET,
        )

    async def _get_texts(self, values: tuple[int | str, ...]) -> FoundPart:
        messages = await self._load_messages({value for value in values if isinstance(value, int)})
        versions = await self._load_versions(
            dict.fromkeys(value for value in values if isinstance(value, str))
        )
        if not (messages or versions):
            raise UnknownId("None of these texts is there.")
        target = _make_target(messages, versions)
        exchange_rows = sorted({each.exchange_row for each in messages if each.seq in target.message_seqs})
        refs = await self.store.memory_pages.load_exchange_refs(self.memory.id, exchange_rows)
        texts: list[SourceRecord | ErasedVersionRecord] = [
            SourceRecord(
                get_source_kind(message),
                message.seq,
                message.text,
                message.at,
                href=make_text_href(self.memory.uid, message, refs.get(message.exchange_row)),
                speaker=read_speaker(message),
            )
            for message in messages
        ]
        for block, version, value in versions:
            lines = "\n".join(list_lost_lines(value, block.value))
            href = page_path("m", self.memory.uid, "b", block.label)
            texts.append(ErasedVersionRecord(version, block.label, lines, href))
        return FoundPart(
            kind="texts",
            value=values,
            target=target,
            id=" ".join(str(text.seq) for text in texts),
            messages=len(target.message_seqs),
            stays=await self.remaining.list_for_texts(messages, texts[0].text or ""),
            texts=tuple(texts),
            exchange_rows=exchange_rows,
        )

    async def _load_messages(self, seqs: set[int]) -> list[Message]:
        """Returns messages, facts and passages by their numbers, the newest first, without those that are gone."""
        messages = await self.store.recall.load(self.memory.id, sorted(seqs))
        # Recall loads no fact that is no longer true.
        for fact in await self.store.facts.load(self.memory.id, sorted(seqs.difference(messages))):
            messages[fact.seq] = Message(
                fact.seq, fact.exchange_row or 0, "", fact.text, fact.at, 0, kind="fact"
            )
        return [messages[seq] for seq in sorted(messages, reverse=True)]

    async def _load_versions(self, ids: Iterable[str]) -> list[EarlierVersion]:
        """Returns earlier versions by the texts of their `VersionId`, without those that have no lines to forget."""
        versions = []
        for text in ids:
            with suppress(UnknownId):
                versions.append(
                    await self.views.blocks.versions.get_earlier(self.memory, VersionId.parse(text))
                )
        return versions


def _make_target(texts: Sequence[Message], versions: Sequence[EarlierVersion]) -> ForgetTarget:
    """Returns the target that forgets these texts and earlier versions of blocks."""
    seqs_by_kind: dict[SourceKind, list[int]] = {"message": [], "fact": [], "passage": []}
    for each in texts:
        seqs_by_kind[get_source_kind(each)].append(each.seq)
    return ForgetTarget(
        message_seqs=seqs_by_kind["message"],
        fact_seqs=seqs_by_kind["fact"],
        passage_seqs=seqs_by_kind["passage"],
        block_versions=[BlockVersionKey(version.block.id, version.version) for version in versions],
    )


def _choose_number_to_confirm(part: FoundPart, counts: ForgetCounts) -> str | None:
    match part.kind:
        case "all" | "conversation":
            return str(counts.messages)
        case "texts":
            return str(len(part.texts))
        case _:
            return None


def _render_command(scope: Scope, kind: TargetKind, value: TargetValue) -> str:
    """Returns the command line that forgets a part of a memory."""
    command = ["mnemogate", "memory", "forget", *map(quote_shell_word, make_memory_flags(scope))]
    if kind != "all":
        command.append(quote_shell_word(f"--{_PART_KINDS[kind]}={value}"))
    return " ".join(command)


def _make_target_record(part: FoundPart) -> TargetRecord:
    texts = (" ".join(each.split()) for each in (part.text or "").split("\n\n"))
    return TargetRecord(part.kind, part.id, shorten("\n\n".join(filter(None, texts)), SHOWN_CHARS) or None)


def _make_fact_record(uid: str, fact: ErasedFact) -> ErasedFactRecord:
    href = page_path("m", uid, "f", fact.seq)
    record = ErasedFactRecord("fact", fact.seq, fact.text, None, href=href, is_true=fact.is_true)
    match fact.origin:
        case "operator" | "person" as writer if fact.is_true:
            return replace(record, corrected_by=writer)
    return record


def _make_reply_record(uid: str, ref: ExchangeRef) -> SourceRecord:
    href = make_message_href(uid, ref.conversation_uid, ref, ref.reply_seq)
    return SourceRecord("message", ref.reply_seq, None, None, href=href)


def _make_unknown_error(kind: TargetKind) -> UnknownId:
    return UnknownId(f"There is no such {kind}.")
