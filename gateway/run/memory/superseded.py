"""The exchanges that a request supersedes, since its list has their messages in another form.

Other forms are a transcript that grew, a correction, and a reply that was cut short or not spoken at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from gateway.core.conversation.tree import Tree
from gateway.run.memory.memory_context import MemoryContext
from storage.records import Exchange


def find_superseded_exchanges(context: MemoryContext, idle_s: float) -> set[int]:
    """Returns the ids of the exchanges that are superseded once this request has finished.

    Raises: MissingContents: their contents are to be loaded.
    """
    tree, plan = context.tree, context.plan
    # A reply that came back cut is stored as it was generated until then.
    superseded_ids = {amendment.exchange_row for amendment in plan.amendments}
    # The request repeats what no later one has continued yet, and may have changed it.
    open_exchanges = [
        exchange
        for exchange, child in zip_longest(context.path, context.path[1:])
        if not (child and child.ended is not None and not tree.is_mid_turn(child))
        and not tree.is_continued(exchange)
    ]
    superseded_ids |= {exchange.id for exchange in open_exchanges}
    for exchange in (*open_exchanges, plan.exchange):
        if exchange.parent is not None:
            superseded_ids |= _list_turn_ids(
                tree, [sibling for sibling in tree.list_siblings(exchange) if not tree.is_continued(sibling)]
            )
        elif plan.conversation_row is not None:
            roots = _list_recent_roots(tree, plan.conversation_row, plan.query.now, idle_s)
            tree.contents.group(roots)
            # Only openings that this list extends are superseded; a named conversation may have several roots.
            extended_roots = [root for root in roots if tree.extends(exchange, root)]
            superseded_ids |= _list_turn_ids(tree, extended_roots)
    return superseded_ids


def _list_turn_ids(tree: Tree, beginnings: Sequence[Exchange]) -> set[int]:
    """Returns the ids of the exchanges of turns. beginnings: the first exchange of each turn."""
    exchanges = list(beginnings)
    for exchange in exchanges:  # the loop goes on with the exchanges that it adds
        exchanges += filter(tree.is_mid_turn, tree.list_children(exchange))
    return {exchange.id for exchange in exchanges}


def _list_recent_roots(tree: Tree, conversation_row: int, now: float, idle_s: float) -> list[Exchange]:
    """Returns the openings of a conversation from within the idle time that no later turn has continued."""
    return [
        root
        for root in tree.list_roots(conversation_row)
        if not tree.is_continued(root) and tree.read_turn_end_or_now(root, now) >= now - idle_s
    ]
