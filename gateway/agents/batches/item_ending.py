"""The end of an item of a batch, with its turn as the last exchange of its conversation."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.batches.item_failure import AGENT_GONE, NEEDS_APPROVAL, UNKNOWN_TOOL
from gateway.agents.batches.item_texts import RequestState, load_written_edit
from gateway.agents.batches.item_turn import ItemTurn
from gateway.agents.runs.stored_conversation import make_step_open, read_stored_context
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.stored_path import finish_turn, hash_exchanges
from gateway.core.conversation.wire_message import read_text
from gateway.core.memory.edits import make_block_merge
from gateway.core.memory.memory_tools import STORED_SOURCES
from gateway.core.prompt.section import Section
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.stop_reason import STOP_MESSAGES, StopReason
from gateway.run.memory.fitted_window import FittedWindow
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from storage.batch_records import ItemEnd
from storage.commands import BlockMerge
from storage.errors import NotFound
from storage.run_commands import StepOpen
from storage.run_records import RunState, TokenCounts


class EndedTurn(Struct, frozen=True):
    """The turn of an item that has ended, before the turn is appended to its conversation."""

    # The turn. Its reply becomes an exchange.
    turn: ItemTurn
    # The end of the item, without the turn and with the edits of the last round.
    end: ItemEnd


def make_ended_turn(
    turn: ItemTurn,
    outcome: TurnOutcome,
    counts: TokenCounts,
    merged: BlockMerge,
    versions: Mapping[int, int],
) -> EndedTurn:
    """Returns the turn of an item that has come to an outcome.

    outcome: the outcome of the turn.
    counts, merged, versions: the fields of the `ItemEnd`.
    """
    stop = outcome.stop_reason
    message = STOP_MESSAGES.get(stop, "The reply was an error.")
    if outcome.waiting:
        stop = StopReason.REQUIRES_APPROVAL
        message = UNKNOWN_TOOL if "client" in outcome.waiting.values() else NEEDS_APPROVAL
    is_good = stop.is_proper and not outcome.waiting
    end = ItemEnd(
        turn.item,
        RunState.COMPLETED if is_good else RunState.FAILED,
        stop,
        turn.now(),
        error_message="" if is_good else message,
        epoch=turn.item.epoch,
        counts=counts,
        merged=merged,
        versions=versions,
    )
    return EndedTurn(turn, end)


async def make_end_with_turn(keeper: MemoryKeeper, ended_turn: EndedTurn) -> ItemEnd:
    """Returns the end of an item, with its turn after the last turn of its conversation. Raises: StoreError.

    The caller must be first in the queue of the conversation from this call until the write.
    """
    turn = ended_turn.turn
    outcome = turn.outcome
    now = keeper.now()
    end = replace(ended_turn.end, now=now)
    if outcome is None or not (outcome.full_reply or outcome.text):
        return end
    state = turn.texts.state
    assert state is not None  # a reply has come, so a request was composed
    try:
        context = await read_stored_context(
            keeper.store, turn.context.request, turn.texts.request.messages, keeper.settings.idle_s
        )
    except NotFound:
        return replace(end, state=RunState.FAILED, stop=StopReason.ERROR, error_message=AGENT_GONE)
    inserts = [edit for edit in turn.block_edits.edits if edit.op in STORED_SOURCES]
    return replace(
        end,
        turn=_make_turn(turn, outcome, context, state, now),
        began_at=state.began,
        turn_counts=turn.sum_counts(end.counts),
        rounds=len(turn.texts.rounds) + (end.counts.total > 0 or end.state is RunState.COMPLETED),
        edits=[load_written_edit(edit) for stored in turn.texts.rounds for edit in stored.edits],
        merged=replace(make_block_merge((), inserts), writes=end.merged.writes),
    )


def _make_turn(
    turn: ItemTurn, outcome: TurnOutcome, context: MemoryContext, state: RequestState, now: float
) -> StepOpen:
    """Returns an item's turn as the exchange after the last exchange of its conversation.

    context: the context of the conversation as it is now.
    """
    # A live turn may have written the conversation's initial messages meanwhile.
    written_count = state.messages - len(context.plan.pending)
    pinned = context.section if context.section is not None and context.section.id else None
    prompt = Prompt(
        turn.context.request.chat,
        turn.context.request.target,
        section=Section(pinned),
        window=FittedWindow(evicted=context.evicted),
        new_notes={n - written_count: note for n, note in state.notes.items() if n >= written_count},
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


def report_turn(keeper: MemoryKeeper, ended_turn: EndedTurn) -> None:
    """Notifies the background services of an item's turn."""
    turn = ended_turn.turn
    context, outcome = turn.context, turn.outcome
    if outcome is None:
        return
    messages = turn.texts.request.messages
    chars = sum(len(read_text(message)) for message in messages) + len(outcome.text)
    keeper.writer.report_lag(context.agent.id, context.snapshot, chars)
    keeper.events.report_stored_turn(
        context.agent.id, len(messages) + 1, context.request.spec.sleeptime, context.snapshot.next_seq
    )
