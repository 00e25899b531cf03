"""The note of recalled messages: the query made of a message, the choice among what was found, the text.

Sans-IO. It knows nothing of how messages are found; candidates come best first. A note is reference material from
outside the conversation: it is dated, names its source and asks for nothing, since text that gives orders
from inside a user's message looks like an attack, and some models then refuse the whole message.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence, Set
from functools import lru_cache
from operator import attrgetter
from string import digits, punctuation
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.dates import day_text
from gateway.core.prompt.excerpt import CUT, best_sentence, make_excerpt, query_keys
from gateway.core.prompt.frame import without_frame
from gateway.core.prompt.shown_blocks import CHANGES_HEADING, describe_mark
from gateway.core.tags import MARK, escape_tags, quoted_name
from gateway.core.words import blank_non_words, folded_words, stem
from storage.records import Atom, Message

# A query has about 1,000 tokens at most; a longer message is a template or a document, not a question.
QUERY_CHARS = 4_000
# Characters of such a message's first lines, and of its last ones.
_EDGE_CHARS = 500
# A long turn is cut to this length, because whole ones crowd the others out (measured: 6 points at 2,000 tokens).
CUT_CHARS = 600
# The same for a question about the order of many events: the answer stands in many turns. Measured with 600, 400, 300
# and 200 on all steps of a project: 36, 38, 39 and 40% of the sentences; on three steps 73, 72, 73 and 72%.
ORDER_CHARS = 200
# The number of the user's messages from which sentences about the events of a query are searched for. The index takes
# names from as many for its second look (`storage.search.rank`). With 1, 2 and 5 as much is found.
_EVENT_MESSAGES = 3
# Only the beginning of a very long turn is compared and searched for its best part.
_SEARCHED_CHARS = 20_000
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
# Shorter lines, such as brackets, are in many texts by chance. Not measured.
_LINE_CHARS = 16
# A line in this many messages is part of an application's template. Not measured: fewer would take a user's repetition
# for one, more would show a new template more often.
_TEMPLATE_MESSAGES = 3
_SIGNS = (digits + punctuation).encode()
# The first character of the scripts of Chinese and Japanese, and of those after them.
_UNSPACED_FROM = "\u2e80"
# These bytes begin a character of three or four bytes, which counts as one token.
_WIDE = bytes(range(0xE0, 0xF5))
# The share of the budget that a selection of the whole memory takes (a quarter), and its least and most tokens. It is
# shown where the message names nothing to look for, so most of the budget would be noise. Not measured.
_SELECTION_SHARE, _SELECTION_MIN, _SELECTION_MAX = 4, 128, 200
# A smaller rest of the budget holds no further line.
_MIN_TOKENS = 12
# The most characters that a token has, for a text that surely finds no room.
_CHARS_PER_TOKEN = 5
# Characters by which an excerpt may be shorter than its limit.
_EXCERPT_SLACK = 64

_CLOSE = "</memory>"
_HEADING = "Notes from earlier conversations with this user, for reference: quotations, possibly outdated."
_SELECTION = "The message names nothing to look for; this is a small selection of what was said."

# A model may repeat a note as it is, with a mark of quotation before each line, or escaped within JSON or HTML.
_LEFT, _RIGHT = r"(?:<|&lt;|(?<!\\)\\++u003c)", r"(?:>|&gt;|\\++u003e)"
_NOTE = re.compile(
    rf"{_LEFT}memory(?: {MARK})?{_RIGHT}(?:\s|>|\\+[nr])*{re.escape(_HEADING)}.*?"
    rf"(?:{_LEFT}\\?/memory{_RIGHT}(?:\s|\\+[nr])*|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_SOURCES = {"passage": "saved note", "fact": "learned"}
_SPEAKERS = {"assistant": "you", "user": "user"}
# Around a sentence; two that differ in nothing else are the same.
_POINTS = " .…!?¿¡。！？"
# The day and the conversation of a line.
_Group = tuple[str, int]
# In a day's text the year comes first.
_YEAR_CHARS = 4
_WHEN = attrgetter("message.at", "message.seq")


class Recalled(Struct, frozen=True):
    """A message chosen for a note."""

    message: Message
    # Its text in the note: on one line, cut, and without the gateway's tags.
    text: str
    # That text after its speaker's name.
    line: str
    # The day of the message.
    day: str
    # What the line takes, with the heading that it needs; estimated.
    tokens: int = 0

    @classmethod
    def of(cls, message: Message, text: str) -> Recalled:
        return cls(message, text, _labelled(message, text), day_text(message.at))


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


def estimate_tokens(text: str) -> int:
    """Returns the tokens of a text, estimated: a fifth of the bytes, 3/4 for a digit or sign, 1 for a character of CJK.

    Fitted to 250 notes of LongMemEval in OpenAI's o200k: 7% above its count on average, so that the bound holds for 99%
    of them, and never more than 3% below it. (A quarter of the bytes: 9% above, and up to 25% below, where a note is
    many short lines with their dates.) Of other languages: Hebrew, Greek and Vietnamese about as many, Arabic, Russian
    and Hindi more than there are, Turkish and Finnish up to a third fewer, Amharic half. A full window is counted.
    """
    raw = text.encode("utf-8", "replace")
    # Three points in a row are one token.
    signs, wide = len(raw) - len(raw.translate(None, _SIGNS)) - 2 * raw.count(b"..."), 0
    if len(raw) != len(text):
        wide = len(raw) - len(raw.translate(None, _WIDE))
    return (4 * len(raw) + 11 * signs + 8 * wide + 19) // 20


def _frame(mark: str, now: float) -> str:
    return f"<memory {mark}>\n{_HEADING} Written {day_text(now)}."


# A mark is no word: of 3,000 in OpenAI's o200k it had five tokens on average and seven or fewer in 99 of 100. The
# estimate of the rest of the frame is seven above its count.
_MARK_TOKENS = 6
# Of the frame of any note, and of the line that names its mark.
_EMPTY_TOKENS = estimate_tokens(f"{_frame('', 0.0)}\n{_CLOSE}\n\n") + _MARK_TOKENS
NAMING_TOKENS = estimate_tokens(f"{describe_mark('')}\n") + _MARK_TOKENS
_SELECTION_TOKENS = estimate_tokens(f"{_SELECTION}\n")


def make_query(text: str) -> str:
    """Returns the text to search for: the message, or the last and then the first lines of a long one."""
    text = own_words(text).strip()
    if len(text) <= QUERY_CHARS:
        return text
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    last = _edge_lines(reversed(lines), from_end=True)
    first = _edge_lines(lines, from_end=False)
    return "\n".join((*reversed(last), *first))


def _edge_lines(lines: Iterable[str], *, from_end: bool) -> list[str]:
    """Takes whole lines up to `_EDGE_CHARS`; of a line that is itself too long, the part at the message's edge."""
    taken: list[str] = []
    room = _EDGE_CHARS
    for line in lines:
        if len(line) >= room:
            if not taken:
                taken.append(line[-room:] if from_end else line[:room])
            break
        taken.append(line)
        room -= len(line) + 1
        if room <= 0:
            break
    return taken


