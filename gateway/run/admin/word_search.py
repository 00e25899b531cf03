"""Finds every text of a memory that has some words. Finding none shows that the words are gone.

A trial of recall (gateway/run/admin/recall_trials.py) ranks texts by likeness instead, and always finds some.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import combinations

from msgspec import UNSET, Struct, UnsetType

from gateway.run.admin.hidden_texts import AROUND_CHARS, HiddenTexts, HiddenTextSearch
from gateway.run.admin.list_page import PAGE_LIMIT, format_page_end, parse_cursor, parse_page_end
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.memory_records import (
    BlockRecord,
    MemoryRecord,
    SourceKind,
    SourceRecord,
    get_source_kind,
    read_speaker,
)
from gateway.run.admin.memory_views import MemoryViews, make_memory_record
from gateway.run.admin.page_paths import make_fact_href, make_text_href
from storage.errors import TooSlow
from storage.listing import LAST_NUMBER, ExchangeRef
from storage.records import MUTED, Agent, Fact, Message
from storage.search.text_words import (
    cut_around_words,
    find_spans_with_words,
    has_words,
    list_written_words,
)

# How long the index may be read. A person waits for it, no reply does.
_DEADLINE_MS = 5_000.0
# How long the index may be read for a page with another subject, which only shows how many texts have the words.
_SHORT_DEADLINE_MS = 250.0
# The most items of `Remaining`, and of the texts with words of a reply.
_SHOWN_ITEMS = 5
# The words in so many first characters of a reply are looked for.
_REPLY_CHARS = 1_000
# The most words that are looked for one by one, each by a search of its own.
MAX_WORDS_ALONE = 4
# One word of two says little of what both mean.
_FEWEST_ALMOST = 3
# The most people on one page.
MAX_PEOPLE = 20
# The most texts that are counted.
_MOST_COUNTED = 20


class TextWithWords(SourceRecord, frozen=True, kw_only=True):
    """A text that has the words. `text`: the part of it around them."""

    # The fact is not mentioned in replies; not set: the text is no such fact.
    muted: bool | UnsetType = UNSET
    # Until when the fact was true; not set: the text is no fact that has ended.
    until: float | UnsetType = UNSET
    # The value that `FactRecord` has.
    taken_back: bool | UnsetType = UNSET
    # With a word that a correction took out: a word that the corrected text has as well; not set: it has none.
    kept_word: str | UnsetType = UNSET


class BlockWithWords(Struct, frozen=True):
    """A block that has the words. text: the part of it around them."""

    label: str
    text: str


class WordSearch(Struct, frozen=True):
    """The texts of a memory that have all words of a query."""

    query: str
    # The words that were looked for, without function words.
    words: tuple[str, ...]
    # Messages, passages and facts, the newest first.
    items: tuple[TextWithWords, ...]
    # `after` of the next page; None: this is the last one.
    next: str | None
    # The blocks with the words; the first page alone has them.
    blocks: tuple[BlockWithWords, ...] = ()
    # The facts with the words among the last `ENDED_FACTS` that are no longer true; the first page alone has them.
    ended: tuple[TextWithWords, ...] = ()
    # The labels of all blocks; the first page alone has them.
    labels: tuple[str, ...] = ()
    # The newest messages are not indexed yet, and may have the words.
    is_incomplete: bool = False
    # The texts with the words that no index has; the first page alone has them.
    hidden: HiddenTexts = HiddenTexts()


class Remaining(Struct, frozen=True):
    """How many texts of a memory still have some words."""

    # Queries for `WordSearches.search`: each of the texts is found by at least one of them.
    queries: tuple[str, ...]
    # The counted messages, facts and passages, by kind. The newest are counted; there may be more.
    counts: dict[SourceKind, int]
    # There may be more texts than were counted.
    has_more: bool
    # The newest of the counted texts.
    items: tuple[TextWithWords, ...]
    blocks: tuple[BlockWithWords, ...]

    @property
    def total(self) -> int:
        """How many texts were counted."""
        return sum(self.counts.values()) + len(self.blocks)


class FoundPerson(Struct, frozen=True):
    """A person with the words in their memory."""

    memory: MemoryRecord
    # The newest message, passage or fact with the words.
    newest: TextWithWords


class FoundPeople(Struct, frozen=True):
    """The people with some words in their memories, those with the newest turns first."""

    query: str
    # The words that were looked for, without function words.
    words: tuple[str, ...]
    items: tuple[FoundPerson, ...]
    # `after` of the next page; None: this is the last one.
    next: str | None
    # How many people this page has looked through.
    looked_through: int
    # False: of some of them not all was looked through.
    is_complete: bool


class WordSearches(Struct, frozen=True):
    """Searches memories for words. Nothing is written. All methods raise UnknownId and StoreError.

    project: the caller sees the memories of this project; None: the caller sees all.
    """

    views: MemoryViews

    @property
    def hidden_texts(self) -> HiddenTextSearch:
        return HiddenTextSearch(self.views.store)

    async def search(
        self,
        project: str | None,
        uid: str,
        query: str,
        *,
        after: str | None = None,
        limit: int = PAGE_LIMIT,
        finds_hidden: bool = True,
    ) -> WordSearch:
        """Returns a page of the texts that have all words of a query, in any of their forms.

        finds_hidden: the texts that no index has are looked through as well.

        Raises: BadRequest: `after` cannot be read.
        """
        before = parse_cursor(after, LAST_NUMBER)
        agent = await get_agent(self.views.store, project, uid)
        words = list_written_words(query)
        if not words:
            return WordSearch(query=query, words=(), items=(), next=None)
        hits = await self.views.store.recall.find_containing(
            agent, query, before=before, limit=limit, deadline_ms=_DEADLINE_MS
        )
        blocks: Sequence[BlockRecord] = ()
        ended_facts: Sequence[Fact] = ()
        hidden = HiddenTexts()
        if after is None:
            blocks = await self.views.blocks.list_all(project, uid)
            hidden = HiddenTexts(is_complete=False)
            if finds_hidden:
                hidden = await self.hidden_texts.search_unindexed(agent, query)
            ended = await self.hidden_texts.search_ended(agent, query)
            ended_facts = ended.facts
            hidden = HiddenTexts(hidden.items, hidden.is_complete and ended.is_complete)
        return WordSearch(
            query=query,
            words=tuple(words),
            items=await self._make_records(agent, hits.messages, query),
            next=None if hits.next is None else str(hits.next),
            blocks=await self._find_blocks_with(blocks, query),
            ended=tuple(_make_ended_record(uid, fact) for fact in ended_facts),
            labels=tuple(block.label for block in blocks),
            is_incomplete=hits.is_incomplete,
            hidden=hidden,
        )

    async def search_people(
        self, project: str | None, query: str, *, after: str | None = None, limit: int = MAX_PEOPLE
    ) -> FoundPeople:
        """Returns a page of the people who have all words of a query in a message, passage or fact.

        limit: at most `MAX_PEOPLE` count.

        Raises: BadRequest: `after` cannot be read.
        """
        before = parse_page_end(after)
        store = self.views.store
        page = await store.people_search.search(project, query, before=before, limit=min(limit, MAX_PEOPLE))
        # In a thread, since a long text takes some milliseconds.
        people = await asyncio.to_thread(
            lambda: tuple(
                FoundPerson(
                    make_memory_record(person.memory),
                    self._make_record(person.memory.uid, person.message, None, query),
                )
                for person in page.people
            )
        )
        return FoundPeople(
            query=query,
            words=tuple(list_written_words(query)),
            items=people,
            next=None if page.next is None else format_page_end(page.next),
            looked_through=page.looked_through,
            is_complete=page.is_complete,
        )

    async def find_before_reply(
        self, project: str | None, uid: str, words: str, before: int
    ) -> tuple[TextWithWords, ...] | None:
        """Returns the texts of a memory that have some words of a reply and are older, those with most of them first.

        before: the number of the first message of the reply's exchange.

        Returns None if the search took too long.
        """
        agent = await get_agent(self.views.store, project, uid)
        query = words[:_REPLY_CHARS]
        try:
            messages = await self.views.store.recall.search(
                agent,
                query,
                skip=range(before, agent.next_seq),
                limit=_MOST_COUNTED,
                deadline_ms=_SHORT_DEADLINE_MS,
            )
        except TooSlow:
            return None
        # A search also finds what stands next to a text with the words. In a thread, since a text takes some time.
        with_words = await asyncio.to_thread(
            lambda: [each for each in messages if find_spans_with_words(each.text, query)]
        )
        return await self._make_records(agent, with_words[:_SHOWN_ITEMS], query)

    async def count_remaining(self, project: str | None, uid: str, query: str) -> Remaining | None:
        """Returns how many texts still have all words of a query.

        None: the query has no words, or the search took too long, or the only texts may be not indexed yet.
        """
        words = " ".join(list_written_words(query))
        if not words:
            return None
        agent = await get_agent(self.views.store, project, uid)
        return await self.count(agent, await self.views.blocks.list_all(project, uid), [words])

    async def count_alone(
        self, project: str | None, uid: str, words: Sequence[str]
    ) -> list[tuple[str, Remaining | None]]:
        """Returns each of the first words of a query with how many texts have it.

        None: a search took too long, or the only texts may be not indexed yet.
        """
        agent = await get_agent(self.views.store, project, uid)
        blocks = await self.views.blocks.list_all(project, uid)
        return [(word, await self.count(agent, blocks, [word])) for word in words[:MAX_WORDS_ALONE]]

    async def count_almost(
        self, project: str | None, uid: str, query: str, found: WordSearch | None = None
    ) -> Remaining | None:
        """Returns how many texts have all words of a query but one: “the code of my lock” for “bike lock code”.

        found: the texts with all words; None: there are none.

        None: the query has fewer than three words, or too many, or as `count_remaining` returns it.
        """
        words = list_written_words(query)
        if not _FEWEST_ALMOST <= len(words) <= MAX_WORDS_ALONE:
            return None
        agent = await get_agent(self.views.store, project, uid)
        blocks = await self.views.blocks.list_all(project, uid)
        found_labels = {block.label for block in found.blocks} if found else set()
        return await self.count(
            agent,
            [block for block in blocks if block.label not in found_labels],
            list_all_but_one(words),
            skipped={item.seq for item in found.items} if found else (),
        )

    async def count(
        self,
        agent: Agent,
        blocks: Sequence[BlockRecord],
        queries: Sequence[str],
        *,
        skipped: Collection[int] = (),
    ) -> Remaining | None:
        """Returns how many texts of a memory are found by any of some queries.

        blocks: all blocks of the memory.
        skipped: the numbers of texts that are not counted.

        Queries that find nothing are left out of the result, unless none finds anything.

        Returns None if a search took too long, or if the only texts may be not indexed yet.
        """
        messages: dict[int, Message] = {}
        texts: dict[int, TextWithWords] = {}
        blocks_with_words: dict[str, BlockWithWords] = {}
        queries_that_find: list[str] = []
        has_more = False
        for query in queries:
            try:
                hits = await self.views.store.recall.find_containing(
                    agent, query, limit=_MOST_COUNTED + len(skipped), deadline_ms=_SHORT_DEADLINE_MS
                )
            except TooSlow:
                return None
            found_blocks = {block.label: block for block in await self._find_blocks_with(blocks, query)}
            found_messages = [message for message in hits.messages if message.seq not in skipped]
            if found_messages or found_blocks:
                queries_that_find.append(query)
            new_messages = [message for message in found_messages if message.seq not in messages]
            records = await self._make_records(agent, new_messages[:_SHOWN_ITEMS], query)
            texts.update((record.seq, record) for record in records)
            messages.update((message.seq, message) for message in new_messages)
            blocks_with_words = found_blocks | blocks_with_words
            has_more |= hits.is_incomplete or hits.next is not None
        if has_more and not messages and not blocks_with_words:
            return None
        return Remaining(
            queries=tuple(queries_that_find or queries),
            counts=dict(Counter(map(get_source_kind, messages.values()))),
            has_more=has_more,
            items=tuple(texts[seq] for seq in sorted(texts, reverse=True)[:_SHOWN_ITEMS]),
            blocks=tuple(blocks_with_words.values()),
        )

    async def _make_records(
        self, agent: Agent, messages: Sequence[Message], query: str
    ) -> tuple[TextWithWords, ...]:
        exchanges = sorted({message.exchange_row for message in messages if message.source == "message"})
        pages = self.views.store.memory_pages
        refs = await pages.load_exchange_refs(agent.id, exchanges) if exchanges else {}
        # In a thread, since a long text takes some milliseconds.
        return await asyncio.to_thread(
            lambda: tuple(
                self._make_record(agent.uid, message, refs.get(message.exchange_row), query)
                for message in messages
            )
        )

    async def _find_blocks_with(
        self, blocks: Sequence[BlockRecord], query: str
    ) -> tuple[BlockWithWords, ...]:
        """Returns the blocks that have all words of a query."""
        # In a thread, since a long text takes some milliseconds.
        return await asyncio.to_thread(
            lambda: tuple(
                BlockWithWords(block.label, cut_around_words(block.value, query, AROUND_CHARS))
                for block in blocks
                if has_words(block.value, query)
            )
        )

    def _make_record(self, uid: str, message: Message, ref: ExchangeRef | None, query: str) -> TextWithWords:
        text = cut_around_words(message.text, query, AROUND_CHARS)
        return TextWithWords(
            get_source_kind(message),
            message.seq,
            text,
            message.at,
            href=make_text_href(uid, message, ref),
            speaker=read_speaker(message),
            muted=message.source == MUTED or UNSET,
        )


def list_all_but_one(words: Sequence[str]) -> list[str]:
    """Returns queries for all of some words but one, each without another word; of one word the word itself."""
    if len(words) < 2:
        return list(words)
    return [" ".join(chosen) for chosen in combinations(words, len(words) - 1)]


def _make_ended_record(uid: str, fact: Fact) -> TextWithWords:
    href = make_fact_href(uid, fact.seq)
    return TextWithWords(
        "fact",
        fact.seq,
        fact.text,
        fact.valid_from,
        href=href,
        until=fact.ended_at or UNSET,
        taken_back=fact.taken_back or UNSET,
    )
