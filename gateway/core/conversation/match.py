"""Finding the conversation: the client's list is compared with the stored trees.

A stateless client resends everything. `find_match` finds the stored exchange that the list goes on from, its
match point; what follows the match point's reply is new. Rules are numbered as in docs/conversations.md.

Nothing here knows of scopes or stores: the tree holds only exchanges of the agent that asks, and of a named
conversation only its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.applications import IN_PLACE
from gateway.core.conversation.canonical import (
    is_assistant,
    is_call,
    is_question,
    is_user,
    sound_id,
    text_of,
    without_space,
)
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.tree import PathElement, Tree, is_tombstone
from gateway.core.subsequence import LCS_ATOMS, lcs
from gateway.core.words import heard_letters, is_beginning, letters_of
from storage.records import Atom, Exchange

# The characters from which on a reply is found nowhere else word for word.
LONG_REPLY = 32
# Bounds of the search; no measurement. Turns before one in which the same reply is looked for.
_MAX_TURNS = 8
# Places in the list, or in the tree, at which a reply is compared path by path.
_MAX_PLACES = 8
# The last runs of assistant messages in a list that are tried as altered stored replies.
_MAX_RUNS = 64
# Assistant texts of one turn that are tried in combination.
_MAX_TEXTS = 8

# The indices of the first and last message of something in a list.
ListSpan = tuple[int, int]
# The atoms of messages, one after the other.
Inputs = tuple[tuple[Atom, ...], ...]


class MemoryUse(StrEnum):
    """The use that a request makes of memory."""

    # It recalls and is stored.
    ON = "on"
    OFF = "off"
    # It recalls, and is not stored.
    READ = "read"
    # It recalls, and is stored for its id alone.
    APART = "apart"


class Query(Struct, frozen=True):
    """The part of a request that the rules decide by."""

    listing: HashedList
    # The client gave a conversation id.
    is_named: bool
    mode: MemoryUse
    # Seconds since the epoch.
    now: float
    # For how long an unnamed opening may be repeated.
    idle_s: float
    # Decides whether the list is matched, or continues the head of the stored conversation.
    kind: ConversationKind = ConversationKind.CLIENT
    # The client sends its new message once more; read in append mode alone.
    is_retry: bool = False
    # Row id of the named conversation, if it exists already.
    conversation: int | None = None
    # The upstream and the model that will answer.
    model: str = ""


class AlteredReply(Struct, frozen=True):
    """The form in which an altered reply came back, as indices of the list; the end is excluded."""

    # The messages between the last reply that was found word for word and this one.
    inputs: tuple[int, int]
    # The messages of the reply itself.
    reply: tuple[int, int]


class Match(Struct, frozen=True):
    """The place from which the list goes on."""

    # The exchange of the reply that was found last; None: a new tree begins.
    match_point: Exchange | None = None
    # The index of the first message of its reply; -1 if no reply of the list was found.
    first: int = -1
    # The index of the last message of that reply; -1 likewise.
    last: int = -1
    # Where an altered reply is in the list; None: the reply came back word for word.
    altered: AlteredReply | None = None


# -- finding the match point


def _turn_ranges(listing: HashedList) -> list[range]:
    """Returns the indices that lie between the user's messages, oldest first."""
    questions = [i for i, message in enumerate(listing.messages) if message.get("role") == "user"]
    return [range(a + 1, b) for a, b in pairwise([-1, *questions, len(listing)])]


class _TurnReplies:
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
            count, listed = len(calls), [atom for _, atom in self.calls]
            ends = range(len(listed), count - 1, -1)
            end = next((end for end in ends if listed[end - count : end] == calls), None)
            if end is None:
                return None
            indices += [self.calls[end - count][0], self.calls[end - 1][0]]
        return (min(indices), max(indices)) if indices else None


