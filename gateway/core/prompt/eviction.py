"""Eviction: the beginning of a path that has left the window, and the summaries that may stand for it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import PathElement
from gateway.core.prompt.compose import Composition
from gateway.core.prompt.summary import MOST_CANDIDATES, RETAINED_SHARE
from gateway.core.prompt.summary_cut import SummaryCut, find_cut_in_list, find_cut_in_path
from gateway.core.prompt.window import MessageBounds
from storage.records import Evicted, Exchange, Summary


class Eviction(Struct, frozen=True):
    """The part of a conversation that is not sent any more."""

    plan: Plan | None = None
    # The client's list is the path word for word.
    is_plain: bool = False
    # The part of the path that an earlier turn has evicted, which `Composition.inserted` lacks.
    evicted: Evicted | None = None
    # The index of the first message in the client's list after that part.
    start: int = 0
    # Summaries that can replace the beginning, the one that covers least first.
    cuts: tuple[SummaryCut, ...] = ()
    # The id of the summary that the last request used.
    in_use: int = 0
    # A summary is made when the window fills up.
    summarises: bool = False
    # The share of the window that such a summary leaves word for word.
    retained_share: float = RETAINED_SHARE
    # Bounds of the number of messages; None: tokens alone limit the window.
    bounds: MessageBounds | None = None

    def where(self, index: int, composition: Composition) -> tuple[int, int] | None:
        """Returns where on the path a client's message stands (depth and offset, as in `Evicted`); None: unknown."""
        plan = self.plan
        match_point = None if plan is None else plan.match.match_point
        if plan is None or match_point is None:
            return None
        listing = plan.query.listing
        i = bisect_left(listing.positions, index)
        if i in plan.new:
            new = PathElement(plan.exchange, len(plan.pending) + plan.new.index(i), listing.atoms[i])
            return new.at
        if not self.is_plain:
            element = composition.list_at.get(index)
            return None if element is None else element.at
        # A plain list is its path, so the place is a number of atoms. Its depth is not known, only a lower one: each
        # exchange after it has an atom.
        after = listing.before[listing.answered] - listing.before[i]
        return max(0, match_point.depth - after), listing.before[i]

    def with_summaries(
        self, summaries: Iterable[Summary], path: Container[int], composition: Composition
    ) -> Eviction:
        """Returns the same with the summaries of this path.

        summaries: newest first.
        path: ids of its exchanges.
        """
        assert self.plan is not None
        listing, is_begun = self.plan.query.listing, self.evicted is not None
        cuts = (
            find_cut_in_path(listing, each)
            if self.is_plain
            else find_cut_in_list(listing, path, composition, each, is_begun=is_begun)
            for each in summaries
        )
        usable = [cut for cut in cuts if cut is not None]
        newest = [cut for n, cut in enumerate(usable) if n < MOST_CANDIDATES or cut.id == self.in_use]
        return replace(self, cuts=tuple(reversed(newest)))


NO_EVICTION = Eviction()


def evicted_at(match_point: Exchange | None, context_tokens: int | None) -> Evicted | None:
    """Returns what has left the window of a path that ends with this exchange.

    None: nothing, or it left a smaller one than this request has.
    """
    found = None if match_point is None else match_point.evicted
    return found if found is not None and found.is_out_of(context_tokens) else None


def find_beginning(
    plan: Plan, composition: Composition, evicted: Evicted | None, *, is_plain: bool
) -> tuple[Evicted | None, int]:
    """Returns what of the path a request leaves out, and the first message of the client's that comes after it."""
    if evicted is None or composition.inserted:
        # All of the client's list comes after it.
        return evicted, 0
    listing = plan.query.listing
    if is_plain:
        return evicted, listing.positions[listing.message_at(evicted.offset)]
    for i in listing.positions[: plan.match.last + 1]:
        element = composition.list_at.get(i)
        if element is None:
            # Something that is nowhere on the path: the list is weighed as a whole.
            break
        if element.at[1] >= evicted.offset:
            return evicted, i
    return None, 0
