"""Finds the cut of a stored summary: the position in a request's list of messages at which the summary ends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container

from msgspec import Struct

from gateway.core.conversation.exchange import count_atoms_to_end
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.prompt.composition import Composition
from gateway.core.prompt.summary_frame import render_summary
from gateway.core.tags import make_mark
from storage.records import Summary


class SummaryCut(Struct, frozen=True):
    """The position of a summary in a request."""

    # The summary as it is sent.
    text: str
    # The number of messages, inserted before the client's messages, that the summary covers.
    covered_inserted: int
    # The index of the first client message that the summary does not cover; 0: it does not cover all inserted messages.
    first_index: int = 0
    # The summary's id.
    id: int = 0
    # The number of atoms of the path that the summary covers.
    covered_atoms: int = 0


def find_cut_in_path(listing: HashedList, summary: Summary) -> SummaryCut | None:
    """Returns the cut of a summary in a list that has its path word for word; None: the summary is of another path."""
    exchange = summary.exchange
    end = count_atoms_to_end(exchange)
    message_index = listing.locate_message(end)
    if not 0 < message_index < len(listing) or listing.offsets[message_index] != end:
        return None
    if listing.hash_path(message_index) != exchange.path_hash:
        return None
    return SummaryCut(
        _render(listing, summary),
        covered_inserted=0,
        first_index=listing.positions[message_index],
        id=summary.id,
        covered_atoms=end,
    )


def find_cut_in_list(
    listing: HashedList,
    path_ids: Container[int],
    composition: Composition,
    summary: Summary,
    *,
    has_evicted: bool,
) -> SummaryCut | None:
    """Returns the cut of a summary in any list; None: the summary is of another path.

    path_ids: the ids of the exchanges on the path that the list continues.
    has_evicted: True: messages at the beginning of the path have left the window.
    """
    exchange = summary.exchange
    if exchange.id not in path_ids:
        return None
    text = _render(listing, summary)
    end = count_atoms_to_end(exchange)
    covered_indices = [
        i for i, element in composition.elements_by_index.items() if element.exchange.depth <= exchange.depth
    ]
    if covered_indices:
        message_index = bisect_right(listing.positions, max(covered_indices))
        if message_index == len(listing):
            return None
        return SummaryCut(
            text=text,
            covered_inserted=len(composition.inserted),
            first_index=listing.positions[message_index],
            id=summary.id,
            covered_atoms=end,
        )
    covered_inserted = 0
    for count, message in enumerate(composition.inserted, 1):
        if message.position is not None and message.position.depth <= exchange.depth:
            covered_inserted = count
    # If the window begins after the covered part, the summary covers no inserted message, and still counts.
    if not covered_inserted and not has_evicted:
        return None
    return SummaryCut(text, covered_inserted, id=summary.id, covered_atoms=end)


def _render(listing: HashedList, summary: Summary) -> str:
    return render_summary(summary.text, make_mark(listing.hasher.secret))
