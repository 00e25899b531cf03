"""MCP servers, and the tools that they have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.api._route import AgentsRoute, ApiRequest
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.tool_json import execution_json, tool_json
from gateway.agents.api.tools import ManualCall
from gateway.agents.core.mcp_server import (
    HEADERS,
    MASK,
    TOKEN,
    VARIABLES,
    McpServerConfig,
    group_of,
    secrets_of_group,
)
from gateway.agents.registry.mcp_registry import McpRegistry
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.sent_values import sent_fields, sent_or_none
from gateway.agents.wire.struct_fields import Body, Maybe, NoEffect, UrlQuery, convert
from gateway.checked import Fault
from gateway.core import ids
from gateway.core.definition import McpServerDefinition, ToolDefinition
from gateway.errors import UnknownId
from storage.listing import Page
from storage.records import Definition

# Where a fault in a field of the config lies.
_CONFIG_PATH = ("body", "config")

_SERVER_TYPES = ("streamable_http", "sse", "stdio")
_NEVER_NULL = ("mcp_server_type", "server_url", "command", "args")
# Servers accept about 8 kB of headers altogether (nginx: 8 kB a line), so a longer secret could not be sent.
_Secret = Annotated[str, Meta(max_length=8_000)]
_Secrets = Annotated[dict[str, _Secret], Meta(max_length=50)]
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # RFC 9110 5.1
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# Headers that the gateway or the protocol sets, by their names and their beginnings.
_RESERVED_HEADERS = frozenset(
    ("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
     "keep-alive", "last-event-id", "te", "trailer", "transfer-encoding", "upgrade", "user-agent")
)  # fmt: skip
_RESERVED_PREFIXES = ("mcp-", "proxy-")
# The most servers that one list returns.
_MAX_SERVERS = 1000


class CreateMcpServer(Body):
    """A new MCP server. config: a HttpConfig or a StdioConfig."""

    server_name: Annotated[str, Meta(min_length=1, max_length=64)]
    config: dict[str, Any]


class UpdateMcpServer(Body):
    """A change of an MCP server; what is left out stays, in its config too."""

    server_name: Maybe[Annotated[str, Meta(min_length=1, max_length=64)]] = UNSET
    config: Maybe[dict[str, Any]] = UNSET


class RefreshQuery(UrlQuery):
    """A refresh of a server's tools.

    agent_id: on Letta's server the agent with the variables; ignored: here the variables belong to the server.
    """

    agent_id: NoEffect[str] = UNSET


class HttpConfig(Body):
    """A server that speaks HTTP: streamable, or with server-sent events.

    auth_header: with a token, the header in which it is sent. Without one, the name of an entry of the setting
        tools.headers, which has header and value.
    """

    server_url: str
    mcp_server_type: Literal["streamable_http", "sse"] | UnsetType = UNSET
    auth_header: Maybe[str] = UNSET
    auth_token: Maybe[_Secret] = UNSET
    custom_headers: Maybe[_Secrets] = UNSET


class StdioConfig(Body):
    """A program that speaks over its pipes."""

    command: Annotated[str, Meta(min_length=1)]
    args: list[str]
    mcp_server_type: Literal["stdio"] | UnsetType = UNSET
    env: Maybe[_Secrets] = UNSET


def parse_config(config: Mapping[str, Any], previous: McpServerDefinition | None = None) -> McpServerConfig:
    """Returns the config of a server in a request. previous: the server that it changes. Raises: Unprocessable."""
    if previous is not None:
        usual_type = server_type_of(previous)
    else:
        usual_type = "stdio" if "command" in config else "streamable_http"
    server_type = config.get("mcp_server_type") or usual_type
    if server_type not in _SERVER_TYPES:
        message = "Input should be 'streamable_http', 'sse' or 'stdio'"
        raise Unprocessable([Fault((*_CONFIG_PATH, "mcp_server_type"), message, "enum", server_type)])
    # A null removes a secret or a header. A field that cannot be null counts as left out.
    sent = {name: each for name, each in config.items() if each is not None or name not in _NEVER_NULL}
    complete = {**_defaults_from(previous, server_type), **sent}
    try:
        if server_type == "stdio":
            return _stdio_config(complete)
        return _http_config(complete, server_type, previous)
    except Unprocessable as error:
        # The values may be secrets, which no error repeats.
        raise Unprocessable([replace(each, value=None) for each in error.faults]) from None


def _defaults_from(previous: McpServerDefinition | None, server_type: str) -> dict[str, Any]:
    """Returns the fields that a config may leave out, as the server has them.

    There are none for a new server, and where a program becomes an address, or an address a program.
    """
    changes_transport = previous is not None and (server_type == "stdio") != bool(previous.command)
    if previous is None or changes_transport:
        return {}
    if previous.command:
        command, *args = previous.command
        return {"command": command, "args": args}
    return {"server_url": previous.url}


def _stdio_config(config: dict[str, Any]) -> McpServerConfig:
    """Returns the config of a program. Raises: Unprocessable."""
    program = convert(config, StdioConfig, _CONFIG_PATH)
    fields = sent_fields(program)
    variables = fields.get(VARIABLES) or {}
    for name, value in variables.items():
        if not _VARIABLE_NAME.fullmatch(name) or "\0" in value:
            raise _unprocessable(VARIABLES, f"{name[:100]!r} is not a valid environment variable")
    return McpServerConfig(
        McpServerDefinition(command=(program.command, *program.args)),
        {f"{VARIABLES}.{name}": value for name, value in variables.items()},
        # A program has no headers, so those of an earlier address are gone.
        replaced_groups=frozenset({TOKEN, HEADERS} | ({VARIABLES} & fields.keys())),
    )


def _http_config(
    config: dict[str, Any], server_type: str, previous: McpServerDefinition | None
) -> McpServerConfig:
    """Returns the config of a server that speaks HTTP. Raises: Unprocessable."""
    http = convert(config, HttpConfig, _CONFIG_PATH)
    fields = sent_fields(http)
    has_token = _has_token(fields, previous)
    # With a token, the header in which it is sent; without one, the name of an entry of the setting tools.headers.
    auth_header = _auth_header(fields, previous, has_token=has_token)
    headers = fields.get(HEADERS) or {}
    for name in headers:
        _check_header(name)
    if has_token and auth_header:
        _check_header(auth_header)
    secrets = {f"{HEADERS}.{name}": value for name, value in headers.items()}
    if fields.get(TOKEN):
        secrets[TOKEN] = fields[TOKEN]
    for name, value in secrets.items():
        _check_secret(name, value)
    definition = McpServerDefinition(
        http.server_url,
        header=None if has_token else auth_header,
        transport="sse" if server_type == "sse" else "streamable_http",
        token_header=auth_header if has_token else None,
    )
    # A server at an address has no environment, so that of an earlier program is gone.
    replaced = frozenset({VARIABLES} | ({TOKEN, HEADERS} & fields.keys()))
    return McpServerConfig(definition, secrets, replaced_groups=replaced)


def _has_token(fields: Mapping[str, Any], previous: McpServerDefinition | None) -> bool:
    """Tells whether a server has a token after a request: as was sent, else as before."""
    if TOKEN in fields:
        return bool(fields[TOKEN])
    return previous is not None and TOKEN in previous.secrets


def _auth_header(
    fields: Mapping[str, Any], previous: McpServerDefinition | None, *, has_token: bool
) -> str | None:
    """Returns the `auth_header` of a server after a request: as was sent, else as before."""
    if "auth_header" in fields or previous is None:
        return fields.get("auth_header")
    return previous.token_header if has_token else previous.header


def _check_secret(name: str, value: str) -> None:
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise _unprocessable(
            group_of(name), f"the value of {name} has a line end or another control character in it"
        )


def _check_header(name: str) -> None:
    lower = name.lower()
    if not _HEADER_NAME.fullmatch(name) or lower in _RESERVED_HEADERS or lower.startswith(_RESERVED_PREFIXES):
        raise _unprocessable(HEADERS, f"{name[:100]!r} is no header that can be sent")


def _unprocessable(field: str, message: str) -> Unprocessable:
    return Unprocessable([Fault((*_CONFIG_PATH, field), message)])


def checked_name(name: str) -> str:
    """Returns a server's name, which stands in names of tools. Raises: Unprocessable."""
    if not re.fullmatch(r"[A-Za-z0-9_. -]+", name):
        message = "Expected letters, digits, spaces, '_', '.' or '-'"
        raise Unprocessable([Fault(("body", "server_name"), message, "value_error", name)])
    return name


