"""Decides whether enough of a long conversation was loaded to plan a request."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.conversation.exchange import count_atoms_to_end, read_moved_at
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import Tree
from storage.records import EvictedPart, Exchange


def is_loaded_enough(
    tree: Tree, plan: Plan, evicted: EvictedPart | None, last_at: float, exact_match: Exchange | None
) -> bool:
    """Returns whether as much of a long conversation was loaded as this request needs.

    It is enough if the client's list is word for word the end of the path, if the path's last turn is loaded completely
    with what follows it, and if the part before the list is loaded back to where the window began. No other path may
    end with the same list. Therefore the last message of a named conversation has to be loaded too: it may be on a
    branch that ends far above the deepest one.

    evicted: the part of the path that has left the window.
    last_at: the time at which the named conversation last changed, in seconds since the epoch.
    exact_match: the exchange with the whole list as its path; None: no exchange has it.
    """
    query, match_point = plan.query, plan.match.match_point
    if match_point is None:
        return not query.listing.answered_count and query.kind is ConversationKind.CLIENT
    if (exact_match is not None and tree.get(exact_match.id) is None) or _may_lack_children(
        tree, match_point
    ):
        return False
    path = tree.list_path(match_point)
    reaches_root = path[0].parent is None
    if not reaches_root and not (
        _is_loaded_to_window(tree, path, evicted) and (not query.is_named or _has_latest(tree, path, last_at))
    ):
        return False
    return plan.follows_head or _ends_with_list(tree, match_point, plan, reaches_root=reaches_root)


def _may_lack_children(tree: Tree, exchange: Exchange) -> bool:
    """Returns whether exchanges that follow this one may be stored and not loaded.

    A conversation's first exchange is always loaded, but an old exchange after it may not be.
    """
    if exchange.parent is not None or tree.list_children(exchange):
        return False
    return any(other.depth for other in tree if other.conversation_row == exchange.conversation_row)


def _is_loaded_to_window(tree: Tree, path: Sequence[Exchange], evicted: EvictedPart | None) -> bool:
    """Returns whether a path without its root is loaded back to the window's beginning, and its last turn is whole."""
    reaches_window = evicted is not None and evicted.offset >= count_atoms_to_end(path[0])
    return reaches_window and not tree.is_mid_turn(tree.locate_turn_start(path[-1]))


def _has_latest(tree: Tree, path: Sequence[Exchange], last_at: float) -> bool:
    """Returns whether a conversation's last message is loaded, and is on the path or follows an exchange of it.

    A cancelled request is on no path, but follows an exchange of one. A root that is on no path, such as a request for
    a title, does not show that the other branches are loaded.

    last_at: the time of the conversation's last message, in seconds since the epoch.
    """
    latest_exchange = max(tree, key=read_moved_at)
    return read_moved_at(latest_exchange) >= last_at and not {
        latest_exchange.id,
        latest_exchange.parent,
    }.isdisjoint(exchange.id for exchange in path)


def _ends_with_list(tree: Tree, match_point: Exchange, plan: Plan, *, reaches_root: bool) -> bool:
    """Returns whether the stored messages of the list are word for word the end of the path.

    reaches_root: True if the path is loaded from its root on; otherwise the list has to be shorter than the loaded
        path.
    """
    listing, match = plan.query.listing, plan.match
    if match.altered and not match.altered.inputs.start:
        # The reply is altered, and the list has no other reply before it, so it may stand for any stored one.
        return False
    atoms = tree.list_path_atoms(match_point)
    if match.altered and match_point.reply:
        atoms = atoms[: -len(match_point.reply)]
    client_atoms = listing.list_atoms(match.first if match.altered else match.last + 1)
    if match.last + 1 != listing.answered_count or len(client_atoms) > len(atoms) - (not reaches_root):
        return False
    return atoms[len(atoms) - len(client_atoms) :] == client_atoms
