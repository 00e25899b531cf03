"""The messages from which a fact or an edit may come, by its words. Forgetting relies on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gateway.core.memory.fact_words import DESIGNATIONS, recognising_words
from storage.commands import SourcedLine
from storage.records import Fact, Message


class FactOrigins:
    """The exchanges that a text may come from: those that share a telling word with the text.

    A word that only known facts or lines of blocks have comes from their sources, unless it designates the person. A
    text that shares no word with any of these may come from any of the exchanges.
    """

    def __init__(self, messages: Sequence[Message], known: Iterable[Fact | SourcedLine]) -> None:
        self._messages = messages
        self._message_keys = [(m, recognising_words(m.text)) for m in messages]
        self._known_keys = [(each, recognising_words(each.text, DESIGNATIONS)) for each in known]
        self._all_keys = frozenset().union(*(keys for _, keys in self._message_keys))

    def of(self, text: str) -> set[int]:
        """Returns the rows of the exchanges that a text may come from."""
        keys = recognising_words(text)
        rows = {message.exchange_row for message, message_keys in self._message_keys if keys & message_keys}
        new_keys = keys - self._all_keys
        rows.update(
            row for each, known_keys in self._known_keys if new_keys & known_keys for row in each.sources
        )
        return rows or {message.exchange_row for message in self._messages}

    def first_of(self, numbers: Collection[int]) -> Message | None:
        """Returns the first message that these numbers name; None: they name no message."""
        return next((self._messages[n - 1] for n in numbers if 0 < n <= len(self._messages)), None)

    def closest(self, text: str) -> Message | None:
        """Returns the message that shares the most words with a text, if possible a user's; None: no messages."""
        keys = recognising_words(text)

        def rank(message_keys: tuple[Message, frozenset[str]]) -> tuple[int, bool]:
            message, message_words = message_keys
            return len(keys & message_words), message.role == "user"

        return max(self._message_keys, key=rank)[0] if self._message_keys else None
