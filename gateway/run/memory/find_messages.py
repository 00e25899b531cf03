"""Finds the stored messages that fit a message: decides the queries, and the order in which hits are used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Literal, NamedTuple, Protocol

from gateway.core.memory.standing import normalize_statement
from gateway.core.prompt import note_choice, note_query
from gateway.core.prompt.event_order import OrderQuestion, find_order_question, without_order_words
from gateway.core.prompt.excerpt import list_query_keys
from gateway.run.memory.recall_result import SearchRecord
from gateway.run.memory.visible import NOTHING_VISIBLE, VisibleContent
from storage.errors import StoreTimeout
from storage.fusion import interleave
from storage.records import Message, StandingFact
from storage.search_trace import SearchTrace

# The fewest tokens of a note's line if messages are long: no more hits are read than fit with such lines.
_LINE_TOKENS = 40
# The fewest hits that are read.
_MIN_HITS = 16
# For a question about the next event, the number of its own hits before the messages next to the first hit. Not
# measured.
_HITS_BEFORE_NEXT = 5
# For a question about an order, the number of hits of the first search before the hits of both searches in turn. As
# much is found with 5 and with all.
_SURE_EVENTS = 10
# The most hits outside of the note that the record of a search has.
MAX_LEFT_OUT = 5
# The two kinds of questions about an order; `scripts/talk/rules.py` empties one at a time, to measure its effect.
# Questions that are answered by the messages after or before a hit.
_NEIGHBOUR_QUESTIONS: Collection[OrderQuestion] = (OrderQuestion.NEXT, OrderQuestion.PREVIOUS)
# Questions for which the memory is searched twice.
_ORDER_QUESTIONS: Collection[OrderQuestion] = (OrderQuestion.ORDER,)


class MemorySearch(Protocol):
    """Searches a memory for one message. Each method raises StoreError."""

    async def search(self, query: str) -> list[Message]:
        """Returns the messages that answer a query, best first."""

    async def select(self, query: str) -> list[Message]:
        """Returns the messages that show most of the whole memory, if a query asks for that."""

    async def find_neighbours(self, message: Message, *, before: bool) -> list[Message]:
        """Returns the user's statements after a message, or before it."""


class FoundMessages(NamedTuple):
    """The stored messages that fit a message, best first."""

    # The messages.
    messages: Sequence[Message]
    # The query that has found the messages.
    query: str
    # The lines that the message has in common with the found messages. A note does not show them.
    shared_lines: frozenset[str]
    # True: the messages show most of the whole memory, and were found without a query.
    is_selection: bool
    # The reasons why found messages are not among `messages`, by the numbers of the messages.
    ruled_out: Mapping[int, str] = {}
    # True: the notes of the conversation show all of the memory.
    is_all_shown: bool = False
    # True: the message asks for the order of many events, so many short lines are worth more than a few long ones.
    asks_for_order: bool = False

    def choose_line_chars(self, budget_tokens: int) -> int:
        """Returns the most characters of one message that a note shows. budget_tokens: the tokens of the note."""
        max_chars = note_choice.ORDER_CHARS if self.asks_for_order else note_choice.CUT_CHARS
        return min(max_chars, 2 * budget_tokens)

    def choose(
        self,
        budget_tokens: int,
        cut_chars: int,
        visible: VisibleContent = NOTHING_VISIBLE,
    ) -> note_choice.Choice:
        """Chooses the messages that go into a note, as `note_choice.choose_hits`.

        budget_tokens: the tokens of the note.
        cut_chars: the most characters of one message.
        visible: the content that the request shows already.
        """
        return note_choice.choose_hits(
            self.messages,
            self.query,
            exclude_atoms=visible.atoms,
            notes=visible.notes,
            shared_lines=self.shared_lines,
            budget_tokens=budget_tokens,
            cut_chars=cut_chars,
            is_selection=self.is_selection,
            is_order=self.asks_for_order,
        )

    def without(self, is_unwanted: Callable[[Message], bool], reason: str) -> FoundMessages:
        """Returns the found messages without the unwanted ones. reason: the reason in the record of the search."""
        unwanted_seqs = {message.seq for message in self.messages if is_unwanted(message)}
        if not unwanted_seqs:
            return self
        messages = [message for message in self.messages if message.seq not in unwanted_seqs]
        ruled_out = {**self.ruled_out, **dict.fromkeys(unwanted_seqs, reason)}
        return self._replace(messages=messages, ruled_out=ruled_out)

    def without_statements(self, shown_facts: Iterable[StandingFact]) -> FoundMessages:
        """Returns the found messages without those that the memory section shows as standing facts."""
        statements = {normalize_statement(fact.text) for fact in shown_facts}
        if not statements:
            return self  # in most memories, so that no message is compared
        return self.without(lambda m: normalize_statement(m.text) in statements, "shown")


class SearchOutcome(NamedTuple):
    """The outcome of a search for a note."""

    # The messages that were found.
    found_messages: FoundMessages
    # The messages that go into the note.
    choice: note_choice.Choice
    # The reason why the search has failed; "": no failure.
    failure: Literal["", "late", "failed"]


