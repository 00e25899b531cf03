"""The tokens of a prompt's messages, which are counted only when they are needed: a count of a long list is slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from gateway.core.conversation.wire_message import WireMessage
from gateway.tokens import count_message_tokens, count_upper_bound


class EntryTokens:
    """The tokens of the messages that a window may have. An upper bound of them is known without a count."""

    def __init__(self, messages: Sequence[WireMessage], count: Callable[[str], int]) -> None:
        """Bounds the tokens of each message.

        messages: oldest first.
        count: returns the tokens of a text.
        """
        self._messages = messages
        self._count = count
        # An upper bound of each message's tokens.
        self.bounds = [count_message_tokens(message, count_upper_bound) for message in messages]
        # The same bound of all tokens before each message.
        self._bounds_before = [0, *accumulate(self.bounds)]
        # The tokens of each message; None: not counted yet.
        self._counts: list[int] | None = None
        # The tokens of all messages before each message; None: not counted yet.
        self._counts_before: list[int] | None = None

    @property
    def are_counted(self) -> bool:
        """True if each message was counted."""
        return self._counts is not None

    def count_each(self) -> list[int]:
        """Returns the tokens of each message."""
        if self._counts is None:
            self._counts = [count_message_tokens(message, self._count) for message in self._messages]
        return self._counts

    def count(self, indices: range) -> int:
        """Returns the tokens of the messages with successive indices."""
        if not indices:
            return 0
        if self._counts_before is None:
            self._counts_before = [0, *accumulate(self.count_each())]
        return self._counts_before[indices.stop] - self._counts_before[indices.start]

    def bound(self, indices: range) -> int:
        """Returns an upper bound of the tokens of the messages with successive indices."""
        return self._bounds_before[indices.stop] - self._bounds_before[indices.start]
