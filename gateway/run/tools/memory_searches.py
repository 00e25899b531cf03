"""Searches memory for a model: its own messages, facts and passages, and the archives of its agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.dates import render_day
from gateway.core.memory.memory_lookup import Lookup
from gateway.core.memory.memory_tools import STORED_SOURCES
from gateway.core.prompt import note_choice, note_text
from gateway.core.tags import escape_tags, quote_name
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.run.tools import searches
from gateway.run.tools.toolbox import ToolAnswer
from storage.listing import PassageFilter
from storage.records import Agent, MemoryEdit, Message, Passage, Vector
from storage.sql.store import Store

# The hits that are read if a search names tags. The index has no tags, so hits without them are left out afterwards.
_TAGGED_HITS = 40
# The newest exchanges that a search reads if it has a time or a speaker and no query.
_NEWEST_EXCHANGES = 200
# The budget of a search's results if automatic recall is switched off.
_DEFAULT_RESULT_TOKENS = 1000


class ArchiveSearch(Protocol):
    """Searches the archives of an agent: its own, and those that are attached to it."""

    async def list_searched_memories(self, agent: Agent) -> Sequence[Agent]:
        """Returns the memories of which the agent searches the archives, its own first."""

    async def search_memory(
        self, memory: Agent, query: str, passage_filter: PassageFilter, *, limit: int, vector: Vector | None
    ) -> Sequence[Passage]:
        """Returns the passages of one memory, best first; if the query is blank, the newest passages."""


class MemorySearches(Struct, frozen=True):
    """The searches of one turn. They also find texts that the turn itself has stored."""

    # The store of the memories.
    store: Store
    # The memory as it was read for the turn.
    context: MemoryContext
    # The edits of the turn, which are in no index yet.
    block_edits: BlockEdits
    # The most tokens of a result; 0: the default.
    recall_tokens: int
    # Returns the vector of a query; None: memory is searched by words alone.
    embed_query: EmbedQuery | None
    # Searches archives; None: only the memory's own passages are searched.
    archives: ArchiveSearch | None

    async def look_up(self, lookup: Lookup) -> ToolAnswer:
        """Searches memory. Returns a line for each hit, the best first. Searches that are late are left out."""
        messages, is_incomplete = await self._search_all(lookup)
        budget_tokens = self.recall_tokens or _DEFAULT_RESULT_TOKENS
        # Edits that are not confirmed are in no index. They come first, the newest edit at the top.
        newest_passages = self._list_pending_passages(lookup)[::-1][: lookup.limit]
        pending_hits = note_choice.choose_hits(newest_passages, "", budget_tokens=budget_tokens).hits
        lines = [f"- {_with_tags(hit)}" for hit in pending_hits]
        budget_tokens -= note_text.estimate_tokens("\n".join(lines))
        hits = note_choice.choose_hits(messages[: lookup.limit], "", budget_tokens=budget_tokens).hits
        lines += map(_render_result_line, hits)
        failure = "Error: memory cannot be searched at the moment."
        return searches.make_answer(lines, failure, is_incomplete=is_incomplete)

    def _list_pending_passages(self, lookup: Lookup) -> list[Message]:
        """Returns the matching passages of this turn and of the path's unconfirmed edits, oldest first."""
        path = self.context.path_ids
        edits = [
            *(edit for edit in self.context.snapshot.edits if edit.exchange_row in path),
            *self.block_edits.edits,
        ]
        passage_edits = [
            edit
            for edit in edits
            if STORED_SOURCES.get(edit.op) in lookup.sources and lookup.matches_time(edit.at)
        ]
        return [
            _make_pending_passage(edit, n)
            for n, edit in enumerate(passage_edits)
            if lookup.matches_tags(_read_tags(edit))
        ]

    async def _search_all(self, lookup: Lookup) -> searches.CombinedHits[Message]:
        """Makes all searches of a lookup at once, and returns their hits."""
        agent = self.context.agent
        if not agent.scope.spans_conversations or not agent.is_stored:
            return searches.CombinedHits([], is_incomplete=False)
        queries = lookup.queries or ("",)
        # The agent's own passages are searched as an archive, or together with the rest of its own memory.
        is_archival = self.archives is not None and lookup.sources == {"passage"}
        memories, has_failed = await self._list_archives(lookup)
        if not is_archival:
            memories = [memory for memory in memories if memory.id != agent.id]
        query_searches: list[Awaitable[Sequence[Message]]] = []
        for query, vector in zip(queries, await self._embed(queries, [agent, *memories]), strict=True):
            if not is_archival:
                query_searches.append(self._search_own(query, lookup, vector))
            query_searches += [self._search_archive(memory, query, lookup, vector) for memory in memories]
        messages, is_incomplete = await searches.search_all(query_searches)
        return searches.CombinedHits(_renumber_passages(messages), has_failed or is_incomplete)

    async def _list_archives(self, lookup: Lookup) -> searches.CombinedHits[Agent]:
        """Returns the memories with the passages that a lookup searches; the agent's own memory is one of them."""
        # A lookup without a query lists the newest entries, and those of archives only if it lists nothing else.
        is_searched = "passage" in lookup.sources and (lookup.queries or len(lookup.sources) == 1)
        if self.archives is None or not is_searched:
            return searches.CombinedHits([], is_incomplete=False)
        return await searches.search_all([self.archives.list_searched_memories(self.context.agent)])

    async def _embed(self, queries: Sequence[str], memories: Sequence[Agent]) -> Sequence[Vector | None]:
        """Returns the vectors of queries in these memories."""
        embed = self.embed_query
        if embed is None:
            return [None] * len(queries)
        rows = [memory.id for memory in memories]
        return await asyncio.gather(*(embed(rows, query, searches.SEARCH_MS) for query in queries))

    async def _search_own(self, query: str, lookup: Lookup, vector: Vector | None) -> list[Message]:
        """Returns the hits of the agent's own memory for a query; if the query is empty, the newest messages."""
        hits = await (self._search_index(query, lookup, vector) if query else self._load_newest(lookup))
        seqs = [hit.seq for hit in hits if hit.kind == "passage"]
        passages = await self.store.passages.load(self.context.agent.id, seqs) if seqs else {}
        hits = [replace(hit, tags=passages[hit.seq].tags) if hit.seq in passages else hit for hit in hits]
        return [hit for hit in hits if lookup.matches_tags(hit.tags)]

    async def _search_index(self, query: str, lookup: Lookup, vector: Vector | None) -> list[Message]:
        """Returns the indexed texts that fit a query. vector: the vector of the query; None: words alone."""
        # The search filters its hits itself: otherwise hits that do not match could fill up the limit.
        return await self.store.recall.search(
            self.context.agent,
            query,
            limit=_TAGGED_HITS if lookup.tags else lookup.limit,
            takes=lookup.matches,
            deadline_ms=searches.SEARCH_MS,
            vector=vector,
        )

    async def _load_newest(self, lookup: Lookup) -> list[Message]:
        oldest_first = await self.store.recall.load_recent(self.context.agent, _NEWEST_EXCHANGES)
        return [message for message in reversed(oldest_first) if lookup.matches(message)]

    async def _search_archive(
        self, memory: Agent, query: str, lookup: Lookup, vector: Vector | None
    ) -> list[Message]:
        """Returns the passages of one memory that answer one query."""
        assert self.archives is not None  # else no memory is searched as an archive
        passage_filter = PassageFilter(
            since=lookup.since, until=lookup.until, tags=sorted(lookup.tags), needs_all_tags=lookup.needs_all
        )
        passages = await self.archives.search_memory(
            memory, query, passage_filter, limit=lookup.limit, vector=vector
        )
        return [
            Message(
                passage.seq,
                exchange_row=0,
                role="assistant",
                text=passage.text,
                at=passage.at,
                conversation_row=0,
                kind="passage",
                tags=passage.tags,
            )
            for passage in passages
        ]


