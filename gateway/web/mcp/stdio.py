"""The MCP tools over stdio, for programs that start their servers themselves.

Calls are performed where commands are: in the process that serves, or on the database file.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, Self, cast

import anyio
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

from adapters.json_escapes import without_lone_surrogates
from gateway.core.memory.mcp_tools import McpAnswer
from gateway.errors import GatewayError
from gateway.web.mcp.mcp_protocol import CallContext, make_mcp_server, read_client

# Performs the operation `mcp-call` with these arguments, in the process that serves or on the file.
PerformCommand = Callable[[dict[str, Any]], Any]


def serve_stdio(perform_command: PerformCommand, owner: Mapping[str, Any]) -> None:
    """Serves until the standard input ends. owner: the arguments of `mcp-call` that name the memory."""
    asyncio.run(_serve(perform_command, owner))


async def _serve(perform_command: PerformCommand, owner: Mapping[str, Any]) -> None:
    # One call at a time: each call opens the database file, and two processes cannot have it open at once.
    lock = asyncio.Lock()

    async def perform(context: CallContext, tool: str, arguments: Mapping[str, Any]) -> McpAnswer:
        call = {**owner, "client": read_client(context), "tool": tool, "arguments": dict(arguments)}
        async with lock:
            try:
                answer = await asyncio.to_thread(perform_command, call)
            except GatewayError as error:
                return McpAnswer(error=error.message)
        return McpAnswer(answer["value"], answer["error"])

    server = make_mcp_server(perform)
    # The SDK's type asks for a file, of which it reads nothing but the lines.
    lines = cast("anyio.AsyncFile[str]", _read_lines())
    async with stdio_server(stdin=lines) as (reader, writer):
        await server.run(_ClientMessages(reader, writer), writer, server.create_initialization_options())


class _MessageReader(Protocol):
    """The SDK's stream of a client's messages."""

    @property
    def last_context(self) -> contextvars.Context | None: ...

    async def receive(self) -> SessionMessage | Exception: ...

    async def aclose(self) -> None: ...


class _MessageWriter(Protocol):
    """The SDK's stream of messages to a client."""

    async def send(self, item: SessionMessage, /) -> None: ...


class _ClientMessages:
    """The stream of a client's messages, in the form in which the SDK's server reads it.

    This stream answers a line that is no message, since the SDK does not.
    """

    def __init__(self, reader: _MessageReader, writer: _MessageWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def last_context(self) -> contextvars.Context | None:
        """The context variables of the task that read the last message."""
        return self._reader.last_context

    async def receive(self) -> SessionMessage:
        """Returns the next message. Raises: anyio.EndOfStream."""
        while isinstance(message := await self._reader.receive(), Exception):
            await self._writer.send(SessionMessage(_make_error(message)))
        return message

    async def aclose(self) -> None:
        await self._reader.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


def _make_error(fault: Exception) -> JSONRPCError:
    """Returns the answer to a line that is no message (JSON-RPC 2.0, section 5: its `id` is null)."""
    if isinstance(fault, ValidationError) and fault.errors()[0]["type"] != "json_invalid":
        error = ErrorData(code=INVALID_REQUEST, message="The line is no JSON-RPC message.")
    else:
        error = ErrorData(code=PARSE_ERROR, message="The line is no JSON.")
    return JSONRPCError(jsonrpc="2.0", id=None, error=error)


async def _read_lines() -> AsyncIterator[str]:
    """Yields the lines of the standard input, without halves of characters: the SDK would not answer them."""
    async for line in anyio.wrap_file(sys.stdin.buffer):
        if line.strip():
            yield without_lone_surrogates(line).decode("utf-8", "replace")
