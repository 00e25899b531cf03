"""Finds the stored reply that came back word for word, however its turn was split, merged or mixed with others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.core.conversation.canonical import is_question, is_user
from gateway.core.conversation.evidence import LONG_REPLY_CHARS, has_question_within, has_same_question
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import Match, Query
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.turn_replies import ReplySpan, TurnReplies, find_turn_ranges
from gateway.core.subsequence import LCS_ATOMS, pair_lcs
from storage.records import Atom, Exchange

# The most earlier turns of the list in which the same reply is looked for. Not measured: it bounds the work for replies
# such as "Yes.".
_MAX_TURNS = 8
# The most candidates of one kind (turns, ends, exchanges with the same reply) that are compared path by path: a path
# may have thousands of messages, and hundreds of replies may be "Yes.". Not measured.
_MAX_COMPARED = 8


class _Turns:
    """The turns of a list. A turn is read when it is first asked for."""

    def __init__(self, listing: HashedList) -> None:
        self._listing = listing
        # The indices of the messages of each turn in the list, oldest first.
        self._ranges = find_turn_ranges(listing)
        # The replies of the turns that were looked at, by the number of the turn.
        self._replies: dict[int, TurnReplies] = {}
        # All atoms of the list.
        self.all_atoms = listing.list_atoms(len(listing))

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, turn_number: int) -> TurnReplies:
        if turn_number not in self._replies:
            self._replies[turn_number] = TurnReplies(self._listing, self._ranges[turn_number])
        return self._replies[turn_number]

    def fits_earlier_turn(
        self, turn_number: int, exchange: Exchange, path: Sequence[Atom], likeness: int
    ) -> bool:
        """Returns whether the reply of an exchange is in an earlier turn too, and its path fits that turn better.

        A client may cut two replies to the same words: the second turn must not be taken for the first one.

        turn_number: the number of the turn in which the reply was found.
        likeness: the likeness of the list up to that turn to the path (`_measure_likeness`).
        """
        reply = exchange.reply or ()
        turns_before = range(max(0, turn_number - _MAX_TURNS), turn_number)
        # The indices of the last messages of such replies.
        ends = [span.last for turn in turns_before if (span := self[turn].find(reply))]
        older_count = min((i for turn in turns_before for i in self._ranges[turn][:1]), default=0)
        # In older turns only a reply in one message is recognised, and where the list is about as long as the path.
        older_ends = [i for i in range(older_count) if self._listing.atoms[i] == reply]
        older_ends.sort(key=lambda i: abs(self._listing.offsets[i + 1] - len(path)))
        ends += older_ends[:_MAX_COMPARED]
        return any(
            _measure_likeness(self.all_atoms[: self._listing.offsets[end + 1]], path) > likeness
            for end in ends
        )


def _measure_likeness(client_atoms: Sequence[Atom], path: Sequence[Atom]) -> int:
    """Returns the likeness of a list to the end of a path: 0 if they are equal, else a number below 0.

    The number is minus the count of atoms that only the list or only the path has. Atoms that the path has before the
    first common atom do not count, because the client may have trimmed them.
    """
    pairs = pair_lcs(client_atoms, path)
    first_path_index = min((j for _, j in pairs), default=len(path))
    # (atoms in both) - (atoms of the list alone) - (atoms of the path alone, from the first pair on)
    return 2 * len(pairs) - len(client_atoms) - len(path) + first_path_index


def _count_common_end(tree: Tree, exchange: Exchange, client_atoms: Sequence[Atom]) -> int:
    """Returns the number of equal atoms at the ends of the list and of the path to the exchange, up to `LCS_ATOMS`."""
    count = 0
    ancestor: Exchange | None = exchange
    while ancestor is not None:
        for atoms in ((ancestor.reply or ()), *ancestor.inputs[::-1]):
            for atom in atoms[::-1]:
                if count in (LCS_ATOMS, len(client_atoms)) or client_atoms[-1 - count] != atom:
                    return count
                count += 1
        ancestor = tree.find_parent(ancestor)
    return count


class _Rank(NamedTuple):
    """The fit of a stored exchange as the last stored reply in a list. The greater of two ranks fits better."""

    # The value of `_measure_likeness`; 0: the path of the exchange is the whole list.
    likeness: int
    # True: the path of the exchange is the whole list.
    is_whole: bool
    # `is_whole`, and either the next message of the list has followed the exchange before, or nothing follows it yet.
    # Only for a whole path: "go on", "Ok." and "why?" may follow each other twice, so the next message of a list
    # without its beginning does not show that the client went back.
    goes_on: bool
    # The newest of equal exchanges is taken, as on the fast path.
    begun: float
    # The id of the exchange.
    id: int


class _Occurrence(NamedTuple):
    """A stored reply that stands in the list."""

    # The messages of the reply.
    span: ReplySpan
    # The exchange that has the reply.
    exchange: Exchange

    @property
    def end(self) -> int:
        """The index of the reply's last message."""
        return self.span.last


