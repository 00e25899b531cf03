"""Openings: lists that go on from nothing, and their digests, cached so that the next one need not read them again.

A user who opens one conversation after another has each list compared with the openings of the idle time, which it may
repeat or extend (rule 6). Nearly always it does neither, and the words that they begin with show it. Where they do not,
the rules decide on the stored exchanges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.core.conversation.canonical import Listing, WireMessage, is_user, text_of
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match import MemoryUse, Query
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import Tree
from gateway.core.words import transcribed
from storage.commands import Missing, Opening
from storage.records import Exchange


def begins_conversation(query: Query, openings: Iterable[Opening]) -> bool:
    """Returns whether a list certainly begins a new conversation. openings: all of its memory that may still count.

    Nothing of the memory may be off the record.
    """
    listing = query.listing
    if (
        listing.answered
        or query.named
        or query.kind is not ConversationKind.CLIENT
        or query.mode is not MemoryUse.ON
        or not len(listing)
    ):
        return False
    spoken: dict[int, list[str]] = {}
    return not any(
        opening.begun > query.now
        or (query.now - opening.at <= query.idle_s and _may_extend(listing, opening, spoken))
        for opening in openings
    )


def opening_of(plan: Plan, at: float) -> Opening | None:
    """Returns the digest of a turn, written at that time, if it is an opening."""
    e, messages = plan.exchange, plan.messages
    if plan.match.match_point is not None or plan.query.named or not messages:
        return None
    return _opening(e, messages[-1], at)


def openings_of(tree: Tree) -> list[Opening]:
    """Returns the openings of a tree without continuation, the newest last."""
    found = sorted((x for x in tree if x.parent is None and not x.continued), key=lambda x: x.begun)
    return [_opening(x, _last_message(tree, x), _end(x)) for x in found]


def _opening(e: Exchange, last: WireMessage | None, at: float) -> Opening:
    """last: the last of its messages; None: its words are not known."""
    if last is None:
        return Opening(at, e.begun, e.inputs, None, None)
    spoken = transcribed(text_of(last))
    return Opening(at, e.begun, e.inputs, len(spoken), _stem(spoken, len(spoken)))


def _may_extend(listing: Listing, old: Opening, spoken: dict[int, list[str]]) -> bool:
    """Returns whether a list may extend an opening, as `Tree.extends` has it. spoken: its words, by k."""
    k, atoms = len(old.inputs), listing.atoms
    if not 0 < k <= len(atoms):
        return False
    last = atoms[k - 1]
    if last != old.inputs[-1]:
        if not (is_user(last) and is_user(old.inputs[-1])):
            return False
        if old.words is not None:
            if k not in spoken:
                spoken[k] = transcribed(listing.text(k - 1))
            mine = spoken[k]
            if not 0 < old.words <= len(mine) or _stem(mine, old.words) != old.stem:
                return False
    return tuple(atoms[: k - 1]) == old.inputs[:-1]


def _stem(spoken: Sequence[str], count: int) -> int:
    """Returns a hash of the words that a transcript of so many words keeps when it goes on: the last may be completed.

    One word that stands alone is not completed.
    """
    return hash(tuple(spoken[: max(1, count - 1)]))


def _last_message(tree: Tree, x: Exchange) -> WireMessage | None:
    try:
        messages = tree.content(x).messages
    except Missing:
        return None
    return messages[-1] if messages else None


def _end(x: Exchange) -> float:
    """Returns when an opening ended; one that is under way may still do so at any time."""
    own = x.stopped if x.ended is None else x.ended
    return float("inf") if own is None else max(own, x.touched)
