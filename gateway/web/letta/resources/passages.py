"""Archival memory: texts that are saved, listed, searched and forgotten, and the archives that agents share."""

from __future__ import annotations

from typing import Any

from gateway.dialects.letta.query import PassageSearchQuery, PassagesQuery
from gateway.dialects.letta.resources.passage import (
    ArchivesQuery,
    CreateArchive,
    CreateArchivePassage,
    CreateArchivePassages,
    CreatePassage,
    SearchPassages,
    UpdateArchive,
    archive_json,
    hit_json,
    moment_of,
    passage_json,
)
from gateway.errors import BadRequest, UnknownId
from gateway.run.agents.archives import ARCHIVE, Archives, PassageView, check_room
from gateway.web.letta.api import AgentsApi, cut, given_or_none, place_in
from gateway.web.letta.routes import AgentsRoute, Asked, uid_in
from storage.listing import Page, PassageFilter
from storage.records import Agent, Definition, DefinitionKind

_FEW = 5  # results of a search that names no number; Letta's
_LISTED = 1000  # archives of a project that are listed


class PassageRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._archives = Archives(api.store, api.now, api.keeper.embed_query)

    def rows(self) -> list[AgentsRoute]:
        all_ = "/v1/agents/{agent_id}/archival-memory"
        one, search = f"{all_}/{{memory_id}}", "/v1/passages/search"
        return [
            AgentsRoute("GET", all_, self.index, "List an agent's passages.", query=PassagesQuery),
            AgentsRoute("POST", all_, self.create, "Save a text for an agent.", body=CreatePassage),
            AgentsRoute(
                "GET", f"{all_}/search", self.search, "Search an agent's passages.", query=PassageSearchQuery
            ),
            AgentsRoute("DELETE", one, self.delete, "Forget a passage, and what quotes it."),
            AgentsRoute("POST", search, self.search_all, "Search passages.", body=SearchPassages),
        ]

    async def index(self, asked: Asked) -> Any:
        query: PassagesQuery = asked.query
        agent = (await self._api.entry(asked)).agent
        found = await self._archives.list(
            agent,
            PassageFilter(text=given_or_none(query.search)),
            after=_seq(agent, query.after),
            before=_seq(agent, query.before),
            limit=query.size(100),
            newest_first=query.newest_first(False),
        )
        return list(map(_shown, found))

    async def create(self, asked: Asked) -> Any:
        create: CreatePassage = asked.body
        agent = (await self._api.entry(asked)).agent
        at = moment_of(create.created_at, ("body", "created_at"))
        made = await self._archives.add(agent, create.text, given_or_none(create.tags) or (), at=at)
        return list(map(_shown, made))

    async def search(self, asked: Asked) -> Any:
        query: PassageSearchQuery = asked.query
        agent = (await self._api.entry(asked)).agent
        wanted = PassageFilter(
            since=moment_of(query.start_datetime, ("query", "start_datetime")),
            until=moment_of(query.end_datetime, ("query", "end_datetime")),
            tags=given_or_none(query.tags) or (),
            all_tags=query.tag_match_mode == "all",
        )
        limit = given_or_none(query.top_k) or _FEW
        found = await self._archives.search(agent, query.query, wanted, limit=limit)
        return {"results": [hit_json(each.uid, each.passage) for each in found], "count": len(found)}

    async def search_all(self, asked: Asked) -> Any:
        search: SearchPassages = asked.body
        wanted = PassageFilter(
            since=moment_of(search.start_date, ("body", "start_date")),
            until=moment_of(search.end_date, ("body", "end_date")),
            tags=given_or_none(search.tags) or (),
            all_tags=search.tag_match_mode == "all",
        )
        if isinstance(search.agent_id, str):
            agent = await self._api.registry.find(asked.project, uid_in("agent", search.agent_id))
            memories = await self._archives.of(agent.agent)
        elif isinstance(search.archive_id, str):
            memories = [await self._archives.memory(asked.project, uid_in("archive", search.archive_id))]
        else:
            raise BadRequest("Name the agent or the archive that is to be searched.", param="agent_id")
        if isinstance(search.query, str) and search.query.strip():
            found = await self._archives.search_in(memories, search.query, wanted, limit=search.limit)
        else:
            found = [
                each
                for memory in memories
                for each in await self._archives.list(memory, wanted, limit=search.limit, newest_first=True)
            ][: search.limit]
        # Ranks are all that memories have in common, so the score is the place.
        return [
            {"passage": _shown(each), "score": 1 / (1 + place), "metadata": {}}
            for place, each in enumerate(found)
        ]

    async def delete(self, asked: Asked) -> Any:
        agent = (await self._api.entry(asked)).agent
        seq = _seq(agent, asked.path["memory_id"])
        assert seq is not None
        await self._archives.remove(agent, seq)
        return {"message": "The passage is forgotten."}


class ArchiveRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._archives = Archives(api.store, api.now, api.keeper.embed_query)

    def rows(self) -> list[AgentsRoute]:
        all_, one = "/v1/archives", "/v1/archives/{archive_id}"
        texts, of = f"{one}/passages", "/v1/agents/{agent_id}/archives"
        return [
            AgentsRoute("GET", all_, self.index, "List archives.", query=ArchivesQuery),
            AgentsRoute("POST", all_, self.create, "Make an archive.", body=CreateArchive),
            AgentsRoute("GET", one, self.retrieve, "Return an archive."),
            AgentsRoute("PATCH", one, self.update, "Change an archive.", body=UpdateArchive),
            AgentsRoute("DELETE", one, self.delete, "Delete an archive with its passages."),
            AgentsRoute("POST", texts, self.add, "Save a text in an archive.", body=CreateArchivePassage),
            AgentsRoute(
                "POST", f"{texts}/batch", self.add_many, "Save several texts.", body=CreateArchivePassages
            ),
            AgentsRoute("DELETE", f"{texts}/{{passage_id}}", self.remove, "Forget a passage of an archive."),
            AgentsRoute(
                "PATCH", f"{of}/attach/{{archive_id}}", self.attach, "Attach an archive to an agent."
            ),
            AgentsRoute("PATCH", f"{of}/detach/{{archive_id}}", self.detach, "Detach an archive."),
        ]

    async def index(self, asked: Asked) -> Any:
        query: ArchivesQuery = asked.query
        page, name = Page(0, 2**62, _LISTED, newest_first=False), given_or_none(query.name)
        found = await self._api.store.definitions.list(asked.project, DefinitionKind.ARCHIVE, page, name=name)
        if isinstance(query.agent_id, str):
            agent = await self._api.registry.find(asked.project, uid_in("agent", query.agent_id))
            attached = await self._api.store.attached.targets(agent.agent.id, ARCHIVE)
            found = [each for each in found if each.memory in attached]
        return cut(list(map(archive_json, found)), query)

    async def create(self, asked: Asked) -> Any:
        create: CreateArchive = asked.body
        given = {
            "description": given_or_none(create.description),
            "embedding": given_or_none(create.embedding),
            "embedding_config": given_or_none(create.embedding_config),
        }
        return archive_json(await self._archives.create(asked.project, create.name, given))

    async def retrieve(self, asked: Asked) -> Any:
        return archive_json(await self._archive(asked))

    async def update(self, asked: Asked) -> Any:
        update: UpdateArchive = asked.body
        found = await self._archive(asked)
        body = dict(found.body)
        if isinstance(update.description, str):
            body["description"] = update.description
        changed = await self._api.store.definitions.change(
            found, body, at=self._api.now(), name=given_or_none(update.name)
        )
        return archive_json(changed)

    async def delete(self, asked: Asked) -> Any:
        await self._archives.delete(asked.project, asked.uid("archive", "archive_id"))
        return {"message": "The archive is deleted."}

    async def add(self, asked: Asked) -> Any:
        # A long text becomes several passages; the client takes one, the first.
        return (await self._saved(await self._memory(asked), asked.body, ("body",)))[0]

    async def add_many(self, asked: Asked) -> Any:
        memory = await self._memory(asked)
        texts = asked.body.passages
        for n, each in enumerate(texts):
            moment_of(each.created_at, ("body", "passages", n, "created_at"))
        return [made for each in texts for made in await self._saved(memory, each, ("body",))]

    async def remove(self, asked: Asked) -> Any:
        memory, id = await self._memory(asked), asked.path["passage_id"]
        place = place_in("passage", id)
        if place is None or place.uid != memory.uid:
            raise UnknownId(f"There is no passage {id!r} of this archive.")
        await self._archives.remove(memory, place.seq)
        return {"message": "The passage is forgotten."}

    async def attach(self, asked: Asked) -> Any:
        agent, found = (await self._api.entry(asked)).agent, await self._archive(asked)
        attached = await self._archives.attached(agent)
        if found.memory not in attached:
            check_room(len(attached) + 1)
        await self._api.store.attached.attach(agent.id, ARCHIVE, found.memory, at=self._api.now())
        return None

    async def detach(self, asked: Asked) -> Any:
        agent, found = (await self._api.entry(asked)).agent, await self._archive(asked)
        await self._api.store.attached.detach(agent.id, ARCHIVE, found.memory, at=self._api.now())
        return None

    async def _archive(self, asked: Asked) -> Definition:
        uid = asked.uid("archive", "archive_id")
        return await self._api.store.definitions.get(asked.project, DefinitionKind.ARCHIVE, uid)

    async def _memory(self, asked: Asked) -> Agent:
        return await self._archives.memory(asked.project, asked.uid("archive", "archive_id"))

    async def _saved(
        self, memory: Agent, text: CreatePassage, at: tuple[str | int, ...]
    ) -> list[dict[str, Any]]:
        moment = moment_of(text.created_at, (*at, "created_at"))
        made = await self._archives.add(memory, text.text, given_or_none(text.tags) or (), at=moment)
        return [passage_json(each.uid, each.passage) for each in made]


def _seq(agent: Agent, id: Any) -> int | None:
    place = place_in("passage", id)
    if place is not None and place.uid != agent.uid:
        raise UnknownId(f"There is no passage {id!r} of this agent.")
    return None if place is None else place.seq


def _shown(view: PassageView) -> dict[str, Any]:
    return passage_json(view.uid, view.passage, view.file)