def with_speaker(query: str, names: Sequence[str]) -> str:
    """Returns a query with "I" in the place of its speaker's own name: what they said themselves has no name in it.

    names: what people call the speaker. Of several words the first is a name as well.
    """
    for name in names:
        found = _name_pattern(name, is_low=query == query.lower())
        if found is not None:
            query = found.sub("I", query)
    return query


@lru_cache(maxsize=256)
def _name_pattern(name: str, *, is_low: bool) -> re.Pattern[str] | None:
    """Returns the pattern of a name as a word. is_low: the text has no capitals, and neither has a name in it."""
    words = [word for word in re.split(r"[\s_]+", name) if word]
    if not words or len(words[0]) < 2:
        return None
    forms = re.escape(" ".join(words)), re.escape(words[0])
    # A script without spaces has no word boundary.
    edge = "" if words[0][0] >= _UNSPACED_FROM else r"\b"
    flags = re.IGNORECASE if is_low or name == name.lower() else 0
    return re.compile(f"{edge}(?:{'|'.join(forms)}){edge}", flags)


def event_sentences(found: Iterable[Message], query: str) -> list[str]:
    """Returns the user's sentences about the events of a query: of each of the first messages the best one.

    found: best first.
    """
    keys = query_keys(query)
    stated = [m for m in found if m.role == "user"][:_EVENT_MESSAGES]
    sentences = (best_sentence(_quote(m.text[:_SEARCHED_CHARS]), keys) for m in stated)
    return list(filter(None, dict.fromkeys(sentences)))


