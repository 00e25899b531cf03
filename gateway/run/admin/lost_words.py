"""Finds the words that corrections have taken out of facts and blocks, and the texts that still have them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import UNSET, Struct
from msgspec.structs import replace

from gateway.core.memory.fact_words import DESIGNATIONS
from gateway.core.words import list_folded_words
from gateway.errors import UnknownId
from gateway.run.admin.fact_views import FactPage, list_corrected_texts
from gateway.run.admin.memory_by_uid import get_agent
from gateway.run.admin.memory_records import FactRecord
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.request_records import HitRecord
from gateway.run.admin.texts_with_words import TextWithWords
from gateway.run.admin.word_counts import MAX_WORDS_ALONE, Remaining, WordCounts, list_all_but_one
from storage.records import Agent, Fact
from storage.search.text_words import has_words, list_lost_words, list_uncommon_words

# A text that has lost so many words at most may be wrong by each of them: "Lives in Porto with her mother". Chosen,
# not measured.
_FEW_LOST_WORDS = 2
# The newest true facts in which words of most facts are looked for.
_COMPARED_FACTS = 100
# With fewer facts, no word counts as one of most facts. Not measured: two of three facts may share a word by chance.
_FEWEST_FACTS = 8


class OutdatedHit(NamedTuple):
    """A hit that has words which corrections have taken out of a fact."""

    hit: HitRecord
    # The words, as a query.
    words: str
    fact: FactRecord


class LostWords(Struct, frozen=True):
    """Finds words that texts have lost by corrections. Nothing is written.

    The parameter `project` of its methods is as in `WordCounts`. All methods raise UnknownId and StoreError.
    """

    word_counts: WordCounts

    @property
    def _views(self) -> MemoryViews:
        return self.word_counts.views

    async def collect(self, project: str | None, uid: str, page: FactPage) -> str:
        """Returns the words that corrections have taken out of a fact, as a query; "" if they have taken out none.

        The words of the newest of the old texts that has lost any are returned.
        """
        if not page.before:
            return ""
        replaced = await self._views.facts.list_replaced(project, uid, page)
        return await self.collect_from(project, uid, list_corrected_texts(page, replaced), page.fact.text)

    async def collect_from(
        self, project: str | None, uid: str, old_texts: Sequence[str], new_text: str
    ) -> str:
        """Returns the result of `collect` for a text that replaced others. old_texts: as for `count_remaining`."""
        agent = await get_agent(self._views.store, project, uid)
        lost = await self._list_lost(agent, old_texts, new_text)
        return " ".join(lost[0]) if lost else ""

    async def find_outdated(
        self, project: str | None, uid: str, facts: Sequence[FactRecord], hits: Sequence[HitRecord]
    ) -> list[OutdatedHit]:
        """Returns the hits that still have all words that corrections have taken out of one of some facts."""
        outdated: list[OutdatedHit] = []
        for fact in facts if hits else ():  # each fact is a read
            try:
                page = await self._views.facts.show(project, uid, fact.seq)
            except UnknownId:
                continue  # it was forgotten meanwhile
            if words := await self.collect(project, uid, page):
                outdated += [
                    OutdatedHit(hit, words, fact) for hit in hits if hit.text and has_words(hit.text, words)
                ]
        return outdated

    async def count_remaining(
        self, project: str | None, uid: str, old_texts: Sequence[str], new_text: str
    ) -> Remaining | None:
        """Returns how many texts still have the words that corrections have taken out of a text.

        Texts with all lost words of one of the old texts are counted. If there are none, texts with any one of the
        words are counted, for old texts that have lost few: one word of a whole sentence shows nothing of the rest.

        old_texts: the text before the last correction, then before the correction before it, and so on.

        Returns None if no word was taken out, if a search took too long, or if the only texts may be not indexed yet.
        """
        agent = await get_agent(self._views.store, project, uid)
        lost = await self._list_lost(agent, old_texts, new_text)
        if not lost:
            return None
        blocks = await self._views.blocks.list_by_row(agent.id)
        whole_queries = list(dict.fromkeys(" ".join(words) for words in lost))[:MAX_WORDS_ALONE]
        with_all_words = await self.word_counts.count(agent, blocks, whole_queries)
        few_words = [words for words in lost if len(words) <= _FEW_LOST_WORDS]
        single_words = list(dict.fromkeys(word for words in few_words for word in words))[:MAX_WORDS_ALONE]
        if with_all_words is None or with_all_words.total or single_words in ([], whole_queries):
            return with_all_words
        with_one_word = await self.word_counts.count(agent, blocks, single_words)
        return with_one_word and await self._mark_kept_words(agent, with_one_word, new_text)

    async def count_with_old_words(
        self, project: str | None, uid: str, old: str, corrected: int | str
    ) -> Remaining | None:
        """Returns how many other texts have the telling words of a text that a correction only added words to.

        A text may lack one of them: “Allergies: peanuts” means the same as “Maria is allergic to peanuts”.

        corrected: the number of the fact that was corrected, or the label of the block.

        Returns None if the old text has no telling words, or too many, or as `count_remaining` does.
        """
        agent = await get_agent(self._views.store, project, uid)
        facts = await self._views.store.facts.list(agent.id, limit=_COMPARED_FACTS)
        # In a thread, since a hundred facts take some milliseconds.
        words = await asyncio.to_thread(_list_telling, agent, old, facts)
        if not 0 < len(words) <= MAX_WORDS_ALONE:
            return None
        blocks = await self._views.blocks.list_by_row(agent.id)
        return await self.word_counts.count(
            agent,
            [block for block in blocks if block.label != corrected],
            list_all_but_one(words),
            skipped=[corrected] if isinstance(corrected, int) else (),
        )

    async def _mark_kept_words(self, agent: Agent, remaining: Remaining, new_text: str) -> Remaining:
        """Returns texts with a lost word, each with a word that a new text has as well: such a text may be right."""
        facts = await self._views.store.facts.list(agent.id, limit=_COMPARED_FACTS)

        def mark() -> tuple[TextWithWords, ...]:
            kept_words = _list_telling(agent, new_text, facts)
            return tuple(
                replace(
                    item,
                    kept_word=next((word for word in kept_words if has_words(item.text or "", word)), UNSET),
                )
                for item in remaining.items
            )

        # In a thread, since a hundred facts take some milliseconds.
        return replace(remaining, items=await asyncio.to_thread(mark))

    async def _list_lost(self, agent: Agent, old_texts: Sequence[str], new_text: str) -> list[list[str]]:
        """Returns the words of each old text that a new text lacks, without the texts that have lost none.

        Words that designate the person, or that most facts have, count only for a text that has lost no other words.
        """
        lost = [words for old in old_texts if (words := list_lost_words(old, new_text))]
        if not any(words[1:] for words in lost):
            return lost
        facts = await self._views.store.facts.list(agent.id, limit=_COMPARED_FACTS)
        # In a thread, since a hundred facts take some milliseconds.
        return await asyncio.to_thread(
            lambda: [[word for word in words if not _is_usual(word, facts)] or words for words in lost]
        )


async def are_taken_out(query: str, old: str, new: str) -> bool:
    """Returns whether a text had all words of a query before a correction, and has not after it."""
    # In a thread, since a long text takes some milliseconds.
    return await asyncio.to_thread(lambda: has_words(old, query) and not has_words(new, query))


def _list_telling(agent: Agent, text: str, facts: Sequence[Fact]) -> list[str]:
    """Returns the words of a text that are not common, and by which no person is named. facts: the newest."""
    names_of_user = {*list_folded_words(agent.scope.subject)}
    return [
        word
        for word in list_uncommon_words(text)
        if not (_is_usual(word, facts) or names_of_user.issuperset(list_folded_words(word)))
    ]


def _is_usual(word: str, facts: Sequence[Fact]) -> bool:
    """Returns whether a word designates the person, or most facts have it. facts: the newest."""
    if DESIGNATIONS.issuperset(list_folded_words(word)):
        return True
    with_word = sum(has_words(fact.text, word) for fact in facts)
    return len(facts) >= _FEWEST_FACTS and 2 * with_word > len(facts)
