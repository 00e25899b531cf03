"""The choice of the messages that go into a note, among the messages that a search has found.

Sans-IO. It knows nothing of the search; candidates come best first. `note_query.py` has the query, `note_text.py` the
text of the note.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence, Set
from operator import attrgetter
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.prompt.excerpt import CUT, list_query_keys, list_short_words, make_excerpt
from gateway.core.prompt.note_query import SEARCHED_CHARS, choose_searched_part, without_lines
from gateway.core.prompt.note_text import (
    EMPTY_TOKENS,
    SELECTION_TOKENS,
    YEAR_CHARS,
    Recalled,
    estimate_tokens,
    quote_on_line,
    render_day_heading,
    render_line,
)
from gateway.core.tags import escape_tags
from gateway.core.words import blank_non_words, list_folded_words, stem
from storage.records import Atom, Message

# A long turn is cut to this length, because whole turns crowd the others out (measured: 6 points at 2,000 tokens).
CUT_CHARS = 600
# The same length for a question about the order of many events: the answer stands in many turns. Measured with 600,
# 400, 300 and 200 on all steps of a project: 36, 38, 39 and 40% of the sentences; on three steps 73, 72, 73 and 72%.
ORDER_CHARS = 200
# The number of first characters by which a line is looked up among the lines of earlier notes.
_LOOKUP_CHARS = 64
# The longest word in so many first characters of a line is looked for first among the lines of the same note.
_COMPARED_FIRST_CHARS = 48
# A turn up to this length is shown whole. From a longer turn the sentences with words of the query are shown, and the
# sentences next to them (`scripts/bench recall --set projects`, which counts the sentence that answers, both halves:
# 66% of it with 120 to 300 characters, 62% if all of CUT_CHARS is shown).
_WHOLE_CHARS = 200
# An excerpt of a selection is shorter: the messages were chosen by how they begin.
_SELECTION_CHARS = 200
# The least share of a message, from its beginning, in a line that counts as the message, if the rest of the message has
# no further word of the query. Not measured.
_SHOWN_SHARE = 3 / 4
# The least share of a message's words in a fact that replaces the message. Not measured; a smaller share drops messages
# that say more than the fact.
_FACT_SHARE = 2 / 3
# The share of the budget that a selection of the whole memory takes. A selection is shown if the message names nothing
# to look for, so most of the budget would be noise. Not measured.
_SELECTION_SHARE = 1 / 4
# The fewest and the most tokens of a selection. Not measured.
_SELECTION_MIN_TOKENS = 128
_SELECTION_MAX_TOKENS = 200
# The fewest tokens of the budget in which a line has room.
_MIN_LINE_TOKENS = 12
# The most characters for which `estimate_tokens` counts one token, so a longer text surely finds no room.
_MAX_CHARS_PER_TOKEN = 5
# The characters by which an excerpt may be shorter than its limit. Not measured; a smaller number only leaves out more
# candidates before their best part is sought.
_EXCERPT_SLACK_CHARS = 64

# Characters around a sentence. Sentences that differ only in them are the same.
_SENTENCE_EDGES = " .…!?¿¡。！？"
# Sorts the messages of a group.
_TIME_AND_NUMBER = attrgetter("message.at", "message.seq")


class Choice(Struct, frozen=True):
    """The messages chosen for a note, and the numbers of other candidates by the reason why they are left out."""

    # The chosen messages, in the order of their times.
    hits: Sequence[Recalled] = ()
    # The candidates that the notes do not show yet. A candidate that is in no other list had no room.
    tried_seqs: Sequence[int] = ()
    # The candidates that repeat another candidate or the query, or that are replaced by facts.
    repeated_seqs: Sequence[int] = ()
    # The candidates of which the notes show the best part.
    shown_seqs: Sequence[int] = ()


NO_CHOICE = Choice()


def choose_hits(
    candidates: Sequence[Message],
    query: str,
    *,
    exclude_atoms: Set[Atom] = frozenset(),
    notes: Iterable[str] = (),
    shared_lines: Collection[str] = frozenset(),
    budget_tokens: int = 1_000,
    cut_chars: int = CUT_CHARS,
    is_selection: bool = False,
    is_order: bool = False,
) -> Choice:
    """Chooses the candidates worth a line.

    A message is left out if it stands in the window, or if it repeats another message, the query or a note.

    candidates: the messages that were found, best first.
    exclude_atoms: the atoms of the messages in the window.
    notes: the texts of the notes on this path.
    shared_lines: lines that stand in the question too, and are not shown.
    budget_tokens: the most tokens of the whole note as `render_note` makes it, without the line that names its mark.
    cut_chars: the most characters of one message that are shown.
    is_selection: the candidates are a selection of the whole memory (`Recall.select_messages`), as the note states.
        A message that facts cover for the most part is left out.
    is_order: the query asks for the order of many events, each of which one sentence states.
    """
    if is_selection:
        budget_tokens -= SELECTION_TOKENS
        cut_chars = min(cut_chars, _SELECTION_CHARS)
    in_request = _ShownContent(exclude_atoms, notes, query, shared_lines)
    draft = _Draft(budget_tokens - EMPTY_TOKENS, cut_chars, query, in_request, is_order=is_order)
    if not draft.has_room:
        return Choice(tried_seqs=[message.seq for message in candidates])
    with_facts = _replace_by_facts(candidates)
    replaced_seqs = {message.seq for message in candidates}.difference(
        [message.seq for message in with_facts]
    )
    lines = _list_new_lines(with_facts, in_request)
    for line in lines:
        draft.add(line)
        if not draft.has_room:
            break
    tried_seqs = [line.message.seq for line in lines]
    return Choice(draft.list_hits(), tried_seqs, [*replaced_seqs, *draft.repeated_seqs], draft.shown_seqs)


def shows_all(
    notes: Sequence[str], messages: Sequence[Message], query: str, *, exclude_atoms: Set[Atom]
) -> bool:
    """Returns whether the notes show each of these messages, so that `choose_hits` would leave them all out.

    messages: oldest first; the newest messages are the least likely to be shown.
    """
    # Most memories say more than the notes have room for.
    if _SHOWN_SHARE * sum([len(message.text) for message in messages]) > sum(map(len, notes)):
        return False
    shown_content = _ShownContent(exclude_atoms, notes, query)
    return all(shown_content.find_new_line(message) is None for message in reversed(messages))


class _Group(NamedTuple):
    """The lines of a note that stand together."""

    # The day of the messages, as the note shows it.
    day: str
    # The row of their conversation.
    conversation_row: int


class _Line(NamedTuple):
    """The line that a message has in a note."""

    # The message.
    message: Message
    # The text of the message on one line, without the gateway's tags.
    text: str
    # The text in the form in which it is compared with others.
    folded: str


def _list_new_lines(candidates: Sequence[Message], shown_content: _ShownContent) -> list[_Line]:
    """Returns the lines of the candidates that are not shown yet, in the order in which they are tried.

    A message stands before the reply that repeats it word for word.
    """
    lines: dict[int, _Line] = {}
    for message in candidates:
        text = shown_content.find_new_line(message)
        if text is not None:
            lines[message.seq] = _Line(message, text, text.casefold().strip(_SENTENCE_EDGES))
    ordered: dict[int, _Line] = {}
    for seq, line in lines.items():
        previous = line.message.previous or 0
        if previous not in ordered and previous in lines and lines[previous].folded in line.folded:
            ordered[previous] = lines[previous]
        ordered.setdefault(seq, line)
    return list(ordered.values())


class _ShownContent:
    """The content that a request shows: atoms, and the lines of its notes, in order."""

    def __init__(
        self,
        atoms: Set[Atom],
        notes: Iterable[str],
        query: str,
        shared_lines: Collection[str] = frozenset(),
    ) -> None:
        """shared_lines: lines that stand in the question too, and are not shown."""
        self._atoms = atoms
        self._query = query
        self._shared_lines = shared_lines
        # The lines of the notes, sorted.
        self._lines = sorted("\n".join(notes).split("\n"))
        self._whole_lines = frozenset(self._lines)  # most repeats are found in it

    def find_new_line(self, message: Message) -> str | None:
        """Returns the line of a message, without the gateway's tags; None: the request shows the message already."""
        if not self._atoms.isdisjoint(message.atoms):
            return None
        line = message.line
        if self._shared_lines or len(message.text) > SEARCHED_CHARS:
            keys = (*list_query_keys(self._query), *list_short_words(self._query))
            part = choose_searched_part(message.text, keys)
            line = quote_on_line(without_lines(part, self._shared_lines))
        line = escape_tags(line)
        return None if self.shows_line(render_line(message, line)) else line

    def shows_line(self, line: str) -> bool:
        """Returns whether an earlier note has this line, or a cut line with most of it and of the query's words."""
        if line in self._whole_lines:
            return True
        beginning = line[:_LOOKUP_CHARS]
        for shown_line in self._lines[bisect_left(self._lines, beginning) :]:
            if not shown_line.startswith(beginning):
                return False
            if len(shown_line) < _SHOWN_SHARE * len(line) or not shown_line.endswith(CUT):
                continue
            if shown_line.startswith(line):
                return True
            shown_text = shown_line.removesuffix(CUT).rstrip()
            if line.startswith(shown_text):
                cut_text = line[len(shown_text) :].lower()
                missing_keys = [
                    key for key in list_query_keys(self._query) if key in cut_text and key not in shown_text
                ]
                # Only now, since lowering a line takes time, and most lines have the words as the query has them.
                if missing_keys:
                    shown_text = shown_text.lower()
                    missing_keys = [key for key in missing_keys if key not in shown_text]
                if not missing_keys:
                    return True
        return False


