"""The messages from which a fact or an edit may come, by its words. Forgetting relies on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gateway.core.memory.fact_words import DESIGNATIONS, list_distinctive_words
from storage.commands import SourcedLine
from storage.records import Fact, Message


class FactOrigins:
    """Finds the exchanges from which a text may come: the exchanges that share a distinctive word with the text.

    A word that only known facts or lines of blocks have comes from the sources of these, unless it designates the
    person. A text that shares no word with messages, facts and lines may come from any of the exchanges.
    """

    def __init__(self, messages: Sequence[Message], known_texts: Iterable[Fact | SourcedLine]) -> None:
        """Splits texts into words.

        messages: the messages in the order in which they were numbered for the model, from 1 on.
        known_texts: the facts and lines that were learned before.
        """
        self._messages = messages
        # The distinctive words of each message.
        self._message_words = [list_distinctive_words(message.text) for message in messages]
        # The known facts and lines, each with its distinctive words.
        self._known_lines = [
            (line, list_distinctive_words(line.text, left_out=DESIGNATIONS)) for line in known_texts
        ]

    def find_source_rows(self, text: str) -> set[int]:
        """Returns the rows of the exchanges from which a text may come."""
        words = list_distinctive_words(text)
        rows = {
            message.exchange_row
            for message, message_words in zip(self._messages, self._message_words, strict=True)
            if words & message_words
        }
        words_in_no_message = words.difference(*self._message_words)
        rows.update(
            row
            for line, known_words in self._known_lines
            if words_in_no_message & known_words
            for row in line.sources
        )
        return rows or {message.exchange_row for message in self._messages}

    def find_numbered(self, numbers: Collection[int]) -> Message | None:
        """Returns the message of the first of these numbers that a message has; None: no message has any of them."""
        return next((self._messages[n - 1] for n in numbers if 0 < n <= len(self._messages)), None)

    def find_closest(self, text: str) -> Message | None:
        """Returns the message that shares the most words with a text, if possible a user's; None: no messages."""
        words = list_distinctive_words(text)

        def rank(index: int) -> tuple[int, bool]:
            return len(words & self._message_words[index]), self._messages[index].role == "user"

        indices = range(len(self._messages))
        return self._messages[max(indices, key=rank)] if indices else None
