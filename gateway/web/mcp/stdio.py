"""The MCP tools over stdio, for programs that start their servers themselves.

Calls go where commands go: to the process that serves, or to the file.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

import anyio
from mcp.server.stdio import stdio_server

from adapters.json_escapes import without_lone_surrogates
from gateway.core.memory.mcp_tools import McpAnswer
from gateway.errors import GatewayError
from gateway.web.mcp.mcp_protocol import Context, client_of, make_server

# Performs the operation `mcp-call` with these arguments, in the process that serves or on the file.
AsksCommand = Callable[[dict[str, Any]], Any]


def serve_stdio(ask: AsksCommand, owner: Mapping[str, Any]) -> None:
    """Serves until the standard input ends. owner: of the memory, in the arguments of `mcp-call`."""
    asyncio.run(_serve(ask, owner))


async def _serve(ask: AsksCommand, owner: Mapping[str, Any]) -> None:
    # One call at a time: each opens the file, which two cannot do at once.
    lock = asyncio.Lock()

    async def perform(context: Context, tool: str, arguments: Mapping[str, Any]) -> McpAnswer:
        asked = {**owner, "client": client_of(context), "tool": tool, "arguments": dict(arguments)}
        async with lock:
            try:
                answer = await asyncio.to_thread(ask, asked)
            except GatewayError as error:
                return McpAnswer(error=error.message)
        return McpAnswer(answer["value"], answer["error"])

    server = make_server(perform)
    async with stdio_server(stdin=cast("anyio.AsyncFile[str]", _read_lines())) as (received, sent):
        await server.run(received, sent, server.create_initialization_options())


async def _read_lines() -> AsyncIterator[str]:
    """Yields the lines of the standard input, without halves of characters: the SDK would not answer them."""
    async for line in anyio.wrap_file(sys.stdin.buffer):
        yield without_lone_surrogates(line).decode("utf-8", "replace")
