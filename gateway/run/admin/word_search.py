"""Finds every text of a memory that has some words, which shows as well that none has them any more.

A trial of recall (gateway/run/admin/memory_search.py) ranks by likeness, and always finds something.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import cast

from msgspec import UNSET, Struct, UnsetType

from gateway.core.conversation.canonical import RESULT_ROLES
from gateway.run.admin.exchange_messages import message_records
from gateway.run.admin.find_memory import find_agent
from gateway.run.admin.hits import fact_href, message_href, passage_href
from gateway.run.admin.list_page import PAGE_LIMIT
from gateway.run.admin.memory_records import BlockRecord, SourceKind, SourceRecord
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.operation_arguments import read_cursor
from gateway.run.admin.page_paths import page_path
from storage.errors import TooSlow
from storage.listing import LAST_NUMBER, ExchangePlace, UnindexedTexts
from storage.records import MUTED, Agent, Exchange, Fact, Message

# How long the index may be read. A person waits for it, and no reply does.
_DEADLINE_MS = 5_000.0
# The same where a page shows besides how much there is.
_SHORT_DEADLINE_MS = 250.0
# Facts that are no longer true among which words are looked for.
ENDED_FACTS = 200
# Characters of a text around the words.
_AROUND_CHARS = 300
# The most texts of `HiddenTexts`: a page of them has some 40 kB.
_MAX_HIDDEN = 50
# The items that `Remaining` has, and the most words of which each is looked for by itself.
_SHOWN, _WORDS_ALONE = 5, 4
# What a message is called by its state.
_STATES: Mapping[str, str] = {
    "standing": "",
    "superseded": "replaced by another try",
    "cancelled": "broken off",
}
# The most items that are counted.
_COUNTED = 20


class TextWithWords(SourceRecord, frozen=True, kw_only=True):
    """A text that has the words. `text`: the part of it around them."""

    # A fact that is not mentioned; not set: of all others.
    muted: bool | UnsetType = UNSET
    # Until when a fact was true; not set: of all others.
    until: float | UnsetType = UNSET


class BlockWithWords(Struct, frozen=True):
    """A block that has the words. text: the part of it around them."""

    label: str
    text: str


class HiddenText(Struct, frozen=True):
    """A text with the words that no reply finds, since no index has it. `text`: the part of it around them."""

    # Such as "version 2 of human", or "message 4, replaced".
    place: str
    text: str
    # Its page, relative to /ui/.
    href: str
    # The number of its message; None: it is of none.
    message: int | None = None


class HiddenTexts(Struct, frozen=True):
    """The texts of a memory with some words that no reply finds."""

    items: tuple[HiddenText, ...] = ()
    # There are no others: all such texts were looked through, and all facts that are no longer true.
    is_complete: bool = True


class WordSearch(Struct, frozen=True):
    """The texts of a memory that have all words of a query."""

    query: str
    # The words that were looked for: function words are not.
    words: tuple[str, ...]
    # Messages, passages and facts, the newest first.
    items: tuple[TextWithWords, ...]
    # `after` of the next page; None: this is the last one.
    next: str | None
    # The blocks, and the facts that are no longer true of the last `ENDED_FACTS`; the first page alone has them.
    blocks: tuple[BlockWithWords, ...] = ()
    ended: tuple[TextWithWords, ...] = ()
    # The labels of all blocks; the first page alone has them.
    labels: tuple[str, ...] = ()
    # The newest messages are not indexed yet, and may have the words.
    is_incomplete: bool = False
    # Those that no index has; the first page alone has them.
    hidden: HiddenTexts = HiddenTexts()


class Remaining(Struct, frozen=True):
    """How many texts of a memory still have some words."""

    # The queries by which `WordSearches.find` finds them: each of the texts is found by one at least.
    queries: tuple[str, ...]
    # Of the newest messages, facts and passages with them, by kind, as far as they are counted.
    counts: dict[SourceKind, int]
    # There may be more.
    has_more: bool
    # The first of them.
    items: tuple[TextWithWords, ...]
    blocks: tuple[BlockWithWords, ...]

    @property
    def total(self) -> int:
        """How many texts were counted."""
        return sum(self.counts.values()) + len(self.blocks)


class WordSearches(Struct, frozen=True):
    """Searches memories for words. Nothing is written. All methods raise UnknownId and StoreError.

    project: the only one with memories that the caller sees; None: all.
    """

    views: MemoryViews

    async def find(
        self, project: str | None, uid: str, query: str, *, after: str | None = None, limit: int = PAGE_LIMIT
    ) -> WordSearch:
        """Returns a page of what has all words of a query, in any of their forms.

        Raises: BadRequest: `after` cannot be read.
        """
        before = read_cursor(after, LAST_NUMBER)
        agent = await find_agent(self.views.store, project, uid)
        words = self.views.store.recall.words_of(query)
        if not words:
            return WordSearch(query, (), (), None)
        hits = await self.views.store.recall.find_containing(
            agent, query, before=before, limit=limit, deadline_ms=_DEADLINE_MS
        )
        blocks: Sequence[BlockRecord] = ()
        ended: Sequence[Fact] = ()
        hidden = HiddenTexts()
        if after is None:
            hidden = await self._find_hidden(agent, query)
            blocks = await self.views.blocks.list_all(project, uid)
            ended, are_all = await self._find_ended(agent, query)
            hidden = HiddenTexts(hidden.items, hidden.is_complete and are_all)
        return WordSearch(
            query,
            tuple(words),
            await self._records(agent, hits.messages, query),
            None if hits.next is None else str(hits.next),
            await self._blocks_with(blocks, query),
            tuple(_ended_record(uid, each) for each in ended),
            tuple(each.label for each in blocks),
            hits.is_incomplete,
            hidden,
        )

    async def hidden(self, project: str | None, uid: str, query: str) -> HiddenTexts:
        """Returns the texts with all words of a query that no reply finds."""
        agent = await find_agent(self.views.store, project, uid)
        hidden = await self._find_hidden(agent, query)
        ended, are_all = await self._find_ended(agent, query)
        facts = tuple(
            HiddenText(
                f"fact {each.seq}, no longer true", self._around(each.text, query), fact_href(uid, each.seq)
            )
            for each in ended
        )
        return HiddenTexts((*facts, *hidden.items), hidden.is_complete and are_all)

    async def _find_ended(self, agent: Agent, query: str) -> tuple[Sequence[Fact], bool]:
        """Returns the facts with all words of a query that are no longer true, and whether all of these were read."""
        facts = await self.views.store.facts.list_ended(agent.id, ENDED_FACTS)
        # In a thread, as below.
        found = await asyncio.to_thread(
            lambda: [f for f in facts if self.views.store.recall.has_words(f.text, query)]
        )
        return found, len(facts) < ENDED_FACTS

    async def _find_hidden(self, agent: Agent, query: str) -> HiddenTexts:
        unindexed = await self.views.store.memory_pages.unindexed(agent.id, agent.next_seq)
        # In a thread, as below.
        texts = await asyncio.to_thread(
            lambda: tuple(islice(self._hidden_with(agent.uid, unindexed, query), _MAX_HIDDEN + 1))
        )
        return HiddenTexts(texts[:_MAX_HIDDEN], unindexed.is_complete and len(texts) <= _MAX_HIDDEN)

    def _hidden_with(self, uid: str, unindexed: UnindexedTexts, query: str) -> Iterator[HiddenText]:
        """Yields those of some texts that have all words of a query."""
        recall = self.views.store.recall
        for label, version, value in unindexed.versions:
            if recall.has_words_anywhere(value, query):
                href = f"{page_path('m', uid, 'b', label)}#history"
                yield HiddenText(f"version {version} of {label}", self._around(value, query), href)
        for conversation, text in unindexed.summaries:
            if recall.has_words_anywhere(text, query):
                yield HiddenText(
                    "a summary", self._around(text, query), page_path("m", uid, "c", conversation)
                )
        for source in unindexed.exchanges:
            for seq, what, text in _unindexed_texts(source.exchange):
                # Of a long text the index has the first words, and may have found it.
                if recall.has_words_anywhere(text, query) and (what or not recall.has_words(text, query)):
                    href = message_href(uid, source.conversation_uid, source.exchange, seq)
                    place = f"message {seq}{what and ', '}{what}"
                    yield HiddenText(place, self._around(text, query), href, seq)

    def _around(self, text: str, query: str) -> str:
        return self.views.store.recall.around_words(text, query, _AROUND_CHARS)

    async def remaining(self, project: str | None, uid: str, query: str) -> Remaining | None:
        """Returns how many texts still have all words of a query; None: it has none, or that is not known in time."""
        words = " ".join(self.views.store.recall.words_of(query))
        if not words:
            return None
        agent = await find_agent(self.views.store, project, uid)
        return await self._count(agent, await self.views.blocks.list_all(project, uid), [words])

    def lost_words(self, old: str, new: str) -> str:
        """Returns the words that a correction has taken out of a text, as a query; "": none."""
        return " ".join(self.views.store.recall.words_of(old, without=new))

    async def still_say(self, project: str | None, uid: str, old: str, new: str) -> Remaining | None:
        """Returns how many texts still have what a correction has taken out of a text.

        They have all of these words. Where no text has, they have one of the words that any text has.

        None: nothing was taken out, or it is not known in time whether any text has it.
        """
        lost = self.views.store.recall.words_of(old, without=new)
        if not lost:
            return None
        agent = await find_agent(self.views.store, project, uid)
        blocks = await self.views.blocks.list_all(project, uid)
        together = await self._count(agent, blocks, [" ".join(lost)])
        if together is None or together.total or not lost[1:]:
            return together
        return await self._count(agent, blocks, lost[:_WORDS_ALONE])

    async def _count(
        self, agent: Agent, blocks: Sequence[BlockRecord], queries: Sequence[str]
    ) -> Remaining | None:
        """Returns how many texts are found by one of some queries; None: it is not known whether any is.

        Queries that find nothing are left out, unless all do.
        """
        messages = dict[int, Message]()
        texts = dict[int, TextWithWords]()
        blocks_with_words = dict[str, BlockWithWords]()
        queries_that_find = list[str]()
        has_more = False
        for query in queries:
            try:
                hits = await self.views.store.recall.find_containing(
                    agent, query, limit=_COUNTED, deadline_ms=_SHORT_DEADLINE_MS
                )
            except TooSlow:
                return None
            of_query = {each.label: each for each in await self._blocks_with(blocks, query)}
            if hits.messages or of_query:
                queries_that_find.append(query)
            new_messages = [each for each in hits.messages if each.seq not in messages]
            texts.update(
                (each.seq, each) for each in await self._records(agent, new_messages[:_SHOWN], query)
            )
            messages.update((each.seq, each) for each in new_messages)
            blocks_with_words = of_query | blocks_with_words
            has_more |= hits.is_incomplete or hits.next is not None
        if has_more and not messages and not blocks_with_words:
            return None
        return Remaining(
            tuple(queries_that_find or queries),
            dict(Counter(map(_kind, messages.values()))),
            has_more,
            tuple(texts[seq] for seq in sorted(texts, reverse=True)[:_SHOWN]),
            tuple(blocks_with_words.values()),
        )

    async def _records(
        self, agent: Agent, messages: Sequence[Message], query: str
    ) -> tuple[TextWithWords, ...]:
        exchanges = sorted({each.exchange for each in messages if each.source == "message"})
        places = await self.views.store.memory_pages.places(agent.id, exchanges) if exchanges else {}
        # In a thread, since a long text takes some milliseconds.
        return await asyncio.to_thread(
            lambda: tuple(
                self._record(agent.uid, each, places.get(each.exchange), query) for each in messages
            )
        )

    async def _blocks_with(self, blocks: Sequence[BlockRecord], query: str) -> tuple[BlockWithWords, ...]:
        """Returns the blocks that have all words of a query."""
        recall = self.views.store.recall
        # In a thread, as above.
        return await asyncio.to_thread(
            lambda: tuple(
                BlockWithWords(each.label, recall.around_words(each.value, query, _AROUND_CHARS))
                for each in blocks
                if recall.has_words(each.value, query)
            )
        )

    def _record(self, uid: str, message: Message, place: ExchangePlace | None, query: str) -> TextWithWords:
        text = self.views.store.recall.around_words(message.text, query, _AROUND_CHARS)
        match _kind(message):
            case "fact":
                muted = message.source == MUTED or UNSET
                return TextWithWords(
                    "fact", message.seq, text, message.at, href=fact_href(uid, message.seq), muted=muted
                )
            case "passage":
                return TextWithWords(
                    "passage", message.seq, text, message.at, href=passage_href(uid, message.seq)
                )
            case _:
                href = (
                    None if place is None else message_href(uid, place.conversation_uid, place, message.seq)
                )
                speaker = message.speaker or (UNSET if message.role == "user" else message.role)
                return TextWithWords("message", message.seq, text, message.at, href=href, speaker=speaker)


def _unindexed_texts(exchange: Exchange) -> Iterator[tuple[int, str, str]]:
    """Yields the texts of an exchange that no index has: the number of the message, what it is, the text.

    What it is, in words; "": a message that the index has, but not all of it if it is long.
    """
    for record in message_records(exchange, None, is_whole=True):
        what = _STATES.get(record.state, record.state)
        if record.role in RESULT_ROLES:
            what = "what a tool returned"
        elif record.seq - exchange.seq < exchange.prefix_length:
            what = what or "made elsewhere"
        if record.text is not None:
            yield record.seq, what, record.text
        for each in record.rounds:
            yield record.seq, f"what {each.tool} was given", each.arguments
            yield record.seq, f"what {each.tool} returned", each.result


def _kind(message: Message) -> SourceKind:
    return "fact" if message.source == MUTED else cast(SourceKind, message.source)


def _ended_record(uid: str, fact: Fact) -> TextWithWords:
    href = fact_href(uid, fact.seq)
    return TextWithWords(
        "fact", fact.seq, fact.text, fact.valid_from, href=href, until=fact.ended_at or UNSET
    )
