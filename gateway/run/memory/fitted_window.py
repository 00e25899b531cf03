"""The part of a conversation that goes into a model's window, and the room for a note in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from gateway.core.conversation.wire_message import WireMessage
from gateway.core.prompt.composition import Composition, InsertedMessage
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, ShownBlocks, combine_shown
from gateway.core.prompt.summary import SummaryPlan
from storage.records import EvictedPart


class NoteRoom(Struct, frozen=True):
    """The room for the note of a request."""

    # The tokens that the window leaves free in any case.
    reserved_tokens: int = 0
    # The tokens that the note may take if the window has them free.
    max_tokens: int = 0


NO_NOTE = NoteRoom()


class FittedWindow(Struct, frozen=True):
    """The part of a conversation that goes into the model's window."""

    # Indices of the client's messages that stay out.
    dropped_indices: frozenset[int] = frozenset()
    # Indices of the composition's inserted messages that go in; None: all.
    included_indices: tuple[int, ...] | None = None
    # The composition's hidden rounds that go in, by the index of the message they replace; None: all.
    replacements: Mapping[int, list[WireMessage]] | None = None
    # The text that replaces the messages that were left out, or "".
    summary: str = ""
    # The id of that summary; 0: no summary.
    summary_id: int = 0
    # The part of the path that has left the window, which the next request leaves out as well.
    evicted: EvictedPart | None = None
    # The tokens of the evicted part.
    evicted_tokens: int = 0
    # The tokens of the whole prompt by the gateway's count; 0: it was not counted, or is not text alone.
    tokens: int = 0
    # The tokens for which the window has room, with a note.
    max_tokens: int = 0
    # The plan of a summary, if the window fills up; None: no summary is due.
    summary_plan: SummaryPlan | None = None
    # The tokens that a note may take; None: nothing limits it.
    note_tokens: int | None = None

    @property
    def is_whole(self) -> bool:
        """True if all messages go in."""
        return self.included_indices is None and self.replacements is None and not self.dropped_indices

    @property
    def left_out(self) -> tuple[object, ...]:
        """The messages that stay out, and the summary in their place. Equal to `WHOLE_WINDOW.left_out` if all go in."""
        return self.dropped_indices, self.included_indices, self.summary_id

    def list_inserted(self, composition: Composition) -> Sequence[InsertedMessage]:
        """Returns the messages that go before the client's own, as far as they fit."""
        return (
            composition.inserted
            if self.included_indices is None
            else [composition.inserted[n] for n in self.included_indices]
        )

    def list_fitting_notes(self, composition: Composition) -> list[str]:
        """Returns the notes before the client's messages and of the inserted ones, as far as they fit."""
        notes = [note for index, note in composition.notes.items() if index not in self.dropped_indices]
        notes += [each.note for each in self.list_inserted(composition) if each.note]
        return notes

    def estimate_note_tokens(self, composition: Composition) -> int:
        """Returns the estimated tokens of the notes that fit."""
        if self.is_whole and not composition.inserted:
            return composition.note_tokens
        return sum(map(estimate_tokens, self.list_fitting_notes(composition)))

    def list_shown_blocks(self, composition: Composition) -> ShownBlocks:
        """Returns the last text of each memory block in the added texts and messages of the window."""
        shown_blocks = [each.shown_blocks for each in self.list_inserted(composition)]
        for index in sorted(composition.shown_blocks):
            rounds = composition.replacements.get(index)
            fitting_rounds = rounds if self.replacements is None else self.replacements.get(index)
            # Hidden rounds that fit in part may or may not show the block.
            if index not in self.dropped_indices and rounds == fitting_rounds:
                shown_blocks.append(composition.shown_blocks[index])
        return combine_shown(shown_blocks, NOTHING_SHOWN)


WHOLE_WINDOW = FittedWindow()
