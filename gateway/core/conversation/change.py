"""The change that a turn or the idle time makes, decided inside the writing transaction: exchanges in, a value out."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from gateway.core.conversation import settle
from gateway.core.conversation.active import find_mergeable
from gateway.core.conversation.canonical import MessageHasher, is_assistant, is_user_or_text
from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.request_end import RequestEnd
from gateway.core.conversation.tree import Tree
from storage.commands import CandidateExchanges, TurnChange
from storage.records import Atom, Exchange, ExchangeState, make_message_key


def plan_change(
    candidates: CandidateExchanges, plan: Plan, request_end: RequestEnd, rule: settle.SettleRule
) -> TurnChange:
    """Returns a turn's changes to the tree as it is now, inside the writing transaction. Raises: MissingContents."""
    query = plan.query
    tree = Tree(candidates.exchanges, candidates.contents, candidates.forgotten_hashes)
    before = {each.id: each for each in tree}
    if query.is_named and plan.match.match_point is None:
        plan = replace(plan, conversation_row=candidates.conversation_row)
    exchange = rule(tree, plan, request_end)
    merge = _mark_mergeable(tree, request_end.now, query.idle_s, is_named=query.is_named)
    exchange = tree.by_id[exchange.id]  # merging may have changed it
    changes = [tree.by_id[i] for i in tree.changed_ids if i != exchange.id]
    stale_ids = [
        each.id
        for each in (*changes, exchange)
        if each.id in before and _changes_index(before[each.id], each)
    ]
    continued_ids = {
        each.id
        for each in changes
        if each.id not in stale_ids and each == replace(before[each.id], continued=True)
    }
    tombstone_hashes = []
    if exchange.state is ExchangeState.OFF:
        tombstone_hashes = [
            make_message_key(atoms)
            for atoms in (*exchange.inputs, exchange.reply or ())
            if is_user_or_text(atoms)
        ]
    return TurnChange(
        exchange=exchange,
        others=[each for each in changes if each.id not in continued_ids],
        continued=sorted(continued_ids),
        prefixes=hash_prefixes(query.listing.hasher, exchange.inputs) if exchange.parent is None else [],
        tombstone_hashes=tombstone_hashes,
        stale=stale_ids,
        merge=merge,
    )


def plan_confirmation(
    candidates: CandidateExchanges, *, now: float, idle_s: float, is_named: bool
) -> TurnChange:
    """Returns the change that merges memory edits into their blocks, without a new turn.

    candidates: the conversation's exchanges.
    now: the present time, in seconds since the epoch.
    idle_s: the seconds after which a turn that nothing followed counts as confirmed.
    is_named: True if the client has named the conversation.
    """
    tree = Tree(candidates.exchanges, candidates.contents)
    merge = _mark_mergeable(tree, now, idle_s, is_named=is_named)
    return TurnChange(None, [tree.by_id[i] for i in tree.changed_ids], merge=merge)


def _mark_mergeable(tree: Tree, now: float, idle_s: float, *, is_named: bool) -> list[int]:
    """Marks the exchanges with memory edits that may be merged into the blocks. Returns their ids, oldest first."""
    mergeable = find_mergeable(tree, now, idle_s, is_named=is_named)
    for exchange, reason in mergeable:
        tree.change(exchange.id, merged=reason)
    return [each.exchange.id for each in mergeable]


def hash_prefixes(hasher: MessageHasher, inputs: Iterable[tuple[Atom, ...]]) -> list[bytes]:
    """Returns the hashes of the prefixes by which a list that opens a conversation is recognised.

    Every assistant message of the list is the end of a prefix.

    inputs: the atoms of the list's messages.
    """
    hashes = []
    path_hash = b""
    for atoms in inputs:
        path_hash = hasher.hash_path(atoms, path_hash)
        if is_assistant(atoms):
            hashes.append(path_hash)
    return hashes


def _changes_index(old: Exchange, new: Exchange) -> bool:
    """Returns whether the search index has to read an exchange again."""
    # The index holds only active exchanges: an inactive exchange is never shown, and as the best hit it would be the
    # measure for all others.
    return _list_indexed_fields(old) != _list_indexed_fields(new) and not is_tombstone(new)


def _list_indexed_fields(exchange: Exchange) -> tuple[object, ...]:
    """Returns the fields of an exchange that the search index reads."""
    return (
        exchange.active,
        exchange.inputs,
        exchange.reply,
        exchange.ended is None,
        exchange.continued and exchange.prefix_length,
    )
