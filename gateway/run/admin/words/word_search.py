"""Finds every text of a memory that has some words. Finding none shows that the words are gone.

A trial of recall (gateway/run/admin/requests/recall_trials.py) ranks texts by likeness instead, and always finds some.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import UNSET, Struct

from gateway.core.memory.orders import get_own_text
from gateway.run.admin.list_page import PAGE_LIMIT, format_page_end, parse_cursor, parse_page_end
from gateway.run.admin.memory.memory_views import MemoryViews, make_memory_record
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.page_paths import make_fact_href
from gateway.run.admin.records.memory_records import BlockRecord, MemoryRecord
from gateway.run.admin.words.hidden_texts import HiddenTexts, HiddenTextSearch
from gateway.run.admin.words.texts_with_words import (
    SHORT_DEADLINE_MS,
    SHOWN_TEXTS,
    BlockWithWords,
    TextWithWords,
    make_text_record,
    make_text_records,
    search_blocks,
)
from storage.errors import StoreTimeout
from storage.listing import LAST_NUMBER
from storage.records import Fact
from storage.search.text_words import find_spans_with_words, list_written_words

# The milliseconds for which the index may be read. A person waits for it, no reply does.
_DEADLINE_MS = 5_000.0
# The words in so many first characters of a reply are looked for.
_REPLY_CHARS = 1_000
# The most texts before a reply that are looked through.
_MAX_BEFORE = 20
# The most people on one page.
MAX_PEOPLE = 20


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
    # True: the newest messages are not indexed yet, and may have the words.
    is_incomplete: bool = False
    # The texts with the words that no index has; the first page alone has them.
    hidden: HiddenTexts = HiddenTexts()


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
    # The number of people that this page has looked through.
    looked_through: int
    # True: all of their messages were looked through.
    is_complete: bool


class WordSearches(Struct, frozen=True):
    """Searches memories for words. Nothing is written. All methods raise UnknownId and StoreError.

    The parameter `project` of its methods is the only project that the caller sees; None: all projects.
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

        finds_hidden: True: the texts that no index has are looked through, too.

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
        hidden_texts = HiddenTexts()
        if after is None:
            blocks = await self.views.blocks.list_by_row(agent.id)
            hidden_texts = HiddenTexts(is_complete=False)
            if finds_hidden:
                hidden_texts = await self.hidden_texts.search_unindexed(agent, query)
            ended = await self.hidden_texts.search_ended(agent, query)
            ended_facts = ended.facts
            hidden_texts = HiddenTexts(hidden_texts.items, hidden_texts.is_complete and ended.is_complete)
        return WordSearch(
            query=query,
            words=tuple(words),
            items=await make_text_records(self.views.store, agent, hits.messages, query),
            next=None if hits.next is None else str(hits.next),
            blocks=(await search_blocks(blocks, [query])).blocks,
            ended=tuple(_make_ended_record(uid, fact) for fact in ended_facts),
            labels=tuple(block.label for block in blocks),
            is_incomplete=hits.is_incomplete,
            hidden=hidden_texts,
        )

    async def make_cursor_until(self, project: str | None, uid: str, until: float) -> str:
        """Returns `after` of `search` for the page that begins with the texts of a time.

        until: the time in seconds since the epoch.
        """
        agent = await get_agent(self.views.store, project, uid)
        pages = self.views.store.memory_pages
        return str(await pages.compute_first_seq_after(agent.id, until, agent.next_seq))

    async def search_people(
        self, project: str | None, query: str, *, after: str | None = None, limit: int = MAX_PEOPLE
    ) -> FoundPeople:
        """Returns a page of the people who have all words of a query in a message, passage or fact.

        limit: the most people of the page; a number over `MAX_PEOPLE` counts as `MAX_PEOPLE`.

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
                    make_text_record(person.memory.uid, person.message, None, query),
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
                limit=_MAX_BEFORE,
                deadline_ms=SHORT_DEADLINE_MS,
            )
        except StoreTimeout:
            return None
        # A search also finds messages next to a text with the words, and facts by the words before a user's sentence.
        # In a thread, since a text takes some time.
        messages_with_words = await asyncio.to_thread(
            lambda: [
                each for each in messages if find_spans_with_words(get_own_text(each.text, each.kind), query)
            ]
        )
        return await make_text_records(self.views.store, agent, messages_with_words[:SHOWN_TEXTS], query)


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
