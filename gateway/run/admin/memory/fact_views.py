"""Views of facts: a page of a memory's facts, a fact with its history, and the facts that are in each prompt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

from msgspec import UNSET, Struct

from gateway.core.memory.standing_block import make_standing_block
from gateway.errors import UnknownId
from gateway.run.admin.list_page import PAGE_LIMIT, ListPage, make_next_cursor, parse_cursor
from gateway.run.admin.memory.source_records import LISTED_SOURCES, list_source_exchanges, list_sources
from gateway.run.admin.memory_by_uid import get_memory
from gateway.run.admin.records.memory_records import FactOrigin, FactRecord, SourceRecord
from storage.listing import LAST_NUMBER
from storage.operator_records import FoundMemory, SizedMemory
from storage.records import MANUAL_ORIGINS, Fact, StandingFact
from storage.sql.store import Store

# The most exchanges of a fact's messages that its own screen shows.
_SHOWN_SOURCES = 8
# The most replaced facts that are listed.
_MAX_REPLACED = 20
# The origins of facts that a model or a rule has found in messages.
_LEARNED_ORIGINS = ("learned", "model")


class FactPage(Struct, frozen=True):
    """A fact, the facts that it replaced, and the fact that replaced it."""

    fact: FactRecord
    before: tuple[FactRecord, ...]
    after: FactRecord | None

    @property
    def is_correction(self) -> bool:
        """The fact was written in the place of another one. What learning replaces may have been true."""
        return bool(self.before) and self.fact.origin not in _LEARNED_ORIGINS


class FactViews(Struct, frozen=True):
    """Reads the facts of a memory. The methods raise UnknownId where there is no such memory, or no such fact."""

    store: Store

    async def list_page(
        self,
        project: str | None,
        uid: str,
        *,
        includes_ended: bool = False,
        as_of: float | None = None,
        after: str | None = None,
        limit: int = PAGE_LIMIT,
    ) -> ListPage[FactRecord]:
        """Returns a page of facts, the newest first.

        includes_ended: True to include facts that are no longer true; ignored with `as_of`.
        as_of: the time at which the facts were true, in seconds since the epoch; None: now.
        """
        memory = await get_memory(self.store, project, uid)
        before = parse_cursor(after, LAST_NUMBER)
        facts = self.store.facts
        if as_of is None:
            rows = await facts.list_page(
                memory.id, includes_ended=includes_ended, before=before, limit=limit + 1
            )
        else:
            rows = await facts.list_page_as_of(memory.id, as_of, before=before, limit=limit + 1)
        items = await self.make_records(memory, rows[:limit])
        return ListPage(items, make_next_cursor(rows, limit, lambda fact: str(fact.seq)))

    async def has_ended(self, memory: FoundMemory) -> bool:
        """Returns whether a memory has facts that are no longer true."""
        return bool(await self.store.facts.list_ended(memory.id, 1))

    async def show(self, project: str | None, uid: str, seq: int) -> FactPage:
        """Returns a fact with its history."""
        memory = await get_memory(self.store, project, uid)
        facts = self.store.facts
        fact = await facts.find(memory.id, seq)
        if fact is None:
            raise UnknownId("There is no such fact.")
        before = await facts.list_replaced(memory.id, fact.id)
        after = None if fact.successor is None else await facts.find(memory.id, fact.successor)
        (record,) = await self.make_records(memory, [fact], _SHOWN_SOURCES)
        others = await self.make_records(memory, [*before, *([] if after is None else [after])])
        return FactPage(record, others[: len(before)], others[-1] if after is not None else None)

    async def list_source_messages(
        self, project: str | None, uid: str, seq: int, messages: Iterable[int]
    ) -> tuple[int, ...]:
        """Returns which messages a fact came from, as far as it is forgotten with each of them: replies, too.

        messages: the numbers of the messages from which these are chosen, in their order.
        """
        memory = await get_memory(self.store, project, uid)
        fact = await self.store.facts.find(memory.id, seq)
        if fact is None:
            raise UnknownId("There is no such fact.")
        exchange_rows = {*list_source_exchanges(fact)}
        numbers = [*messages]
        messages_by_number = await self.store.recall.load(memory.id, sorted(numbers))
        return tuple(
            number
            for number in numbers
            if number in messages_by_number and messages_by_number[number].exchange_row in exchange_rows
        )

    async def list_written(self, project: str | None, uid: str, seqs: Sequence[int]) -> set[int]:
        """Returns the numbers of those of some facts that an operator or the person wrote."""
        if not seqs:
            return set()
        memory = await get_memory(self.store, project, uid)
        facts = await self.store.facts.load(memory.id, seqs)
        return {fact.seq for fact in facts if fact.origin in MANUAL_ORIGINS}

    async def list_replaced(self, project: str | None, uid: str, page: FactPage) -> tuple[FactRecord, ...]:
        """Returns the facts that a fact replaced, then those that these replaced, and so on: the newest texts first."""
        if not page.before:
            return ()
        memory = await get_memory(self.store, project, uid)
        replaced_facts = await self.store.facts.load(memory.id, [fact.seq for fact in page.before])
        # The list grows meanwhile.
        for fact in replaced_facts:
            if len(replaced_facts) >= _MAX_REPLACED:
                break
            replaced_facts += await self.store.facts.list_replaced(memory.id, fact.id)
        listed_seqs = {fact.seq for fact in page.before}
        earlier_facts = [fact for fact in replaced_facts if fact.seq not in listed_seqs]
        return (*page.before, *await self.make_records(memory, earlier_facts))

    async def find_true_successor(self, project: str | None, uid: str, page: FactPage) -> Fact | None:
        """Returns the fact that is true instead of one, if the fact that replaced it is not true either.

        Returns None if that one is true, or if no fact is.
        """
        if page.after is None or page.after.until is None:
            return None
        memory = await get_memory(self.store, project, uid)
        seq = page.after.successor
        for _ in range(_MAX_REPLACED):
            fact = None if seq is None else await self.store.facts.find(memory.id, seq)
            if fact is None or fact.ended_at is None:
                return fact
            seq = fact.successor
        return None

    async def list_standing(self, uid: str, before: float = math.inf) -> tuple[FactRecord, ...]:
        """Returns the standing facts that are in each prompt, newest first, as far as there is room.

        before: facts that were learned later are left out; in seconds since the epoch.
        """
        memory = await get_memory(self.store, None, uid)
        standing_facts = await self.store.facts.list_standing(memory.id)
        facts = [fact for fact in standing_facts if not fact.muted and fact.at <= before]
        if not facts:
            return ()
        blocks = [each.block for each in await self.store.memory_pages.list_blocks(memory.id)]
        candidates = [
            StandingFact(fact.seq, fact.text, fact.valid_from, fact.origin in MANUAL_ORIGINS)
            for fact in facts
        ]
        shown_seqs = make_standing_block(candidates, blocks, None).shown_seqs
        return await self.make_records(memory, [fact for fact in facts if fact.seq in shown_seqs])

    async def make_records(
        self, memory: FoundMemory | SizedMemory, facts: Sequence[Fact], max_sources: int = LISTED_SOURCES
    ) -> tuple[FactRecord, ...]:
        """Returns facts as they are shown. max_sources: the most exchanges from which each shows messages."""
        return tuple(
            map(_make_fact_record, facts, await list_sources(self.store, memory, facts, max_sources))
        )


def list_corrected_texts(page: FactPage, replaced_facts: Sequence[FactRecord]) -> list[str]:
    """Returns the texts that a fact had before it was corrected, the newest first.

    What learning has replaced may have been true: it is left out.

    replaced_facts: the facts that `FactViews.list_replaced` returns.
    """
    correcting_seqs = {
        fact.seq for fact in (page.fact, *replaced_facts) if fact.origin not in _LEARNED_ORIGINS
    }
    return [fact.text for fact in replaced_facts if fact.successor in correcting_seqs]


def _make_fact_record(fact: Fact, sources: tuple[SourceRecord, ...]) -> FactRecord:
    return FactRecord(
        seq=fact.seq,
        text=fact.text,
        about=fact.about,
        since=fact.valid_from,
        learned_at=fact.at,
        until=fact.ended_at,
        successor=fact.successor,
        muted=fact.muted,
        origin=cast(FactOrigin, fact.origin.partition(":")[0]),
        sources=sources,
        always=(fact.standing and not fact.muted and fact.ended_at is None) or UNSET,
        taken_back=fact.taken_back or UNSET,
    )
