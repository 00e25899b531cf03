"""The end of an item of a batch, and its turn as the last exchange of its conversation."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.agents.batches.item_texts import NEEDS_APPROVAL, UNKNOWN_TOOL, RequestState
from gateway.agents.batches.item_turn import ItemTurn
from gateway.agents.runs.stored_conversation import make_step_open
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.stored_path import finish_turn, hash_exchanges
from gateway.core.prompt.section import Section
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.stop_reason import STOP_MESSAGES, StopReason
from gateway.run.memory.fitted_window import FittedWindow
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from storage.commands import BlockMerge
from storage.run_commands import StepOpen
from storage.run_records import RunState, TokenCounts


class ItemEnding(Struct, frozen=True, kw_only=True):
    """The end of an item, before its turn is appended to its conversation."""

    turn: ItemTurn
    # The final state and the stop reason of the item's run.
    state: RunState
    stop: str
    # The message of the error; "" if the run has not failed.
    message: str
    # The tokens of the last call.
    last_counts: TokenCounts
    # The edits of the last round.
    merged: BlockMerge = field(default_factory=BlockMerge)
    # The versions of the blocks on which these edits were made, by block.
    versions: Mapping[int, int] = field(default_factory=dict)


def make_ending(
    turn: ItemTurn,
    outcome: TurnOutcome,
    last_counts: TokenCounts,
    merged: BlockMerge,
    versions: Mapping[int, int],
) -> ItemEnding:
    """Returns the end of an item after its turn. The other parameters are fields of `ItemEnding`."""
    stop = outcome.stop_reason
    message = STOP_MESSAGES.get(stop, "The reply was an error.")
    if outcome.waiting:
        stop = StopReason.REQUIRES_APPROVAL
        message = UNKNOWN_TOOL if "client" in outcome.waiting.values() else NEEDS_APPROVAL
    is_good = stop.is_proper and not outcome.waiting
    return ItemEnding(
        turn=turn,
        state=RunState.COMPLETED if is_good else RunState.FAILED,
        stop=stop,
        message="" if is_good else message,
        last_counts=last_counts,
        merged=merged,
        versions=versions,
    )


def make_turn(
    turn: ItemTurn, outcome: TurnOutcome, context: MemoryContext, state: RequestState, now: float
) -> StepOpen:
    """Returns an item's turn as the exchange after the last one of its conversation. context: as it is now."""
    # A live turn may have written the conversation's initial messages meanwhile.
    head = state.messages - len(context.plan.pending)
    pinned = context.pinned if context.pinned is not None and context.pinned.id else None
    prompt = Prompt(
        turn.memory_request.chat,
        turn.memory_request.target,
        section=Section(pinned),
        window=FittedWindow(evicted=context.evicted),
        new_notes={n - head: note for n, note in state.notes.items() if n >= head},
    )
    write = make_step_open(context, prompt, None, now)
    shown_reply = outcome.shown_reply or {"role": "assistant", "content": ""}
    hasher = MessageHasher(context.agent.secret)
    exchange = finish_turn(
        write.exchange,
        hasher,
        hash_exchanges(context.path, hasher),
        full_reply=outcome.full_reply or (shown_reply,),
        shown_reply=shown_reply,
        model=context.plan.query.model,
        now=now,
    )
    return replace(write, exchange=exchange)