def reply_keys(listing: HashedList, turns: int) -> list[Atom]:
    """Returns the keys under which replies in the last turns of a list may be stored, for a look-up."""
    keys: dict[Atom, None] = {}
    for indices in _turn_ranges(listing)[::-1][: turns + 1]:
        turn = _TurnReplies(listing, indices)
        # A reply has no name before it comes back under one.
        keys.update(dict.fromkeys([*turn.spans, *turn.unnamed]))
        calls = [atom for _, atom in turn.calls][-16:]
        for end in range(len(calls), 0, -1):
            for start in range(max(0, end - 8), end):
                key = listing.hasher.reply_key(calls[start:end])
                if key is not None:
                    keys[key] = None
    return list(keys)


class _Turns:
    """The turns of a list. Each is read when it is needed first."""

    def __init__(self, listing: HashedList) -> None:
        self._listing = listing
        self._ranges = _turn_ranges(listing)
        self._read: dict[int, _TurnReplies] = {}
        self.flat = listing.flat(len(listing))

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, number: int) -> _TurnReplies:
        if number not in self._read:
            self._read[number] = _TurnReplies(self._listing, self._ranges[number])
        return self._read[number]

    def has_better(self, number: int, exchange: Exchange, path: Sequence[Atom], likeness: int) -> bool:
        """Returns whether a reply in this turn is in an earlier one too, where its path fits better.

        A client may cut two replies to the same words; the second turn must not be taken for the first one.
        """
        reply = exchange.reply or ()
        turns_before = range(max(0, number - _MAX_TURNS), number)
        ends = [span[1] for turn in turns_before for span in [self[turn].find(reply)] if span]
        first = min((i for turn in turns_before for i in self._ranges[turn][:1]), default=0)
        # Further back only a reply in one message is recognised, where the list is about as long as the path.
        older = [i for i in range(first) if self._listing.atoms[i] == reply]
        ends += sorted(older, key=lambda i: abs(self._listing.before[i + 1] - len(path)))[:_MAX_PLACES]
        return any(_likeness(self.flat[: self._listing.before[end + 1]], path) > likeness for end in ends)


def _likeness(listed: Sequence[Atom], path: Sequence[Atom]) -> int:
    """Returns how near a list is to the end of a path: minus the number of atoms that only one of them has; 0: equal.

    Atoms that the path has before the first common one do not count, because the client may have trimmed them.
    """
    pairs = lcs(listed, path)
    first = min((j for _, j in pairs), default=len(path))
    # (atoms in both) - (atoms of the list alone) - (atoms of the path alone, from the first pair on)
    return 2 * len(pairs) - len(listed) - len(path) + first


def _common_end(tree: Tree, exchange: Exchange, listed: Sequence[Atom]) -> int:
    """Returns how many atoms at the end of the list and of the path to the exchange are the same, up to `LCS_ATOMS`."""
    count = 0
    ancestor: Exchange | None = exchange
    while ancestor is not None:
        for atoms in ((ancestor.reply or ()), *ancestor.inputs[::-1]):
            for atom in atoms[::-1]:
                if count in (LCS_ATOMS, len(listed)) or listed[-1 - count] != atom:
                    return count
                count += 1
        ancestor = tree.parent(ancestor)
    return count


class _Rank(NamedTuple):
    """The fit of a stored exchange as the last stored reply in a list. The greater of two ranks fits better."""

    likeness: int
    # Its path is the whole list; such an exchange is preferred to one with a path that only ends like the list.
    is_whole: bool
    # Its path is whole, and the next message of the list was asked after it before, or nothing follows it
    # yet. Among equals the newest exchange is taken, as on the fast path. A list without its beginning is no
    # sign that the client went back: "go on", "Ok." and "why?" may follow each other twice.
    goes_on: bool
    begun: float
    id: int


class _Occurrence(NamedTuple):
    """A stored reply that stands in the list."""

    # Its first and last message.
    span: ListSpan
    # The exchange that has the reply.
    exchange: Exchange

    @property
    def end(self) -> int:
        """The index of its last message."""
        return self.span[1]


