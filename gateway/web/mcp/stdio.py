"""The tools over stdio, for a program that starts its servers itself. Calls go where the commands go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from mcp.server.stdio import stdio_server

from gateway.core.memory.mcp_tools import McpAnswer
from gateway.errors import GatewayError
from gateway.web.mcp.mcp_protocol import Context, client_of, make_server

# Performs the operation `mcp-call` with these arguments, in the process that serves or on the file.
AsksCommand = Callable[[dict[str, Any]], Any]


def serve_stdio(ask: AsksCommand, named: Mapping[str, Any]) -> None:
    """Serves until the standard input ends. named: whose memory it is, as `mcp-call` takes it."""
    asyncio.run(_serve(ask, named))


async def _serve(ask: AsksCommand, named: Mapping[str, Any]) -> None:
    # Two at a time would be in each other's way on the file.
    turn = asyncio.Lock()

    async def perform(context: Context, tool: str, arguments: Mapping[str, Any]) -> McpAnswer:
        asked = {**named, "client": client_of(context), "tool": tool, "arguments": dict(arguments)}
        async with turn:
            try:
                answer = await asyncio.to_thread(ask, asked)
            except GatewayError as error:
                return McpAnswer(error=error.message)
        return McpAnswer(answer["value"], answer["error"])

    server = make_server(perform)
    async with stdio_server() as (received, sent):
        await server.run(received, sent, server.create_initialization_options())
