"""The trace of a search, which shows how the search came to its hits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# The scores of a hit by all, by words and by meaning, from 0 to 255, relative to the best of the search.
HitScores = tuple[int, int, int]
# The scores of some hits, as three columns with a byte for each hit.
ScoreColumns = tuple[bytes, bytes, bytes]


def make_no_scores() -> ScoreColumns:
    """Returns the scores of no hits."""
    return b"", b"", b""


@dataclass(slots=True)
class SearchTrace:
    """How one search came to its hits. The ranking fills it, and the record of the recall is made of it.

    A search that is not recorded gets none, so that nothing of its ranking is retained.
    """

    # The numbers of the hits, best first; empty if the whole memory was selected.
    hit_seqs: Sequence[int] = ()
    # The numbers of hits that are muted.
    muted_seqs: Sequence[int] = ()
    # True if the hits have scores by meaning.
    has_meaning: bool = False
    # Returns the scores of the hits, in their order. It is called where the record is packed: over SQLite off the loop.
    scores: Callable[[], ScoreColumns] = make_no_scores
    # Returns the hits that are too weak for a note, with their scores, best first, up to a limit; None: no hits were
    # ranked. The function holds the whole ranking, so it is set to None in a trace that is stored.
    weak_hits: Callable[[int], list[tuple[int, HitScores]]] | None = None
