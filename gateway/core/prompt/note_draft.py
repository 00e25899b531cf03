"""A note while it is filled line by line, within its budget."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

from msgspec.structs import replace

from gateway.core.prompt.excerpt import list_query_keys, list_short_words, make_excerpt
from gateway.core.prompt.note_text import (
    YEAR_CHARS,
    NoteHit,
    estimate_tokens,
    quote_on_line,
    render_day_heading,
    render_line,
)
from gateway.core.prompt.shown_content import ShownContent
from gateway.core.words import blank_non_words
from storage.records import Message

# The number of a line's first characters whose longest word is looked for in the note's other lines before the line is
# split into words.
_COMPARED_FIRST_CHARS = 48
# A turn up to this length is shown whole. From a longer turn the sentences with words of the query are shown, and the
# sentences next to them (`scripts/bench recall --set projects`, which counts the sentence that answers, both halves:
# 66% of it with 120 to 300 characters, 62% if all of `note_choice.CUT_CHARS` is shown).
_WHOLE_CHARS = 200
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


class NoteLine(NamedTuple):
    """The line that a message has in a note."""

    # The message.
    message: Message
    # The text of the message on one line, without the gateway's tags.
    text: str
    # The text in the form in which it is compared with others.
    folded: str


def fold_line(text: str) -> str:
    """Returns a text on one line in the form in which it is compared with others."""
    return text.casefold().strip(_SENTENCE_EDGES)


class _Group(NamedTuple):
    """The lines of a note that stand together."""

    # The day of the messages, as the note shows it.
    day: str
    # The row of their conversation.
    conversation_row: int


class NoteDraft:
    """A note that is filled line by line."""

    def __init__(
        self,
        room_tokens: int,
        cut_chars: int,
        query: str,
        shown_content: ShownContent,
        *,
        is_order: bool,
    ) -> None:
        """Makes an empty note.

        room_tokens: the most tokens of the lines, without the note's frame.
        cut_chars: the most characters of one message that are shown.
        shown_content: the content that the request shows already.
        is_order: True if the query asks for the order of many events, each of which one sentence states.
        """
        # The numbers of the messages that repeat another line or the query.
        self.repeated_seqs: list[int] = []
        # The numbers of the messages of which the request shows the best part already.
        self.shown_seqs: list[int] = []
        self._room_tokens = room_tokens
        # Half of the room at the beginning.
        self._half_tokens = room_tokens // 2
        self._cut_chars = cut_chars
        self._query = query
        self._shown_content = shown_content
        self._is_order = is_order
        # The folded lines that are not added again: the lines that were tried so far, and the query itself.
        self._tried_lines = {"", fold_line(quote_on_line(query))}
        # The lines that were added, for the comparison with new lines.
        self._chosen_lines = _ChosenLines()
        # The messages that were added, by the lines that stand together.
        self._groups: dict[_Group, list[NoteHit]] = {}
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

    def add(self, line: NoteLine) -> None:
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
            excerpt, cut_mark = make_excerpt(
                text,
                list_query_keys(self._query),
                max_chars,
                short_keys=list_short_words(self._query),
                shows_neighbours=not self._is_order,
            )
            if self._shown_content.shows_line(render_line(message, excerpt)):
                self.shown_seqs.append(message.seq)
                return
            text = excerpt + cut_mark
            folded = text.casefold()
        self._add_if_room(message, text, folded)

    def _add_if_room(self, message: Message, text: str, folded: str) -> None:
        """Adds the line of a message if it has room with its heading, and no line of the note has its words.

        text: the text of the line.
        folded: the text in the form in which it is compared with others.
        """
        hit = NoteHit.of(message, text)
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

    def list_hits(self) -> list[NoteHit]:
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
