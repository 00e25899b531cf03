"""The content that a request shows already: whether a line of a note would repeat it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Set

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
        """Collects the content. The parameters are as in `note_choice.choose_hits` (`atoms`: `exclude_atoms`)."""
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
            if len(shown_line) < SHOWN_SHARE * len(line) or not shown_line.endswith(CUT):
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
