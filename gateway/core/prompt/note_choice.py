"""The choice of what goes into a note, among the messages that a search has found.

Sans-IO. It knows nothing of how messages are found; candidates come best first. `note_query.py` has what is searched
for, `note_text.py` the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence, Set
from operator import attrgetter
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.prompt.excerpt import CUT, make_excerpt, query_keys, short_words
from gateway.core.prompt.note_query import SEARCHED_CHARS, searched_part, without_lines
from gateway.core.prompt.note_text import (
    EMPTY_TOKENS,
    SELECTION_TOKENS,
    YEAR_CHARS,
    Recalled,
    day_heading,
    estimate_tokens,
    labelled,
    quote_on_line,
)
from gateway.core.tags import escape_tags
from gateway.core.words import blank_non_words, folded_words, stem
from storage.records import Atom, Message

# A long turn is cut to this length, because whole ones crowd the others out (measured: 6 points at 2,000 tokens).
CUT_CHARS = 600
# The same for a question about the order of many events: the answer stands in many turns. Measured with 600, 400, 300
# and 200 on all steps of a project: 36, 38, 39 and 40% of the sentences; on three steps 73, 72, 73 and 72%.
ORDER_CHARS = 200
# The beginning of a line by which it is looked up among those of earlier notes.
_LOOKUP_CHARS = 64
# The beginning of a line whose longest word is looked for first among the lines of the same note.
_COMPARED_FIRST_CHARS = 48
# A turn up to this length is shown whole; of a longer one the sentences that have words of the query, and those next
# to them (`scripts/bench recall --set projects`, which counts the sentence that answers, both halves: 66% of it with
# 120 to 300 characters, 62% where all of CUT_CHARS is shown).
_WHOLE_CHARS = 200
# An excerpt of a selection is shorter: the messages were chosen by how they begin.
_SELECTION_CHARS = 200
# A line that has at least this share of a message from its beginning counts as the message, if the rest has no further
# word of the query. Not measured.
_SHOWN_SHARE = 3 / 4
# A fact replaces a message if it has at least this share of the message's words. Not measured; a smaller share drops
# messages that say more than the fact.
_FACT_SHARE = 2 / 3
# The share of the budget that a selection of the whole memory takes, and its least and most tokens. It is
# shown where the message names nothing to look for, so most of the budget would be noise. Not measured.
_SELECTION_SHARE, _SELECTION_MIN, _SELECTION_MAX = 1 / 4, 128, 200
# A smaller rest of the budget holds no further line.
_MIN_TOKENS = 12
# The most characters that a token has, for a text that surely finds no room.
_CHARS_PER_TOKEN = 5
# Characters by which an excerpt may be shorter than its limit.
_EXCERPT_SLACK = 64

# Around a sentence; two that differ in nothing else are the same.
_POINTS = " .…!?¿¡。！？"
# The day and the conversation of a line.
_Group = tuple[str, int]
_TIME_AND_NUMBER = attrgetter("message.at", "message.seq")


class Choice(Struct, frozen=True):
    """The messages chosen for a note, and by their numbers why other candidates stay out."""

    # In the order of their times.
    hits: Sequence[Recalled] = ()
    # The candidates that the notes do not show yet. One of them that is in no other list had no room.
    tried: Sequence[int] = ()
    # Those that repeat another candidate or the query, or for which facts stand.
    repeats: Sequence[int] = ()
    # Those whose best part the notes show.
    shown: Sequence[int] = ()


NO_CHOICE = Choice()


def choose(
    candidates: Sequence[Message],
    query: str,
    *,
    exclude_atoms: Set[Atom] = frozenset(),
    noted: Iterable[str] = (),
    shared: Collection[str] = frozenset(),
    budget_tokens: int = 1_000,
    cut_chars: int = CUT_CHARS,
    is_selection: bool = False,
    is_order: bool = False,
) -> Choice:
    """Chooses the candidates worth a line.

    candidates: best first.
    exclude_atoms: what stands in the window; a message with one of them is left out, as is one that repeats
        another, the query, or what a note on this path has already.
    noted: the texts of those notes.
    shared: lines that stand in the question too, and are not shown.
    budget_tokens: for the whole note as `render_note` makes it, without the line that names its mark.
    cut_chars: how much of one message is shown.
    is_selection: the candidates are a selection of the whole memory (`Recall.find_most_telling`), which the
        note says. A message mostly covered by facts is left out for them.
    is_order: the query asks for the order of many events. One sentence states each.
    """
    if is_selection:
        budget_tokens, cut_chars = budget_tokens - SELECTION_TOKENS, min(cut_chars, _SELECTION_CHARS)
    in_request = _Shown(exclude_atoms, noted, query, shared)
    draft = _Draft(budget_tokens - EMPTY_TOKENS, cut_chars, query, in_request, is_order=is_order)
    if not draft.has_room:
        return Choice(tried=[m.seq for m in candidates])
    by_facts = _with_facts_first(candidates)
    replaced = {m.seq for m in candidates}.difference([m.seq for m in by_facts])
    lines = _new_lines(by_facts, in_request)
    for line in lines:
        draft.add(line)
        if not draft.has_room:
            break
    tried = [line.message.seq for line in lines]
    return Choice(draft.hits(), tried, [*replaced, *draft.repeats], draft.shown)


def shows_all(
    notes: Sequence[str], messages: Sequence[Message], query: str, *, exclude_atoms: Set[Atom]
) -> bool:
    """Returns whether the notes show each of these messages, so that `choose` would leave out whichever is found.

    messages: oldest first; the newest are the least likely to be shown.
    """
    # Most memories say more than the notes have room for.
    if _SHOWN_SHARE * sum([len(m.text) for m in messages]) > sum(map(len, notes)):
        return False
    shown = _Shown(exclude_atoms, notes, query)
    return all(shown.new_line(m) is None for m in reversed(messages))


class _Line(NamedTuple):
    """The line that a message has in a note."""

    message: Message
    # Its text on one line, without the gateway's tags.
    text: str
    # The text in the form in which it is compared with others.
    folded: str


def _new_lines(candidates: Sequence[Message], shown: _Shown) -> list[_Line]:
    """Returns the lines of the candidates that are not shown yet, in the order in which they are tried.

    A message stands before the reply that repeats it word for word.
    """
    lines: dict[int, _Line] = {}
    for message in candidates:
        text = shown.new_line(message)
        if text is not None:
            lines[message.seq] = _Line(message, text, text.casefold().strip(_POINTS))
    ordered: dict[int, _Line] = {}
    for seq, line in lines.items():
        previous = line.message.previous or 0
        if previous not in ordered and previous in lines and lines[previous].folded in line.folded:
            ordered[previous] = lines[previous]
        ordered.setdefault(seq, line)
    return list(ordered.values())


class _Shown:
    """The content that a request shows: atoms, and the lines of its notes, in order. shared: as for `choose`."""

    def __init__(
        self, atoms: Set[Atom], notes: Iterable[str], query: str, shared: Collection[str] = frozenset()
    ) -> None:
        self._atoms, self._query, self._shared = atoms, query, shared
        self._all_keys = (*query_keys(query), *short_words(query))
        self._lines = sorted("\n".join(notes).split("\n"))
        self._whole = frozenset(self._lines)  # where most repeats are found

    def new_line(self, message: Message) -> str | None:
        """Returns the line of a message, without the gateway's tags; None where a note would repeat what is shown."""
        # If one of its messages is visible, a note would repeat it.
        if not self._atoms.isdisjoint(message.atoms):
            return None
        is_cut = self._shared or len(message.text) > SEARCHED_CHARS
        line = (
            quote_on_line(without_lines(searched_part(message.text, self._all_keys), self._shared))
            if is_cut
            else message.line
        )
        line = escape_tags(line)
        return None if self.shows(labelled(message, line)) else line

    def shows(self, line: str) -> bool:
        """Returns whether an earlier note has this line, or a cut line that has most of it and of the query."""
        if line in self._whole:
            return True
        begins = line[:_LOOKUP_CHARS]
        for noted in self._lines[bisect_left(self._lines, begins) :]:
            if not noted.startswith(begins):
                return False
            if len(noted) < _SHOWN_SHARE * len(line) or not noted.endswith(CUT):
                continue
            if noted.startswith(line):
                return True
            noted_text = noted.removesuffix(CUT).rstrip()
            if line.startswith(noted_text):
                cut_off = line[len(noted_text) :].lower()
                missing = [key for key in query_keys(self._query) if key in cut_off and key not in noted_text]
                # Only then: to lower a line takes time, and most have the words as the query has them.
                if missing:
                    noted_text = noted_text.lower()
                    missing = [key for key in missing if key not in noted_text]
                if not missing:
                    return True
        return False


