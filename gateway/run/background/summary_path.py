"""The path of a conversation of which a summary is to be written, and the part that the summary is to cover."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec import Struct

from gateway.core.conversation.exchange import count_atoms_to_end
from gateway.core.conversation.private import is_nudge
from gateway.core.conversation.tree import Tree
from gateway.core.prompt.summary import ExchangeSize, find_last_covered
from gateway.core.prompt.summary_options import SummaryOptions
from gateway.tokens import choose_tokenizer, count_message_tokens
from storage.records import ANY_WINDOW, EvictedPart, Exchange, Summary
from storage.sql.store import Store


class SummarySpan(Struct, frozen=True):
    """The part of a path that a summary is to cover."""

    # The summary of the path before the span; None: the span begins the path.
    earlier_summary: Summary | None
    # The exchanges of the span, oldest first.
    exchanges: Sequence[Exchange]
    # The tokens of the path up to the end of the span, from the root on.
    evicted_tokens: int

    @property
    def end(self) -> Exchange:
        """The last exchange of the span."""
        return self.exchanges[-1]

    @property
    def evicted(self) -> EvictedPart:
        """The beginning of the path that leaves the window with the summary of the span."""
        return EvictedPart(
            depth=self.end.depth + 1,
            offset=count_atoms_to_end(self.end),
            tokens=self.evicted_tokens,
            context=ANY_WINDOW,
        )


class SummaryPath(Struct, frozen=True):
    """A path of which a part is to be summarised. It begins at the last exchange with a summary, or at the root."""

    # The summary of the first exchange; None: the path begins at the root.
    earlier_summary: Summary | None
    # The exchanges of the path, oldest first.
    exchanges: Sequence[Exchange]
    # The size of each exchange, in the same order.
    sizes: Sequence[ExchangeSize]

    @classmethod
    async def measure(cls, store: Store, agent_row: int, exchanges: Sequence[Exchange]) -> SummaryPath:
        """Returns the path with its summary and the sizes of its exchanges, in tokens of its last model.

        exchanges: the result of `summaries.load_path`.
        """
        earlier_summary = await store.summaries.find_summary(agent_row, exchanges[0].id)
        return cls(earlier_summary, exchanges, await asyncio.to_thread(_measure_exchanges, exchanges))

    @property
    def tokens(self) -> int:
        """The tokens of all exchanges of the path."""
        return sum(size.tokens for size in self.sizes)

    def find_next_span(
        self, options: SummaryOptions, retained_tokens: int, retained_messages: int = 0
    ) -> SummarySpan | None:
        """Returns the span that the next summary is to cover, or None if there is nothing to cover.

        If a summary covers all (`SummaryOptions.covers_all`), nothing stays after the span, unless calls wait for their
        results.

        retained_tokens: the fewest tokens that stay after the span.
        retained_messages: the fewest messages that stay after the span.
        """
        is_whole = options.covers_all and not self.sizes[-1].has_open_calls
        last_index = (
            len(self.sizes) - 1
            if is_whole
            else find_last_covered(self.sizes, retained_tokens, retained_messages)
        )
        first_index = 0 if self.earlier_summary is None else 1
        if last_index is None or last_index < first_index:
            return None
        return SummarySpan(
            self.earlier_summary,
            self.exchanges[first_index : last_index + 1],
            self._count_evicted(last_index),
        )

    def _count_evicted(self, last_index: int) -> int:
        """Returns the tokens that are out of the window if it begins after the exchange with the index `last_index`.

        The part that the window had lost before counts as it was counted then, since the path here may begin after the
        root.
        """
        evicted_before = self.exchanges[-1].evicted
        if evicted_before is None or evicted_before.offset > count_atoms_to_end(self.exchanges[last_index]):
            return sum(size.tokens for size in self.sizes[: last_index + 1])
        pairs = zip(self.exchanges[: last_index + 1], self.sizes, strict=False)
        return evicted_before.tokens + sum(
            size.tokens for exchange, size in pairs if exchange.offset >= evicted_before.offset
        )


def _measure_exchanges(path: Sequence[Exchange]) -> list[ExchangeSize]:
    count = choose_tokenizer(path[-1].model).count
    return [_measure_exchange(exchange, count) for exchange in path]


def _measure_exchange(exchange: Exchange, count: Callable[[str], int]) -> ExchangeSize:
    """Returns the room that an exchange takes in the window. count: returns the tokens of a text."""
    content = Tree([exchange]).contents.get(exchange)
    messages = content.messages or []
    # `full_reply` has all replies of a turn, those of hidden rounds among them.
    replies = content.full_reply or ([content.shown_reply] if content.shown_reply is not None else [])
    tokens = sum(count_message_tokens(message, count) for message in (*messages, *replies))
    # A nudge, which an agent's rules send to its model, continues the run of its turn.
    begins_turn = bool(messages) and messages[0].get("role") == "user" and not is_nudge(messages[0])
    has_open_calls = bool(replies) and bool(replies[-1].get("tool_calls"))
    return ExchangeSize(tokens, begins_turn, len(messages) + len(replies), has_open_calls)
