"""Finds the people who have some words in their memories.

The index of a memory has hashes that are keyed with the memory's own secret, so no statement can look for a word in
all of them. Memories are searched a page at a time, those with the newest turns first. The texts of a page are read in
a few statements; a memory with a long index is searched alone.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from storage.database import Connection, Database
from storage.errors import StoreCorrupt, StoreTimeout
from storage.listing import FIRST_PAGE, LAST_NUMBER, PageEnd
from storage.operator_records import PeopleWithWords, PersonWithWords, SizedMemory
from storage.records import Agent, Message
from storage.search import blob
from storage.search.containing import find_containing
from storage.search.index import Index
from storage.search.tail import Tail
from storage.search.text_words import has_terms, list_query_terms
from storage.sql.agents import AGENT_COLUMNS, make_agent_record
from storage.sql.exchange_rows import make_shown_exchanges
from storage.sql.group import StoreGroup
from storage.sql.memory_pages import MemoryPages
from storage.sql.passages import make_passage_and_fact_messages
from storage.sql.recall import Recall
from storage.sql.statements import load
from storage.store_rules import Rules

SQL = load("people_search.sql")

# None of these limits was measured. They bound the time of a page: smaller ones make more pages of the same search.
# The most memories that a page looks through.
_PAGE_MEMORIES = 100
# The most reads of a page. A read is a text that no index has, or a blob of an index.
_MAX_READS = 300
# The most bytes of indexes that a page reads. A blob has 6 bytes for each word of a message, so it may have 1.5 MB.
_MAX_INDEX_BYTES = 64 << 20
# A memory with so many blobs in its index, or so many texts not in it, is searched alone.
_LONG_BLOBS = 100
_LONG_UNINDEXED = 500
# The reads that a memory searched alone counts for.
_LONG_READS = 200
# A memory is also searched alone if its index lacks an exchange or a passage of more bytes, as it is stored.
_LONG_BYTES = 16_000
# The most texts of a memory that are checked for the words, since the index also has words of dates and speakers.
_CHECKED_HITS = 40
# The time of the search of one memory alone.
_DEADLINE_MS = 1_000.0


class _LoadedMemory(Struct, frozen=True):
    """A memory with its texts and index blobs for a search."""

    # The memory, with its sizes.
    memory: SizedMemory
    # The agent of the memory.
    agent: Agent
    # The blobs of its index, each after the number of its chunk; None: the memory is searched alone.
    blobs: Sequence[tuple[int, bytes]] | None
    # The texts that its index lacks.
    unindexed: Sequence[Message]


class _Candidate(NamedTuple):
    """A text of a memory that may have the words."""

    # The number of the text.
    seq: int
    # The text, which is not indexed and has the words; None: it is not loaded, and may have them.
    message: Message | None


class _CandidateCheck(NamedTuple):
    """The result of checking the texts of a memory for words."""

    # The newest text that has the words; None: no text has them.
    message: Message | None
    # True if a text with the words was found, or all texts were checked.
    is_complete: bool


class PeopleSearch(StoreGroup):
    """Searches the memories of people for words."""

    def __init__(self, database: Database, rules: Rules, pages: MemoryPages, recall: Recall) -> None:
        super().__init__(database)
        self._rules = rules
        self._pages = pages
        self._recall = recall

    async def search(
        self, project: str | None, query: str, *, before: PageEnd = FIRST_PAGE, limit: int = 20
    ) -> PeopleWithWords:
        """Returns people with a text in their memories that has all words of a query, in any form.

        A query without words finds no one.

        project: the project of the people; None: people of all projects.
        before: the end of the page before.

        Raises: StoreTimeout, StoreUnavailable.
        """
        terms = list_query_terms(query)
        if not terms:
            return PeopleWithWords()
        people = await self._pages.list_memories(project, "user:", before=before, limit=_PAGE_MEMORIES + 1)
        loaded_memories = await self._database.long_read(
            lambda connection: self._load_memories(connection, people[:_PAGE_MEMORIES])
        )
        # In a thread, since many texts take some milliseconds each.
        candidates = await asyncio.to_thread(
            lambda: [
                _find_candidates(loaded_memory, terms, self._rules.get_own_text)
                for loaded_memory in loaded_memories
            ]
        )
        people_with_words: list[PersonWithWords] = []
        is_complete = True
        searched_count = 0
        for loaded_memory, memory_candidates in zip(loaded_memories, candidates, strict=True):
            if len(people_with_words) == limit:
                break
            searched_count += 1
            try:
                check = await self._check_candidates(loaded_memory.agent, memory_candidates, query, terms)
            except (StoreTimeout, StoreCorrupt):
                check = _CandidateCheck(None, is_complete=False)
            is_complete &= check.is_complete
            if check.message is not None:
                people_with_words.append(PersonWithWords(loaded_memory.memory, check.message))
        end = None
        if searched_count < len(people):
            # If no memory was loaded, all memories of the page were forgotten meanwhile.
            last = (
                loaded_memories[searched_count - 1].memory if loaded_memories else people[:_PAGE_MEMORIES][-1]
            )
            end = last.end
        return PeopleWithWords(people_with_words, end, searched_count, is_complete)

    async def _load_memories(
        self, connection: Connection, people: Sequence[SizedMemory]
    ) -> list[_LoadedMemory]:
        """Returns the first memories, as many as a page affords, with their texts and index blobs."""
        rows = await connection.fetch_rows(SQL["agents"], ([person.id for person in people],))
        agents = {row[0]: make_agent_record(row[:AGENT_COLUMNS]) for row in rows}
        index_sizes = {
            row[0]: row[1] for row in await connection.fetch_rows(SQL["index_sizes"], ([*agents],))
        }
        existing = [(person, agents[person.id]) for person in people if person.id in agents]
        affordable = [*_choose_affordable(existing, index_sizes)]
        agent_rows = [agent.id for _, agent in affordable if not _is_long(agent)]
        if not agent_rows:
            return [_LoadedMemory(memory, agent, None, ()) for memory, agent in affordable]
        long_rows = await connection.fetch_rows(SQL["memories_with_long_texts"], (agent_rows, _LONG_BYTES))
        whole_rows = {*agent_rows}.difference(row[0] for row in long_rows)
        # The indexes last: what is indexed meanwhile is read twice, and not left out.
        unindexed = await self._load_unindexed(connection, agent_rows)
        blobs = await _load_blobs(connection, agent_rows)
        return [
            _LoadedMemory(
                memory, agent, blobs[agent.id] if agent.id in whole_rows else None, unindexed[agent.id]
            )
            for memory, agent in affordable
        ]

    async def _load_unindexed(
        self, connection: Connection, agent_rows: Sequence[int]
    ) -> defaultdict[int, list[Message]]:
        """Returns the texts that the indexes of some memories lack, by memory, without long texts."""
        unindexed: defaultdict[int, list[Message]] = defaultdict(list)
        for row in await connection.fetch_rows(SQL["unindexed_exchanges"], (agent_rows, _LONG_BYTES)):
            for shown in make_shown_exchanges([row[1:]]):
                unindexed[row[0]] += self._rules.list_messages(*shown, None)
        for row in await connection.fetch_rows(
            SQL["unindexed_passages_and_facts"], (agent_rows, _LONG_BYTES)
        ):
            unindexed[row[0]] += make_passage_and_fact_messages([row[1:]])
        return unindexed

    async def _check_candidates(
        self, agent: Agent, candidates: Sequence[_Candidate] | None, query: str, terms: Sequence[str]
    ) -> _CandidateCheck:
        """Looks for the newest text of a memory that has the words.

        candidates: the texts that may have the words, newest first; None: the memory is to be searched alone.

        Raises: StoreTimeout, StoreCorrupt, StoreUnavailable.
        """
        if candidates is None:
            hits = await self._recall.find_containing(agent, query, limit=1, deadline_ms=_DEADLINE_MS)
            # Facts that have the words only before a user's sentence may stand before all others.
            has_unchecked = not hits.messages and hits.next is not None
            return _CandidateCheck(next(iter(hits.messages), None), not (hits.is_incomplete or has_unchecked))
        seqs = [candidate.seq for candidate in candidates if candidate.message is None]
        loaded = await self._recall.load(agent.id, seqs) if seqs else {}
        for candidate in candidates:
            if candidate.message is not None:
                return _CandidateCheck(candidate.message, is_complete=True)
            message = loaded.get(candidate.seq)
            if message is not None and has_terms(self._rules.get_own_text(message.text, message.kind), terms):
                return _CandidateCheck(message, is_complete=True)
        return _CandidateCheck(None, len(candidates) < _CHECKED_HITS)


async def _load_blobs(
    connection: Connection, agent_rows: Sequence[int]
) -> defaultdict[int, list[tuple[int, bytes]]]:
    """Returns the blobs of the indexes of some memories, by memory, each blob after the number of its chunk."""
    blobs: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for agent_row, chunk, data in await connection.fetch_rows(SQL["terms"], (agent_rows,)):
        blobs[agent_row].append((chunk, data))
    return blobs


def _is_long(agent: Agent) -> bool:
    """Returns whether a memory is searched alone, since much of it has to be read."""
    return blob.compute_chunk(agent.indexed_seq) >= _LONG_BLOBS or _count_unindexed(agent) >= _LONG_UNINDEXED


def _count_unindexed(agent: Agent) -> int:
    """Returns the most texts that the index of a memory may lack."""
    return agent.next_seq - 1 - agent.indexed_seq


def _choose_affordable(
    people: Sequence[tuple[SizedMemory, Agent]], index_sizes: Mapping[int, int]
) -> Iterator[tuple[SizedMemory, Agent]]:
    """Yields the first memories that one page can read together, and the very first in any case.

    index_sizes: the bytes of the indexes, by the memories' rows.
    """
    reads_left = _MAX_READS
    bytes_left = _MAX_INDEX_BYTES
    for person in people:
        _, agent = person
        if _is_long(agent):
            reads_left -= _LONG_READS
        else:
            reads_left -= blob.compute_chunk(agent.indexed_seq) + 1 + _count_unindexed(agent)
            bytes_left -= index_sizes.get(agent.id, 0)
        if min(reads_left, bytes_left) < 0 and person is not people[0]:
            return
        yield person


def _find_candidates(
    loaded_memory: _LoadedMemory, terms: Sequence[str], get_own_text: Callable[[str, str], str]
) -> Sequence[_Candidate] | None:
    """Returns the texts that may have all terms, the newest first; None: the memory is to be searched alone.

    Texts that are not indexed have all terms.
    """
    if loaded_memory.blobs is None:
        return None
    seqs: Sequence[int] = ()
    try:
        hashes = [*blob.hash_terms(terms, loaded_memory.agent.secret).values()]
        # A message is in one blob, and nearly all blobs lack a word.
        blobs_with_terms = [
            (chunk, data)
            for chunk, data in loaded_memory.blobs
            if data and blob.open_blob(data).has_all(hashes)
        ]
        if blobs_with_terms:
            seqs = find_containing(
                Index(blobs_with_terms),
                terms,
                loaded_memory.agent.secret,
                tail=Tail(),
                before=LAST_NUMBER,
                limit=_CHECKED_HITS,
            )
    except blob.CorruptIndex:
        return None  # the search of this memory alone makes the index again
    # Texts that are not indexed are searched as they are: counting their words, as an index does, takes several times
    # as long.
    candidates = {seq: _Candidate(seq, None) for seq in seqs}
    for message in loaded_memory.unindexed:
        candidates.pop(message.seq, None)  # the index has an earlier text of this number
        if has_terms(get_own_text(message.text, message.kind), terms):
            candidates[message.seq] = _Candidate(message.seq, message)
    return [candidates[seq] for seq in sorted(candidates, reverse=True)]
