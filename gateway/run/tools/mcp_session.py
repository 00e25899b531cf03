"""A session with an MCP server, by the `mcp` package. It is loaded with the first call, and needs the extra `mcp`.

HTTP goes through `ToolHosts`, whatever the package would do by itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from gateway.run.tools.hosts import HostError, HostReply, StatusFault, ToolHosts

LIMIT_BYTES = 1_000_000  # of one reply
# It logs what is said; what goes wrong is told by who asked.
for _name in ("mcp", "httpx2"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False
# That our connection has of its own.
_OURS = frozenset(("host", "connection", "content-length", "accept-encoding", "user-agent", "cookie"))


@asynccontextmanager
async def http_session(
    hosts: ToolHosts, url: str, headers: Mapping[str, str], faults: list[HostError]
) -> AsyncIterator[Client]:
    """Speaks streamable HTTP. headers: of each request. faults: gets what went wrong with the host."""
    transport = _Judged(hosts, headers, faults)
    async with (
        httpx2.AsyncClient(transport=transport, trust_env=False) as client,
        Client(streamable_http_client(url, http_client=client, max_sse_event_size=LIMIT_BYTES)) as session,
    ):
        yield session


@asynccontextmanager
async def stdio_session(command: str, *arguments: str) -> AsyncIterator[Client]:
    """Starts a program and speaks over its pipes; it ends with the session."""
    parameters = StdioServerParameters(command=command, args=list(arguments))
    # Opening /dev/null does not wait for anything.
    with open(os.devnull, "w") as nowhere:  # noqa: ASYNC230
        async with Client(stdio_client(parameters, errlog=nowhere)) as session:
            yield session


class _Judged(httpx2.AsyncBaseTransport):
    def __init__(self, hosts: ToolHosts, headers: Mapping[str, str], faults: list[HostError]) -> None:
        self._hosts = hosts
        self._headers = headers
        self._faults = faults

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        sent = {name: value for name, value in request.headers.items() if name.lower() not in _OURS}
        stack = AsyncExitStack()
        try:
            opened = self._hosts.open(
                request.method, str(request.url), {**sent, **self._headers}, body or None
            )
            reply = await stack.enter_async_context(opened)
        except HostError as error:
            self._faults.append(error)
            raise httpx2.ConnectError(str(error)) from error
        if request.method == "POST":
            # What was answered before has been got over.
            self._faults[:] = [each for each in self._faults if not isinstance(each, StatusFault)]
            if reply.status >= 400:
                self._faults.append(StatusFault(f"its server answered with the status {reply.status}"))
        return httpx2.Response(
            reply.status, headers=dict(reply.headers), stream=_Body(reply, stack, self._faults)
        )


class _Body(httpx2.AsyncByteStream):
    def __init__(self, reply: HostReply, stack: AsyncExitStack, faults: list[HostError]) -> None:
        self._reply = reply
        self._stack = stack
        self._faults = faults

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._reply.chunks():
                size += len(chunk)
                if size > LIMIT_BYTES:
                    raise HostError(f"its reply has more than {LIMIT_BYTES:,} bytes")
                yield chunk
        except HostError as error:
            self._faults.append(error)
            raise httpx2.ReadError(str(error)) from error

    async def aclose(self) -> None:
        await self._stack.aclose()