class _Draft:
    """A note that is filled line by line.

    room: in tokens, without the note's frame.
    cut_chars: how much of one message is shown.
    is_order: as for `choose`.
    """

    def __init__(
        self, room: int, cut_chars: int, query: str, in_request: _Shown, *, is_order: bool = False
    ) -> None:
        # By number, the messages that repeat another one or the query, and those whose best part the notes show.
        self.repeats, self.shown = list[int](), list[int]()
        self._room, self._half, self._cut_chars = room, room // 2, cut_chars
        self._query, self._in_request, self._is_order = query, in_request, is_order
        self._tried = {"", quote_on_line(query).casefold().strip(_POINTS)}
        self._chosen = _Chosen()
        self._groups: dict[_Group, list[Recalled]] = {}
        self._years: set[str] = set()

    @property
    def has_room(self) -> bool:
        return self._room >= _MIN_TOKENS

    def add(self, line: _Line) -> None:
        """Adds a line, or the best part of a long one, if it is new and has room."""
        message, text, folded = line
        if folded in self._tried:
            self.repeats.append(message.seq)
            return
        self._tried.add(folded)
        # Once half of the room is used, turns are cut shorter: the first hits hold most answers, and many more follow.
        # Of many events each counts alike.
        is_shorter = self._room <= self._half and not self._is_order
        most_chars = self._cut_chars // 2 if is_shorter else self._cut_chars
        # Most candidates find no room any more: their best part is not looked for.
        if min(len(text), most_chars - _EXCERPT_SLACK) > _CHARS_PER_TOKEN * self._room:
            return
        if len(text) > min(_WHOLE_CHARS, most_chars):
            text, cut = make_excerpt(
                text,
                query_keys(self._query),
                most_chars,
                short=short_words(self._query),
                has_neighbours=not self._is_order,
            )
            if self._in_request.shows(labelled(message, text)):
                self.shown.append(message.seq)
                return
            text += cut
            folded = text.casefold()
        hit = Recalled.of(message, text)
        group = hit.day, message.conversation_row
        heading = "" if group in self._groups else f"{day_heading(hit.day, self._years)}\n"
        cost = estimate_tokens(f"{heading}{hit.line}\n")
        if cost > self._room:
            return
        if not self._chosen.add(folded):
            self.repeats.append(message.seq)
            return
        self._room -= cost
        self._groups.setdefault(group, []).append(replace(hit, tokens=cost))
        self._years.add(hit.day[:YEAR_CHARS])

    def hits(self) -> list[Recalled]:
        """Returns what was added by day, then by conversation, each as it went."""
        for hits in self._groups.values():
            hits.sort(key=_TIME_AND_NUMBER)
        ordered = sorted(
            self._groups.items(), key=lambda each: (each[0][0], each[1][0].message.at, each[0][1])
        )
        return [hit for _, hits in ordered for hit in hits]


