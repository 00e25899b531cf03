"""MCP servers, and the tools that they have."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any

from msgspec import UNSET, Meta

from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.manual_calls import ManualCall, call_by_hand
from gateway.agents.api.mcp_config import get_server_type, parse_config
from gateway.agents.api.tool_json import render_call_result, render_tool
from gateway.agents.core.mcp_server import HEADERS, MASK, TOKEN, VARIABLES, find_group_secrets
from gateway.agents.registry.mcp_registry import McpRegistry
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.sent_values import find_sent
from gateway.agents.wire.struct_fields import Body, Maybe, NoEffect, UrlQuery
from gateway.core import ids
from gateway.core.definition import McpServerDefinition, ToolDefinition
from gateway.errors import UnknownId
from gateway.validation import Fault
from storage.definition_records import Definition, DefinitionKind
from storage.listing import Page

_Name = Annotated[str, Meta(min_length=1, max_length=64)]


class CreateMcpServer(Body):
    """A new MCP server."""

    server_name: _Name
    config: dict[str, Any]  # as `mcp_config.parse_config` takes it


class UpdateMcpServer(Body):
    """A change of an MCP server; what is left out stays, in its config too."""

    server_name: Maybe[_Name] = UNSET
    config: Maybe[dict[str, Any]] = UNSET


class RefreshQuery(UrlQuery):
    """A refresh of a server's tools.

    agent_id: on Letta's server the agent with the variables; ignored: here the variables belong to the server.
    """

    agent_id: NoEffect[str] = UNSET


def _check_server_name(name: str) -> None:
    """Checks the name of a server, with which the names of its tools begin. Raises: Unprocessable."""
    if not re.fullmatch(r"[A-Za-z0-9_. -]+", name):
        message = "Expected letters, digits, spaces, '_', '.' or '-'"
        raise Unprocessable(Fault(("body", "server_name"), message, "value_error", name))


def _render_server(record: Definition) -> dict[str, Any]:
    """Returns the JSON of a server, with its secrets masked."""
    server = McpServerDefinition.of(record.body)
    fields: dict[str, Any] = {"id": ids.make_id("mcp_server", record.uid), "server_name": record.name}
    # The names of the server's tools that the gateway cannot use, so that callers see the reason of their absence.
    if server.left_out:
        fields["mnemogate"] = {"left_out": [f"tools.{name}" for name in server.left_out]}
    fields["mcp_server_type"] = get_server_type(server)
    if server.command:
        command, *args = server.command
        return {**fields, "command": command, "args": args, "env": _mask_values(server, VARIABLES)}
    return {
        **fields,
        "server_url": server.url,
        "auth_header": server.token_header or server.header,
        "auth_token": MASK if TOKEN in server.secrets else None,
        "custom_headers": _mask_values(server, HEADERS),
    }


def _mask_values(server: McpServerDefinition, group: str) -> dict[str, str] | None:
    return dict.fromkeys(find_group_secrets(server.secrets, group), MASK) or None


class McpServerRoutes:
    """The routes of MCP servers."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        tools = self._defined_tools = api.agent_runs.defined_tools
        self._servers = McpRegistry(api.store, api.registry.tools, tools.mcp, tools.secrets, api.now)

    def list_routes(self) -> list[AgentsRoute]:
        servers, server = "/v1/mcp-servers", "/v1/mcp-servers/{mcp_server_id}"
        tools, tool = f"{server}/tools", f"{server}/tools/{{tool_id}}"
        return [
            AgentsRoute("GET", servers, self.list_servers),
            AgentsRoute("POST", servers, self.create),
            AgentsRoute("GET", server, self.retrieve),
            AgentsRoute("PATCH", server, self.update),
            AgentsRoute("DELETE", server, self.delete),
            AgentsRoute("PATCH", f"{server}/refresh", self.refresh),
            AgentsRoute("GET", tools, self.list_tools),
            AgentsRoute("GET", tool, self.retrieve_tool),
            AgentsRoute("POST", f"{tool}/run", self.run_tool),
        ]

    async def list_servers(self, request: ApiRequest) -> list[dict[str, Any]]:
        """List MCP servers."""
        oldest_first: Page[int] = Page(newest_first=False)
        servers = self._api.store.definitions.iterate(request.project, DefinitionKind.MCP, oldest_first)
        return [_render_server(server) async for server in servers]

    async def create(self, request: ApiRequest, body: CreateMcpServer) -> dict[str, Any]:
        """Name an MCP server, and make its tools."""
        _check_server_name(body.server_name)
        config = parse_config(body.config)
        return _render_server(await self._servers.create(request.project, body.server_name, config))

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return an MCP server."""
        return _render_server(await self._servers.get(request.project, _read_server_uid(request)))

    async def update(self, request: ApiRequest, body: UpdateMcpServer) -> dict[str, Any]:
        """Change an MCP server, and its tools with it."""
        name, config = find_sent(body.server_name), find_sent(body.config)
        if name is not None:
            _check_server_name(name)
        edit = None if config is None else partial(parse_config, config)
        uid = _read_server_uid(request)
        return _render_server(await self._servers.change(request.project, uid, name, edit))

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete an MCP server with its tools, which all agents lose."""
        await self._servers.delete(request.project, _read_server_uid(request))
        return {"message": "The MCP server is deleted."}

    async def refresh(self, request: ApiRequest, _: RefreshQuery) -> list[dict[str, Any]]:
        """Ask an MCP server for its tools again, and update them."""
        return list(map(render_tool, await self._servers.refresh(request.project, _read_server_uid(request))))

    async def list_tools(self, request: ApiRequest) -> list[dict[str, Any]]:
        """List the tools of an MCP server."""
        tools = await self._servers.list_tools(request.project, _read_server_uid(request))
        return [render_tool(tool) for tool in tools]

    async def retrieve_tool(self, request: ApiRequest) -> dict[str, Any]:
        """Return a tool of an MCP server."""
        return render_tool(await self._get_tool(request))

    async def run_tool(self, request: ApiRequest, _: ManualCall) -> dict[str, Any]:
        """Call a tool of an MCP server by hand."""
        # The body was checked as a `ManualCall`; `call_by_hand` reads its bytes again.
        tool = await self._get_tool(request)
        assert tool.definition is not None  # only built-in tools have none
        definition = ToolDefinition.of(tool.definition.body)
        return render_call_result(await call_by_hand(self._defined_tools, request, tool.name, definition))

    async def _get_tool(self, request: ApiRequest) -> ToolView:
        """Returns the tool in the path. Raises: UnknownId if the server has no tool with this id."""
        uid = request.read_uid("tool", "tool_id")
        for tool in await self._servers.list_tools(request.project, _read_server_uid(request)):
            if tool.uid == uid:
                return tool
        raise UnknownId(f"The server has no tool {request.path_params['tool_id']!r}.")


def _read_server_uid(request: ApiRequest) -> str:
    return request.read_uid("mcp_server", "mcp_server_id")
