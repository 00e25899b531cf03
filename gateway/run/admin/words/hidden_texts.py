"""Finds stored texts that have the words of a query and are never recalled: unindexed texts, and ended facts.

An ended fact is one that is no longer true: it was corrected, superseded or taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from gateway.core.memory.orders import get_own_text
from gateway.core.roles import RESULT_ROLES
from gateway.run.admin.memory.block_versions import VersionId
from gateway.run.admin.memory.exchange_messages import make_message_records
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.page_paths import make_fact_href, make_message_href, page_path
from storage.operator_records import UnindexedTexts
from storage.records import Agent, Exchange, Fact, list_lost_lines
from storage.search.text_words import cut_around_words, has_words, has_words_anywhere
from storage.sql.store import Store

# The most ended facts that are searched for the words, the newest first.
ENDED_FACTS = 200
# The characters that are shown of a text, around the words.
AROUND_CHARS = 300
# The most texts of `HiddenTexts`: a page of them has some 40 kB.
_MAX_HIDDEN = 50
# The words for the state of a message.
_STATE_WORDS: Mapping[str, str] = {
    "standing": "",
    "superseded": "replaced by another try",
    "cancelled": "broken off",
}


class HiddenText(Struct, frozen=True):
    """A stored text that has the words and is never recalled."""

    # The name of the record with the text, such as "version 2 of human", or "message 4, replaced".
    place: str
    # The part of the text around the words.
    text: str
    # The page that shows the record, relative to /ui/.
    href: str
    # The number of the message that has the text; None: no message has it.
    message: int | None = None
    # The earlier version of a block that has the text, in the form of `VersionId`; None: the record is no version, or
    # the block still has its lines.
    version: str | None = None


class HiddenTexts(Struct, frozen=True):
    """The texts of a memory that have the words and are never recalled."""

    # The texts: ended facts first.
    items: tuple[HiddenText, ...] = ()
    # True if all unindexed texts and all ended facts were looked through, and `items` has all that match.
    is_complete: bool = True


class EndedFacts(NamedTuple):
    """The ended facts of a memory that have the words."""

    # The facts, the newest first.
    facts: Sequence[Fact]
    # True if all ended facts were looked through.
    is_complete: bool


class _UnindexedText(NamedTuple):
    """A text of an exchange that may be in no index."""

    # The number of the message.
    seq: int
    # The kind of the text; "": a message that the index has, of which it may have only the beginning.
    description: str
    # The whole text.
    text: str


class HiddenTextSearch(Struct, frozen=True):
    """Searches memories for hidden texts. Nothing is written."""

    store: Store

    async def search(self, project: str | None, uid: str, query: str) -> HiddenTexts:
        """Returns the texts that have all words of a query and are never recalled: ended facts first, 50 at most."""
        agent = await get_agent(self.store, project, uid)
        unindexed = await self.search_unindexed(agent, query)
        ended = await self.search_ended(agent, query)
        facts = tuple(
            HiddenText(
                f"fact {fact.seq}, {'taken back' if fact.taken_back else 'no longer true'}",
                cut_around_words(fact.text, query, AROUND_CHARS),
                make_fact_href(uid, fact.seq),
            )
            for fact in ended.facts
        )
        items = (*facts, *unindexed.items)
        return HiddenTexts(
            items[:_MAX_HIDDEN], unindexed.is_complete and ended.is_complete and len(items) <= _MAX_HIDDEN
        )

    async def search_ended(self, agent: Agent, query: str) -> EndedFacts:
        """Returns the ended facts that have all words of a query."""
        facts = await self.store.facts.list_ended(agent.id, ENDED_FACTS)
        # In a thread, since a long text takes some milliseconds.
        facts_with_words = await asyncio.to_thread(
            lambda: [fact for fact in facts if has_words(get_own_text(fact.text), query)]
        )
        return EndedFacts(facts_with_words, len(facts) < ENDED_FACTS)

    async def search_unindexed(self, agent: Agent, query: str) -> HiddenTexts:
        """Returns the unindexed texts that have all words of a query, 50 at most."""
        unindexed = await self.store.memory_pages.list_unindexed(agent.id, agent.next_seq)
        # In a thread, since a long text takes some milliseconds.
        texts = await asyncio.to_thread(
            lambda: tuple(islice(_filter_unindexed(agent.uid, unindexed, query), _MAX_HIDDEN + 1))
        )
        return HiddenTexts(texts[:_MAX_HIDDEN], unindexed.is_complete and len(texts) <= _MAX_HIDDEN)


def _list_unindexed_texts(exchange: Exchange) -> Iterator[_UnindexedText]:
    """Yields the texts of an exchange that may be in no index."""
    for record in make_message_records(exchange, None, is_whole=True):
        description = _STATE_WORDS.get(record.state, record.state)
        if record.role in RESULT_ROLES:
            description = "what a tool returned"
        elif record.seq - exchange.seq < exchange.prefix_length:
            description = description or "made elsewhere"
        if record.text is not None:
            yield _UnindexedText(record.seq, description, record.text)
        for call in record.rounds:
            yield _UnindexedText(record.seq, f"what {call.tool} was given", call.arguments)
            yield _UnindexedText(record.seq, f"what {call.tool} returned", call.result)


def _filter_unindexed(uid: str, unindexed: UnindexedTexts, query: str) -> Iterator[HiddenText]:
    """Yields the unindexed texts that have all words of a query."""
    for label, version, value in unindexed.versions:
        if has_words_anywhere(value, query):
            href = f"{page_path('m', uid, 'b', label)}#history"
            yield HiddenText(
                f"version {version} of {label}",
                cut_around_words(value, query, AROUND_CHARS),
                href,
                version=str(VersionId(label, version))
                if list_lost_lines(value, unindexed.block_values[label])
                else None,
            )
    for conversation, text in unindexed.summaries:
        if has_words_anywhere(text, query):
            href = page_path("m", uid, "c", conversation)
            yield HiddenText("a summary", cut_around_words(text, query, AROUND_CHARS), href)
    for source in unindexed.exchanges:
        for seq, description, text in _list_unindexed_texts(source.exchange):
            # The search of the index has found a message with the words in its beginning.
            is_indexed = not description and has_words(text, query)
            if has_words_anywhere(text, query) and not is_indexed:
                href = make_message_href(uid, source.conversation_uid, source.exchange, seq)
                place = f"message {seq}, {description}" if description else f"message {seq}"
                yield HiddenText(place, cut_around_words(text, query, AROUND_CHARS), href, seq)