class _Chosen:
    """The lines that a note has so far, folded."""

    def __init__(self) -> None:
        self._lines = self._words = ""
        self._wordless: list[str] = []  # lines that were not split into words yet

    def add(self, line: str) -> bool:
        """Adds a line. Returns False if another line has its words in a row."""
        # Where the longest word of its beginning is in no line so far, it repeats none. Most lines end here, and need
        # not be split into words.
        if (
            max(blank_non_words(line[:_COMPARED_FIRST_CHARS]).split()[:-1], key=len, default="")
            in self._lines
        ):
            words = _words_between_spaces(line)
            self._words += "".join(f"{_words_between_spaces(each)}\n" for each in self._wordless)
            self._wordless.clear()
            if words in self._words and not words.isspace():
                return False
            self._words += f"{words}\n"
        else:
            self._wordless.append(line)
        self._lines += f"{line}\n"
        return True


def _words_between_spaces(line: str) -> str:
    """Returns the words of a line with a space between them, and one at each end."""
    words = blank_non_words(line)
    # This takes half the time that splitting takes.
    while "  " in words:
        words = words.replace("  ", " ")
    return f" {words.strip()} "


def _with_facts_first(candidates: Sequence[Message]) -> Sequence[Message]:
    """Puts facts that say most of a message they were learned from in its place."""
    facts: dict[int, list[Message]] = {}
    for message in candidates:
        for origin in message.origins if message.source == "fact" else ():
            facts.setdefault(origin, []).append(message)
    if not facts:
        return candidates
    by_facts: dict[int, Message] = {}
    for message in candidates:
        in_place = [message]
        if message.source == "message" and message.exchange_row in facts:
            words = _words(message.text)
            fact_words = frozenset().union(*(_words(f.text) for f in facts[message.exchange_row]))
            if words and len(words & fact_words) >= _FACT_SHARE * len(words):
                in_place = [f for f in facts[message.exchange_row] if words & _words(f.text)]
        for each in in_place:
            by_facts.setdefault(each.seq, each)
    return [*by_facts.values()]


def _words(text: str) -> frozenset[str]:
    """Returns the words of a text without endings; short ones count only where they are a script's whole words."""
    words = folded_words(text[:SEARCHED_CHARS])
    return frozenset(stem(w) for w in words if len(w) > 3 or not w.isascii() or w.isdigit())


def selection_budget(budget_tokens: int) -> int:
    """Returns the tokens that a selection of the whole memory may take, of those for any note."""
    return min(budget_tokens, max(_SELECTION_MIN, int(budget_tokens * _SELECTION_SHARE)), _SELECTION_MAX)
