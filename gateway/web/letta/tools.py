"""Tools: the gateway's own and those that were made over REST, and which an agent has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from gateway.dialects.letta.query import PageQuery, ToolsQuery
from gateway.dialects.letta.tool import type_of
from gateway.run.agents.tools import ToolView
from gateway.web.letta.api import AgentsApi, cut, given_or_none, show_tool, uid_or_none
from gateway.web.letta.routes import AgentsRoute, Asked, uid_in
from storage.errors import NotFound

_PAGE = 200


class ToolRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        self._tools = api.registry.tools

    def rows(self) -> list[AgentsRoute]:
        all_, one, own = "/v1/tools", "/v1/tools/{tool_id}", "/v1/agents/{agent_id}/tools"
        return [
            AgentsRoute(
                "GET", all_, self.index, "List tools, the gateway's own among them.", query=ToolsQuery
            ),
            AgentsRoute("GET", f"{all_}/count", self.count, "Count tools.", query=ToolsQuery),
            AgentsRoute("GET", one, self.retrieve, "Return a tool."),
            AgentsRoute("GET", own, self.of_agent, "List an agent's tools.", query=PageQuery),
            AgentsRoute("PATCH", f"{own}/attach/{{tool_id}}", self.attach, "Give an agent a tool."),
            AgentsRoute("PATCH", f"{own}/detach/{{tool_id}}", self.detach, "Take a tool from an agent."),
        ]

    async def index(self, asked: Asked) -> Any:
        query: ToolsQuery = asked.query
        found = []
        async for tool in self._wanted(asked.project, query):
            found.append(show_tool(tool))
            if len(found) == query.size():
                break
        return found

    async def count(self, asked: Asked) -> Any:
        return len([tool async for tool in self._wanted(asked.project, asked.query)])

    async def retrieve(self, asked: Asked) -> Any:
        return show_tool(await self._tools.get(asked.project, asked.uid("tool", "tool_id")))

    async def of_agent(self, asked: Asked) -> Any:
        view = await self._api.view(asked)
        return cut([show_tool(tool) for tool in view.tools], asked.query, newest_first=False)

    async def attach(self, asked: Asked) -> Any:
        uids = asked.uid("agent", "agent_id"), asked.uid("tool", "tool_id")
        return await self._api.shown(await self._api.registry.attach_tool(asked.project, *uids))

    async def detach(self, asked: Asked) -> Any:
        uids = asked.uid("agent", "agent_id"), asked.uid("tool", "tool_id")
        return await self._api.shown(await self._api.registry.detach_tool(asked.project, *uids))

    async def _wanted(self, project: str, query: ToolsQuery) -> AsyncIterator[ToolView]:
        """Yields the tools that a query asks for, from its cursor on."""
        names = set(given_or_none(query.names) or ())
        uids = {uid_in("tool", each) for each in given_or_none(query.tool_ids) or ()}
        types, without = given_or_none(query.tool_types), given_or_none(query.exclude_tool_types) or ()
        after = uid_or_none("tool", query.after)
        while True:
            try:
                page = await self._tools.list(
                    project,
                    after=after,
                    before=uid_or_none("tool", query.before),
                    limit=_PAGE,
                    newest_first=query.newest_first(),
                    name=given_or_none(query.name),
                    text=given_or_none(query.search),
                )
            except NotFound:
                return
            for tool in page:
                kind = type_of(None if tool.definition is not None else tool.name)
                if (names and tool.name not in names) or (uids and tool.uid not in uids):
                    continue
                if (types and kind not in types) or kind in without:
                    continue
                if query.return_only_letta_tools is True and tool.definition is not None:
                    continue
                yield tool
            if len(page) < _PAGE:
                return
            after = page[-1].uid
