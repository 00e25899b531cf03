"""The content that a request shows already, so that no note repeats it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence, Set
from itertools import groupby

from msgspec import Struct

from gateway.core.conversation.canonical import Listing, without_space
from gateway.core.conversation.tree import Tree
from gateway.core.prompt.compose import Composition
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import FittedWindow
from storage.records import Atom, Exchange, Message

# Messages before one that are tried as the beginning of the same reply, at most.
_MAX_MERGED = 8


class VisibleContent(Struct, frozen=True):
    """The content that one request shows, but for its own note, which is made later."""

    # The numbers of messages that the request has word for word, so that they need not be compared.
    numbers: range
    # The hashes of all that is visible.
    atoms: Set[Atom]
    # Earlier notes that are still visible.
    notes: Sequence[str]

    @classmethod
    def of(cls, context: MemoryContext, composition: Composition, window: FittedWindow) -> VisibleContent:
        """Returns the content that a prompt of these shows. composition: without this request's note."""
        listing, dropped = context.plan.query.listing, window.dropped
        if dropped:
            by_position = zip(listing.positions, listing.atoms, strict=True)
            shown = {a for position, atoms in by_position if position not in dropped for a in atoms}
        else:
            shown = set(listing.between(0, listing.before[-1]))
        if not context.is_plain:
            shown.update(_merged_replies(listing, dropped))
        for each in window.inserted(composition):
            shown.update(each.atoms)
        return cls(_verbatim_numbers(context, composition, window), shown, window.notes(composition))


NOTHING_VISIBLE = VisibleContent(range(0), frozenset(), ())


def _merged_replies(listing: Listing, dropped: Container[int]) -> Iterator[Atom]:
    """Yields the hashes of successive assistant messages of a list, joined.

    Stored, they may be one reply: an application's own text (LiveKit's `session.say`) stands before the model's.
    """
    for role, run in groupby(range(len(listing.positions)), listing.role):
        replies = [i for i in run if listing.positions[i] not in dropped] if role == "assistant" else []
        if len(replies) < 2:
            continue  # the texts of most need not be read
        texts: list[str] = []
        for text in filter(None, (without_space(listing.text(i)) for i in replies)):
            texts = [text, *(each + text for each in texts[:_MAX_MERGED])]
            yield from (listing.canon.text_atom(None, each) for each in texts[1:])


def _verbatim_numbers(context: MemoryContext, composition: Composition, window: FittedWindow) -> range:
    """Returns the numbers of messages that the request has word for word."""
    match_point = context.plan.match.match_point
    if match_point is None:
        return range(0)
    after = first = match_point.next_seq
    if context.is_plain:
        first = after if window.evicted_tokens else match_point.gapless_from
    elif context.is_stored:
        first = max(match_point.gapless_from, _first_filled(context, composition, window, after))
    return range(first, after)


def _first_filled(
    context: MemoryContext, composition: Composition, window: FittedWindow, otherwise: int
) -> int:
    """Returns the number from which on a stored conversation is filled in, without a gap and in whole exchanges."""
    included = range(len(composition.inserted)) if window.included is None else window.included
    if not included:
        return otherwise
    gap = next((n for n in range(len(included) - 1, 0, -1) if included[n - 1] != included[n] - 1), 0)
    begins = composition.inserted[included[gap]].at or (0, 0)
    return next((x.seq for x in context.path if (x.depth, x.offset) >= begins), otherwise)


def shows_origin(context: MemoryContext, window: FittedWindow, m: Message) -> bool:
    """Returns whether a fact was learned from what is visible anyway."""
    if window.evicted_tokens or context.request.spec.history == "client":
        return False
    match_point = context.plan.match.match_point
    # On a plain path not every exchange is loaded.
    if context.is_plain:
        return match_point is not None and m.conversation == match_point.conversation
    return bool(m.origins) and context.path_ids.issuperset(m.origins)


def replaced_exchanges(context: MemoryContext, idle_s: float) -> set[int]:
    """Returns the exchanges that this list has in another form, and that no finished request has replaced yet.

    Other forms are a transcript that grew, a correction, and a reply that was cut short or not spoken at all.
    """
    tree, plan = context.tree, context.plan
    # A reply that came back cut is stored as it was generated until this request has finished.
    found = {amendment.exchange for amendment in plan.amendments}
    unsettled = [exchange for exchange in context.path if not tree.is_continued(exchange)]
    found |= {exchange.id for exchange in unsettled}
    for exchange in (*unsettled, plan.exchange):
        if exchange.parent is not None:
            found |= {other.id for other in tree.siblings(exchange) if not tree.children(other)}
        elif plan.conversation is not None:
            # Only openings that this list extends are replaced; a named conversation may have several roots.
            roots = _recent_roots(tree, plan.conversation, plan.query.now, idle_s)
            tree.group_for_loading(roots)
            found |= {root.id for root in roots if tree.extends(exchange, root)}
    return found


def _recent_roots(tree: Tree, conversation: int, now: float, idle_s: float) -> list[Exchange]:
    """Returns the openings of a conversation from within the idle time that nothing follows."""
    roots = tree.roots(conversation)
    return [
        root for root in roots if not tree.children(root) and tree.turn_end_or_now(root, now) >= now - idle_s
    ]
