"""The content that a request shows already, so that no note repeats it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence, Set
from itertools import groupby

from msgspec import Struct

from gateway.core.conversation.canonical import Listing, squash
from gateway.core.conversation.tree import Tree
from gateway.core.prompt.compose import Composition
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import FittedWindow
from storage.records import Atom, Exchange, Message

_MAX_MERGED = 8  # so many messages in front of one are tried as the beginning of the same reply


class VisibleContent(Struct, frozen=True):
    """The content that one request shows, but for its own note, which is made later.

    numbers: of messages that need not even be looked at: the request has them word for word. atoms: the hashes of all
    that is visible. notes: earlier notes, as far as they still are.
    """

    numbers: range
    atoms: Set[Atom]
    notes: Sequence[str]

    @classmethod
    def of(cls, context: MemoryContext, composition: Composition, window: FittedWindow) -> VisibleContent:
        """Returns the content that a prompt of these shows. composition: without this request's note."""
        listing, dropped = context.plan.query.listing, window.dropped
        if dropped:
            places = zip(listing.atoms, listing.positions, strict=True)
            shown = {a for atoms, place in places if place not in dropped for a in atoms}
        else:
            shown = set(listing.between(0, listing.before[-1]))
        if not context.is_plain:
            shown.update(_merged(listing, dropped))
        for each in window.fill(composition):
            shown.update(each.atoms)
        return cls(_numbers(context, composition, window), shown, window.notes(composition))


def _merged(listing: Listing, dropped: Container[int]) -> Iterator[Atom]:
    """Yields the hashes of successive assistant messages of a list, joined.

    Stored, they may be one reply: an application's own text (LiveKit's `session.say`) stands before the model's.
    """
    places = range(len(listing.positions))
    for role, run in groupby(places, listing.role):
        replies = [i for i in run if listing.positions[i] not in dropped] if role == "assistant" else []
        if len(replies) < 2:
            continue  # the texts of most need not be read
        texts: list[str] = []
        for text in filter(None, (squash(listing.text(i)) for i in replies)):
            texts = [text, *(each + text for each in texts[:_MAX_MERGED])]
            yield from (listing.canon.text_atom(None, each) for each in texts[1:])


def _numbers(context: MemoryContext, composition: Composition, window: FittedWindow) -> range:
    match_point = context.plan.match.match_point
    if match_point is None:
        return range(0)
    after = first = match_point.seq + len(match_point.inputs) + 1
    if context.is_plain:
        first = after if window.evicted_tokens else match_point.run
    elif context.is_stored:
        first = max(match_point.run, _first_filled(context, composition, window, after))
    return range(first, after)


def _first_filled(
    context: MemoryContext, composition: Composition, window: FittedWindow, otherwise: int
) -> int:
    """Returns the number from which on a stored conversation is filled in, without a gap and in whole exchanges."""
    filled = range(len(composition.fill)) if window.filled is None else window.filled
    if not filled:
        return otherwise
    gap = next((n for n in range(len(filled) - 1, 0, -1) if filled[n - 1] != filled[n] - 1), 0)
    begins = composition.fill[filled[gap]].at or (0, 0)
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


def replaced(context: MemoryContext, idle_s: float) -> set[int]:
    """Returns the exchanges that this list has in other words, as far as no request has finished on it.

    That is a transcript that grew, a correction, a reply that was cut short or not spoken at all.
    """
    tree, plan = context.tree, context.plan
    # A reply that came back cut is stored as it was generated until this request has finished.
    found = {amendment.exchange for amendment in plan.amendments}
    unsettled = [x for x in context.path if not tree.is_continued(x)]
    found |= {x.id for x in unsettled}
    for x in (*unsettled, plan.exchange):
        if x.parent is not None:
            found |= {y.id for y in tree.siblings(x) if not tree.kids(y)}
        elif plan.conversation is not None:
            # Only openings that this list extends are replaced; a named conversation may have several roots.
            roots = _recent_roots(tree, plan.conversation, plan.query.now, idle_s)
            tree.load_together(roots)
            found |= {y.id for y in roots if tree.extends(x, y)}
    return found


def _recent_roots(tree: Tree, conversation: int, now: float, idle_s: float) -> list[Exchange]:
    roots = tree.roots(conversation)
    return [y for y in roots if not tree.kids(y) and tree.last(y, now) >= now - idle_s]
