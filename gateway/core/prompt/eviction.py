"""Eviction: the beginning of a path that has left the window, and the summaries that may take its place."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.agent import MessageBounds
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import PathPosition
from gateway.core.prompt.composition import Composition
from gateway.core.prompt.summary import MAX_CANDIDATES
from gateway.core.prompt.summary_cut import SummaryCut, find_cut_in_list, find_cut_in_path
from storage.records import EvictedPart, Exchange, Summary


class Eviction(Struct, frozen=True):
    """The messages of a conversation that have left the window, and what decides on those that may leave it."""

    # The plan of the request; None: no conversation is stored.
    plan: Plan | None = None
    # True: the client's list is the path, word for word.
    is_plain: bool = False
    # The part of the path that earlier turns evicted. `Composition.inserted` lacks it.
    evicted: EvictedPart | None = None
    # The index of the first of the request's messages after that part.
    start_index: int = 0
    # Summaries that can replace the beginning, the one that covers least first.
    cuts: tuple[SummaryCut, ...] = ()
    # The id of the summary that the last request used; 0: it used no summary.
    used_summary_id: int = 0
    # The share of the window that a new summary leaves word for word; None: no summary is made.
    retained_share: float | None = None
    # The bounds of the number of messages; None: tokens alone limit the window.
    bounds: MessageBounds | None = None

    def find_position(self, message_index: int, composition: Composition) -> PathPosition | None:
        """Returns the position on the path of one of the request's messages; None: not known.

        The depth of the position is as in `EvictedPart`.
        """
        plan = self.plan
        match_point = None if plan is None else plan.match.match_point
        if plan is None or match_point is None:
            return None
        listing = plan.query.listing
        list_index = bisect_left(listing.positions, message_index)
        if list_index in plan.new_indices:
            earlier_inputs = plan.exchange.inputs[: len(plan.pending) + plan.new_indices.index(list_index)]
            return PathPosition(plan.exchange.depth, plan.exchange.offset + sum(map(len, earlier_inputs)))
        if not self.is_plain:
            element = composition.elements_by_index.get(message_index)
            return None if element is None else element.position
        # The list is the path, so the atoms before a message are its offset. Its depth is at least this: each exchange
        # that follows has an atom or more.
        offset = listing.offsets[list_index]
        following_atoms = listing.offsets[listing.answered_count] - offset
        return PathPosition(max(0, match_point.depth - following_atoms), offset)

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


def locate_window_start(
    plan: Plan, composition: Composition, evicted: EvictedPart, *, is_plain: bool
) -> int | None:
    """Returns the index of the first of the request's messages after an evicted part.

    Returns None if the request's messages do not follow the path, so that none of them is left out.

    is_plain: True: the client's list is the path, word for word.
    """
    if composition.inserted:
        return 0  # none of the client's messages was evicted
    listing = plan.query.listing
    if is_plain:
        return listing.positions[listing.locate_message(evicted.offset)]
    for message_index in listing.positions[: plan.match.last + 1]:
        element = composition.elements_by_index.get(message_index)
        if element is None:
            return None
        if element.offset >= evicted.offset:
            return message_index
    return None