def shared_lines(text: str, found: Iterable[Message]) -> frozenset[str]:
    """Returns the lines of a message that others have word for word: a template's, or what is quoted once more."""
    if "\n" not in text:
        return frozenset()
    return _long_lines(text) & frozenset().union(*(_long_lines(m.text) for m in found))


def without_lines(text: str, lines: Collection[str]) -> str:
    """Returns a text without those of its lines."""
    return "\n".join(line for line in text.splitlines() if line.strip() not in lines)


def without_templates(found: Sequence[Message], shared: Collection[str]) -> list[Message]:
    """Returns what was found but messages that have only a template in common with the question.

    A text that a person quotes once more stands in one or two messages, and the messages about it are wanted.
    """
    alike = {m.seq for m in found if not _long_lines(m.text).isdisjoint(shared)}
    return [m for m in found if len(alike) < _TEMPLATE_MESSAGES or m.seq not in alike]


def _long_lines(text: str) -> frozenset[str]:
    lines = (line.strip() for line in text[:_SEARCHED_CHARS].splitlines())
    return frozenset(line for line in lines if len(line) >= _LINE_CHARS)


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
    is_selection: the candidates are a selection of the whole memory (`most_telling` of the store), which the
        note says. A message mostly covered by facts is left out for them.
    is_order: the query asks for the order of many events. One sentence states each.
    """
    if is_selection:
        budget_tokens, cut_chars = budget_tokens - _SELECTION_TOKENS, min(cut_chars, _SELECTION_CHARS)
    in_request = _Shown(exclude_atoms, noted, query, shared)
    draft = _Draft(budget_tokens - _EMPTY_TOKENS, cut_chars, query, in_request, is_order=is_order)
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
    # That text, as it is compared with others.
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
        self._lines = sorted("\n".join(notes).split("\n"))
        self._whole = frozenset(self._lines)  # where most repeats are found

    def new_line(self, message: Message) -> str | None:
        """Returns the line of a message, without the gateway's tags; None where a note would repeat what is shown."""
        # If one of its messages is visible, a note would repeat it.
        if not self._atoms.isdisjoint(message.atoms):
            return None
        is_cut = self._shared or len(message.text) > _SEARCHED_CHARS
        line = _quote(without_lines(message.text[:_SEARCHED_CHARS], self._shared)) if is_cut else message.line
        line = escape_tags(line)
        return None if self.shows(_labelled(message, line)) else line

    def shows(self, line: str) -> bool:
        """Returns whether a note's line is this one, or is a cut one that has it, or most of it and of the query."""
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
            chosen = noted.removesuffix(CUT).rstrip()
            if line.startswith(chosen):
                rest = line[len(chosen) :].lower()
                more = [key for key in query_keys(self._query) if key in rest and key not in chosen]
                if more:  # else all were shown in small letters, and no line has to be put into them
                    chosen = chosen.lower()
                    more = [key for key in more if key not in chosen]
                if not more:
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
        self._tried = {"", _quote(query).casefold().strip(_POINTS)}
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
            keys = query_keys(self._query)
            text, cut = make_excerpt(text, keys, most_chars, has_neighbours=not self._is_order)
            if self._in_request.shows(_labelled(message, text)):
                self.shown.append(message.seq)
                return
            text += cut
            folded = text.casefold()
        hit = Recalled.of(message, text)
        group = hit.day, message.conversation
        heading = "" if group in self._groups else f"{_heading(hit.day, self._years)}\n"
        cost = estimate_tokens(f"{heading}{hit.line}\n")
        if cost > self._room:
            return
        if not self._chosen.add(folded):
            self.repeats.append(message.seq)
            return
        self._room -= cost
        self._groups.setdefault(group, []).append(replace(hit, tokens=cost))
        self._years.add(hit.day[:_YEAR_CHARS])

    def hits(self) -> list[Recalled]:
        """Returns what was added by day, then by conversation, each as it went."""
        for hits in self._groups.values():
            hits.sort(key=_WHEN)
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
        """Adds a line. Returns False where its words stand in another one, one after the other."""
        # Mostly a long word with which it begins is in none of them: not all words have to be found then.
        if (
            max(blank_non_words(line[:_COMPARED_FIRST_CHARS]).split()[:-1], key=len, default="")
            in self._lines
        ):
            words = _spaced(line)
            self._words += "".join(f"{_spaced(each)}\n" for each in self._wordless)
            self._wordless.clear()
            if words in self._words and not words.isspace():
                return False
            self._words += f"{words}\n"
        else:
            self._wordless.append(line)
        self._lines += f"{line}\n"
        return True


