"""Makes the exchange of a request: its parent and conversation as the tree is now, and the part on the record.

The tree may have changed since the request was planned, so parts of its plan are decided again here. The caller
(`settle.py`) gives the exchange its content, and adds it to the tree.
"""

from __future__ import annotations

from collections.abc import Set

from msgspec.structs import replace

from gateway.core.conversation.exchange import (
    count_atoms_to_end,
    ends_off_record,
    is_same_input,
    is_tombstone,
)
from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.off_record import find_recorded_indices, find_redactions, is_asked_again
from gateway.core.conversation.plan import Plan, find_opening
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.tree import Tree
from storage.records import REPLY, Exchange, ExchangeState


def make_exchange(tree: Tree, plan: Plan, request_end: RequestEnd) -> Exchange:
    """Returns the new exchange after its parent, with its redactions, or off the record.

    If its match point is not among the loaded exchanges, it begins a new tree. The exchange's draft leaves the tree.
    """
    exchange = _append_to_parent(tree, plan, request_end)
    tree.contents.provide_messages(exchange.id, plan.messages)
    conversation_row = _find_conversation(tree, plan, exchange)
    exchange = replace(
        exchange, conversation_row=exchange.id if conversation_row is None else conversation_row
    )
    # Another request, which was off the record, may have ended since this one was planned.
    redactions = find_redactions(
        tree, plan.query, exchange, plan.messages, len(plan.pending), tree.list_siblings(exchange)
    )
    exchange = replace(exchange, redactions=plan.redactions | redactions)
    repeated_exchanges = [
        other
        for other in tree.list_siblings(exchange)
        if is_asked_again(plan.query, other, exchange, follows_head=plan.follows_head)
    ]
    if not (plan.is_off_record or any(map(ends_off_record, repeated_exchanges))):
        return exchange
    # If the request itself asks to be off the record, messages that only this exchange has on the record stay.
    if plan.query.mode is not MemoryUse.ON and not plan.follows_head:
        recorded_indices = _find_recorded_only_here(tree, exchange, is_named=plan.query.is_named)
        if recorded_indices:
            return _redact_all_but(exchange, recorded_indices)
    return _make_off_record(exchange, len(plan.pending))


def _append_to_parent(tree: Tree, plan: Plan, request_end: RequestEnd) -> Exchange:
    """Returns the new exchange after its parent.

    It takes the place of its draft: in append mode the user's message was written before the model was asked.
    """
    parent, draft = tree.get(plan.exchange.parent), tree.get(request_end.id)
    if draft is not None:
        tree.remove(draft)
    exchange = replace(
        plan.exchange,
        id=request_end.id,
        seq=draft.seq if draft else 0,
        gapless_from=draft.gapless_from if draft else 0,
        parent=None if parent is None else parent.id,
        notes=dict(request_end.notes),
        evicted=request_end.evicted,
        length=len(plan.exchange.inputs) + 1,
    )
    if parent is None:
        # Without its parent the exchange begins a tree, so its position on the path does not hold.
        is_cut_off = plan.exchange.parent is not None
        return replace(exchange, depth=0, offset=0, prior=None, evicted=None) if is_cut_off else exchange
    exchange = replace(
        exchange,
        prior=tree.find_prior(exchange),
        offset=count_atoms_to_end(parent),
        length=parent.length + exchange.length,
    )
    # The window may begin among the new messages; their offsets move with the number of messages before them.
    if exchange.evicted is not None and exchange.evicted.depth == exchange.depth:
        begin = exchange.evicted.offset + exchange.offset - plan.exchange.offset
        exchange = replace(exchange, evicted=exchange.evicted._replace(offset=begin))
    if draft:
        return exchange
    # The numbers follow the parent's numbers. The store checks whether another conversation has taken them meanwhile.
    return replace(exchange, seq=parent.next_seq, gapless_from=parent.gapless_from)


def _find_conversation(tree: Tree, plan: Plan, exchange: Exchange) -> int | None:
    """Returns the row id of the conversation that the new exchange continues; None: the exchange begins one."""
    if exchange.parent is not None or plan.query.is_named:
        return plan.conversation_row
    opening = _find_later_opening(tree, exchange)
    if opening is None and plan.conversation_row is None:
        opening = find_opening(tree, exchange, plan.query)
    return opening.conversation_row if opening else plan.conversation_row


def _redact_all_but(exchange: Exchange, retained_indices: Set[int]) -> Exchange:
    """Returns the new exchange with its reply and its messages redacted. retained_indices: the messages that stay."""
    redactions = {REPLY, *range(len(exchange.inputs))} - retained_indices
    return replace(exchange, notes={}, redactions=exchange.redactions | redactions)


def _make_off_record(exchange: Exchange, pending_count: int) -> Exchange:
    """Returns the new exchange as one that is off the record: its state is OFF, and its text is not stored.

    pending_count: the number of the exchange's first messages that are stored already. These go with the next request
        on the record.
    """
    return replace(
        exchange,
        state=ExchangeState.OFF,
        notes={},
        inputs=exchange.inputs[pending_count:],
        media=exchange.media[pending_count:],
        length=exchange.length - pending_count,
    )


def _find_recorded_only_here(tree: Tree, exchange: Exchange, *, is_named: bool) -> set[int]:
    """Returns the indices of messages on the record that no active sibling of the exchange has once it is written."""
    siblings = tree.list_siblings(exchange)
    tree.contents.group(siblings)
    own_indices = find_recorded_indices(exchange, siblings)
    for other in siblings if own_indices else ():
        if is_tombstone(other) or not tree.is_active(other, is_named=is_named):
            continue
        # The new exchange will supersede a sibling that it extends, unless the sibling was continued.
        will_stay = (
            tree.is_continued(other) or is_same_input(other, exchange) or not tree.extends(exchange, other)
        )
        if will_stay:
            own_indices = {
                i
                for i in own_indices
                if i in other.redactions or other.inputs[: i + 1] != exchange.inputs[: i + 1]
            }
    return own_indices


def _find_later_opening(tree: Tree, exchange: Exchange) -> Exchange | None:
    """Returns an opening that began later than the exchange and extends it.

    If two openings overlap, the later one joins the earlier one. If the earlier one ends last, the later one is stored
    already when this exchange is written. Openings of older conversations do not count: they repeat or extend another
    opening.
    """
    openings = [opening for opening in tree if opening.parent is None]
    tree.contents.group(openings)
    older_conversations = {
        opening.conversation_row for opening in openings if opening.begun <= exchange.begun
    }
    later_openings = (
        opening
        for opening in openings
        if opening.conversation_row not in older_conversations and tree.extends(opening, exchange)
    )
    return min(later_openings, key=lambda opening: opening.begun, default=None)
