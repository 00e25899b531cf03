"""The content that a request shows already: whether a line of a note would repeat it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Set
from itertools import islice

from gateway.core.prompt.excerpt import CUT, list_query_keys, list_short_words
from gateway.core.prompt.note_query import SEARCHED_CHARS, choose_searched_part, without_lines
from gateway.core.prompt.note_text import quote_on_line, render_line
from gateway.core.tags import escape_tags
from storage.records import Atom, Message

# The number of first characters by which a line is looked up among the lines of earlier notes.
_LOOKUP_CHARS = 64
# The least share of a message, from its beginning, in a line that counts as the message, if the rest of the message has
# no further word of the query. Not measured.
SHOWN_SHARE = 3 / 4


class ShownContent:
    """The content that a request shows: the atoms of its messages, and the lines of its notes."""

    def __init__(
        self,
        atoms: Set[Atom],
        notes: Iterable[str],
        query: str,
        shared_lines: Collection[str] = frozenset(),
    ) -> None:
        """Collects the content.

        atoms: the atoms of the request's messages.
        notes: the texts of its notes.
        query: the text for which another note is made.
        shared_lines: lines of the query that are left out of a message.
        """
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
        """Returns whether an earlier note has this line, or repeats it by a cut line."""
        if line in self._whole_lines:
            return True
        beginning = line[:_LOOKUP_CHARS]
        for shown_line in islice(self._lines, bisect_left(self._lines, beginning), None):
            if not shown_line.startswith(beginning):
                return False
            if self._repeats(shown_line, line):
                return True
        return False

    def _repeats(self, shown_line: str, line: str) -> bool:
        """Returns whether a cut line of a note has most of another line, and all words of the query that are in it."""
        if len(shown_line) < SHOWN_SHARE * len(line) or not shown_line.endswith(CUT):
            return False
        if shown_line.startswith(line):
            return True
        shown_text = shown_line.removesuffix(CUT).rstrip()
        if not line.startswith(shown_text):
            return False
        missing_text = line[len(shown_text) :].lower()
        missing_keys = [key for key in list_query_keys(self._query) if key in missing_text]
        if not missing_keys:
            return True
        folded_text = shown_text.lower()
        return all(key in folded_text for key in missing_keys)
