"""A session with an MCP server, by the `mcp` package. The first call loads this module, which needs the extra `mcp`.

HTTP goes through `ToolHosts` (gateway/agents/tools/mcp_host_transport.py), not through the package's own connections.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from encodings import utf_8
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

import httpx2
from anyio import BrokenResourceError
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Implementation

from gateway.agents.tools.hosts import HostError, ToolHosts
from gateway.agents.tools.mcp_host_transport import MAX_REPLY_BYTES, REPLY_TOO_LONG, HostTransport
from gateway.agents.tools.mcp_report import SessionReport

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_CLIENT_INFO = Implementation(name="mnemogate", version=version("mnemogate"))
# These packages log whole messages. The error that the caller gets has the fault.
for _name in ("mcp", "httpx2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
# The types of parts of a result that the package knows.
_BLOCK_TYPES = frozenset(("text", "image", "audio", "resource", "resource_link"))


@asynccontextmanager
async def open_http_session(
    hosts: ToolHosts, url: str, headers: Mapping[str, str], report: SessionReport
) -> AsyncIterator[Client]:
    """Opens a session over streamable HTTP. headers: the headers of each request."""
    transport = HostTransport(hosts, url, headers, report.host_errors)
    async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
        streams = streamable_http_client(url, http_client=client, max_sse_event_size=MAX_REPLY_BYTES)
        async with _Client(_with_lenient_stream(streams, report), client_info=_CLIENT_INFO) as session:
            yield session


@asynccontextmanager
async def open_sse_session(
    hosts: ToolHosts, url: str, headers: Mapping[str, str], report: SessionReport
) -> AsyncIterator[Client]:
    """Opens a session over HTTP with server-sent events, the transport of MCP before 2025.

    headers: the headers of each request.
    """
    transport = HostTransport(hosts, url, headers, report.host_errors, has_events=True)

    def make_client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=None)

    streams = sse_client(url, httpx_client_factory=make_client)
    async with _Client(_with_lenient_stream(streams, report), client_info=_CLIENT_INFO) as session:
        yield session


@asynccontextmanager
async def open_stdio_session(
    command: Sequence[str], variables: Mapping[str, str], report: SessionReport
) -> AsyncIterator[Client]:
    """Opens a session over the pipes of a program, which starts and ends with the session.

    command: the program and its arguments.
    variables: the program's environment variables, besides the few that the package sets.
    """
    program, *arguments = command
    parameters = StdioServerParameters(
        command=program, args=arguments, env=dict(variables), encoding=_BOUNDED_UTF8
    )
    # Opening /dev/null does not wait for anything.
    with open(os.devnull, "w") as nowhere:  # noqa: ASYNC230
        async with asyncio.timeout(None) as session_timeout:

            def end_session() -> None:
                report.host_errors.append(HostError(REPLY_TOO_LONG))
                session_timeout.reschedule(0.0)

            _end_session.set(end_session)
            streams = stdio_client(parameters, errlog=nowhere)
            async with _Client(_with_lenient_stream(streams, report), client_info=_CLIENT_INFO) as session:
                yield session


# The function that ends the session of this task after a reply that is too long. The package makes the decoder by the
# name of its encoding, so the decoder cannot be given the function.
_end_session: ContextVar[Callable[[], None]] = ContextVar("end_session")


class _BoundedDecoder(utf_8.IncrementalDecoder):
    """Decodes the output of a program, with a limit for lines.

    The package reads a line of any length as a whole, and copies it with each piece.
    """

    _line_bytes = 0

    def decode(self, data: ReadableBuffer, final: bool = False) -> str:
        *ended, last = bytes(data).split(b"\n")
        self._line_bytes = len(last) + (0 if ended else self._line_bytes)
        if self._line_bytes > MAX_REPLY_BYTES:
            _end_session.get()()
            raise BrokenResourceError  # the package then drops the rest of the output
        return super().decode(data, final)


# The package has no limit for a line, but reads a program in any registered encoding.
_BOUNDED_UTF8 = "mnemogate_bounded_utf_8"
_CODEC = codecs.CodecInfo(utf_8.encode, utf_8.decode, incrementaldecoder=_BoundedDecoder, name=_BOUNDED_UTF8)
codecs.register(lambda name: _CODEC if name == _BOUNDED_UTF8 else None)


class _Client(Client):
    async def __aenter__(self) -> Self:
        await super().__aenter__()
        # After each call the package asks for the list of tools, to check the result by a schema that is left out
        # here. If that request failed, the result of the call would be lost.
        self.session.validate_tool_result = _accept_result  # type: ignore[method-assign]
        return self


async def _accept_result(name: str, result: CallToolResult) -> None:
    """Accepts a result as it is."""


@asynccontextmanager
async def _with_lenient_stream(streams: Any, report: SessionReport) -> AsyncIterator[Any]:
    """Opens the two streams of a transport, of which the incoming one is lenient."""
    async with streams as (incoming, outgoing):
        yield _LenientStream(incoming, report), outgoing


class _LenientStream:
    """A stream of a server's messages, without the parts for which the package would refuse a whole message.

    Tools that cannot be called are left out of their list, and reported. A part of a result with an unknown type
    becomes a text that names the type.
    """

    def __init__(self, stream: Any, report: SessionReport) -> None:
        self._stream = stream
        self._report = report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        ended: bool | None = await self._stream.__aexit__(*error)
        return ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self._stream.__anext__()
        result = getattr(getattr(message, "message", None), "result", None)
        if isinstance(result, dict) and isinstance(result.get("tools"), list):
            tools = [tool for tool in result["tools"] if isinstance(tool, dict)]
            result["tools"] = [listed for tool in tools if (listed := self._read_tool(tool)) is not None]
        if isinstance(result, dict) and isinstance(result.get("content"), list):
            result["content"] = [*map(_read_block, result["content"])]
        return message

    def _read_tool(self, tool: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the fields of a tool that the gateway reads; None if the tool cannot be called."""
        name, schema = tool.get("name"), tool.get("inputSchema", {})
        if not isinstance(name, str):
            return None
        if isinstance(schema, dict):
            # A schema without a type may allow any arguments, or be a list of alternatives.
            schema = {"type": "object", **schema}
        if not isinstance(schema, dict) or not _takes_arguments(schema):
            self._report.uncallable.append(name)
            return None
        text = tool.get("description")
        return {"name": name, "description": text if isinstance(text, str) else "", "inputSchema": schema}


def _read_block(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    kind = str(block.get("type"))  # a server may send anything
    return block if kind in _BLOCK_TYPES else {"type": "text", "text": f"[{kind}]"}


def _takes_arguments(schema: dict[str, Any]) -> bool:
    """Returns whether a schema describes arguments by name."""
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    return (
        schema["type"] == "object"
        and isinstance(properties, dict)
        and all(isinstance(property_, dict | bool) for property_ in properties.values())
        and isinstance(required, list)
        and all(isinstance(name, str) for name in required)
    )