class _Candidate(NamedTuple):
    """An exchange that may be the match point."""

    rank: _Rank
    exchange: Exchange
    # The first and last message of its reply.
    span: ListSpan
    # Its path.
    elements: Sequence[PathElement]


class _Search:
    """Finds the last stored reply in the list, on the path that shares most with the list."""

    def __init__(self, tree: Tree, query: Query, shared: int) -> None:
        self._tree = tree
        self._query = query
        self._shared = shared
        # By the first atom of the reply, which is that of its text, if it has one.
        self._by_first_atom: dict[Atom, list[Exchange]] = {}
        for exchange in tree:
            if exchange.reply:
                self._by_first_atom.setdefault(exchange.reply[0], []).append(exchange)
        self._turns = _Turns(query.listing)

    def run(self) -> Match:
        """Tries the turns of the list, the last one first, until a stored reply is evident."""
        if not self._by_first_atom:
            return Match()
        for number, occurrences in self._occurrences():
            ranked = self._ranked(number, occurrences)
            if not ranked:
                continue
            best = ranked[-1]
            likeness = best.rank.likeness
            # Without an id no other path may be as near; with an id it is enough that nothing speaks against the best.
            is_alone = len(ranked) == 1 or ranked[-2].rank.likeness < likeness or likeness == 0
            if likeness < 0 and self._is_without_name(number, best.span):
                continue
            if (self._query.is_named or is_alone) and self._is_evident(best):
                return Match(best.exchange, *best.span)
        return Match()

    def _is_without_name(self, number: int, span: ListSpan) -> bool:
        """Returns whether a reply answered the very list before it, and comes back under a name for the first time.

        It is found as an altered one; what is found by the name is the same reply in another conversation.
        """
        listed = self._turns.flat[: self._query.listing.before[span[0]]]
        without_name = (
            exchange
            for atom in self._turns[number].unnamed
            for exchange in self._by_first_atom.get(atom, ())[-_MAX_PLACES:]
        )
        return any(
            self._tree.atoms(exchange)[: -len(exchange.reply or ())] == listed for exchange in without_name
        )

    def _occurrences(self) -> Iterator[tuple[int, list[_Occurrence]]]:
        """Yields the number of a turn, and the stored replies that end at the same message of it; the last end first.

        A turn has several ends where the assistant spoke once more into a silence. The last one of each turn is yielded
        in any case, and `_MAX_PLACES` of the others.
        """
        turn_count, other_ends = 0, 0
        for number in range(len(self._turns) - 1, -1, -1):
            occurrences = self._occurrences_in(self._turns[number])
            if not occurrences:
                continue
            ends = sorted({each.end for each in occurrences}, reverse=True)[: 1 + _MAX_PLACES - other_ends]
            for end in ends:
                yield number, [each for each in occurrences if each.end == end]
            turn_count += 1
            other_ends += len(ends) - 1
            if turn_count == _MAX_PLACES:
                return

    def _occurrences_in(self, turn: _TurnReplies) -> list[_Occurrence]:
        """Returns the stored replies in a turn, but for those that may be an opening's own messages."""
        exchanges = (
            exchange for atom in turn.first_atoms() for exchange in self._by_first_atom.get(atom, ())
        )
        spans = ((turn.find(exchange.reply or ()), exchange) for exchange in exchanges)
        return [
            _Occurrence(span, exchange)
            for span, exchange in spans
            if span is not None and span[1] >= self._shared
        ]

    def _ranked(self, number: int, occurrences: list[_Occurrence]) -> list[_Candidate]:
        """Returns the replies with the same end in a turn that the client may mean, the best one last."""
        tree, listing = self._tree, self._query.listing
        end = occurrences[0].end
        listed = self._turns.flat[: listing.before[end + 1]]
        next_atoms = listing.atoms[end + 1 : end + 2]  # of the next message, if there is one
        ranked: list[_Candidate] = []
        for span, exchange in self._nearest(occurrences, listed):
            path, children = tree.atoms(exchange), tree.children(exchange)
            is_whole = path == listed
            likeness = 0 if is_whole else _likeness(listed, path)
            # Below 0 list and path differ, so the words of the reply may belong to an earlier turn.
            if likeness < 0 and self._turns.has_better(number, exchange, path, likeness):
                continue
            goes_on = is_whole and (
                not children or any(list(child.inputs[:1]) == next_atoms for child in children)
            )
            rank = _Rank(likeness, is_whole, goes_on, exchange.begun, exchange.id)
            ranked.append(_Candidate(rank, exchange, span, tree.elements(exchange)))
        return sorted(ranked, key=lambda candidate: candidate.rank)

    def _nearest(self, occurrences: list[_Occurrence], listed: Sequence[Atom]) -> list[_Occurrence]:
        """Returns those that are compared path by path, `_MAX_PLACES` at most: there may be hundreds of "Yes."."""
        if len(occurrences) <= _MAX_PLACES:
            return occurrences
        listed_path = self._query.listing.hash_path(occurrences[0].end + 1)

        def rank(occurrence: _Occurrence) -> tuple[bool, int, float, int]:
            exchange = occurrence.exchange
            return (
                exchange.path == listed_path,
                _common_end(self._tree, exchange, listed),
                exchange.begun,
                exchange.id,
            )

        return sorted(occurrences, key=rank)[-_MAX_PLACES:]

    def _is_evident(self, best: _Candidate) -> bool:
        """Returns whether a reply is the stored one, and not another with the same words.

        A long reply is evidence enough, and so is a path that is the whole list; for a short one the question has to
        agree too, and the beginning of the list must not lead elsewhere. In a named conversation it is enough that the
        question is akin, because no other paths can be confused with this one.
        """
        tree, listing, exchange = self._tree, self._query.listing, best.exchange
        if best.rank.is_whole:
            return True
        if best.rank.likeness < 0 and self._has_reply_within(best):
            return False
        if exchange.size >= LONG_REPLY:
            return True
        if best.rank.likeness < 0 and self._is_elsewhere(best):
            return False
        last_question = [i for i in range(best.span[0]) if is_question(listing.atoms[i])][-1:]
        if any(listing.atoms[i][0] in _answered_atoms(best.elements) for i in last_question):
            return True
        if not self._query.is_named:
            return False
        # Replies that are tried after this one may need contents as well, so all that they compare is loaded at once.
        tree.group_for_loading(
            tree.turn_start(other.exchange) for _, occurrences in self._occurrences() for other in occurrences
        )
        return all(_is_akin(tree, exchange, listing, i) for i in last_question)

    def _has_reply_within(self, best: _Candidate) -> bool:
        """Returns whether the list has a stored reply among the messages that this one answers.

        They were sent while that reply was still spoken, and the list goes on from it (LiveKit, where the user types).
        """
        atoms, exchange = self._query.listing.atoms, best.exchange
        for _, occurrences in self._occurrences():
            for span, other in occurrences:
                count = len(other.inputs)
                is_beginning = (
                    0 < count < len(exchange.inputs)
                    and other.parent == exchange.parent
                    and exchange.inputs[:count] == other.inputs
                )
                if is_beginning and span[1] < best.span[0] and atoms[span[1] + 1] == exchange.inputs[count]:
                    return True
        return False

    def _is_elsewhere(self, best: _Candidate) -> bool:
        """Returns whether a beginning of the list is word for word the path of an exchange that is not above this."""
        listing, above = self._query.listing, {element.exchange.path for element in best.elements}
        for _, occurrences in self._occurrences():
            before = [each for each in occurrences if each.end < best.span[0]]
            paths = {
                each.exchange.path for each in before if each.exchange.path == listing.hash_path(each.end + 1)
            }
            if paths:
                return not paths & above
        return False


