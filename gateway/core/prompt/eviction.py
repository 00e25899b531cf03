"""Eviction: the beginning of a path that has left the window, and the summaries that may take its place."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.agent import MessageBounds
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import PathPosition
from gateway.core.prompt.composition import Composition
from gateway.core.prompt.summary import MAX_CANDIDATES, RETAINED_SHARE
from gateway.core.prompt.summary_cut import SummaryCut, find_cut_in_list, find_cut_in_path
from storage.records import EvictedPart, Exchange, Summary


class Eviction(Struct, frozen=True):
    """The part of a conversation that is not sent any more."""

    # The plan of the request; None: no conversation is stored.
    plan: Plan | None = None
    # The client's list is the path, word for word.
    is_plain: bool = False
    # The part of the path that earlier turns evicted. `Composition.inserted` lacks it.
    evicted: EvictedPart | None = None
    # The index of the first message in the client's list after that part.
    start_index: int = 0
    # Summaries that can replace the beginning, the one that covers least first.
    cuts: tuple[SummaryCut, ...] = ()
    # The id of the summary that the last request used; 0: it used no summary.
    used_summary_id: int = 0
    # A summary is made when the window fills up.
    summarises: bool = False
    # The share of the window that such a summary leaves word for word.
    retained_share: float = RETAINED_SHARE
    # The bounds of the number of messages; None: tokens alone limit the window.
    bounds: MessageBounds | None = None

    def find_position(self, index: int, composition: Composition) -> PathPosition | None:
        """Returns the position of a client's message on the path, with a depth as in `EvictedPart`; None: not known."""
        plan = self.plan
        match_point = None if plan is None else plan.match.match_point
        if plan is None or match_point is None:
            return None
        listing = plan.query.listing
        i = bisect_left(listing.positions, index)
        if i in plan.new_indices:
            earlier_inputs = plan.exchange.inputs[: len(plan.pending) + plan.new_indices.index(i)]
            return PathPosition(plan.exchange.depth, plan.exchange.offset + sum(map(len, earlier_inputs)))
        if not self.is_plain:
            element = composition.elements_by_index.get(index)
            return None if element is None else element.position
        # The list is the path, so the atoms before a message are its offset. Its depth is at least this: each exchange
        # that follows has an atom or more.
        following_atoms = listing.offsets[listing.answered_count] - listing.offsets[i]
        return PathPosition(max(0, match_point.depth - following_atoms), listing.offsets[i])

    def with_summaries(
        self, summaries: Iterable[Summary], path_ids: Container[int], composition: Composition
    ) -> Eviction:
        """Returns a copy of the eviction with the summaries of this path: the newest ones, and the one in use.

        summaries: the summaries, newest first.
        path_ids: the ids of the path's exchanges.
        """
        assert self.plan is not None  # only `NO_EVICTION` has no plan, and it needs no summaries
        listing = self.plan.query.listing
        has_evicted = self.evicted is not None
        cuts = (
            find_cut_in_path(listing, summary)
            if self.is_plain
            else find_cut_in_list(listing, path_ids, composition, summary, has_evicted=has_evicted)
            for summary in summaries
        )
        path_cuts = [cut for cut in cuts if cut is not None]
        candidate_cuts = [
            cut for n, cut in enumerate(path_cuts) if n < MAX_CANDIDATES or cut.id == self.used_summary_id
        ]
        return replace(self, cuts=tuple(reversed(candidate_cuts)))


NO_EVICTION = Eviction()


def find_evicted(match_point: Exchange | None, context_tokens: int | None) -> EvictedPart | None:
    """Returns the part of a path that earlier turns evicted; None: a request has to leave nothing out.

    match_point: the last exchange of the path; None: the path is empty.
    context_tokens: the request's window in tokens; None: the window is not known. A larger window than the earlier
        turns' may have room for the evicted part.
    """
    evicted = None if match_point is None else match_point.evicted
    return evicted if evicted is not None and evicted.is_out_of(context_tokens) else None


class WindowStart(NamedTuple):
    """The beginning of the window of a request. The fields are those of `Eviction`."""

    evicted: EvictedPart | None = None
    start_index: int = 0


def locate_window_start(
    plan: Plan, composition: Composition, evicted: EvictedPart | None, *, is_plain: bool
) -> WindowStart:
    """Returns the beginning of the window. evicted: the part of the path that a request has to leave out."""
    if evicted is None or composition.inserted:
        # None of the client's messages was evicted.
        return WindowStart(evicted)
    listing = plan.query.listing
    if is_plain:
        return WindowStart(evicted, listing.positions[listing.locate_message(evicted.offset)])
    for i in listing.positions[: plan.match.last + 1]:
        element = composition.elements_by_index.get(i)
        if element is None:
            break  # the message is not on the path, so no part of the list is left out
        if element.offset >= evicted.offset:
            return WindowStart(evicted, i)
    return WindowStart()
