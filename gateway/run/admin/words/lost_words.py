"""Finds the words that facts and blocks have lost by corrections, and the texts that still have these words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import UNSET, Struct
from msgspec.structs import replace

from gateway.core.memory.fact_words import DESIGNATIONS
from gateway.core.memory.orders import get_own_text
from gateway.core.words import list_folded_words
from gateway.errors import UnknownId
from gateway.run.admin.memory.fact_views import FactPage, list_corrected_texts
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.records.memory_records import FactRecord
from gateway.run.admin.records.request_records import HitRecord
from gateway.run.admin.words.texts_with_words import TextWithWords, search_blocks
from gateway.run.admin.words.word_counts import MAX_WORDS_ALONE, Remaining, WordCounts, list_all_but_one
from storage.records import Agent, Fact
from storage.search.text_words import (
    has_words,
    has_words_anywhere,
    list_distinctive_lost_words,
    list_uncommon_words,
)

# If a text has lost at most this many words, each of them alone can make another text wrong: "Lives in Porto with her
# mother". Not measured.
_FEW_LOST_WORDS = 2
# The most lost words that are looked for in blocks, one by one. Chosen: more than a sentence has.
_MAX_BLOCK_WORDS = 20
# The number of the newest true facts that show which words most facts have.
_COMPARED_FACTS = 100
# With fewer facts, no word counts as a word of most facts. Not measured: two of three facts may share a word by chance.
_MIN_FACTS = 8


class OutdatedHit(NamedTuple):
    """A hit that has words which a fact has lost by corrections."""

    hit: HitRecord
    # The lost words, as a query.
    words: str
    # The fact that has lost them.
    fact: FactRecord


class LostWords(Struct, frozen=True):
    """Finds the words that texts have lost by corrections. Nothing is written.

    The parameter `project` of its methods is as in `WordCounts`. All methods raise UnknownId and StoreError.
    """

    word_counts: WordCounts

    @property
    def _views(self) -> MemoryViews:
        return self.word_counts.views

    async def collect_words_of_fact(self, project: str | None, uid: str, page: FactPage) -> str:
        """Returns the result of `collect_words` for a fact and the facts that it replaced."""
        if not page.before:
            return ""
        replaced_facts = await self._views.facts.list_replaced(project, uid, page)
        old_texts = list_corrected_texts(page, replaced_facts)
        return await self.collect_words(project, uid, old_texts, page.fact.text)

    async def collect_words(
        self, project: str | None, uid: str, old_texts: Sequence[str], new_text: str
    ) -> str:
        """Returns the words that the newest of some old texts has lost, as a query; "": no text has lost any.

        Old texts that have lost no word are passed over.

        old_texts: the same as for `count_remaining`.
        new_text: the same as for `count_remaining`.
        """
        agent = await get_agent(self._views.store, project, uid)
        lost_words = await self._list_lost(agent, old_texts, new_text)
        return " ".join(lost_words[0]) if lost_words else ""

    async def find_outdated(
        self, project: str | None, uid: str, facts: Sequence[FactRecord], hits: Sequence[HitRecord]
    ) -> list[OutdatedHit]:
        """Returns the hits that still have all words which one of some facts has lost."""
        outdated_hits: list[OutdatedHit] = []
        # Each fact is a read.
        for fact in facts if hits else ():
            try:
                page = await self._views.facts.show(project, uid, fact.seq)
            except UnknownId:
                # It was forgotten meanwhile.
                continue
            if words := await self.collect_words_of_fact(project, uid, page):
                outdated_hits += [
                    OutdatedHit(hit, words, fact) for hit in hits if hit.text and has_words(hit.text, words)
                ]
        return outdated_hits

    async def count_remaining(
        self, project: str | None, uid: str, old_texts: Sequence[str], new_text: str
    ) -> Remaining | None:
        """Returns the number of texts that still have words which a text has lost.

        Texts with all lost words of one of the old texts are counted. If there are none, texts with any one of the
        words are counted, for old texts that have lost few: one word of a whole sentence shows nothing of the rest.
        Otherwise blocks with one of the words are counted: they are few, and each reply is shown them.

        old_texts: the text before the last correction, the text before the correction before it, and so on.
        new_text: the text after the last correction.

        Returns None if no word was lost, if a search took too long, or if the only texts may be not indexed yet.
        """
        agent = await get_agent(self._views.store, project, uid)
        lost_words = await self._list_lost(agent, old_texts, new_text)
        if not lost_words:
            return None
        blocks = await self._views.blocks.list_by_row(agent.id)
        whole_queries = list(dict.fromkeys(" ".join(words) for words in lost_words))[:MAX_WORDS_ALONE]
        with_all_words = await self.word_counts.count(agent, blocks, whole_queries)
        few_words = [words for words in lost_words if len(words) <= _FEW_LOST_WORDS]
        single_words = list(dict.fromkeys(word for words in few_words for word in words))[:MAX_WORDS_ALONE]
        if with_all_words is None or with_all_words.total:
            return with_all_words
        if single_words not in ([], whole_queries):
            with_single_words = await self.word_counts.count(agent, blocks, single_words)
            return with_single_words and await self._mark_new_words(agent, with_single_words, new_text)
        all_words = list(dict.fromkeys(word for words in lost_words for word in words))[:_MAX_BLOCK_WORDS]
        with_one_word = await search_blocks(blocks, all_words)
        if not with_one_word.blocks:
            return with_all_words
        return Remaining(with_one_word.queries, {}, has_more=False, items=(), blocks=with_one_word.blocks)

    async def count_with_distinctive_words(
        self, project: str | None, uid: str, old_text: str, corrected: int | str
    ) -> Remaining | None:
        """Returns the number of other texts with the distinctive words of a text to which a correction added words.

        Such a text may lack one of the words: “Allergies: peanuts” means the same as “Maria is allergic to peanuts”.

        old_text: the text before the correction.
        corrected: the number of the fact that was corrected, or the label of the block.

        Returns None if the old text has no distinctive words, or too many, and where `count_remaining` returns None.
        """
        agent = await get_agent(self._views.store, project, uid)
        facts = await self._views.store.facts.list_page(agent.id, limit=_COMPARED_FACTS)
        # In a thread, since a hundred facts take some milliseconds.
        words = await asyncio.to_thread(_list_distinctive_words, agent, old_text, facts)
        if not 0 < len(words) <= MAX_WORDS_ALONE:
            return None
        blocks = await self._views.blocks.list_by_row(agent.id)
        return await self.word_counts.count(
            agent,
            [block for block in blocks if block.label != corrected],
            list_all_but_one(words),
            skipped_seqs=[corrected] if isinstance(corrected, int) else (),
        )

    async def _mark_new_words(self, agent: Agent, remaining: Remaining, new_text: str) -> Remaining:
        """Returns a copy in which each text names a distinctive word of the new text that it has: it may be right."""
        facts = await self._views.store.facts.list_page(agent.id, limit=_COMPARED_FACTS)

        def mark() -> tuple[TextWithWords, ...]:
            new_words = _list_distinctive_words(agent, new_text, facts)
            return tuple(
                replace(
                    item,
                    corrected_word=next(
                        (word for word in new_words if has_words(item.text or "", word)), UNSET
                    ),
                )
                for item in remaining.items
            )

        # In a thread, since a hundred facts take some milliseconds.
        return replace(remaining, items=await asyncio.to_thread(mark))

    async def _list_lost(self, agent: Agent, old_texts: Sequence[str], new_text: str) -> list[list[str]]:
        """Returns the words that each old text has lost, without the texts that have lost none.

        Usual words count only for a text that has lost no other words.
        """
        # The words with which every learned statement begins are none of its own: others have them rightly.
        stated_texts = [*map(get_own_text, old_texts)]
        lost_words = [words for old in stated_texts if (words := list_distinctive_lost_words(old, new_text))]
        if not any(words[1:] for words in lost_words):
            return lost_words
        facts = await self._views.store.facts.list_page(agent.id, limit=_COMPARED_FACTS)
        # In a thread, since a hundred facts take some milliseconds.
        return await asyncio.to_thread(
            lambda: [
                [word for word in words if not _is_usual_word(word, facts)] or words for words in lost_words
            ]
        )


async def has_lost_words(query: str, old_text: str, new_text: str) -> bool:
    """Returns whether a text had all words of a query before a correction, and has not all of them after it."""
    # In a thread, since a long text takes some milliseconds.
    return await asyncio.to_thread(
        lambda: has_words_anywhere(old_text, query) and not has_words_anywhere(new_text, query)
    )


def _list_distinctive_words(agent: Agent, text: str, facts: Sequence[Fact]) -> list[str]:
    """Returns the words of a text that are neither common nor usual, nor a name of the user.

    facts: the newest facts of the memory.
    """
    names_of_user = {*list_folded_words(agent.scope.subject)}
    return [
        word
        for word in list_uncommon_words(get_own_text(text))
        if not (_is_usual_word(word, facts) or names_of_user.issuperset(list_folded_words(word)))
    ]


def _is_usual_word(word: str, facts: Sequence[Fact]) -> bool:
    """Returns whether a word designates the person, or most facts have it. facts: the newest facts of the memory."""
    if DESIGNATIONS.issuperset(list_folded_words(word)):
        return True
    count_with_word = sum(has_words(fact.text, word) for fact in facts)
    return len(facts) >= _MIN_FACTS and 2 * count_with_word > len(facts)
