"""Forgetting by hand: `mnemogate memory forget` and `undo`, which the audit records.

A forgetting is stored before anything is erased. So if its call runs out of time, or its process dies, it is resumed:
by the next call, which gets it as `left`, and when a gateway starts. `run/background/retention.py` forgets messages
that are too old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from msgspec import Struct

from gateway.errors import BadRequest
from gateway.run.admin.audited_parts import AuditedVersion, render_audited_facts, render_audited_part
from gateway.run.admin.memory.editor import COMMAND
from gateway.run.admin.memory.manual_block_edits import UNDO_OVER_LIMIT
from gateway.run.admin.memory_names import MemoryOwner, make_nothing_found_error
from gateway.run.admin.operation_arguments import (
    NO_DEFAULTS,
    Arguments,
    Defaults,
    RawArguments,
    check_names,
)
from gateway.settings import DEFAULT_PROFILE
from storage.errors import BlockTooLong, NotFound, WriteConflict
from storage.forget_commands import Extent, ForgetTarget
from storage.records import IMPORTING_PREFIX
from storage.sql.store import Store

# The most seconds of one call, well below the command line's timeout of 30 s; the command line calls again.
CALL_S = 5.0
# The most memories that one call begins to forget.
_MEMORIES_PER_CALL = 64
_USER_PREFIX = "user:"
# The most facts that go along with messages and that the audit names: 2 kB in an entry.
_AUDITED_FACTS = 300

# The most facts that a preview has, as on the page.
_PREVIEWED_FACTS = 20

PartKind = Literal["message", "exchange", "in", "fact", "passage"]
_PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)
# The arguments of `forget`. Another one is refused: if it was to name a part, all of the memory would go without it.
_FORGET_FIELDS = ("project", "profile", "user", "conversation", "agent", *_PART_KINDS, "keep", "left")


class Part(Struct, frozen=True):
    """One part of a memory."""

    kind: PartKind
    # The number of a message, exchange, fact or passage, or a conversation's id.
    value: int | str


class ForgetRequest(Struct, frozen=True):
    """The arguments of `forget`."""

    # The owner of the memory, or of several memories.
    owner: MemoryOwner
    # The part to forget; None: all of each memory.
    part: Part | None
    # The numbers of facts that go with the part, and are to stay.
    keep: tuple[int, ...]
    # The forgettings that an earlier call has begun and not ended, by their numbers.
    left: tuple[int, ...]

    @classmethod
    def read(cls, raw: RawArguments, defaults: Defaults) -> ForgetRequest:
        """Reads the arguments. Raises: BadRequest."""
        check_names(raw, _FORGET_FIELDS)
        arguments = Arguments(raw)
        kinds = [kind for kind in _PART_KINDS if kind in arguments]
        if len(kinds) > 1:
            raise BadRequest(f"Name one of {', '.join(_PART_KINDS)}, not several.", param=kinds[1])
        part = None
        if kinds:
            kind = kinds[0]
            part = Part(kind, arguments.read_text(kind) if kind == "in" else arguments.read_number(kind))
        # The defaults of requests count for a part alone: without a part, a user without a named profile is forgotten
        # in all profiles, and without a user all users are.
        owner = arguments.read_owner(defaults if part else None)
        keep = tuple(arguments.read_optional_numbers("keep"))
        if keep and not part:
            raise BadRequest("A fact can only be kept if a part of its memory is forgotten.", param="keep")
        if part and owner.subject is None:
            raise BadRequest(f"Say whose {part.kind}: --user, --conversation or --agent.", param="user")
        return cls(owner, part, keep, tuple(arguments.read_optional_numbers("left")))


async def find_forget_target(store: Store, agent_row: int, part: Part) -> ForgetTarget | None:
    """Returns a part of a memory in the form in which the store forgets it, or None if there is no such part."""
    if isinstance(part.value, str):
        conversation_row = await store.forget_targets.find_conversation(agent_row, part.value)
        return None if conversation_row is None else ForgetTarget(conversation_row=conversation_row)
    if part.kind == "fact":
        fact = await store.facts.find(agent_row, part.value)
        return None if fact is None else ForgetTarget(fact_seqs=[part.value])
    if part.kind == "passage":
        passages = await store.passages.load(agent_row, [part.value])
        return ForgetTarget(passage_seqs=[part.value]) if passages else None
    rows = await store.memory_pages.find_exchange_of_message(agent_row, part.value)
    if rows is None:
        return None
    is_message = part.kind == "message"
    return (
        ForgetTarget(message_seqs=[part.value])
        if is_message
        else ForgetTarget(exchange_rows=[rows.exchange_row])
    )


async def name_erased(
    store: Store, agent_row: int, target: ForgetTarget, parts: Sequence[str], retained: Sequence[int] = ()
) -> Sequence[str]:
    """Returns the subjects (`what`) of the audit entries for a forgetting: one for each part, and one for the facts.

    parts: the forgotten parts, as the audit names them.
    retained: the numbers of facts that stay.
    """
    if target.is_all:
        return parts
    facts = await store.forget_previews.list_facts(agent_row, target, _AUDITED_FACTS)
    other_seqs = {*target.fact_seqs, *retained}
    seqs = sorted(fact.seq for fact in facts.newest if fact.seq not in other_seqs)
    if not seqs:
        return parts
    # The newest entry is listed first, so the facts come after the parts with which they went.
    return [render_audited_facts(seqs, facts.total - len(facts.newest)), *parts]


async def note_forgetting(store: Store, at: float, actor: str, uid: str, erased: Sequence[str]) -> None:
    """Notes a forgetting in the audit. erased: the result of `name_erased`. `AuditEntry` has the other parameters."""
    for what in erased:
        await store.audit.add(at, actor, "forget", uid, what)


async def note_retained(store: Store, at: float, actor: str, uid: str, facts: Sequence[int]) -> None:
    """Notes in the audit the facts that stay though their sources go. `AuditEntry` has the other parameters."""
    for seq in facts:
        await store.audit.add(at, actor, "keep", uid, render_audited_part("fact", seq))


class _FoundPart(NamedTuple):
    agent_row: int
    target: ForgetTarget


class _BegunForgettings(Struct, frozen=True):
    """The forgettings that one call has begun."""

    # The numbers of the forgettings.
    ids: Sequence[int] = ()
    # The extent of the forgetting of a part.
    extent: Extent = Extent()
    # True: there may be more memories to forget.
    has_more: bool = False


@dataclass(eq=False)
class ForgetOperations:
    """Forgets by hand, and undoes edits."""

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    defaults: Defaults = NO_DEFAULTS
    # The seconds after which a call answers, with the forgettings that are left.
    call_s: float = CALL_S

    async def forget(self, raw: RawArguments) -> dict[str, Any]:
        """Forgets a user in one profile or in all, a project's users, or one part of a memory.

        Returns an object with these members:

        memories: the number of memories that the call has begun to forget, whole or in part.
        left: the numbers of the forgettings that are not finished, for the next call.
        done: True: nothing is left.
        swept: True: the database has no old copies of the forgotten texts, either.
        messages: the number of messages of a part.
        kept: the number of messages of the same exchange that stay.
        conversation: the public id of the part's conversation.

        The argument `keep` has the numbers of true facts that would go with the part, and stay.
        """
        request = ForgetRequest.read(raw, self.defaults)
        forgetting = self.store.forgetting
        deadline = time.monotonic() + self.call_s

        def is_late() -> bool:
            return time.monotonic() > deadline

        # Only forgettings that have begun are resumed: a caller cannot have other memories forgotten by naming numbers.
        unfinished = await forgetting.list_unfinished()
        begun = await self._begin_request(request, unfinished, is_late)
        left_ids = [*(left_id for left_id in request.left if left_id in unfinished), *begun.ids]
        while left_ids and await forgetting.run(left_ids[0], is_late):
            left_ids.pop(0)
            if is_late():
                break
        is_done = not left_ids and not begun.has_more
        swept = False
        if is_done:
            owner = request.owner
            if owner.profile is None and owner.subject is None:
                await forgetting.forget_project(owner.project)
            swept = await forgetting.sweep()
            # A forgetting of an earlier call that was interrupted counts as left, too: the next call resumes it.
            left_ids = await forgetting.list_unfinished()
        return {
            "memories": len(begun.ids),
            "left": left_ids,
            "done": is_done and not left_ids,
            "swept": swept,
            "messages": begun.extent.messages,
            "kept": begun.extent.remaining,
            "conversation": begun.extent.conversation_uid,
        }

    async def preview(self, raw: RawArguments) -> dict[str, Any]:
        """Returns the facts that `forget` would forget with a part: {"facts", "more_facts"}.

        facts: the newest of these facts: {"seq", "text", "is_true"}. Facts that are true can be kept.
        more_facts: the number of all these facts.
        """
        request = ForgetRequest.read(raw, self.defaults)
        if request.part is None:
            return {"facts": [], "more_facts": 0}
        found = await self._get_part(request.owner, request.part)
        going = await self.store.forget_previews.list_facts(found.agent_row, found.target, _PREVIEWED_FACTS)
        facts = [{"seq": fact.seq, "text": fact.text, "is_true": fact.is_true} for fact in going.newest]
        return {"facts": facts, "more_facts": going.total}

    async def undo(self, raw: RawArguments) -> dict[str, Any]:
        """Takes back the last change of a block. Returns {"label", "version", "value", "waiting"}.

        waiting: the number of edits that the block lacks until their turns are confirmed.
        """
        arguments = Arguments(raw)
        owner = arguments.read_owner(self.defaults)
        label = arguments.read_text("block")
        agent_row = await self._get_agent_row(owner)
        blocks = await self.store.blocks.load(agent_row)
        block = next((each for each in blocks if each.label == label), None)
        if block is None:
            labels = ", ".join(repr(each.label) for each in blocks) or "none"
            raise BadRequest(f"There is no block {label!r} in this memory; it has {labels}.", param="block")
        waiting_count = (await self.store.turn_edits.list_pending_labels(agent_row)).count(label)
        try:
            undone_block = await self.store.blocks.undo(block.id, at=self.now())
        except NotFound as error:
            rest = (
                f"; edits that wait until their turns are confirmed: {waiting_count}" if waiting_count else ""
            )
            raise BadRequest(error.message + rest, param="block") from error
        except BlockTooLong as error:
            raise BadRequest(UNDO_OVER_LIMIT, param="block") from error
        agent = await self.store.agents.find_by_id(agent_row)
        if agent is not None:
            what = str(AuditedVersion(label, undone_block.version))
            await self.store.audit.add(self.now(), COMMAND, "undo", agent.uid, what)
        return {
            "label": undone_block.label,
            "version": undone_block.version,
            "value": undone_block.value,
            "waiting": waiting_count,
        }

    async def _forget_usage(self, owner: MemoryOwner) -> int:
        """Removes the name of a user from the counters, if the user is forgotten in all profiles.

        Returns the number of rows that had the name.
        """
        subject = owner.subject or ""
        if owner.profile is not None or not subject.startswith(_USER_PREFIX):
            return 0
        return await self.store.usage.forget_user(owner.project, subject.removeprefix(_USER_PREFIX))

    async def _begin_request(
        self, request: ForgetRequest, unfinished: Sequence[int], is_late: Callable[[], bool]
    ) -> _BegunForgettings:
        """Begins the forgettings of a call. A call that only resumes the forgetting of a part begins nothing.

        unfinished: the forgettings that have begun before.

        Raises: BadRequest: there is nothing to forget.
        """
        owner = request.owner
        if request.part is not None:
            return _BegunForgettings() if request.left else await self._begin_part(request, request.part)
        begun = await self._begin_whole(owner, is_late)
        usage_rows = await self._forget_usage(owner)
        finds_something = begun.ids or unfinished or request.left or usage_rows
        if owner.subject is not None and not finds_something:
            raise make_nothing_found_error(owner)
        return begun

    async def _begin_whole(self, owner: MemoryOwner, is_late: Callable[[], bool]) -> _BegunForgettings:
        """Begins to forget whole memories."""
        targets = self.store.forget_targets
        # An import that was interrupted has a user's words, too.
        subjects = (
            [owner.subject] if owner.subject is None else [owner.subject, IMPORTING_PREFIX + owner.subject]
        )
        ids: list[int] = []
        while not is_late() and len(ids) < _MEMORIES_PER_CALL:
            # A memory is not found again once its forgetting has begun, so the first one is always the next one.
            rows: list[int] = []
            for subject in subjects:
                rows = rows or await targets.list_memories(owner.project, owner.profile, subject, limit=1)
            if not rows:
                return _BegunForgettings(ids)
            ids.append(await self._begin(rows[0], ForgetTarget(is_all=True), "all"))
        return _BegunForgettings(ids, has_more=True)

    async def _get_part(self, owner: MemoryOwner, part: Part) -> _FoundPart:
        """Returns a part of an owner's memory. Raises: BadRequest: there is no such memory, or no such part."""
        agent_row = await self._get_agent_row(owner)
        target = await find_forget_target(self.store, agent_row, part)
        if target is None:
            part_name = "conversation" if part.kind == "in" else part.kind
            raise BadRequest(f"There is no {part_name} {part.value!r} here.", param=part.kind)
        return _FoundPart(agent_row, target)

    async def _begin_part(self, request: ForgetRequest, part: Part) -> _BegunForgettings:
        """Begins to forget one part.

        Raises: BadRequest: there is no such memory, or no such part; or a fact that is to stay would not go, or is no
            longer true.
        """
        agent_row, target = await self._get_part(request.owner, part)
        if request.keep:
            going = await self.store.forget_previews.list_facts(agent_row, target, None)
            if missing := {*request.keep}.difference(fact.seq for fact in going.newest):
                raise BadRequest(f"Fact {min(missing)} is none of those that would go.", param="keep")
        extent = await self.store.forget_targets.measure(agent_row, target)
        audited = render_audited_part(part.kind, part.value)
        # The client's name for a conversation may be words, which no audit has.
        if isinstance(part.value, str):
            conversation = await self.store.memory_pages.find_conversation(agent_row, part.value)
            audited = (
                "conversation"
                if conversation is None
                else render_audited_part("conversation", conversation.uid)
            )
        return _BegunForgettings([await self._begin(agent_row, target, audited, request.keep)], extent)

    async def _begin(
        self, agent_row: int, target: ForgetTarget, what: str, retained: Sequence[int] = ()
    ) -> int:
        """Begins to forget, and notes it in the audit. Returns the forgetting's number.

        what: the value of `AuditEntry.what`.
        retained: the numbers of facts that stay.

        Raises: BadRequest: one of these is no longer true.
        """
        agent = await self.store.agents.find_by_id(agent_row)
        erased = await name_erased(self.store, agent_row, target, [what], retained)
        try:
            begun = await self.store.forgetting.begin(agent_row, target, retained_facts=retained)
        except WriteConflict as error:
            raise BadRequest(f"Nothing was forgotten: {error.message}.", param="keep") from error
        if agent is not None:
            at = self.now()
            await note_retained(self.store, at, COMMAND, agent.uid, retained)
            await note_forgetting(self.store, at, COMMAND, agent.uid, erased)
        return begun

    async def _get_agent_row(self, owner: MemoryOwner) -> int:
        """Returns the row of an owner's memory. Raises: BadRequest: there is no such memory."""
        profile = owner.profile or DEFAULT_PROFILE
        rows = await self.store.forget_targets.list_memories(owner.project, profile, owner.subject, limit=1)
        if not rows:
            raise make_nothing_found_error(owner.scope)
        return rows[0]
