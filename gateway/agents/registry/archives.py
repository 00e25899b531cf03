"""Archival memories of agents: each agent's own archive, and archives and folders that several agents have attached.

An archive that is attached is a memory of its own, with its index and its forgetting. A search asks each of them, so
that its order depends on no other archive, and takes from each in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.core import ids
from gateway.core.memory.file_text import chunks
from gateway.errors import BadRequest, Conflict
from gateway.run.memory.recall import EmbedQuery
from storage.commands import ForgetTarget
from storage.errors import NotFound
from storage.fusion import in_turn
from storage.listing import Page, PassageDraft, PassageFilter
from storage.records import API_PROFILE, Agent, Definition, DefinitionKind, Passage, Scope, StoredFile
from storage.sql.store import Store

MOST = 8  # memories that one search asks
OWN = "This is an agent's own archive: it is called after its agent, and ends with it."
SEARCH_MS = 1000.0


class PassageView(Struct, frozen=True):
    """A passage. uid: of the memory in which it lies, an agent's, an archive's or a folder's. file: it is a part of."""

    uid: str
    passage: Passage
    file: StoredFile | None = None


class Archives:
    """Archives and their passages. project: the caller's; an archive of another one is not found.

    Raises besides what the methods name: NotFound, WriteConflict, Unavailable, as the store does.
    """

    def __init__(self, store: Store, now: Callable[[], float], embed_query: EmbedQuery | None = None) -> None:
        """embed_query: makes the vector of a question; None: passages are searched by words alone."""
        self._store = store
        self._now = now
        self._embed_query = embed_query

    async def create(self, project: str, name: str, body: dict[str, Any]) -> Definition:
        """Makes an archive."""
        uid = ids.new_uid()
        draft = self._store.agents.draft(Scope(project, API_PROFILE, f"{DefinitionKind.ARCHIVE}:{uid}"))
        _, made = await self._store.definitions.create_memory(
            replace(draft, uid=uid), DefinitionKind.ARCHIVE, name, body, at=self._now()
        )
        return made

    async def get(self, project: str, uid: str) -> Definition:
        """Returns an archive; an agent's own has no row (id 0). Raises: NotFound."""
        found = await self._store.definitions.find(project, DefinitionKind.ARCHIVE, uid)
        if found is not None:
            return found
        try:
            entry = await self._store.defined_agents.get(project, uid)
        except NotFound:
            raise NotFound(f"there is no archive {uid!r}") from None
        agent, kind = entry.agent, DefinitionKind.ARCHIVE
        name = f"{entry.name}'s archive"
        return Definition(0, uid, project, kind, agent.id, name, 1, agent.created, agent.created, {})

    async def made(self, project: str, uid: str) -> Definition:
        """Returns an archive that was made as one. Raises: NotFound; Conflict: an agent's own."""
        found = await self.get(project, uid)
        if not found.id:
            raise Conflict(OWN)
        return found

    async def attach(self, agent: Agent, archive: Definition) -> None:
        """Gives an agent an archive; it has its own. Raises: BadRequest: another one's own; OverLimit."""
        if archive.id:
            await self._store.attached.attach(
                agent.id, DefinitionKind.ARCHIVE, archive.memory, at=self._now()
            )
        elif archive.memory != agent.id:
            raise BadRequest(
                f"{archive.name!r} is the memory of one agent or user alone. Make an archive for what several share.",
                param="archive_id",
            )

    async def detach(self, agent: Agent, archive: Definition) -> None:
        """Takes an archive from an agent, if it has it. Raises: BadRequest: its own."""
        if archive.memory == agent.id:
            raise BadRequest(OWN, param="archive_id")
        await self._store.attached.detach(agent.id, DefinitionKind.ARCHIVE, archive.memory, at=self._now())

    async def memory(self, project: str, uid: str) -> Agent:
        """Returns the memory of an archive: an agent's own, or one of itself. Raises: NotFound."""
        found = await self._store.definitions.find(project, DefinitionKind.ARCHIVE, uid)
        if found is None:
            return (await self._store.defined_agents.get(project, uid)).agent
        agent = await self._store.agents.find(Scope(project, API_PROFILE, f"{DefinitionKind.ARCHIVE}:{uid}"))
        if agent is None:
            raise NotFound(f"there is no archive {uid!r}")
        return agent

    async def delete(self, project: str, uid: str) -> None:
        """Deletes an archive with its passages; agents lose it. Raises: Conflict: an agent's own."""
        found = await self.made(project, uid)
        await self._store.forgetting.forget(found.memory, ForgetTarget(is_all=True))

    async def of(self, agent: Agent) -> Sequence[Agent]:
        """Returns the memories that a search asks: the agent's own, then attached archives and folders."""
        targets = await self.attached(agent)
        found = await self._store.defined_agents.memories(agent.scope.project, targets)
        return [agent, *found][:MOST]

    async def attached(self, agent: Agent) -> Sequence[int]:
        """Returns the memories that are attached to an agent."""
        archives = await self._store.attached.targets(agent.id, DefinitionKind.ARCHIVE)
        return [*archives, *await self._store.attached.targets(agent.id, DefinitionKind.FOLDER)]

    async def list(
        self,
        memory: Agent,
        wanted: PassageFilter,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 50,
        newest_first: bool = False,
    ) -> Sequence[PassageView]:
        """Returns a page of a memory's passages. after, before: their numbers, which may be gone."""
        page = Page(after, before, limit, newest_first)
        found = await self._store.passages.page(memory.id, page, wanted)
        return await self._with_files([PassageView(memory.uid, passage) for passage in found])

    async def add(
        self, memory: Agent, text: str, tags: Sequence[str] = (), *, at: float | None = None
    ) -> Sequence[PassageView]:
        """Saves a text, in parts where it is long. at: its time; None: now."""
        return await self.add_all(memory, [PassageDraft(text, self._now() if at is None else at, tags)])

    async def add_all(self, memory: Agent, drafts: Sequence[PassageDraft]) -> Sequence[PassageView]:
        """Saves texts, each in parts where it is long: all of them or none."""
        parts = [replace(draft, text=part) for draft in drafts for part in chunks(draft.text)]
        return [
            PassageView(memory.uid, passage) for passage in await self._store.passages.add(memory.id, parts)
        ]

    async def remove(self, memory: Agent, seq: int) -> None:
        """Forgets a passage, and what quotes it. Raises: NotFound."""
        if not await self._store.passages.get(memory.id, [seq]):
            raise NotFound(f"there is no passage {ids.id_at('passage', memory.uid, seq)!r}")
        await self._store.forgetting.forget(memory.id, ForgetTarget(passages=[seq]))

    async def search(
        self, agent: Agent, query: str, wanted: PassageFilter, *, limit: int = 5
    ) -> Sequence[PassageView]:
        """Returns passages that answer a query, best first: of an agent's own archive and those it has attached."""
        return await self.search_in(await self.of(agent), query, wanted, limit=limit)

    async def passages(
        self, agent: Agent, query: str, wanted: PassageFilter, *, limit: int, is_own: bool = True
    ) -> Sequence[Passage]:
        """Returns the same for the agent's model.

        query: blank: the newest are wanted.
        is_own: with its own archive.
        """
        memories = (await self.of(agent))[0 if is_own else 1 :]
        if query.strip():
            found = await self.search_in(memories, query, wanted, limit=limit)
        else:
            pages = [await self.list(each, wanted, limit=limit, newest_first=True) for each in memories]
            found = sorted((view for page in pages for view in page), key=lambda view: -view.passage.at)
        return [view.passage for view in found[:limit]]

    async def search_in(
        self, memories: Sequence[Agent], query: str, wanted: PassageFilter, *, limit: int = 5
    ) -> Sequence[PassageView]:
        """Returns the same of certain memories."""
        ranked: list[Sequence[PassageView]] = []
        for memory in memories[:MOST]:
            now = await self._store.agents.load(memory.id)
            if now is not None:
                embed = self._embed_query
                vector = None if embed is None else await embed(now.id, query, SEARCH_MS)
                hits = await self._store.recall.passages(
                    now, query, wanted, limit=limit, deadline_ms=SEARCH_MS, vector=vector
                )
                ranked.append([PassageView(now.uid, passage) for passage in hits])
        return await self._with_files(in_turn(ranked)[:limit])

    async def _with_files(self, views: Sequence[PassageView]) -> Sequence[PassageView]:
        """Returns passages with the files that they are parts of, without those of a file that is being forgotten."""
        ids = {view.passage.file for view in views} - {None}
        if not ids:
            return views
        files = await self._store.files.several(sorted(id for id in ids if id is not None))
        found = [
            replace(view, file=None if view.passage.file is None else files.get(view.passage.file))
            for view in views
        ]
        return [view for view in found if view.file is not None or view.passage.file is None]
