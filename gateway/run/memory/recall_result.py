"""The result of recall for a message: the note before it, and the record of the search that explains the note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from gateway.core.prompt.note_choice import Choice
from gateway.run.receipt import GatewayStep, Receipt
from storage.records import Message
from storage.search_trace import HitScores, SearchTrace


class SearchRecord(Struct, frozen=True):
    """The record of a search of memory for one message. It is stored with the turn."""

    # "late": the search took longer than recall may take.
    # "failed": the memory could not be read.
    # "all_shown": nothing was searched, since the prompt shows all of the memory.
    # "": the search ended, and its hits decide.
    outcome: Literal["", "late", "failed", "all_shown"]
    # The messages that were found, best first.
    messages: Sequence[Message]
    # The messages in the note, and the reasons for which the others stayed out.
    choice: Choice
    # The reasons why found messages are not among `messages`, by the numbers of the messages.
    ruled_out: Mapping[int, str]
    # True: the messages show most of the whole memory, and were found without a query.
    is_selection: bool
    # The ranking of the search, without `weak_hits`.
    trace: SearchTrace
    # The best of the hits that were too weak for a note, each with its number and its scores.
    weak_hits: Sequence[tuple[int, HitScores]]


class RecallResult(Struct, frozen=True):
    """The note that was made for a request, with the figures of its search."""

    # The text of the note; "": the request has no note.
    note: str = ""
    # The tokens of the note; 0: the note has no hits.
    note_tokens: int = 0
    # The milliseconds that the search took; 0: nothing was searched.
    search_ms: float = 0.0
    # The time at which the search started, by `time.perf_counter()`.
    started_at: float = 0.0
    # The number of hits in the note.
    hit_count: int = 0
    # The reason why the search has failed; "": no failure.
    failure: Literal["", "late", "failed"] = ""
    # The record of the search; None: no record is stored with the turn.
    search: SearchRecord | None = None

    def note_search(self, receipt: Receipt) -> None:
        """Notes the search in a receipt for a trace, if anything was searched."""
        if receipt.trace is not None and self.search_ms:
            ended_at = self.started_at + self.search_ms / 1000
            step = GatewayStep(
                "search_memory", self.started_at, ended_at,
                count=self.hit_count, tokens=self.note_tokens, is_late=self.failure == "late",
            )  # fmt: skip
            receipt.steps.append(step)


NO_RECALL = RecallResult()