class _ReplyEnd(NamedTuple):
    """A message of the list at which stored replies end."""

    # The number of the message's turn in the list, from 0.
    turn_number: int
    # The replies that end there.
    occurrences: list[_Occurrence]


class _Candidate(NamedTuple):
    """An exchange that may be the match point."""

    # The fit of the exchange.
    rank: _Rank
    # The exchange.
    exchange: Exchange
    # The messages of the exchange's reply.
    span: ReplySpan
    # The path to the exchange.
    elements: Sequence[PathElement]


class ExactSearch:
    """Finds the last stored reply in the list, on the path that shares most with the list."""

    def __init__(self, tree: Tree, query: Query, shared_count: int) -> None:
        """Indexes the stored replies of a tree.

        shared_count: the number of first messages that the list shares with an earlier opening. None of these is a
            stored reply.
        """
        self._tree = tree
        self._query = query
        self._shared_count = shared_count
        # The exchanges by the first atom of their replies: the atom of the text, if the reply has a text.
        self._by_first_atom: dict[Atom, list[Exchange]] = {}
        for exchange in tree:
            if exchange.reply:
                self._by_first_atom.setdefault(exchange.reply[0], []).append(exchange)
        # The turns of the list.
        self._turns = _Turns(query.listing)

    def run(self) -> Match:
        """Tries the turns of the list, the last one first, until a stored reply is evident."""
        if not self._by_first_atom:
            return Match()
        for turn_number, occurrences in self._find_occurrences():
            candidates = self._rank_occurrences(turn_number, occurrences)
            if not candidates:
                continue
            best_candidate = candidates[-1]
            likeness = best_candidate.rank.likeness
            # Without an id, the best path has to be nearer than all others. With an id, nothing must speak against it.
            is_alone = len(candidates) == 1 or candidates[-2].rank.likeness < likeness or likeness == 0
            if likeness < 0 and self._is_answer_without_name(turn_number, best_candidate.span):
                continue
            if (self._query.is_named or is_alone) and self._is_evident(best_candidate):
                return Match(best_candidate.exchange, *best_candidate.span)
        return Match()

    def _is_answer_without_name(self, turn_number: int, span: ReplySpan) -> bool:
        """Returns whether a reply of this turn, without its name, answered exactly the list before it.

        It comes back under a name for the first time, and is found as an altered reply. A stored reply that has the
        name is the same reply in another conversation.
        """
        client_atoms = self._turns.all_atoms[: self._query.listing.offsets[span.first]]
        unnamed_exchanges = (
            exchange
            for atom in self._turns[turn_number].unnamed_atoms
            for exchange in self._by_first_atom.get(atom, ())[-_MAX_COMPARED:]
        )
        return any(
            self._tree.list_path_atoms(exchange)[: -len(exchange.reply or ())] == client_atoms
            for exchange in unnamed_exchanges
        )

    def _find_occurrences(self) -> Iterator[_ReplyEnd]:
        """Yields the messages of the list at which stored replies end, the last one first.

        A turn has several ends if the assistant spoke once more into a silence. The last end of each turn is yielded in
        any case, and at most `_MAX_COMPARED` of the other ends.
        """
        turn_count = other_ends = 0
        for turn_number in range(len(self._turns) - 1, -1, -1):
            occurrences = self._find_occurrences_in(self._turns[turn_number])
            if not occurrences:
                continue
            ends = sorted({each.end for each in occurrences}, reverse=True)[: 1 + _MAX_COMPARED - other_ends]
            for end in ends:
                yield _ReplyEnd(turn_number, [each for each in occurrences if each.end == end])
            turn_count += 1
            other_ends += len(ends) - 1
            if turn_count == _MAX_COMPARED:
                return

    def _find_occurrences_in(self, turn: TurnReplies) -> list[_Occurrence]:
        """Returns the stored replies in a turn, without those that may be messages of an opening."""
        exchanges = (
            exchange for atom in turn.list_first_atoms() for exchange in self._by_first_atom.get(atom, ())
        )
        spans = ((turn.find(exchange.reply or ()), exchange) for exchange in exchanges)
        return [
            _Occurrence(span, exchange)
            for span, exchange in spans
            if span is not None and span.last >= self._shared_count
        ]

    def _rank_occurrences(self, turn_number: int, occurrences: list[_Occurrence]) -> list[_Candidate]:
        """Returns the replies with the same end in a turn that the client may mean, the best one last."""
        tree, listing = self._tree, self._query.listing
        end = occurrences[0].end
        client_atoms = self._turns.all_atoms[: listing.offsets[end + 1]]
        # The atoms of the next message, in a list; [] at the end.
        next_atoms = listing.atoms[end + 1 : end + 2]
        candidates: list[_Candidate] = []
        for span, exchange in self._choose_nearest(occurrences, client_atoms):
            path = tree.list_path_atoms(exchange)
            children = tree.list_children(exchange)
            is_whole = path == client_atoms
            likeness = 0 if is_whole else _measure_likeness(client_atoms, path)
            # If list and path differ, the words of the reply may belong to an earlier turn.
            if likeness < 0 and self._turns.fits_earlier_turn(turn_number, exchange, path, likeness):
                continue
            goes_on = is_whole and (
                not children or any(list(child.inputs[:1]) == next_atoms for child in children)
            )
            rank = _Rank(likeness, is_whole, goes_on, begun=exchange.begun, id=exchange.id)
            candidates.append(_Candidate(rank, exchange, span, tree.list_path_elements(exchange)))
        return sorted(candidates, key=lambda candidate: candidate.rank)

    def _choose_nearest(
        self, occurrences: list[_Occurrence], client_atoms: Sequence[Atom]
    ) -> list[_Occurrence]:
        """Returns the `_MAX_COMPARED` occurrences that are nearest to the list. All of them have the same end."""
        if len(occurrences) <= _MAX_COMPARED:
            return occurrences
        client_path_hash = self._query.listing.hash_path(occurrences[0].end + 1)

        def rank(occurrence: _Occurrence) -> tuple[bool, int, float, int]:
            exchange = occurrence.exchange
            return (
                exchange.path_hash == client_path_hash,
                _count_common_end(self._tree, exchange, client_atoms),
                exchange.begun,
                exchange.id,
            )

        return sorted(occurrences, key=rank)[-_MAX_COMPARED:]

    def _is_evident(self, candidate: _Candidate) -> bool:
        """Returns whether a reply is the stored one, and not another with the same words.

        A long reply is evidence enough, and so is a path that is the whole list. For a short reply the question has to
        agree too, and the beginning of the list must not lead elsewhere. In a named conversation it is enough that the
        question is the same, because only paths of this conversation come into question.
        """
        tree = self._tree
        listing = self._query.listing
        exchange = candidate.exchange
        if candidate.rank.is_whole:
            return True
        if candidate.rank.likeness < 0 and (
            self._has_reply_within(candidate)
            or has_question_within(tree, exchange, listing, candidate.span.first)
        ):
            return False
        if exchange.size >= LONG_REPLY_CHARS:
            return True
        if candidate.rank.likeness < 0 and self._leads_elsewhere(candidate):
            return False
        last_question = [i for i in range(candidate.span.first) if is_question(listing.atoms[i])][-1:]
        if any(listing.atoms[i][0] in _find_answered_atoms(candidate.elements) for i in last_question):
            return True
        if not self._query.is_named:
            return False
        # If this reply is not evident, others are tried. The contents that all of them compare are loaded at once.
        tree.contents.group(
            tree.locate_turn_start(other.exchange)
            for _, occurrences in self._find_occurrences()
            for other in occurrences
        )
        return all(has_same_question(tree, exchange, listing, i) for i in last_question)

    def _has_reply_within(self, candidate: _Candidate) -> bool:
        """Returns whether the list has a stored reply among the messages that the best candidate answers.

        The later messages were sent while that reply was still spoken, and the list goes on from it (LiveKit, if the
        user types).
        """
        exchange = candidate.exchange
        for _, occurrences in self._find_occurrences():
            for span, other in occurrences:
                count = len(other.inputs)
                is_beginning = (
                    0 < count < len(exchange.inputs)
                    and other.parent == exchange.parent
                    and exchange.inputs[:count] == other.inputs
                )
                if (
                    is_beginning
                    and span.last < candidate.span.first
                    and self._query.listing.atoms[span.last + 1] == exchange.inputs[count]
                ):
                    return True
        return False

    def _leads_elsewhere(self, candidate: _Candidate) -> bool:
        """Returns whether the list begins word for word with the path of an exchange that is not on the best path."""
        own_path_hashes = {element.exchange.path_hash for element in candidate.elements}
        for _, occurrences in self._find_occurrences():
            earlier_occurrences = [each for each in occurrences if each.end < candidate.span.first]
            client_path_hashes = {
                each.exchange.path_hash
                for each in earlier_occurrences
                if each.exchange.path_hash == self._query.listing.hash_path(each.end + 1)
            }
            if client_path_hashes:
                return not client_path_hashes & own_path_hashes
        return False


def _find_answered_atoms(elements: Sequence[PathElement]) -> list[Atom]:
    """Returns the first atoms of the messages that a path's last reply answered: the one before it, and the user's."""
    answered_atoms = [atom for element in elements[-2::-1] for atom in element.atoms if is_question((atom,))]
    question_atoms = [atom for element in reversed(elements) for atom in element.atoms if is_user((atom,))]
    return answered_atoms[:1] + question_atoms[:1]