def server_type_of(server: McpServerDefinition) -> str:
    """Returns the `mcp_server_type` of a server."""
    return "stdio" if server.command else server.transport


def server_json(stored: Definition) -> dict[str, Any]:
    """Returns a server as it is shown, its secrets masked."""
    server = McpServerDefinition.of(stored.body)
    shown: dict[str, Any] = {"id": ids.id_of("mcp_server", stored.uid), "server_name": stored.name}
    # The names of its tools that are not usable here, so that their absence is seen.
    if server.left_out:
        shown["mnemogate"] = {"left_out": [f"tools.{name}" for name in server.left_out]}
    shown["mcp_server_type"] = server_type_of(server)
    if server.command:
        command, *args = server.command
        return {**shown, "command": command, "args": args, "env": _masked(server, VARIABLES)}
    return {
        **shown,
        "server_url": server.url,
        "auth_header": server.token_header or server.header,
        "auth_token": MASK if TOKEN in server.secrets else None,
        "custom_headers": _masked(server, HEADERS),
    }


def _masked(server: McpServerDefinition, group: str) -> dict[str, str] | None:
    return dict.fromkeys(secrets_of_group(server.secrets, group), MASK) or None


class McpServerRoutes:
    """The routes of MCP servers."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api
        foreign = api.runs.foreign
        self._servers = McpRegistry(api.store, api.registry.tools, foreign.mcp, foreign.secrets, api.now)

    def routes(self) -> list[AgentsRoute]:
        servers, server = "/v1/mcp-servers", "/v1/mcp-servers/{mcp_server_id}"
        tools, tool = f"{server}/tools", f"{server}/tools/{{tool_id}}"
        return [
            AgentsRoute("GET", servers, self.index),
            AgentsRoute("POST", servers, self.create),
            AgentsRoute("GET", server, self.retrieve),
            AgentsRoute("PATCH", server, self.update),
            AgentsRoute("DELETE", server, self.delete),
            AgentsRoute("PATCH", f"{server}/refresh", self.refresh),
            AgentsRoute("GET", tools, self.list_tools),
            AgentsRoute("GET", tool, self.retrieve_tool),
            AgentsRoute("POST", f"{tool}/run", self.run),
        ]

    async def index(self, request: ApiRequest) -> list[dict[str, Any]]:
        """List MCP servers."""
        page: Page[int] = Page(limit=_MAX_SERVERS, newest_first=False)
        return [server_json(each) for each in await self._servers.list(request.project, page)]

    async def create(self, request: ApiRequest, body: CreateMcpServer) -> dict[str, Any]:
        """Name an MCP server, and make its tools."""
        name = checked_name(body.server_name)
        config = parse_config(body.config)
        return server_json(await self._servers.create(request.project, name, config))

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return an MCP server."""
        return server_json(await self._servers.get(request.project, _server_uid(request)))

    async def update(self, request: ApiRequest, body: UpdateMcpServer) -> dict[str, Any]:
        """Change an MCP server, and its tools with it."""
        name = sent_or_none(body.server_name)
        config = sent_or_none(body.config)
        changed = await self._servers.change(
            request.project,
            _server_uid(request),
            None if name is None else checked_name(name),
            None if config is None else partial(parse_config, config),
        )
        return server_json(changed)

    async def delete(self, request: ApiRequest) -> dict[str, Any]:
        """Delete an MCP server with its tools, which all agents lose."""
        await self._servers.delete(request.project, _server_uid(request))
        return {"message": "The MCP server is deleted."}

    async def refresh(self, request: ApiRequest, _: RefreshQuery) -> list[dict[str, Any]]:
        """Ask an MCP server for its tools again, and update them."""
        return [
            tool_json(each) for each in await self._servers.refresh(request.project, _server_uid(request))
        ]

    async def list_tools(self, request: ApiRequest) -> list[dict[str, Any]]:
        """List the tools of an MCP server."""
        return [tool_json(each) for each in await self._servers.tools(request.project, _server_uid(request))]

    async def retrieve_tool(self, request: ApiRequest) -> dict[str, Any]:
        """Return a tool of an MCP server."""
        return tool_json(await self._get_tool(request))

    async def run(self, request: ApiRequest, _body: ManualCall) -> dict[str, Any]:
        """Call a tool of an MCP server by hand."""
        tool = await self._get_tool(request)
        assert tool.definition is not None  # only built-in tools have none
        # The call reads its arguments from the request's bytes, not from `_body`: integers of any size stay exact.
        answer = await self._api.call_by_hand(request, tool.name, ToolDefinition.of(tool.definition.body))
        return execution_json(answer)

    async def _get_tool(self, request: ApiRequest) -> ToolView:
        """Returns the tool in the path. Raises: UnknownId if the server has no tool with this id."""
        uid = request.uid("tool", "tool_id")
        for tool in await self._servers.tools(request.project, _server_uid(request)):
            if tool.uid == uid:
                return tool
        raise UnknownId(f"The server has no tool {request.path['tool_id']!r}.")


def _server_uid(request: ApiRequest) -> str:
    return request.uid("mcp_server", "mcp_server_id")
