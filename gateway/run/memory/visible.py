"""The content that a request shows already, so that its note does not repeat it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence, Set
from itertools import groupby

from msgspec import Struct

from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.tree import PathPosition
from gateway.core.conversation.wire_message import without_space
from gateway.core.prompt.composition import Composition
from gateway.run.memory.fitted_window import FittedWindow
from gateway.run.memory.memory_context import MemoryContext
from storage.records import Atom, Message

# A joined reply has at most this many messages before its last one.
_MAX_MERGED_MESSAGES = 8


class VisibleContent(Struct, frozen=True):
    """The content that one request shows, without the request's own note, which is made later."""

    # The sequence numbers of stored messages that the request has word for word, so that they need not be compared.
    verbatim_seqs: range
    # The hashes of all that is visible.
    atoms: Set[Atom]
    # Notes of earlier turns that are still visible.
    notes: Sequence[str]

    @classmethod
    def of(cls, context: MemoryContext, composition: Composition, window: FittedWindow) -> VisibleContent:
        """Returns the content that a prompt of these shows. composition: without this request's note."""
        listing, dropped_indices = context.plan.query.listing, window.dropped_indices
        if dropped_indices:
            messages = zip(listing.positions, listing.atoms, strict=True)
            visible_atoms = {
                atom for position, atoms in messages if position not in dropped_indices for atom in atoms
            }
        else:
            visible_atoms = set(listing.list_atoms(len(listing)))
        if not context.is_plain:
            visible_atoms.update(_list_joined_reply_atoms(listing, dropped_indices))
        for each in window.list_inserted(composition):
            visible_atoms.update(each.atoms)
        return cls(
            _list_verbatim_seqs(context, composition, window),
            visible_atoms,
            window.list_fitting_notes(composition),
        )


NOTHING_VISIBLE = VisibleContent(range(0), frozenset(), ())


def _list_joined_reply_atoms(listing: HashedList, dropped_indices: Container[int]) -> Iterator[Atom]:
    """Yields the hashes of the texts of successive assistant messages of a list, joined.

    Stored, they may be one reply: an application's own text (LiveKit's `session.say`) stands before the model's.
    """
    for role, run in groupby(range(len(listing)), listing.read_role):
        if role != "assistant":
            continue
        replies = [i for i in run if listing.positions[i] not in dropped_indices]
        if len(replies) < 2:
            continue  # the texts of most need not be read
        # The joined texts that end with the present message: for c, after a and b, they are c, bc and abc.
        suffixes: list[str] = []
        for text in filter(None, (without_space(listing.read_text(i)) for i in replies)):
            suffixes = [text, *(earlier + text for earlier in suffixes[:_MAX_MERGED_MESSAGES])]
            yield from (listing.hasher.make_text_atom(None, suffix) for suffix in suffixes[1:])


def _list_verbatim_seqs(context: MemoryContext, composition: Composition, window: FittedWindow) -> range:
    """Returns the sequence numbers of stored messages that the request has word for word."""
    match_point = context.plan.match.match_point
    if match_point is None:
        return range(0)
    end = match_point.next_seq
    if context.is_plain:  # the list is the whole path, unless the window has dropped some of it
        return range(end if window.evicted_tokens else match_point.gapless_from, end)
    if context.is_agent_conversation:
        start = _locate_last_run(composition, window)
        in_window = (
            exchange
            for exchange in context.path
            if start is not None and (exchange.depth, exchange.offset) >= start
        )
        first_in_window = next(in_window, None)
        return range(
            end if first_in_window is None else max(match_point.gapless_from, first_in_window.seq), end
        )
    return range(0)


def _locate_last_run(composition: Composition, window: FittedWindow) -> PathPosition | None:
    """Returns the position on the path from which on all stored messages are in the prompt, or None."""
    included = (
        range(len(composition.inserted)) if window.included_indices is None else window.included_indices
    )
    if not included:
        return None
    start = included[-1]
    for n in reversed(included[:-1]):
        if n != start - 1:
            break
        start = n
    return composition.inserted[start].position or PathPosition(0, 0)


def shows_origin(context: MemoryContext, window: FittedWindow, fact: Message) -> bool:
    """Returns whether the request shows the messages from which a fact was learned. fact: the hit of a search."""
    # A fact that a person has corrected comes from no message.
    if not fact.conversation_row:
        return False
    # A client's own history may lack any of them.
    if window.evicted_tokens or context.request.spec.history == "client":
        return False
    match_point = context.plan.match.match_point
    # On a plain path not every exchange is loaded.
    if context.is_plain:
        return match_point is not None and fact.conversation_row == match_point.conversation_row
    return bool(fact.sources) and context.path_ids.issuperset(fact.sources)