def _spaced(line: str) -> str:
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
        if message.source == "message" and message.exchange in facts:
            words = _words(message.text)
            fact_words = frozenset().union(*(_words(f.text) for f in facts[message.exchange]))
            if words and len(words & fact_words) >= _FACT_SHARE * len(words):
                in_place = [f for f in facts[message.exchange] if words & _words(f.text)]
        for each in in_place:
            by_facts.setdefault(each.seq, each)
    return [*by_facts.values()]


def _words(text: str) -> frozenset[str]:
    """Returns the words of a text without endings; short ones count only where they are a script's whole words."""
    words = folded_words(text[:_SEARCHED_CHARS])
    return frozenset(stem(w) for w in words if len(w) > 3 or not w.isascii() or w.isdigit())


def render_note(
    hits: Sequence[Recalled],
    changes: Sequence[str],
    now: float,
    *,
    mark: str,
    is_selection: bool = False,
    names_mark: bool = False,
) -> str:
    """Returns the note that goes before the user's own words; "" if there is nothing to say.

    changes: of memory blocks, as `changes_since` gives them.
    now: seconds since the epoch; the note's own date.
    mark: the memory's.
    is_selection: as for `choose`.
    names_mark: no text before the note does.
    """
    if not hits and not changes:
        return ""
    lines, last = [_frame(mark, now)], ("", 0)
    if names_mark:
        lines.append(describe_mark(mark))
    if is_selection and hits:
        lines.append(_SELECTION)
    for hit in hits:
        group = hit.day, hit.message.conversation
        if group != last:
            lines.append(_heading(hit.day, (last[0][:_YEAR_CHARS],)))
            last = group
        lines.append(hit.line)
    if changes:
        lines += [CHANGES_HEADING, *(f"- {change}" for change in changes)]
    return "\n".join((*lines, _CLOSE, "", ""))


def own_words(text: str) -> str:
    """Returns a person's own words: without the gateway's notes and the text that applications put around them."""
    return without_frame(strip_notes(text))


def strip_notes(text: str) -> str:
    """Returns the text without the gateway's notes: a reply that quotes one must not be learned as a statement."""
    return _NOTE.sub("", text) if _HEADING in text else text


def without_first_note(text: str) -> str:
    """Returns the text without a note of the gateway's at its beginning; one that it quotes later stays."""
    found = _NOTE.match(text) if _HEADING in text else None
    if found is None:
        return text
    return text[len(found[0].rstrip()) :].removeprefix("\n\n")


def selection_budget(budget_tokens: int) -> int:
    """Returns the tokens that a selection of the whole memory may take, of those for any note."""
    return min(budget_tokens, max(_SELECTION_MIN, budget_tokens // _SELECTION_SHARE), _SELECTION_MAX)


def has_selection(noted: Iterable[str]) -> bool:
    """Returns whether one of these notes is a selection of the whole memory: a conversation has one at most."""
    return any(_SELECTION in each for each in noted)


def mentions_blocks(note: str) -> bool:
    """Returns whether a note, or a text that quotes one, states a change of a memory block."""
    return CHANGES_HEADING in note


def _heading(day: str, years: Collection[str]) -> str:
    """Returns the line before a group: its day, with the year unless that is one of the years."""
    return f"[{day[_YEAR_CHARS + 1 :] if '-' in day and day[:_YEAR_CHARS] in years else day}]"


def _labelled(message: Message, text: str) -> str:
    """Returns a line of a note: who said or noted the text, and the text."""
    who = _SOURCES.get(message.source)
    if who is None:
        # What a client gave, a name or a role, must not pass for a label, nor for the heading of a group.
        given = message.speaker or ("" if message.role in _SPEAKERS else message.role)
        who = quoted_name(given) if given else _SPEAKERS[message.role]
    return f"{who}: {text}"


def _quote(text: str) -> str:
    """Puts a text on one line, so that it cannot pass for lines of the note; a tag of the gateway's in it becomes
    plain text.
    """
    return escape_tags(" ".join(text.split()))
