"""MCP servers, and the tools that they have."""

from __future__ import annotations

from functools import partial
from typing import Any

from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.dialects.letta.resources.mcp_server import (
    CreateMcpServer,
    RefreshQuery,
    UpdateMcpServer,
    checked_name,
    server_json,
    server_of,
)
from gateway.dialects.letta.resources.tool import HandCall, execution_json
from gateway.errors import UnknownId
from gateway.run.agents.mcp_servers import McpRegistry
from gateway.run.agents.tools import ToolView
from gateway.run.tools.toolbox import ForeignCall
from gateway.web.letta.api import AgentsApi, given_or_none
from gateway.web.letta.resources.tools import show_tool
from gateway.web.letta.routes import AgentsRoute, Asked
from storage.listing import Page

_MOST = 1000  # servers of a project that are listed


class McpServerRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        foreign = api.runs.foreign
        self._servers = McpRegistry(api.store, api.registry.tools, foreign.mcp, foreign.secrets, api.now)

    def rows(self) -> list[AgentsRoute]:
        all_, one = "/v1/mcp-servers", "/v1/mcp-servers/{mcp_server_id}"
        tools, tool = f"{one}/tools", f"{one}/tools/{{tool_id}}"
        return [
            AgentsRoute("GET", all_, self.index, "List MCP servers."),
            AgentsRoute(
                "POST", all_, self.create, "Name an MCP server, and make its tools.", body=CreateMcpServer
            ),
            AgentsRoute("GET", one, self.retrieve, "Return an MCP server."),
            AgentsRoute("PATCH", one, self.update, "Change an MCP server.", body=UpdateMcpServer),
            AgentsRoute("DELETE", one, self.delete, "Delete an MCP server with its tools."),
            AgentsRoute(
                "PATCH",
                f"{one}/refresh",
                self.refresh,
                "Ask an MCP server for its tools anew.",
                query=RefreshQuery,
            ),
            AgentsRoute("GET", tools, self.tools, "List the tools of an MCP server."),
            AgentsRoute("GET", tool, self.tool, "Return a tool of an MCP server."),
            AgentsRoute(
                "POST", f"{tool}/run", self.run, "Call a tool of an MCP server by hand.", body=HandCall
            ),
        ]

    async def index(self, asked: Asked) -> Any:
        page = Page(0, 2**62, _MOST, newest_first=False)
        return [server_json(each) for each in await self._servers.list(asked.project, page)]

    async def create(self, asked: Asked) -> Any:
        body: CreateMcpServer = asked.body
        name, config = checked_name(body.server_name), server_of(body.config)
        return server_json(await self._servers.create(asked.project, name, config))

    async def retrieve(self, asked: Asked) -> Any:
        return server_json(await self._servers.get(asked.project, _uid(asked)))

    async def update(self, asked: Asked) -> Any:
        name, config = given_or_none(asked.body.server_name), given_or_none(asked.body.config)
        changed = await self._servers.change(
            asked.project,
            _uid(asked),
            None if name is None else checked_name(name),
            None if config is None else partial(server_of, config),
        )
        return server_json(changed)

    async def delete(self, asked: Asked) -> Any:
        await self._servers.delete(asked.project, _uid(asked))
        return {"message": "The MCP server is deleted."}

    async def refresh(self, asked: Asked) -> Any:
        return [show_tool(each) for each in await self._servers.refresh(asked.project, _uid(asked))]

    async def tools(self, asked: Asked) -> Any:
        return [show_tool(each) for each in await self._servers.tools(asked.project, _uid(asked))]

    async def tool(self, asked: Asked) -> Any:
        return show_tool(await self._tool(asked))

    async def run(self, asked: Asked) -> Any:
        tool = await self._tool(asked)
        assert tool.definition is not None
        arguments = given_or_none(asked.body.args) or {}
        call = ForeignCall(tool.name, arguments, "", "", "", ids.new_uid(), project=asked.project)
        answer = await self._api.called(ToolDefinition.of(tool.definition.body), call)
        return execution_json(answer.status, answer.content)

    async def _tool(self, asked: Asked) -> ToolView:
        """Returns the tool in the path. Raises: UnknownId: the server has none of this id."""
        wanted = asked.uid("tool", "tool_id")
        for tool in await self._servers.tools(asked.project, _uid(asked)):
            if tool.uid == wanted:
                return tool
        raise UnknownId(f"The server has no tool {asked.path['tool_id']!r}.")


def _uid(asked: Asked) -> str:
    return asked.uid("mcp_server", "mcp_server_id")
