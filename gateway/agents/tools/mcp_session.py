"""A session with an MCP server, by the `mcp` package. The first call loads this module, which needs the extra `mcp`.

HTTP goes through `ToolHosts` (gateway/agents/tools/mcp_host_transport.py), not through the package's own connections.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Self

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Implementation

from gateway.agents.tools.hosts import HostError, ToolHosts
from gateway.agents.tools.mcp_host_transport import MAX_REPLY_BYTES, REPLY_TOO_LONG, HostTransport
from gateway.agents.tools.mcp_lenient_stream import LenientStream
from gateway.agents.tools.mcp_line_limit import BOUNDED_UTF8, end_session_of_task
from gateway.agents.tools.mcp_report import SessionReport

_CLIENT_INFO = Implementation(name="mnemogate", version=version("mnemogate"))
# These packages log whole messages. The error that the caller gets has the fault.
for _name in ("mcp", "httpx2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


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
        command=program, args=arguments, env=dict(variables), encoding=BOUNDED_UTF8
    )
    # Opening /dev/null does not wait for anything.
    with open(os.devnull, "w") as devnull:  # noqa: ASYNC230
        async with asyncio.timeout(None) as session_timeout:

            def end_session() -> None:
                report.host_errors.append(HostError(REPLY_TOO_LONG))
                session_timeout.reschedule(0.0)

            end_session_of_task.set(end_session)
            streams = stdio_client(parameters, errlog=devnull)
            async with _Client(_with_lenient_stream(streams, report), client_info=_CLIENT_INFO) as session:
                yield session


class _Client(Client):
    """A client that does not check results by the schemas of their tools."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        # After each call the package asks for the list of tools, since it checks the result by a schema, which
        # `LenientStream` leaves out. If that request failed, the result of the call would be lost.
        self.session.validate_tool_result = _accept_result  # type: ignore[method-assign]
        return self


async def _accept_result(name: str, result: CallToolResult) -> None:
    """Accepts a result as it is."""


@asynccontextmanager
async def _with_lenient_stream(streams: Any, report: SessionReport) -> AsyncIterator[Any]:
    """Opens the two streams of a transport, of which the incoming one is lenient."""
    async with streams as (incoming, outgoing):
        yield LenientStream(incoming, report), outgoing
