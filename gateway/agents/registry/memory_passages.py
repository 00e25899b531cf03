"""The passages of agents, archives and folders: listed, searched, saved and forgotten.

A search asks each memory by itself and takes the results from each in turn, so that the order within one memory does
not depend on the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from gateway.core import ids
from gateway.core.memory.file_text import split_passages
from gateway.run.memory.memory_agent import check_not_paused
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.run.tools import searches
from storage.definition_records import DefinitionKind
from storage.errors import NotFound
from storage.file_records import StoredFile
from storage.forget_commands import ForgetTarget
from storage.fusion import interleave
from storage.listing import Page, PassageDraft, PassageFilter
from storage.records import Agent, Passage, Vector
from storage.sql.store import Store

# The most memories that one search asks: the agent's own memory, then attached ones. Not measured: each takes a search,
# and all run at once, for `searches.SEARCH_MS` at most.
MAX_MEMORIES_SEARCHED = 8


class PassageView(Struct, frozen=True):
    """A passage with its origin."""

    # The uid of the agent, the archive or the folder that has the passage.
    uid: str
    # The stored passage.
    passage: Passage
    # The file of which the passage is a part; None: it is a part of no file.
    file: StoredFile | None = None


class MemoryPassages(Struct, frozen=True):
    """Reads, searches and changes passages of memories.

    Besides the errors that a method names, it raises WriteConflict and StoreUnavailable.
    """

    # The store with the passages.
    store: Store
    # Makes the vector of a query; None: passages are searched by words alone.
    embed_query: EmbedQuery | None = None

    async def list_page(
        self, memory: Agent, passage_filter: PassageFilter, page: Page[int]
    ) -> Sequence[PassageView]:
        """Returns a page of a memory's passages. page: the page, with numbers of passages as cursors."""
        return await self._with_files(
            memory, await self.store.passages.list_page(memory.id, page, passage_filter)
        )

    async def list_newest(
        self, memories: Sequence[Agent], passage_filter: PassageFilter, *, limit: int
    ) -> Sequence[PassageView]:
        """Returns the newest passages of these memories."""
        pages = [await self.list_page(memory, passage_filter, Page(limit=limit)) for memory in memories]
        return sorted(chain.from_iterable(pages), key=lambda view: -view.passage.at)[:limit]

    async def add(self, memory: Agent, drafts: Sequence[PassageDraft]) -> Sequence[PassageView]:
        """Saves all texts or none, a long text as several passages. Raises: NotAllowed if the memory is paused."""
        check_not_paused(memory)
        parts = [replace(draft, text=part) for draft in drafts for part in split_passages(draft.text)]
        return [PassageView(memory.uid, each) for each in await self.store.passages.add(memory.id, parts)]

    async def remove(self, memory: Agent, seq: int) -> None:
        """Forgets a passage, and the notes that quote it. Raises: NotFound."""
        if not await self.store.passages.load(memory.id, [seq]):
            raise NotFound(f"there is no passage {ids.make_id_with_seq('passage', memory.uid, seq)!r}")
        await self.store.forgetting.forget(memory.id, ForgetTarget(passage_seqs=[seq]))

    async def list_searched_memories(self, agent: Agent) -> Sequence[Agent]:
        """Returns the memories that an agent's search asks: its own memory, then attached archives and folders."""
        archives = await self.store.attached.load_targets(agent.id, DefinitionKind.ARCHIVE)
        folders = await self.store.attached.load_targets(agent.id, DefinitionKind.FOLDER)
        memories = await self.store.defined_agents.load_memories(agent.scope.project, [*archives, *folders])
        return [agent, *memories][:MAX_MEMORIES_SEARCHED]

    async def search(
        self, memories: Sequence[Agent], query: str, passage_filter: PassageFilter, *, limit: int
    ) -> Sequence[PassageView]:
        """Returns the passages of these memories that match a query, best first."""
        embed = self.embed_query
        rows = [memory.id for memory in memories]
        vector = None if embed is None else await embed(rows, query, searches.SEARCH_MS)
        coroutines = [
            self._search_memory(memory, query, passage_filter, limit, vector) for memory in memories
        ]
        return interleave(await asyncio.gather(*coroutines))[:limit]

    async def search_memory(
        self, memory: Agent, query: str, passage_filter: PassageFilter, *, limit: int, vector: Vector | None
    ) -> Sequence[Passage]:
        """Returns the passages of one memory that match a query, best first; the newest passages if the query is blank.

        vector: the vector of the query; None: the search is by words alone.
        """
        if query.strip():
            views = await self._search_memory(memory, query, passage_filter, limit, vector)
        else:
            views = await self.list_page(memory, passage_filter, Page(limit=limit))
        return [view.passage for view in views]

    async def _search_memory(
        self, memory: Agent, query: str, passage_filter: PassageFilter, limit: int, vector: Vector | None
    ) -> Sequence[PassageView]:
        """Returns the passages of one memory that match a query, best first; none if the memory is gone."""
        current_memory = await self.store.agents.find_by_id(memory.id)
        if current_memory is None:  # deleted meanwhile
            return []
        hits = await self.store.recall.search_passages(
            current_memory, query, passage_filter, limit=limit, deadline_ms=searches.SEARCH_MS, vector=vector
        )
        return await self._with_files(memory, hits)

    async def _with_files(self, memory: Agent, passages: Sequence[Passage]) -> Sequence[PassageView]:
        """Returns passages with their files. Passages of a file that is being deleted are left out."""
        rows = sorted({passage.file for passage in passages if passage.file is not None})
        files = await self.store.files.load_by_rows(rows) if rows else {}
        return [
            PassageView(memory.uid, passage, None if passage.file is None else files[passage.file])
            for passage in passages
            if passage.file is None or passage.file in files
        ]
