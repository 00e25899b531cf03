"""The protocol, by the official SDK at its low level: the list of tools, and the calls with their answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeAlias

import anyio
import mcp_types as types
import orjson
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from gateway.core.memory.mcp_tools import (
    INSTRUCTIONS,
    TOOLS,
    McpAnswer,
    McpTool,
    make_client_name,
    make_schema,
)

CallContext: TypeAlias = ServerRequestContext[Any, Any]
PerformCall: TypeAlias = Callable[[CallContext, str, Mapping[str, Any]], Awaitable[McpAnswer]]


def make_mcp_server(perform: PerformCall) -> Server[Any]:
    """Returns a server for one transport. It silences the log of the SDK, for the whole process.

    perform: answers a call of one of TOOLS.
    """
    tool_list = types.ListToolsResult(tools=[_make_list_entry(tool) for tool in TOOLS.values()])

    async def list_tools(_: CallContext, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return tool_list

    async def call_tool(context: CallContext, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name not in TOOLS:
            raise MCPError(types.INVALID_PARAMS, "Unknown tool.")
        # A call goes on to its end even if its client gives it up, so that the call writes all or nothing.
        with anyio.CancelScope(shield=True):
            answer = await perform(context, params.name, params.arguments or {})
        return _make_result(answer)

    server: Server[Any] = Server(
        "mnemogate",
        version=version("mnemogate"),
        title="Mnemogate",
        instructions=INSTRUCTIONS,
        get_tool_input_schema=lambda name: make_schema(TOOLS[name].arguments) if name in TOOLS else None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    # The SDK's middleware would put the texts of calls into the spans of any exporter that the host has installed.
    server.middleware.clear()
    # The SDK's log may quote messages. A call that fails is logged where it is performed.
    logging.getLogger("mcp").setLevel(logging.CRITICAL + 1)
    return server


def read_client(context: CallContext) -> str:
    """Returns name and version of the program that calls; "": they are not known."""
    params = context.session.client_params
    return "" if params is None else make_client_name(params.client_info.name, params.client_info.version)


def _make_list_entry(tool: McpTool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=make_schema(tool.arguments),
        output_schema=make_schema(tool.result),
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=not tool.writes,
            destructive_hint=tool.is_destructive,
            idempotent_hint=tool.is_idempotent,
            open_world_hint=False,
        ),
    )


def _make_result(answer: McpAnswer) -> types.CallToolResult:
    if answer.value is None:
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=answer.error)], is_error=True
        )
    text = orjson.dumps(answer.value).decode()
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], structured_content=answer.value
    )
