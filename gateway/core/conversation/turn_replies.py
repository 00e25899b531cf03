"""The replies that a client's list may have between two messages of the user, in whatever form they came back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from gateway.core.conversation.canonical import is_call, is_text
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.wire_message import read_audio_id, without_space
from storage.records import Atom

# The number of a turn's last assistant texts that are tried in combination. Not measured: it bounds the number of
# combinations.
_MAX_TEXTS = 8
# The number of a turn's last calls by which replies are looked up, and the most calls of such a reply. Not measured:
# together these bound the look-ups of a turn to 100.
_MAX_CALLS = 16
_MAX_REPLY_CALLS = 8


class ReplySpan(NamedTuple):
    """The messages of a list that a reply takes up, by their indices."""

    # The index of the first message.
    first: int
    # The index of the last message.
    last: int


class _JoinedText(NamedTuple):
    """The text of an assistant's message, or of several that follow one another."""

    # The messages with the text.
    span: ReplySpan
    # The name that the first of the messages has; None: it has no name.
    name: object
    # The text without white space.
    text: str


def find_turn_ranges(listing: HashedList) -> list[range]:
    """Returns the indices that lie between the user's messages, oldest first."""
    questions = [i for i, message in enumerate(listing.messages) if message.get("role") == "user"]
    return [range(a + 1, b) for a, b in pairwise([-1, *questions, len(listing)])]


class TurnReplies:
    """The assistant's words and calls of one turn, however they were split, merged or mixed with others."""

    def __init__(self, listing: HashedList, indices: Iterable[int]) -> None:
        """Collects the words and the calls. indices: the indices of the turn's messages in the list."""
        assistants = [i for i in indices if listing.read_role(i) == "assistant"]
        texts = _join_texts(listing, assistants)
        # Each call with the index of its message.
        self.calls = [(i, atom) for i in assistants for atom in listing.atoms[i] if is_call(atom)]
        # The messages of each text that may be a stored reply's, by the atom of the text.
        self.spans = _map_spans(listing, assistants, texts)
        # The atoms of named messages' texts without the name.
        self.unnamed_atoms = [
            listing.hasher.make_text_atom(None, each.text) for each in texts if each.name is not None
        ]

    def list_first_atoms(self) -> Iterable[Atom]:
        """Returns the atoms that can be the first of a reply in this turn."""
        return dict.fromkeys([*self.spans, *(atom for _, atom in self.calls)])

    def find(self, reply: Sequence[Atom]) -> ReplySpan | None:
        """Returns the messages of a reply in the turn; None: the turn lacks a part of it. reply: the reply's atoms."""
        texts = [atom for atom in reply if is_text(atom)]
        calls = [atom for atom in reply if is_call(atom)]
        indices: list[int] = []
        if texts:
            span = self.spans.get(texts[0])
            if span is None:
                return None
            indices += span
        if calls:
            # The calls of a reply follow one another. If the turn has the same row several times, the last one counts.
            count = len(calls)
            call_atoms = [atom for _, atom in self.calls]
            ends = range(len(call_atoms), count - 1, -1)
            end = next((end for end in ends if call_atoms[end - count : end] == calls), None)
            if end is None:
                return None
            indices += [self.calls[end - count][0], self.calls[end - 1][0]]
        return ReplySpan(min(indices), max(indices)) if indices else None


def _join_texts(listing: HashedList, assistants: Iterable[int]) -> list[_JoinedText]:
    """Returns the texts of the last assistant messages that have one, each run of neighbours joined.

    A client may split one reply into messages, or merge two, so each run may be a stored reply.

    assistants: the indices of the assistant's messages in the list.
    """
    texts = [(i, text) for i in assistants if (text := without_space(listing.read_text(i)))][-_MAX_TEXTS:]
    return [
        _JoinedText(
            ReplySpan(texts[start][0], texts[end - 1][0]),
            listing.messages[texts[start][0]].get("name"),
            "".join(text for _, text in texts[start:end]),
        )
        for end in range(len(texts), 0, -1)
        for start in range(end)
    ]


def _map_spans(
    listing: HashedList, assistants: Iterable[int], texts: Iterable[_JoinedText]
) -> dict[Atom, ReplySpan]:
    """Returns the messages of each text, by its atom. Of equal texts it is the first one."""
    # The atom of a spoken reply is that of its audio's id.
    spans = {listing.atoms[i][0]: ReplySpan(i, i) for i in assistants if read_audio_id(listing.messages[i])}
    for each in texts:
        spans.setdefault(listing.hasher.make_text_atom(each.name, each.text), each.span)
    return spans


def make_reply_keys(listing: HashedList, turn_count: int) -> list[Atom]:
    """Returns the keys under which replies in the last `turn_count` turns of a list may be stored, for a look-up."""
    keys: dict[Atom, None] = {}
    for indices in find_turn_ranges(listing)[::-1][: turn_count + 1]:
        turn = TurnReplies(listing, indices)
        # A reply is stored without a name until it comes back with one.
        keys.update(dict.fromkeys([*turn.spans, *turn.unnamed_atoms]))
        calls = [atom for _, atom in turn.calls][-_MAX_CALLS:]
        for end in range(len(calls), 0, -1):
            for start in range(max(0, end - _MAX_REPLY_CALLS), end):
                key = listing.hasher.make_reply_key(calls[start:end])
                if key is not None:
                    keys[key] = None
    return list(keys)