class _Draft:
    """A note that is filled line by line."""

    def __init__(
        self,
        room_tokens: int,
        cut_chars: int,
        query: str,
        in_request: _ShownContent,
        *,
        is_order: bool = False,
    ) -> None:
        """Makes an empty note.

        room_tokens: the most tokens of the lines, without the note's frame.
        cut_chars: the most characters of one message that are shown.
        is_order: the query asks for the order of many events, each of which one sentence states.
        """
        # The fields of the same names of the `Choice`.
        self.repeated_seqs: list[int] = []
        self.shown_seqs: list[int] = []
        self._room_tokens = room_tokens
        # Half of the room at the beginning.
        self._half_tokens = room_tokens // 2
        self._cut_chars = cut_chars
        self._query = query
        self._in_request = in_request
        self._is_order = is_order
        # The folded lines that are not added again: the lines that were tried so far, and the query itself.
        self._tried_lines = {"", quote_on_line(query).casefold().strip(_SENTENCE_EDGES)}
        # The lines that were added, for the comparison with new lines.
        self._chosen_lines = _ChosenLines()
        # The messages that were added, by the lines that stand together.
        self._groups: dict[_Group, list[Recalled]] = {}
        # The years that a heading of the note has named.
        self._years: set[str] = set()

    @property
    def has_room(self) -> bool:
        return self._room_tokens >= _MIN_LINE_TOKENS

    @property
    def _max_chars(self) -> int:
        """The most characters of the next line.

        Once half of the room is used, turns are cut shorter: the first hits hold most answers, and many more follow.
        (Not for the order of events, where each event counts alike.)
        """
        is_shorter = self._room_tokens <= self._half_tokens and not self._is_order
        return self._cut_chars // 2 if is_shorter else self._cut_chars

    def add(self, line: _Line) -> None:
        """Adds a line, or the best part of a long one, if it is new and has room."""
        message, text, folded = line
        if folded in self._tried_lines:
            self.repeated_seqs.append(message.seq)
            return
        self._tried_lines.add(folded)
        max_chars = self._max_chars
        # Most candidates have no room any more, so their best part need not be found.
        if min(len(text), max_chars - _EXCERPT_SLACK_CHARS) > _MAX_CHARS_PER_TOKEN * self._room_tokens:
            return
        if len(text) > min(_WHOLE_CHARS, max_chars):
            text, cut_mark = make_excerpt(
                text,
                list_query_keys(self._query),
                max_chars,
                short_keys=list_short_words(self._query),
                shows_neighbours=not self._is_order,
            )
            if self._in_request.shows_line(render_line(message, text)):
                self.shown_seqs.append(message.seq)
                return
            text += cut_mark
            folded = text.casefold()
        hit = Recalled.of(message, text)
        group = _Group(hit.day, message.conversation_row)
        heading = "" if group in self._groups else f"{render_day_heading(hit.day, self._years)}\n"
        tokens = estimate_tokens(f"{heading}{hit.line}\n")
        if tokens > self._room_tokens:
            return
        if not self._chosen_lines.add(folded):
            self.repeated_seqs.append(message.seq)
            return
        self._room_tokens -= tokens
        self._groups.setdefault(group, []).append(replace(hit, tokens=tokens))
        self._years.add(hit.day[:YEAR_CHARS])

    def list_hits(self) -> list[Recalled]:
        """Returns the added messages by day, then by conversation, then by time."""
        for hits in self._groups.values():
            hits.sort(key=_TIME_AND_NUMBER)

        def rank(group: _Group) -> tuple[str, float, int]:
            return group.day, self._groups[group][0].message.at, group.conversation_row

        return [hit for group in sorted(self._groups, key=rank) for hit in self._groups[group]]


