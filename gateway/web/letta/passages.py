"""Archival memory: texts that are saved, listed, searched and forgotten."""

from __future__ import annotations

from typing import Any

from gateway.dialects.letta.passage import (
    CreatePassage,
    SearchPassages,
    hit_json,
    moment_of,
    passage_json,
)
from gateway.dialects.letta.query import PassageSearchQuery, PassagesQuery
from gateway.errors import BadRequest, UnknownId
from gateway.run.agents.archives import Archives, PassageView
from gateway.web.letta.api import AgentsApi, given_or_none, place_in
from gateway.web.letta.routes import AgentsRoute, Asked, uid_in
from storage.listing import PassageFilter
from storage.records import Agent

_FEW = 5  # results of a search that names no number; Letta's


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


def _seq(agent: Agent, id: Any) -> int | None:
    place = place_in("passage", id)
    if place is not None and place.uid != agent.uid:
        raise UnknownId(f"There is no passage {id!r} of this agent.")
    return None if place is None else place.seq


def _shown(view: PassageView) -> dict[str, Any]:
    return passage_json(view.uid, view.passage)
