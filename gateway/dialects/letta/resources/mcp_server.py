"""MCP servers, as the agents API takes and shows them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from gateway.core import ids
from gateway.core.definition import McpServerDefinition
from gateway.dialects.letta.body import Body, Kept, Maybe, convert, given, refused
from gateway.dialects.letta.error import Fault, Unprocessable
from gateway.errors import BadRequest
from storage.records import Definition

_SECRET = refused("Secrets are not kept here: name an entry of the setting tools.headers in `auth_header`.")
_VARIABLES = refused(
    "Secrets are not kept here: a program gets its variables from whoever starts the gateway."
)
_AT = ("body", "config")


class CreateMcpServer(Body):
    """A new MCP server. config: a StreamableHttpConfig or a StdioConfig."""

    server_name: Annotated[str, Meta(min_length=1, max_length=64)]
    config: dict[str, Any]


class UpdateMcpServer(Body):
    """A change of an MCP server; what is left out stays."""

    server_name: Maybe[Annotated[str, Meta(min_length=1, max_length=64)]] = UNSET
    config: Maybe[dict[str, Any]] = UNSET


class RefreshQuery(Body):
    """agent_id: whose variables Letta's server fills in. The settings name the headers of a server here."""

    agent_id: Kept[str] = UNSET


class StreamableHttpConfig(Body):
    """A server that speaks HTTP. auth_header: the name of an entry of the setting tools.headers."""

    server_url: str
    mcp_server_type: Literal["streamable_http"] | UnsetType = UNSET
    auth_header: Maybe[str] = UNSET
    auth_token: Annotated[str | None, _SECRET] | UnsetType = UNSET
    custom_headers: Annotated[dict[str, str] | None, _SECRET] | UnsetType = UNSET


class StdioConfig(Body):
    """A program that speaks over its pipes."""

    command: Annotated[str, Meta(min_length=1)]
    args: list[str]
    mcp_server_type: Literal["stdio"] | UnsetType = UNSET
    env: Annotated[dict[str, str] | None, _VARIABLES] | UnsetType = UNSET


def server_of(config: dict[str, Any]) -> McpServerDefinition:
    """Returns a server that was asked for. Raises: BadRequest, Unprocessable."""
    kind = config.get("mcp_server_type") or ("stdio" if "command" in config else "streamable_http")
    if kind == "stdio":
        program = convert(config, StdioConfig, _AT)
        return McpServerDefinition(command=(program.command, *program.args))
    if kind == "sse":
        raise BadRequest("The transport by events is not spoken: use streamable_http.", param="config")
    if kind != "streamable_http":
        raise Unprocessable(
            [Fault((*_AT, "mcp_server_type"), "Input should be 'streamable_http' or 'stdio'", "enum", kind)]
        )
    http = convert(config, StreamableHttpConfig, _AT)
    return McpServerDefinition(http.server_url, header=given(http).get("auth_header"))


def checked_name(name: str) -> str:
    """Returns a server's name, which stands in names of tools. Raises: Unprocessable."""
    if not re.fullmatch(r"[A-Za-z0-9_. -]+", name):
        message = "Expected letters, digits, spaces, '_', '.' or '-'"
        raise Unprocessable([Fault(("body", "server_name"), message, "value_error", name)])
    return name


def server_json(made: Definition) -> dict[str, Any]:
    """Returns a server as it is shown."""
    server = McpServerDefinition.of(made.body)
    shown: dict[str, Any] = {"id": ids.named("mcp_server", made.uid), "server_name": made.name}
    if server.left_out:
        shown["mnemogate"] = {"left_out": [f"tools.{name}" for name in server.left_out]}
    if server.command:
        command, *args = server.command
        return {**shown, "mcp_server_type": "stdio", "command": command, "args": args, "env": None}
    return {
        **shown,
        "mcp_server_type": "streamable_http",
        "server_url": server.url,
        "auth_header": server.header,
        "auth_token": None,
        "custom_headers": None,
    }