class _ChosenLines:
    """The lines of a note so far, folded."""

    def __init__(self) -> None:
        # The lines, each with a line feed.
        self._lines = ""
        # The words of the lines that were split, each line with a line feed.
        self._words = ""
        # The lines that were not split into words yet.
        self._wordless_lines: list[str] = []

    def add(self, line: str) -> bool:
        """Adds a line, unless a line of the note has its words in a row. Returns whether it was added."""
        # If no line has the longest word of its beginning, the line repeats no line. This holds for most lines, which
        # then need not be split into words.
        first_words = blank_non_words(line[:_COMPARED_FIRST_CHARS]).split()[:-1]
        if max(first_words, key=len, default="") in self._lines:
            words = _space_words(line)
            self._words += "".join(f"{_space_words(each)}\n" for each in self._wordless_lines)
            self._wordless_lines.clear()
            if words in self._words and not words.isspace():
                return False
            self._words += f"{words}\n"
        else:
            self._wordless_lines.append(line)
        self._lines += f"{line}\n"
        return True


def _space_words(line: str) -> str:
    """Returns the words of a line with a space between them, and one at each end."""
    words = blank_non_words(line)
    # Takes half the time of splitting.
    while "  " in words:
        words = words.replace("  ", " ")
    return f" {words.strip()} "


