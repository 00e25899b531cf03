"""Counts the texts of a memory that have some words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import combinations

from msgspec import Struct

from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.records.memory_records import BlockRecord, SourceKind, get_source_kind
from gateway.run.admin.words.texts_with_words import (
    SHORT_DEADLINE_MS,
    SHOWN_TEXTS,
    BlockWithWords,
    TextWithWords,
    make_text_records,
    search_blocks,
)
from gateway.run.admin.words.word_search import WordSearch
from storage.errors import StoreTimeout
from storage.records import Agent, Message
from storage.search.text_words import list_written_words

# The most words that are looked for one by one, each by a search of its own.
MAX_WORDS_ALONE = 4
# One word of two shows little of the meaning of both.
_MIN_ALMOST_WORDS = 3
# The most texts that are counted.
_MAX_COUNTED = 20


class Remaining(Struct, frozen=True):
    """The number of texts of a memory that still have some words."""

    # Queries for `WordSearches.search`: each of the texts is found by at least one of them.
    queries: tuple[str, ...]
    # The counted messages, facts and passages, by kind. The newest are counted; there may be more.
    counts: dict[SourceKind, int]
    # True: there may be more texts than were counted.
    has_more: bool
    # The newest of the counted texts.
    items: tuple[TextWithWords, ...]
    blocks: tuple[BlockWithWords, ...]

    @property
    def total(self) -> int:
        """The number of the counted texts."""
        return sum(self.counts.values()) + len(self.blocks)


class WordCounts(Struct, frozen=True):
    """Counts texts with words. Nothing is written. All methods raise UnknownId and StoreError.

    The parameter `project` of its methods is the only project that the caller sees; None: all projects.
    """

    views: MemoryViews

    async def count_remaining(self, project: str | None, uid: str, query: str) -> Remaining | None:
        """Returns the number of texts that still have all words of a query.

        Returns None if the query has no words, if the search took too long, or if the only texts may be not indexed.
        """
        words = " ".join(list_written_words(query))
        if not words:
            return None
        agent = await get_agent(self.views.store, project, uid)
        return await self.count(agent, await self.views.blocks.list_by_row(agent.id), [words])

    async def count_alone(
        self, project: str | None, uid: str, words: Sequence[str]
    ) -> list[tuple[str, Remaining | None]]:
        """Returns each of the first words of a query with the number of texts that have it.

        The number is None if a search took too long, or if the only texts may be not indexed yet.
        """
        agent = await get_agent(self.views.store, project, uid)
        blocks = await self.views.blocks.list_by_row(agent.id)
        return [(word, await self.count(agent, blocks, [word])) for word in words[:MAX_WORDS_ALONE]]

    async def count_almost(
        self, project: str | None, uid: str, query: str, found: WordSearch | None = None
    ) -> Remaining | None:
        """Returns the number of texts with all words of a query but one: “the code of my lock” for “bike lock code”.

        found: the texts with all words; None: there are no such texts.

        Returns None if the query has fewer than three words or too many, and where `count_remaining` returns None.
        """
        words = list_written_words(query)
        if not _MIN_ALMOST_WORDS <= len(words) <= MAX_WORDS_ALONE:
            return None
        agent = await get_agent(self.views.store, project, uid)
        blocks = await self.views.blocks.list_by_row(agent.id)
        found_labels = {block.label for block in found.blocks} if found else set()
        return await self.count(
            agent,
            [block for block in blocks if block.label not in found_labels],
            list_all_but_one(words),
            skipped_seqs={item.seq for item in found.items} if found else (),
        )

    async def count(
        self,
        agent: Agent,
        blocks: Sequence[BlockRecord],
        queries: Sequence[str],
        *,
        skipped_seqs: Collection[int] = (),
    ) -> Remaining | None:
        """Returns the number of texts of a memory that any of some queries finds.

        Queries that find nothing are left out of the result, unless none finds anything.

        blocks: all blocks of the memory.
        skipped_seqs: the numbers of texts that are not counted.

        Returns None if a search took too long, or if the only texts may be not indexed yet.
        """
        messages: dict[int, Message] = {}
        texts: dict[int, TextWithWords] = {}
        queries_that_find: set[str] = set()
        has_more = False
        for query in queries:
            try:
                hits = await self.views.store.recall.find_containing(
                    agent, query, limit=_MAX_COUNTED + len(skipped_seqs), deadline_ms=SHORT_DEADLINE_MS
                )
            except StoreTimeout:
                return None
            found_messages = [message for message in hits.messages if message.seq not in skipped_seqs]
            if found_messages:
                queries_that_find.add(query)
            new_messages = [message for message in found_messages if message.seq not in messages]
            records = await make_text_records(self.views.store, agent, new_messages[:SHOWN_TEXTS], query)
            texts.update((record.seq, record) for record in records)
            messages.update((message.seq, message) for message in new_messages)
            has_more |= hits.is_incomplete or hits.next is not None
        found_blocks = await search_blocks(blocks, queries)
        if has_more and not messages and not found_blocks.blocks:
            return None
        queries_that_find.update(found_blocks.queries)
        return Remaining(
            queries=tuple(query for query in queries if query in queries_that_find) or tuple(queries),
            counts=dict(Counter(map(get_source_kind, messages.values()))),
            has_more=has_more,
            items=tuple(texts[seq] for seq in sorted(texts, reverse=True)[:SHOWN_TEXTS]),
            blocks=found_blocks.blocks,
        )


def list_all_but_one(words: Sequence[str]) -> list[str]:
    """Returns queries for all of some words but one, each without another word, or a single word itself."""
    if len(words) < 2:
        return [*words]
    return [" ".join(remaining_words) for remaining_words in combinations(words, len(words) - 1)]
