"""Changes of a memory by hand: edits of blocks and facts, and pauses. The audit records each change.

An operator makes them on the page or the command line, the person of the memory by a link.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from gateway.core.memory.fact_words import WRITTEN_FACT_CHARS, make_fact_key
from gateway.core.memory.standing import MAX_CHARS, find_replaced_rows, normalize_statement
from gateway.core.memory.standing_block import fit_into_block
from gateway.errors import BadRequest, Conflict, MemoryNotFound, UnknownId
from gateway.run.admin.audited_parts import AuditedFact
from gateway.run.admin.memory.editor import COMMAND, Editor, note_edit
from gateway.run.admin.memory.manual_block_edits import ManualBlockEdits
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.memory_names import make_nothing_found_error
from gateway.run.admin.operation_arguments import NO_DEFAULTS, Arguments, Defaults, RawArguments
from storage.errors import NotFound, WriteConflict
from storage.operator_records import AuditAction
from storage.records import Agent, Fact, RememberedFact, StandingFact
from storage.sql.store import Store


class FactExists(Conflict):
    """An equal fact is true already."""

    def __init__(self, message: str, seq: int) -> None:
        """Makes the error about the field `text`. seq: the number of the equal fact."""
        super().__init__(message, param="text")
        self.seq = seq


class MemoryEdits(Struct, frozen=True):
    """Changes memories, named by their uid.

    Each method raises: UnknownId: the editor sees no such memory or fact; Conflict; BadRequest.
    """

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    defaults: Defaults = NO_DEFAULTS

    @property
    def blocks(self) -> ManualBlockEdits:
        """The edits of blocks."""
        return ManualBlockEdits(self.store, self.now)

    async def remember_fact(
        self, editor: Editor, agent: Agent, text: str, *, always: bool = False
    ) -> RememberedFact:
        """Adds a fact, unless an equal fact is true. Returns the new or the equal fact.

        always: True if the fact is shown before each reply. It replaces an equal fact that is not, and standing facts
            that it contradicts.
        """
        text = read_fact_text(text)
        now = self.now()
        replaced_rows: list[int] = []
        if always:
            _check_room(text, now, param="text")
            replaced_rows = find_replaced_rows(text, await self.store.facts.list_standing(agent.id))
        try:
            remembered = await self.store.facts.remember(
                agent,
                text,
                make_fact_key(text) or text,
                editor.origin,
                now,
                standing=always,
                replaced_rows=replaced_rows,
            )
        except NotFound as error:
            raise MemoryNotFound from error
        if remembered.is_new:
            await self._audit(editor, "remember", agent.uid, AuditedFact(remembered.fact.seq))
            await self._audit_replaced(editor, agent, remembered.fact, now)
        return remembered

    async def add_fact(self, editor: Editor, uid: str, text: str, *, always: bool = False) -> Fact:
        """Adds a fact that rests on no message, and returns it.

        always: the value for `always` of `remember_fact`.

        Raises: FactExists: an equal fact is true.
        """
        agent = await get_agent(self.store, editor.project, uid)
        fact, is_new = await self.remember_fact(editor, agent, text, always=always)
        if not is_new:
            state = ", and is not mentioned" if fact.muted else ""
            advice = " The preview of a forgetting can keep it." if fact.sources else ""
            raise FactExists(f"Nothing was added: fact {fact.seq} says so already{state}.{advice}", fact.seq)
        return fact

    async def correct_fact(self, editor: Editor, uid: str, seq: int, text: str) -> Fact:
        """Replaces a fact by a fact with another text, and returns the new fact. Raises: Conflict: it is not true."""
        agent = await get_agent(self.store, editor.project, uid)
        old_fact = await self.store.facts.find(agent.id, seq)
        if old_fact is None:
            raise _make_unknown_fact_error()
        text = read_fact_text(text)
        if text == old_fact.text:
            raise BadRequest("The text is the same as before.", param="text")
        # A correction back to a text that this fact has replaced is an undo in the audit.
        replaced_facts = await self.store.facts.list_replaced(agent.id, old_fact.id)
        restored_fact = next((fact for fact in replaced_facts if fact.text == text), None)
        try:
            new_fact = await self.store.facts.correct(
                agent, seq, text, make_fact_key(text) or text, editor.origin, self.now()
            )
        except NotFound as error:
            raise _make_unknown_fact_error() from error
        except WriteConflict as error:
            raise Conflict(f"Nothing was changed: {error.message}.", param="text") from error
        if restored_fact is None:
            await self._audit(editor, "correct", uid, AuditedFact(seq, new_fact.seq))
        else:
            await self._audit(editor, "undo", uid, AuditedFact(seq, new_fact.seq, restored_fact.seq))
        return new_fact

    async def mute_fact(self, editor: Editor, uid: str, seq: int, *, is_muted: bool) -> Fact:
        """Mutes a fact, so that only lists show it, or unmutes it."""
        agent = await get_agent(self.store, editor.project, uid)
        try:
            fact = await self.store.facts.mute(agent.id, seq, self.now(), is_muted=is_muted)
        except NotFound as error:
            raise _make_unknown_fact_error() from error
        await self._audit(editor, "mute", uid, AuditedFact(seq, state="muted" if is_muted else "said again"))
        return fact

    async def set_always(self, editor: Editor, uid: str, seq: int, *, is_always: bool) -> Fact:
        """Has a fact shown before each reply, or only when it fits.

        A fact that is shown before each reply replaces standing facts that it contradicts.

        Raises: Conflict: it is muted, or not true.
        """
        agent = await get_agent(self.store, editor.project, uid)
        fact = await self.store.facts.find(agent.id, seq)
        if fact is None:
            raise _make_unknown_fact_error()
        now = self.now()
        replaced_rows: list[int] = []
        if is_always:
            _check_room(fact.text, fact.valid_from, param="always")
            replaced_rows = find_replaced_rows(fact.text, await self.store.facts.list_standing(agent.id))
        try:
            fact = await self.store.facts.set_standing(
                agent.id, seq, is_standing=is_always, replaced_rows=replaced_rows, at=now
            )
        except NotFound as error:
            raise _make_unknown_fact_error() from error
        except WriteConflict as error:
            raise Conflict(f"Nothing was changed: {error.message}.", param="always") from error
        state = "told before each reply" if is_always else "told when it fits"
        await self._audit(editor, "always", uid, AuditedFact(seq, state=state))
        await self._audit_replaced(editor, agent, fact, now)
        return fact

    async def pause(self, editor: Editor, uid: str, *, is_paused: bool) -> None:
        """Pauses a memory, or resumes it. A paused memory remembers and recalls nothing, whatever requests ask for."""
        agent = await get_agent(self.store, editor.project, uid)
        await self.store.forgetting.pause(agent.id, self.now() if is_paused else None)
        await self._audit(editor, "pause", uid, "paused" if is_paused else "resumed")

    # -- for the command line

    async def add(self, raw: RawArguments) -> dict[str, Any]:
        """Adds a fact. Returns it."""
        arguments = Arguments(raw)
        uid = await self._get_uid(arguments)
        text = arguments.read_text("text")
        always = arguments.read_flag("always")
        return asdict(await self.add_fact(Editor(COMMAND), uid, text, always=always))

    async def correct(self, raw: RawArguments) -> dict[str, Any]:
        """Corrects a fact. Returns the new fact."""
        arguments = Arguments(raw)
        uid = await self._get_uid(arguments)
        seq = arguments.read_number("fact")
        text = arguments.read_text("text")
        return asdict(await self.correct_fact(Editor(COMMAND), uid, seq, text))

    async def mute(self, raw: RawArguments) -> dict[str, Any]:
        """Mutes a fact, or with the argument `off` unmutes it. Returns the fact."""
        arguments = Arguments(raw)
        uid = await self._get_uid(arguments)
        seq = arguments.read_number("fact")
        is_muted = not arguments.read_flag("off")
        return asdict(await self.mute_fact(Editor(COMMAND), uid, seq, is_muted=is_muted))

    async def _get_uid(self, arguments: Arguments) -> str:
        scope = arguments.read_owner(self.defaults).scope
        agent = await self.store.agents.find(scope)
        if agent is None:
            raise make_nothing_found_error(scope)
        return agent.uid

    async def _audit_replaced(self, editor: Editor, agent: Agent, fact: Fact, at: float) -> None:
        """Notes in the audit which facts a fact has replaced. at: the time of that, in seconds since the epoch."""
        for replaced_fact in await self.store.facts.list_replaced(agent.id, fact.id):
            if replaced_fact.ended_at == at:
                await self._audit(editor, "correct", agent.uid, AuditedFact(replaced_fact.seq, fact.seq))

    async def _audit(self, editor: Editor, action: AuditAction, uid: str, what: str | AuditedFact) -> None:
        await note_edit(self.store, self.now(), editor, action, uid, what)


def read_fact_text(text: str) -> str:
    """Returns the text of a fact on one line. Raises: BadRequest: it is empty or too long."""
    line = " ".join(text.split())
    if not line or len(line) > WRITTEN_FACT_CHARS:
        raise BadRequest(f"A fact has 1 to {WRITTEN_FACT_CHARS} characters, not {len(line)}.", param="text")
    return line


def _check_room(text: str, since: float, *, param: str) -> None:
    """Raises: BadRequest: a fact with this text is too long to be shown before each reply."""
    if len(normalize_statement(text)) > MAX_CHARS or not fit_into_block([StandingFact(0, text, since)]):
        raise BadRequest(
            f"The text is too long to be told before each reply: up to {MAX_CHARS} characters have room, and fewer "
            "of a script such as Chinese.",
            param=param,
        )


def _make_unknown_fact_error() -> UnknownId:
    return UnknownId("There is no such fact.")
