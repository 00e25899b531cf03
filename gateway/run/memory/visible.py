"""The content that a request shows already, so that its note does not repeat it."""

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

# The most messages that are tried as the beginning of one reply with the message after them.
_MAX_MERGED = 8


class VisibleContent(Struct, frozen=True):
    """The content that one request shows, but for its own note, which is made later."""

    # The numbers of messages that the request has word for word, so that they need not be compared.
    verbatim: range
    # The hashes of all that is visible.
    atoms: Set[Atom]
    # Earlier notes that are still visible.
    notes: Sequence[str]

    @classmethod
    def of(cls, context: MemoryContext, composition: Composition, window: FittedWindow) -> VisibleContent:
        """Returns the content that a prompt of these shows. composition: without this request's note."""
        listing, dropped = context.plan.query.listing, window.dropped
        if dropped:
            messages = zip(listing.positions, listing.atoms, strict=True)
            visible = {atom for position, atoms in messages if position not in dropped for atom in atoms}
        else:
            visible = set(listing.between(0, listing.before[-1]))
        if not context.is_plain:
            visible.update(_merged_replies(listing, dropped))
        for each in window.inserted(composition):
            visible.update(each.atoms)
        return cls(_verbatim_messages(context, composition, window), visible, window.notes(composition))


NOTHING_VISIBLE = VisibleContent(range(0), frozenset(), ())


def _merged_replies(listing: Listing, dropped: Container[int]) -> Iterator[Atom]:
    """Yields the hashes of successive assistant messages of a list, joined.

    Stored, they may be one reply: an application's own text (LiveKit's `session.say`) stands before the model's.
    """
    for role, run in groupby(range(len(listing)), listing.role):
        if role != "assistant":
            continue
        replies = [i for i in run if listing.positions[i] not in dropped]
        if len(replies) < 2:
            continue  # the texts of most need not be read
        # All that end with the present message: after a, b and c they are c, bc and abc.
        joined: list[str] = []
        for text in filter(None, (without_space(listing.text(i)) for i in replies)):
            joined = [text, *(before + text for before in joined[:_MAX_MERGED])]
            yield from (listing.canon.text_atom(None, each) for each in joined[1:])


def _verbatim_messages(context: MemoryContext, composition: Composition, window: FittedWindow) -> range:
    """Returns the numbers of messages that the request has word for word."""
    match_point = context.plan.match.match_point
    if match_point is None:
        return range(0)
    end = first = match_point.next_seq
    if context.is_plain:
        first = end if window.evicted_tokens else match_point.gapless_from
    elif context.is_stored:
        first = max(match_point.gapless_from, _first_without_gap(context, composition, window, end))
    return range(first, end)


def _first_without_gap(
    context: MemoryContext, composition: Composition, window: FittedWindow, end: int
) -> int:
    """Returns the number of the first message from which on the prompt has a stored conversation without a gap.

    It is the first message of an exchange. Where nothing of the conversation is in the prompt, it is `end`.
    """
    included = range(len(composition.inserted)) if window.included is None else window.included
    if not included:
        return end
    start = next((n for n in range(len(included) - 1, 0, -1) if included[n - 1] != included[n] - 1), 0)
    first = composition.inserted[included[start]].at or (0, 0)
    return next((e.seq for e in context.path if (e.depth, e.offset) >= first), end)


def shows_origin(context: MemoryContext, window: FittedWindow, fact: Message) -> bool:
    """Returns whether the request shows the messages from which a fact was learned."""
    if window.evicted_tokens or context.request.spec.history == "client":
        return False
    match_point = context.plan.match.match_point
    # On a plain path not every exchange is loaded.
    if context.is_plain:
        return match_point is not None and fact.conversation == match_point.conversation
    return bool(fact.origins) and context.path_ids.issuperset(fact.origins)


def replaced_exchanges(context: MemoryContext, idle_s: float) -> set[int]:
    """Returns the exchanges that this request replaces once it has finished: its list has them in another form.

    Other forms are a transcript that grew, a correction, and a reply that was cut short or not spoken at all.
    """
    tree, plan = context.tree, context.plan
    # A reply that came back cut is stored as it was generated until then.
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
