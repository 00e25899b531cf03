"""The record of a turn: the value that is written when it has ended, made of what was known and what went in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from gateway.core.conversation import settle
from gateway.core.conversation.canonical import WireMessage, text_of
from gateway.core.conversation.change import plan_change
from gateway.core.conversation.fast_path import finish_opening, finish_plain
from gateway.core.conversation.lookup import RECENT, full_probes, plain_probes
from gateway.core.conversation.openings import opening_of
from gateway.core.conversation.plan import Plan, low_of
from gateway.core.conversation.tree import Tree
from gateway.core.memory import edits
from gateway.core.memory.tools import Edit
from gateway.core.prompt.section import digest, learned
from gateway.core.turn.commands import FINISHED, End, TurnOutcome
from gateway.run.memory.known import Known
from gateway.run.memory.prompt import Prompt
from storage.commands import Change, Missing, Pool, Probes, TurnWrite
from storage.records import Block, BlockOp, Exchange, Snapshot

# The outcome that is written with a user's message before the model is asked, so that it survives the process.
OPENED = TurnOutcome(End.CANCELLED)
CHANGED_MEANWHILE = (
    "Error: the block {label!r} was changed by somebody else since you saw it. Nothing was done. It now reads:"
    "\n{value}"
)
# A rule that settles a turn.
How = Callable[[Tree, Plan, settle.Ended], Exchange]


@dataclass(slots=True)
class BlockEdits:
    """The changes of a turn's model to memory: blocks as the model sees them, and its edits, which stay pending.

    told: digests of what the path was told of each block, where others may change one meanwhile; None: nobody does.
    """

    blocks: list[Block] = field(default_factory=list)
    ops: list[BlockOp] = field(default_factory=list)
    told: dict[str, str] | None = None

    def make(self, op: BlockOp) -> Edit:
        """Makes an edit on the blocks as the model sees them. Returns it with the result that the model reads."""
        blocks, edit = edits.perform(self.blocks, op)
        if edit.value is None:
            return edit
        if (unseen := self._unseen(op)) is not None:
            return unseen
        self.blocks = blocks
        self.ops.append(op)
        if self.told is not None:
            self.told[op.label] = digest(edit.value)
        return edit

    def _unseen(self, op: BlockOp) -> Edit | None:
        """Returns an error where the model would write over what somebody else wrote and it has not seen."""
        told, block = self.told, next((each for each in self.blocks if each.label == op.label), None)
        if op.op != "rethink" or told is None or block is None or told.get(op.label) == digest(block.value):
            return None
        told[op.label] = digest(block.value)
        return Edit(None, CHANGED_MEANWHILE.format(label=op.label, value=block.value), has_failed=True)


def record_turn(
    known: Known,
    prompt: Prompt,
    changes: BlockEdits,
    outcome: TurnOutcome,
    now: float,
    how: How | None = None,
) -> TurnWrite:
    """Returns the write of a turn. now: when it ended. how: settles it, if not its end says how."""
    if how is None:
        how = settle.finish if outcome.state is FINISHED else settle.cancel
        if outcome.is_refused:
            how = settle.refuse
    ended = _ended(known, prompt, changes.ops, outcome, now)
    plan, key, look = known.plan, known.asked.identity.conversation, known.look
    snapshot = _snapshot(known, prompt, changes)
    plain: tuple[Exchange, int] | None = None
    # A plain turn that finished is one insert, unless the conversation has moved since it was read.
    if known.is_plain and how is settle.finish and look.conversation is not None:
        stored = None if snapshot is None or not snapshot.id else snapshot.id
        plain = (finish_plain(plan, ended, stored), look.conversation.rev)
    probes = partial(plain_probes, plan, key) if known.is_plain else partial(_probes, known, key)
    decide = partial(plan_change, plan=plan, ended=ended, how=how)
    return TurnWrite(
        known.agent,
        key,
        known.conversation_uid,
        ended.now,
        plain,
        probes,
        decide,
        None if known.is_plain else _foreseen(known, key, ended, how, decide),
        (look.next_seq, look.rev),
        ops=changes.ops,
        snapshot=snapshot,
        defaults=() if known.agent.id else known.asked.spec.own_blocks,
        shared=() if known.agent.id else known.asked.spec.shared_blocks,
        opening=None if known.is_plain else opening_of(plan, ended.now),
        chars=sum(map(len, map(text_of, (*plan.messages, *ended.full)))),
    )


def _ended(
    known: Known, prompt: Prompt, ops: Sequence[BlockOp], outcome: TurnOutcome, now: float
) -> settle.Ended:
    said = outcome.said or {"role": "assistant", "content": ""}
    has_words = outcome.state is FINISHED or bool(outcome.text)
    full = outcome.full if has_words or outcome.hidden else ()
    if has_words and not full:
        full = (said,)
    ours: frozenset[str] = frozenset()
    if full != (said,):  # else the client has all of the reply
        # Its own calls are in `said`; what else was called, the gateway ran.
        ours = frozenset(_call_ids(full) - _call_ids([said]))
    return settle.Ended(known.row, full, said, now, prompt.notes, ours, bool(ops), prompt.window.evicted)


def _call_ids(messages: Iterable[WireMessage]) -> set[str]:
    return {str(call.get("id")) for m in messages for call in m.get("tool_calls") or ()}


def _foreseen(
    known: Known,
    key: str | None,
    ended: settle.Ended,
    how: How,
    decide: Callable[[Pool], Change],
) -> Change | None:
    """Returns what a turn changes if nothing has changed since it was looked at.

    None: that takes contents which were not loaded, or more of a long conversation.
    """
    tree, conversation = known.tree, known.look.conversation
    if tree.is_partial or known.row >= 0:
        return None
    opening = finish_opening(tree, known.plan, ended) if how is settle.finish else None
    if opening is not None:
        return Change(opening)
    named = None if key is None or conversation is None else conversation.id
    try:
        return decide(Pool(tuple(tree), named, contents=tree.contents, tombs=tree.tombs))
    except Missing:
        return None


def _snapshot(known: Known, prompt: Prompt, changes: BlockEdits) -> Snapshot | None:
    """Returns the memory section that the path has from now on."""
    # Nothing new is kept, and what the path knew before it knows after.
    if known.plan.off:
        anchor = known.plan.match.anchor
        number = anchor.snapshot if anchor is not None else None
        return None if number is None else Snapshot(number, "", {})
    snapshot = prompt.section.snapshot
    return learned(snapshot, changes.blocks) if changes.ops else snapshot


def _probes(known: Known, key: str | None) -> Probes:
    """Returns what has to be looked at again in the transaction that writes the turn."""
    low = low_of(known.tree, known.plan)
    if low is not None:
        return full_probes(known.plan.query, key, low=max(0, low - RECENT))
    return full_probes(known.plan.query, key, recent=RECENT if known.tree.is_partial else None)
