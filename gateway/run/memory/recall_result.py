"""The result of recall for a message: the note in front of it, and the record of the search that explains the note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from gateway.core.prompt.note_choice import Choice
from storage.records import Message
from storage.search_trace import HitScores, SearchTrace


class SearchRecord(Struct, frozen=True):
    """The record of a search of memory for one message. It is stored with the turn."""

    # How the search ended, if it failed or all was shown before; "": what was found decides.
    outcome: Literal["", "late", "failed", "all_shown"]
    # What was found, best first.
    messages: Sequence[Message]
    # What went into the note, and why the other messages stayed out.
    choice: Choice
    # Why other messages that were found are not among these, by number.
    ruled_out: Mapping[int, str]
    is_selection: bool
    # The ranking of the search, without `weak_hits`.
    trace: SearchTrace
    # The best of the hits that were too weak, by number.
    weak: Sequence[tuple[int, HitScores]]


class RecallResult(Struct, frozen=True):
    """The note that was made for a request, and how making it went."""

    # "": there is none.
    note: str = ""
    tokens: int = 0
    # How long the search took, in milliseconds; 0: nothing was searched.
    ms: float = 0.0
    # When it began, by `time.perf_counter()`.
    begun: float = 0.0
    # How many hits went into the note.
    count: int = 0
    has_failed: bool = False
    is_late: bool = False
    # None: it is not stored with the turn.
    search: SearchRecord | None = None


NO_RECALL = RecallResult()
