"""Archives of passages: each agent's own, and shared ones, which like folders can be attached to several agents.

A shared archive is a memory of its own, with its own index and its own forgetting. A search asks each memory by itself
and takes the results from each in turn, so that the order within one archive does not depend on the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.registry.memory_scope import draft_memory, make_scope
from gateway.core import ids
from gateway.core.memory.file_text import split_passages
from gateway.errors import BadRequest, Conflict
from gateway.run.memory.memory_agent import check_not_paused
from gateway.run.memory.query_vectors import EmbedQuery
from storage.commands import ForgetTarget
from storage.errors import NotFound
from storage.fusion import interleave
from storage.listing import Page, PassageDraft, PassageFilter
from storage.records import Agent, Definition, DefinitionKind, Passage, StoredFile, Vector
from storage.sql.store import Store

# The most memories that one search asks: the agent's own, then those attached. Not measured: each is a search, and all
# run at once, for `SEARCH_MS` at most.
MAX_MEMORIES_SEARCHED = 8
SEARCH_MS = 1000.0
_KIND = DefinitionKind.ARCHIVE
_OWN_ARCHIVE = "This is an agent's own archive: it is called after its agent, and ends with it."


class PassageView(Struct, frozen=True):
    """A passage, and where it comes from."""

    # The uid of its memory: an agent's, an archive's or a folder's.
    uid: str
    passage: Passage
    # The file that it is a part of; None: it is of no file.
    file: StoredFile | None = None


class Archives:
    """Archives and their passages. project: the caller's; an archive of another one is not found.

    Methods raise, besides what they name, NotFound, WriteConflict and Unavailable, as the store does.
    """

    def __init__(self, store: Store, now: Callable[[], float], embed_query: EmbedQuery | None = None) -> None:
        """embed_query: makes the vector of a question; None if passages are searched by words alone."""
        self._store = store
        self._now = now
        self._embed_query = embed_query

    async def create(self, project: str, name: str, body: dict[str, Any]) -> Definition:
        """Makes an archive that agents can share."""
        memory = draft_memory(self._store, project, _KIND)
        _, archive = await self._store.definitions.create_memory(memory, _KIND, name, body, at=self._now())
        return archive

    async def get(self, project: str, uid: str) -> Definition:
        """Returns an archive; an agent's own is not stored, since it is its memory. Raises: NotFound."""
        archive = await self._store.definitions.find(project, _KIND, uid)
        if archive is not None:
            return archive
        try:
            entry = await self._store.defined_agents.get(project, uid)
        except NotFound:
            raise NotFound(f"there is no archive {uid!r}") from None
        agent = entry.agent
        return Definition(
            id=0, uid=uid, project=project, kind=_KIND, memory_row=agent.id, name=f"{entry.name}'s archive", version=1,
            created=agent.created, updated=agent.created, body={},
        )  # fmt: skip

    async def get_shared(self, project: str, uid: str) -> Definition:
        """Returns an archive that is no agent's own. Raises: NotFound; Conflict if it is an agent's own."""
        archive = await self.get(project, uid)
        if not archive.is_stored:
            raise Conflict(_OWN_ARCHIVE)
        return archive

    async def attach(self, agent: Agent, archive: Definition) -> None:
        """Attaches an archive to an agent, which always has its own.

        Raises: OverLimit; BadRequest if it is another agent's own.
        """
        if archive.is_stored:
            await self._store.attached.attach(agent.id, _KIND, archive.memory_row, at=self._now())
        elif archive.memory_row != agent.id:
            raise BadRequest(
                f"{archive.name!r} is the memory of one agent or user alone. Make an archive for what several share.",
                param="archive_id",
            )

    async def detach(self, agent: Agent, archive: Definition) -> None:
        """Detaches an archive from an agent, if it is attached. Raises: BadRequest for the agent's own."""
        if archive.memory_row == agent.id:
            raise BadRequest(_OWN_ARCHIVE, param="archive_id")
        await self._store.attached.detach(agent.id, _KIND, archive.memory_row, at=self._now())

    async def load_memory(self, project: str, uid: str) -> Agent:
        """Returns the memory that an archive's passages lie in: the agent's for its own archive. Raises: NotFound."""
        archive = await self._store.definitions.find(project, _KIND, uid)
        if archive is None:
            return (await self._store.defined_agents.get(project, uid)).agent
        agent = await self._store.agents.find(make_scope(project, _KIND, uid))
        if agent is None:
            raise NotFound(f"there is no archive {uid!r}")
        return agent

    async def delete(self, project: str, uid: str) -> None:
        """Deletes an archive with its passages, and detaches it from all agents.

        Raises: Conflict for an agent's own archive.
        """
        archive = await self.get_shared(project, uid)
        await self._store.forgetting.forget(archive.memory_row, ForgetTarget(is_all=True))

    async def searched_by(self, agent: Agent) -> Sequence[Agent]:
        """Returns the memories that an agent's search asks: its own, then attached archives and folders."""
        targets = await self.list_attached_rows(agent)
        memories = await self._store.defined_agents.load_memories(agent.scope.project, targets)
        return [agent, *memories][:MAX_MEMORIES_SEARCHED]

    async def list_attached_rows(self, agent: Agent) -> Sequence[int]:
        """Returns the rows of the memories of the archives and folders that are attached to an agent."""
        archives = await self._store.attached.load_targets(agent.id, _KIND)
        return [*archives, *await self._store.attached.load_targets(agent.id, DefinitionKind.FOLDER)]

    async def list(self, memory: Agent, where: PassageFilter, page: Page[int]) -> Sequence[PassageView]:
        """Returns a page of a memory's passages. page: with numbers of passages as cursors."""
        return await self._with_files(memory, await self._store.passages.list_page(memory.id, page, where))

    async def add(
        self, memory: Agent, text: str, tags: Sequence[str] = (), *, at: float | None = None
    ) -> Sequence[PassageView]:
        """Saves a text, a long one as several passages. at: its time; None for now."""
        draft = PassageDraft(text=text, at=self._now() if at is None else at, tags=tags)
        return await self.add_all(memory, [draft])

    async def add_all(self, memory: Agent, drafts: Sequence[PassageDraft]) -> Sequence[PassageView]:
        """Saves texts, a long one as several passages: all of them or none.

        Raises: NotAllowed: the memory is paused.
        """
        check_not_paused(memory)
        parts = [replace(draft, text=part) for draft in drafts for part in split_passages(draft.text)]
        return [PassageView(memory.uid, each) for each in await self._store.passages.add(memory.id, parts)]

    async def remove(self, memory: Agent, seq: int) -> None:
        """Forgets a passage, and the notes that quote it. Raises: NotFound."""
        if not await self._store.passages.load(memory.id, [seq]):
            raise NotFound(f"there is no passage {ids.make_id_with_seq('passage', memory.uid, seq)!r}")
        await self._store.forgetting.forget(memory.id, ForgetTarget(passages=[seq]))

    async def search(
        self, agent: Agent, query: str, where: PassageFilter, *, limit: int = 5
    ) -> Sequence[PassageView]:
        """Returns the passages that answer a query, best first, of an agent's own archive and the attached ones."""
        return await self.search_in(await self.searched_by(agent), query, where, limit=limit)

    async def search_in(
        self, memories: Sequence[Agent], query: str, where: PassageFilter, *, limit: int = 5
    ) -> Sequence[PassageView]:
        """Returns the passages of these memories that answer a query, best first."""
        embed = self._embed_query
        vector = None if embed is None else await embed([agent.id for agent in memories], query, SEARCH_MS)
        searches = [self._search_one(memory, query, where, limit, vector) for memory in memories]
        return interleave(await asyncio.gather(*searches))[:limit]

    async def passages(
        self, memory: Agent, query: str, where: PassageFilter, *, limit: int, vector: Vector | None
    ) -> Sequence[Passage]:
        """Returns the passages of one memory that answer a query, best first; the newest where it is blank.

        vector: of the query, if there is one.
        """
        if query.strip():
            views = await self._search_one(memory, query, where, limit, vector)
        else:
            views = await self.list(memory, where, Page(limit=limit))
        return [view.passage for view in views]

    async def _search_one(
        self, memory: Agent, query: str, where: PassageFilter, limit: int, vector: Vector | None
    ) -> Sequence[PassageView]:
        present = await self._store.agents.find_by_id(memory.id)
        if present is None:  # deleted meanwhile
            return []
        hits = await self._store.recall.search_passages(
            present, query, where, limit=limit, deadline_ms=SEARCH_MS, vector=vector
        )
        return await self._with_files(memory, hits)

    async def list_newest(
        self, memories: Sequence[Agent], where: PassageFilter, *, limit: int
    ) -> Sequence[PassageView]:
        """Returns the newest passages of these memories."""
        pages = [await self.list(memory, where, Page(limit=limit)) for memory in memories]
        return sorted(chain.from_iterable(pages), key=lambda view: -view.passage.at)[:limit]

    async def _with_files(self, memory: Agent, passages: Sequence[Passage]) -> Sequence[PassageView]:
        """Returns passages with the files that they are parts of, but for those of a file that is being deleted."""
        rows = sorted({passage.file for passage in passages if passage.file is not None})
        files = await self._store.files.find_by_ids(rows) if rows else {}
        return [
            PassageView(memory.uid, passage, None if passage.file is None else files[passage.file])
            for passage in passages
            if passage.file is None or passage.file in files
        ]
