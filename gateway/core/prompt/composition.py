"""The messages and texts around a client's list: stored messages, notes, hidden rounds. `compose` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.portable_message import with_placeholder_text
from gateway.core.conversation.private import PrivateFields, is_nudge, read_private, without_private
from gateway.core.conversation.tree import PathElement, PathPosition
from gateway.core.conversation.wire_message import PRIVATE, WireMessage
from gateway.core.message_text import with_text_before, without_text_before
from gateway.core.prompt.shown_blocks import NOTHING_SHOWN, ShownBlocks, read_shown_by_note
from storage.records import Atom

REFUSED_RESULT = "The call was made. Its result cannot be told: the provider of the model refused to read it."


class InsertedMessage(Struct, frozen=True):
    """A message that is inserted before the client's, stored or moved from its list, with the note before its text."""

    # The message as it goes upstream, with its note.
    message: WireMessage
    # The atoms of the message, without its note.
    atoms: tuple[Atom, ...]
    # The position of the message on the path; None: the message is not on the path yet.
    position: PathPosition | None = None
    # The note before the message's text; "": the message has no note.
    note: str = ""
    # The private fields of the stored message.
    private: PrivateFields = msgspec.field(default_factory=PrivateFields)
    # The memory blocks that the message and its note show.
    shown_blocks: ShownBlocks = msgspec.field(default_factory=dict)

    @classmethod
    def of(
        cls, message: WireMessage, atoms: tuple[Atom, ...], position: PathPosition | None, note: str = ""
    ) -> InsertedMessage:
        """Makes an inserted message of a stored message or a message of the client's list, and of its note."""
        # Most messages of a history have neither.
        if not note and PRIVATE not in message:
            return cls(with_placeholder_text(message), atoms, position)
        shown_blocks = read_shown_by_note(note) if note else read_shown_blocks(message)
        upstream_message = with_text_before(with_placeholder_text(without_private(message)), note)
        return cls(upstream_message, atoms, position, note, read_private(message), shown_blocks)

    @property
    def is_nudge(self) -> bool:
        """True for a message that an agent's rules send to the model, which opens no turn."""
        return bool(self.private) and is_nudge({PRIVATE: self.private})


class Composition(Struct):
    """The gateway's messages and texts around the client's list. Indices are those of the request's own `messages`."""

    # Messages before the first of the client's that is not a system message.
    inserted: Sequence[InsertedMessage] = ()
    # The elements of the path by the indices of the client messages; empty if the list is the path word for word.
    elements_by_index: dict[int, PathElement] = msgspec.field(default_factory=dict)
    # The notes before texts, by the indices of the client messages.
    notes: dict[int, str] = msgspec.field(default_factory=dict)
    # The estimated tokens of `notes`.
    note_tokens: int = 0
    # The messages that replace client messages, by the indices of these; an empty list if `inserted` has the message.
    replacements: dict[int, list[WireMessage]] = msgspec.field(default_factory=dict)
    # The hidden rounds among the replacements, with their private fields.
    stored_rounds: dict[int, list[WireMessage]] = msgspec.field(default_factory=dict)
    # True: hidden rounds follow other messages than before: the client has left messages out, or put a summary in their
    # place.
    moves_rounds: bool = False
    # The number of hidden rounds of the last prompt that could not be restored, so that its stable prefix is broken.
    unrestored_rounds: int = 0
    # The memory blocks that notes and hidden rounds show, by the indices of the client messages.
    shown_blocks: dict[int, ShownBlocks] = msgspec.field(default_factory=dict)

    def without_notes(self) -> Composition:
        """Returns a copy of the composition without its notes."""
        inserted = [
            replace(each, message=without_text_before(each.message, each.note), note="")
            if each.note
            else each
            for each in self.inserted
        ]
        return replace(self, inserted=inserted, notes={}, note_tokens=0)

    def without_results(self, *, is_after_last_reply: bool) -> Composition:
        """Returns a copy without the results of tools before the last reply; itself if it has no such results.

        is_after_last_reply: the results after the last reply are left out instead.
        """
        reply_indices = (n for n, each in enumerate(self.inserted) if each.message.get("role") == "assistant")
        end = max(reply_indices, default=0)
        inserted = [
            replace(each, message=without_result(each.message)) if is_after_last_reply is (n >= end) else each
            for n, each in enumerate(self.inserted)
        ]
        replacements = (
            self.replacements if is_after_last_reply else list_rounds_without_results(self.replacements)
        )
        if (inserted, replacements) == ([*self.inserted], self.replacements):
            return self
        return replace(self, inserted=inserted, replacements=replacements)

    def put_note(self, index: int, note: str, tokens: int, shown_blocks: ShownBlocks | None = None) -> None:
        """Puts a note before a message.

        tokens: the estimated tokens of the note.
        shown_blocks: the blocks that the note shows; None: the blocks are read from the note.
        """
        self.notes[index] = note
        self.note_tokens += tokens
        if shown_blocks is None:
            shown_blocks = read_shown_by_note(note)
        if shown_blocks:
            self.shown_blocks[index] = shown_blocks


def without_result(message: WireMessage) -> WireMessage:
    """Returns a message, and for a tool's result a copy without its content, which an upstream has refused to read."""
    return {**message, "content": REFUSED_RESULT} if message.get("role") == "tool" else message


def list_rounds_without_results(rounds: Mapping[int, Sequence[WireMessage]]) -> dict[int, list[WireMessage]]:
    """Returns hidden rounds, by the index of the message that they replace, with their results as `without_result`."""
    return {index: [*map(without_result, messages)] for index, messages in rounds.items()}


def read_shown_blocks(message: WireMessage) -> ShownBlocks:
    """Returns the memory blocks that a gateway message shows: the result of an edit, or a change within a turn."""
    shown_blocks = read_private(message).get("shown_blocks")
    return shown_blocks if isinstance(shown_blocks, dict) else NOTHING_SHOWN