def _renumber_passages(hits: Sequence[Message]) -> list[Message]:
    """Returns each hit once, passages with negative numbers.

    Each memory numbers its own entries, so a passage of another memory may have the number of a message of the agent.
    """
    unique = {(hit.seq, hit.at, hit.text): hit for hit in hits}.values()
    return [replace(hit, seq=-n) if hit.kind == "passage" else hit for n, hit in enumerate(unique, 1)]


def _read_tags(edit: MemoryEdit) -> tuple[str, ...]:
    return tuple(orjson.loads(edit.arguments).get("tags") or ())


def _make_pending_passage(edit: MemoryEdit, number: int) -> Message:
    """Returns the passage that an unconfirmed edit will store. number: the position of the edit among such edits."""
    text = str(orjson.loads(edit.arguments).get("content", ""))
    return Message(
        number,
        edit.exchange_row,
        "assistant",
        text,
        edit.at,
        conversation_row=0,
        kind="passage",
        tags=_read_tags(edit),
    )


def _render_result_line(hit: note_text.NoteHit) -> str:
    """Returns the line of a hit, with its day, and with its speaker if it is a message."""
    day = render_day(hit.message.at).split()[0]
    if hit.message.kind != "message":
        return f"- [{day}] {_with_tags(hit)}"
    speaker = quote_name(hit.message.speaker) if hit.message.speaker else hit.message.role
    return f"- [{day}, {speaker}] {hit.text}"


def _with_tags(hit: note_text.NoteHit) -> str:
    tags = escape_tags(" ".join(", ".join(hit.message.tags).split()))
    return f"{hit.text} (tags: {tags})" if tags else hit.text