def _answered_atoms(elements: Sequence[PathElement]) -> list[Atom]:
    """Returns what the last reply of a path answered: the message before it, and the user's."""
    before = [atom for element in elements[-2::-1] for atom in element.atoms if atom[:1] in b"ut"]
    asked = [atom for element in reversed(elements) for atom in element.atoms if atom[:1] == b"u"]
    return before[:1] + asked[:1]


def find_match(tree: Tree, query: Query) -> Match:
    """Finds where the list goes on from what is stored. Raises: Missing."""
    listing, answered = query.listing, query.listing.answered
    if not answered or not tree.by_id:
        return Match()
    shared = _count_shared(tree, listing)
    if shared >= answered:
        return Match()
    silent = _find_silent(tree, listing)
    if silent is not None:
        return silent
    found = _Search(tree, query, shared).run()
    return _AlteredSearch(tree, query, found).run() or found


def _count_shared(tree: Tree, listing: HashedList) -> int:
    """Returns how many first messages a list shares with an earlier opening; no stored reply is in them.

    A model may greet in the very words of the application's greeting.
    """
    openings = (exchange.inputs for exchange in tree if exchange.parent is None)
    return max((_common_begin(inputs, listing.atoms) for inputs in openings), default=0)


def _common_begin(a: Sequence[tuple[Atom, ...]], b: Sequence[tuple[Atom, ...]]) -> int:
    return next(
        (n for n, (left, right) in enumerate(zip(a, b, strict=False)) if left != right),
        min(len(a), len(b)),
    )