async def find_messages(
    text: str, query: str, search: MemorySearch, names: Sequence[str] = ()
) -> FoundMessages:
    """Returns the stored messages that fit a message.

    text: the text of the message.
    query: the query of `note_query.make_query` for the message, with its speaker (`note_query.with_speaker`).
    search: the search of the memory.
    names: the names of the speaker and of the user.
    """
    shared_lines: frozenset[str] = frozenset()
    ruled_out: dict[int, str] = {}
    order = find_order_question(query)
    if order is not None:
        query = without_order_words(query)
    messages = await _search_by_order(query, order, search)
    lines = note_query.find_shared_lines(text, messages)
    own_query = (
        note_query.with_speaker(note_query.make_query(note_query.without_lines(text, lines)), names)
        if lines
        else ""
    )
    if own_query:
        # Some applications put every message into the same template, which would find all of them.
        without_template = note_query.without_templates(messages, lines)
        # `pack_recall` drops this reason for a message that the next search finds as well.
        ruled_out.update((message.seq, "weak") for message in messages)
        query, shared_lines = own_query, lines
        messages = [*await search.search(own_query), *without_template]
    if messages:
        return FoundMessages(
            messages=messages,
            query=query,
            shared_lines=shared_lines,
            is_selection=False,
            ruled_out=ruled_out,
            asks_for_order=order is OrderQuestion.ORDER,
        )
    selection = await search.select(query)
    return FoundMessages(
        messages=selection,
        query="" if selection else query,
        shared_lines=shared_lines,
        is_selection=bool(selection),
        ruled_out=ruled_out,
    )


async def _search_by_order(query: str, order: OrderQuestion | None, search: MemorySearch) -> list[Message]:
    """Returns the messages that answer a query, best first.

    order: the question about an order that the query asks; None: the query asks for no order.
    """
    is_searched_twice = order in _ORDER_QUESTIONS
    messages = await (_list_events(query, search) if is_searched_twice else search.search(query))
    if messages and order in _NEIGHBOUR_QUESTIONS:
        # The words of the next event are unknown, but it comes in the conversations after the event that was found.
        with suppress(StoreTimeout):
            neighbours = await search.find_neighbours(messages[0], before=order is OrderQuestion.PREVIOUS)
            merged_messages = chain(messages[:_HITS_BEFORE_NEXT], neighbours, messages[_HITS_BEFORE_NEXT:])
            messages = [*{message.seq: message for message in merged_messages}.values()]
    return messages


async def _list_events(query: str, search: MemorySearch) -> list[Message]:
    """Returns the messages about the events of a query: the user's before the assistant's, each with its words first.

    The user's sentences about some events have words of the other events: "I handed the thesis in" finds "My thesis
    compares river names". So the memory is also searched for these sentences, if there is time.
    """
    messages = await search.search(query)
    sentences = note_query.choose_event_sentences(messages, query)
    if sentences:
        with suppress(StoreTimeout):
            events = await search.search("\n".join((query, *sentences)))
            merged_messages = chain(messages[:_SURE_EVENTS], interleave((events, messages[_SURE_EVENTS:])))
            messages = [*{message.seq: message for message in merged_messages}.values()]
    keys = list_query_keys(query)
    return sorted(
        messages, key=lambda m: (m.role == "assistant", not any(key in m.text.lower() for key in keys))
    )


def choose_hit_limit(budget_tokens: int) -> int:
    """Returns the most hits that a search reads, also next to another hit. budget_tokens: the tokens of the note."""
    return max(_MIN_HITS, budget_tokens // _LINE_TOKENS)


def choose_selection_limit(standing_count: int) -> int:
    """Returns the most hits that a selection reads.

    Each standing fact is among the first hits twice, as a fact and in the user's words, and is ruled out.

    standing_count: the number of standing facts that the memory section shows.
    """
    return _MIN_HITS + 2 * standing_count


def make_search_record(
    search: SearchOutcome, trace: SearchTrace, max_left_out: int = MAX_LEFT_OUT
) -> SearchRecord:
    """Returns the record of a search, without the rows of its ranking, which the trace drops.

    max_left_out: the most hits outside of the note that are recorded with scores. If there are fewer, hits that are
        too weak for a note are recorded as well.
    """
    found_messages, choice, failure = search
    left_out_count = len(trace.hit_seqs) - len(choice.hits)
    free_count = max_left_out - left_out_count
    weak_hits = trace.weak_hits(free_count) if free_count > 0 and trace.weak_hits is not None else ()
    trace.weak_hits = None
    return SearchRecord(
        outcome=failure or ("all_shown" if found_messages.is_all_shown else ""),
        messages=found_messages.messages,
        choice=choice,
        ruled_out=found_messages.ruled_out,
        is_selection=found_messages.is_selection,
        trace=trace,
        weak_hits=weak_hits,
    )
