"""The MCP tools over stdio, for programs that start their servers themselves.

Calls go where commands go: to the process that serves, or to the file.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Self, cast

import anyio
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

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
        messages = cast("Any", _Messages(received, sent))
        await server.run(messages, sent, server.create_initialization_options())


class _Messages:
    """The messages of a client. A line that is none is answered here, which the SDK does not do."""

    def __init__(self, received: Any, sent: Any) -> None:
        self._received = received
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._received, name)

    async def __aenter__(self) -> Self:
        await self._received.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        ended: bool | None = await self._received.__aexit__(*error)
        return ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while isinstance(message := await self._received.__anext__(), Exception):
            await self._sent.send(SessionMessage(_error_of(message)))
        return message


def _error_of(fault: Exception) -> JSONRPCError:
    """Returns the answer to a line that is no message (JSON-RPC 2.0, section 5: its `id` is null)."""
    is_json = isinstance(fault, ValidationError) and fault.errors()[0]["type"] != "json_invalid"
    code, text = (
        (INVALID_REQUEST, "The line is no JSON-RPC message.")
        if is_json
        else (PARSE_ERROR, "The line is no JSON.")
    )
    return JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=code, message=text))


async def _read_lines() -> AsyncIterator[str]:
    """Yields the lines of the standard input, without halves of characters: the SDK would not answer them."""
    async for line in anyio.wrap_file(sys.stdin.buffer):
        if line.strip():
            yield without_lone_surrogates(line).decode("utf-8", "replace")
