"""The replies that a client's list may have between two messages of the user, in whatever form they came back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from gateway.core.conversation.canonical import is_call, sound_id, without_space
from gateway.core.conversation.hashed_list import HashedList
from storage.records import Atom

# Assistant texts of one turn that are tried in combination; chosen, not measured.
_MAX_TEXTS = 8

# The indices of the first and last message of something in a list.
ListSpan = tuple[int, int]


def turn_ranges(listing: HashedList) -> list[range]:
    """Returns the indices that lie between the user's messages, oldest first."""
    questions = [i for i, message in enumerate(listing.messages) if message.get("role") == "user"]
    return [range(a + 1, b) for a, b in pairwise([-1, *questions, len(listing)])]


class TurnReplies:
    """The assistant's words and calls of one turn, however they were split, merged or mixed with others."""

    def __init__(self, listing: HashedList, indices: Iterable[int]) -> None:
        assistants = [i for i in indices if listing.role(i) == "assistant"]
        # Each call with the index of its message.
        self.calls = [(i, atom) for i in assistants for atom in listing.atoms[i] if is_call(atom)]
        texts = [(i, without_space(listing.text(i))) for i in assistants]
        texts = [(i, text) for i, text in texts if text][-_MAX_TEXTS:]
        # A client may split one reply into messages, or merge two: each run of texts may be a stored reply.
        self.spans: dict[Atom, ListSpan] = {}
        self.spans.update((listing.atoms[i][0], (i, i)) for i in assistants if sound_id(listing.messages[i]))
        # The atoms that the texts of named messages have without the name.
        self.unnamed: list[Atom] = []
        for end in range(len(texts), 0, -1):
            for start in range(end):
                joined = "".join(text for _, text in texts[start:end])
                name = listing.messages[texts[start][0]].get("name")
                span = (texts[start][0], texts[end - 1][0])
                self.spans.setdefault(listing.hasher.text_atom(name, joined), span)
                if name is not None:
                    self.unnamed.append(listing.hasher.text_atom(None, joined))

    def first_atoms(self) -> Iterable[Atom]:
        """Returns the atoms that can be the first of a reply in this turn."""
        return dict.fromkeys([*self.spans, *(atom for _, atom in self.calls)])

    def find(self, reply: Sequence[Atom]) -> ListSpan | None:
        """Returns the first and the last message of a reply; None where the turn does not have all of it."""
        texts = [atom for atom in reply if atom[:1] == b"a"]
        calls = [atom for atom in reply if is_call(atom)]
        indices: list[int] = []
        if texts:
            span = self.spans.get(texts[0])
            if span is None:
                return None
            indices += span
        if calls:
            # The calls of the reply stand in a row. Where such a row occurs several times, the last one counts.
            count = len(calls)
            listed = [atom for _, atom in self.calls]
            ends = range(len(listed), count - 1, -1)
            end = next((end for end in ends if listed[end - count : end] == calls), None)
            if end is None:
                return None
            indices += [self.calls[end - count][0], self.calls[end - 1][0]]
        return (min(indices), max(indices)) if indices else None


def reply_keys(listing: HashedList, turns: int) -> list[Atom]:
    """Returns the keys under which replies in the last turns of a list may be stored, for a look-up."""
    keys: dict[Atom, None] = {}
    for indices in turn_ranges(listing)[::-1][: turns + 1]:
        turn = TurnReplies(listing, indices)
        # A reply has no name before it comes back under one.
        keys.update(dict.fromkeys([*turn.spans, *turn.unnamed]))
        calls = [atom for _, atom in turn.calls][-16:]
        for end in range(len(calls), 0, -1):
            for start in range(max(0, end - 8), end):
                key = listing.hasher.reply_key(calls[start:end])
                if key is not None:
                    keys[key] = None
    return list(keys)