def _replace_by_facts(candidates: Sequence[Message]) -> Sequence[Message]:
    """Returns the candidates. Facts that say most of the message from which they were learned replace the message."""
    facts_by_source: dict[int, list[Message]] = {}
    for message in candidates:
        for exchange_row in message.sources if message.kind == "fact" else ():
            facts_by_source.setdefault(exchange_row, []).append(message)
    if not facts_by_source:
        return candidates
    with_facts: dict[int, Message] = {}
    for message in candidates:
        replacements = [message]
        if message.kind == "message" and message.exchange_row in facts_by_source:
            facts = facts_by_source[message.exchange_row]
            words = _list_words(message.text)
            fact_words = frozenset().union(*(_list_words(fact.text) for fact in facts))
            if words and len(words & fact_words) >= _FACT_SHARE * len(words):
                replacements = [fact for fact in facts if words & _list_words(fact.text)]
        for each in replacements:
            with_facts.setdefault(each.seq, each)
    return [*with_facts.values()]


def _list_words(text: str) -> frozenset[str]:
    """Returns the words of a text without endings. Short words count only if they are numbers or not of ASCII."""
    words = list_folded_words(text[:SEARCHED_CHARS])
    return frozenset(stem(word) for word in words if len(word) > 3 or not word.isascii() or word.isdigit())


def limit_selection(budget_tokens: int) -> int:
    """Returns the tokens that a selection of the whole memory may take. budget_tokens: the most tokens of any note."""
    return min(
        budget_tokens,
        max(_SELECTION_MIN_TOKENS, int(budget_tokens * _SELECTION_SHARE)),
        _SELECTION_MAX_TOKENS,
    )