def _find_silent(tree: Tree, listing: HashedList) -> Match | None:
    """Finds the exchange with the list as its path and a reply without text or calls to be found by (rule 2)."""
    first = last = listing.answered - 1
    if listing.atoms[last]:
        return None
    silent = [
        exchange for exchange in tree if exchange.reply == () and exchange.path == listing.path_answered
    ]
    if not silent:
        return None
    while first and listing.role(first - 1) == "assistant" and not listing.atoms[first - 1]:
        first -= 1
    return Match(max(silent, key=lambda exchange: (exchange.begun, exchange.id)), first, last)


class _AlteredSearch:
    """Finds the next stored reply that came back cut (to what was spoken of it) or otherwise altered.

    A turn is recognised by its question. Its reply alone is enough only if no other question competes for it: "Well" is
    the beginning of many replies, and one turn would take the place of another in the tree.
    """

    def __init__(self, tree: Tree, query: Query, match: Match) -> None:
        """Begins. match: the last reply that came back word for word."""
        self._tree = tree
        self._query = query
        self._match_point = match.match_point
        # The index of the first message after that reply.
        self._start = match.last + 1
        # How many of the messages from there on are a user's, by the number of messages.
        rest = query.listing.atoms[self._start :]
        self._user_counts = [*accumulate(map(is_user, rest), initial=0)]
        self._candidates = [each for each in self._after_match_point() if tree.may_change(each)]

    def run(self) -> Match | None:
        listing, start = self._query.listing, self._start
        if not self._candidates:
            return None
        # The indices at which runs of assistant messages begin, the last one first.
        begins = [
            i
            for i in range(len(listing) - 1, start, -1)
            if listing.role(i) == "assistant" and (listing.role(i - 1) != "assistant" or i - 1 <= start)
        ]
        letters = self._letters_of_replies() if begins else {}
        for begin in begins[:_MAX_RUNS]:
            end = next(
                (i for i in range(begin, len(listing)) if listing.role(i) != "assistant"), len(listing)
            )
            exchange = self._find_prefilled(begin, end) or self._find(begin, end, letters)
            if exchange is not None:
                return Match(exchange, begin, end - 1, AlteredReply((start, begin), (begin, end)))
        return None

    def _find(self, begin: int, end: int, letters: Mapping[int, str]) -> Exchange | None:
        """Returns the exchange with the reply that a run of assistant messages is.

        letters: of the stored replies, by the ids of their exchanges.
        """
        tree, listing = self._tree, self._query.listing
        inputs = tuple(listing.atoms[self._start : begin])
        reply = "".join(listing.text(i) for i in range(begin, end))
        heard, is_long = heard_letters(reply), len(without_space(reply)) >= LONG_REPLY
        asked = [each for each in self._candidates if self._was_asked(each, inputs)]
        similar = [
            each for each in self._candidates if each.id in letters and is_beginning(heard, letters[each.id])
        ]
        similar += [each for each in asked if self._was_extended(each, heard, letters.get(each.id, ""))]
        similar_ids = {each.id for each in similar}
        # The best evidence is question and reply together. Next comes the question alone, then the reply alone, if it
        # is long or if the question is akin.
        picked = [each for each in asked if each.id in similar_ids]
        if not picked:
            picked = [each for each in asked if self._may_be_meant(each)] or [
                each
                for each in similar
                if self._may_be_meant(each) and (is_long or _is_akin(tree, each, listing, begin - 1))
            ]
            if len({each.inputs[:1] for each in picked}) > 1:
                return None
        return max(
            picked,
            key=lambda each: (self._agreement(each, inputs), tree.touched_at(each), each.begun, each.id),
            default=None,
        )

    def _find_prefilled(self, begin: int, end: int) -> Exchange | None:
        """Returns the exchange of which a run of assistant messages is the reply, with its first words from the input.

        An application may end its list with the first words of the reply, and put both into one message.
        """
        tree, listing = self._tree, self._query.listing
        inputs = tuple(listing.atoms[self._start : begin])
        candidates = [
            exchange
            for exchange in self._candidates
            if (count := _count_prefill(exchange))
            and not is_tombstone(exchange)
            and self._was_asked(replace(exchange, inputs=exchange.inputs[:-count]), inputs)
        ]
        if not candidates:
            return None
        tree.group_for_loading(candidates)
        heard = heard_letters("".join(listing.text(i) for i in range(begin, end)))
        prefilled = [exchange for exchange in candidates if self._is_prefilled_reply(exchange, heard)]
        return max(
            prefilled,
            key=lambda exchange: (tree.touched_at(exchange), exchange.begun, exchange.id),
            default=None,
        )

    def _is_prefilled_reply(self, exchange: Exchange, heard: str) -> bool:
        """Returns whether letters are those of a reply and its first words, and not of these words alone."""
        content = self._tree.content(exchange)
        prefill = letters_of("".join(map(text_of, (content.messages or [])[-_count_prefill(exchange) :])))
        if len(heard) <= len(prefill):
            return False
        reply = letters_of(text_of(content.shown_reply or {}))
        is_fresh = self._may_be_meant(exchange)
        # A reply that came back so before has these words already.
        return any(
            heard == whole
            or (is_fresh and is_beginning(heard, whole))
            or self._was_extended(exchange, heard, whole)
            for whole in (prefill + reply, reply)
        )

    def _was_extended(self, exchange: Exchange, heard: str, stored: str) -> bool:
        """Returns whether a reply came back with what the model has added to it.

        Front ends have a reply continued by a list that ends with it, and put both texts into one message.

        heard, stored: letters, of what came back and of what is stored.
        """
        has_addition = any(not child.inputs for child in self._tree.children(exchange))
        return bool(stored) and has_addition and heard.startswith(stored)

    def _after_match_point(self) -> list[Exchange]:
        """Returns the exchanges after the match point, or all without one, that have a reply or a part of one.

        Requests that were cancelled one after the other hang below each other, so the search goes on below each
        exchange that no later turn continued.
        """
        tree = self._tree
        if self._match_point is None:
            exchanges = list(tree)
        else:
            exchanges, todo = [], tree.children(self._match_point)
            while todo:
                exchange = todo.pop()
                exchanges.append(exchange)
                children, is_continued = tree.children(exchange), tree.is_continued(exchange)
                todo += [child for child in children if not is_continued or tree.continues_turn(child)]
        return [
            exchange
            for exchange in exchanges
            if exchange.ended is not None
            or (exchange.stopped is not None and (exchange.size or is_tombstone(exchange)))
        ]

    def _may_be_meant(self, exchange: Exchange) -> bool:
        # Without an id and without a match point, only a conversation from within the idle time is continued.
        query = self._query
        is_known = query.is_named or self._match_point is not None
        return is_known or query.now - self._tree.turn_end(exchange) <= query.idle_s

    def _letters_of_replies(self) -> dict[int, str]:
        """Returns id -> the letters of a reply. They are made once, since each is compared with many messages."""
        tree = self._tree
        # The question of each turn is compared next (`_is_akin`).
        tree.group_for_loading([*self._candidates, *map(tree.turn_start, self._candidates)])
        replies = {
            each.id: tree.content(each).shown_reply for each in self._candidates if not is_tombstone(each)
        }
        return {id: letters_of(text_of(reply)) for id, reply in replies.items() if reply is not None}

    def _was_asked(self, candidate: Exchange, inputs: Inputs) -> bool:
        """Returns whether the messages before a reply are those that a candidate brought, or end like them.

        Without a match point the results of tools are no evidence, because many exchanges have the same ones. Where
        more user messages precede them than the path has, the same words came once more in a turn that is not stored.
        """
        for exchange in (candidate, self._tree.turn_start(candidate)):
            stored = exchange.inputs
            if self._match_point is None and not any(map(is_user, stored)):
                continue
            if stored[-len(inputs) :] == inputs:
                return True
            if stored and inputs[-len(stored) :] == stored:
                listed = self._user_counts[len(inputs) - len(stored)]
                return listed <= sum(map(is_user, self._inputs_before(exchange)))
        return False

    def _inputs_before(self, exchange: Exchange) -> Iterator[tuple[Atom, ...]]:
        """Yields the messages that the exchanges between the match point and this one brought."""
        match_point, ancestor = self._match_point, self._tree.parent(exchange)
        while ancestor is not None and (match_point is None or ancestor.id != match_point.id):
            yield from ancestor.inputs
            ancestor = self._tree.parent(ancestor)

    def _agreement(self, candidate: Exchange, inputs: Inputs) -> tuple[int, bool]:
        """Returns how well the path from the match point to a candidate agrees with the list, and whether as a whole.

        The number counts the exchanges that agree one after the other, minus those that only the path or the list has.
        """
        match_point, agree, over, end = self._match_point, 0, 0, len(inputs)
        exchange: Exchange | None = candidate
        while exchange is not None and (end if match_point is None else exchange.id != match_point.id):
            start = end - len(exchange.inputs)
            if start >= 0 and inputs[start:end] == exchange.inputs and not over:
                agree, end = agree + 1, start
                # The replies between the questions are skipped, whatever their form.
                while end and (not inputs[end - 1] or is_assistant(inputs[end - 1])):
                    end -= 1
            else:
                over += 1
            exchange = self._tree.parent(exchange)
        left = self._user_counts[end]
        return agree - over - left, exchange is None and not left


def _count_prefill(exchange: Exchange) -> int:
    """Returns how many messages at the end of an input are an assistant's, after a question."""
    inputs = exchange.inputs
    count = next((n for n, atoms in enumerate(reversed(inputs)) if not is_assistant(atoms)), len(inputs))
    return count if count < len(inputs) and is_user(inputs[-1 - count]) else 0


def _is_akin(tree: Tree, exchange: Exchange, listing: HashedList, index: int) -> bool:
    """Returns whether two questions are the same but for a template around one.

    Any two results of tools are akin, because clients prune them, and so is a text with which an application stands for
    what it has left out: the summary of a compaction.
    """
    if listing.role(index) != "user":
        return bool(exchange.inputs) and not is_user(exchange.inputs[-1])
    text = text_of(listing.messages[index])
    if (in_place := IN_PLACE.match(text)) and not text[in_place.end() :].strip():
        return True
    stored, listed = tree.question(exchange), without_space(listing.text(index))
    return bool(stored and listed) and (stored in listed or listed in stored)
