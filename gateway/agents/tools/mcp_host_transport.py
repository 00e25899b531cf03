"""The HTTP of a session with an MCP server, sent through `ToolHosts`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

import httpx2

from gateway.agents.tools.hosts import HostError, HostReply, StatusFault, ToolHosts

# The most bytes of one reply. Not measured: it bounds the memory that a faulty server can take.
MAX_REPLY_BYTES = 1_000_000
REPLY_TOO_LONG = f"its reply has more than {MAX_REPLY_BYTES:,} bytes"
# The most seconds of the request that ends a session, which some servers never answer. Not measured: the results of the
# call wait for it.
END_S = 2.0
# Headers that the connection to the host sets itself.
_OWN_HEADERS = ("host", "connection", "content-length", "accept-encoding", "user-agent", "cookie")


class HostTransport(httpx2.AsyncBaseTransport):
    """Sends requests through `ToolHosts` to one server alone, since the headers are for no other server."""

    def __init__(
        self,
        hosts: ToolHosts,
        url: str,
        headers: Mapping[str, str],
        host_errors: list[HostError],
        *,
        has_events: bool = False,
    ) -> None:
        """Makes the transport of one session.

        url: the URL of the server.
        headers: the headers of each request.
        host_errors: the list to which errors of the host are added.
        has_events: True if the server answers each message by an event of the stream that the first GET opened.
        """
        self._hosts = hosts
        self._origin = _read_origin(httpx2.URL(url))
        self._headers = headers
        self._errors = host_errors
        self._has_events = has_events
        self._events: HostReply | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request through `ToolHosts`. Raises: the errors of httpx, with the cause noted in `host_errors`."""
        if _read_origin(request.url) != self._origin:
            self._errors.append(HostError("it leads to another address"))
            raise httpx2.ConnectError("another address")
        body = await request.aread()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN_HEADERS}
        stack = AsyncExitStack()
        try:
            opened = self._hosts.open(
                request.method, str(request.url), {**headers, **self._headers}, body or None
            )
            if request.method == "DELETE":
                # A server that never answers the end of a session must not hold up its results.
                async with asyncio.timeout(END_S), opened as reply:
                    return httpx2.Response(reply.status)
            reply = await stack.enter_async_context(opened)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no answer to the end of the session") from error
        except HostError as error:
            self._errors.append(error)
            raise httpx2.ConnectError(str(error)) from error
        self._note_status(request.method, reply)
        return httpx2.Response(
            reply.status, headers=dict(reply.headers), stream=_Body(reply, stack, self._errors)
        )

    def _note_status(self, method: str, reply: HostReply) -> None:
        """Notes an answer with an error status."""
        message = f"its server answered with the status {reply.status}"
        if method == "POST":
            # The answer to a later message replaces the errors of earlier answers.
            self._errors[:] = [error for error in self._errors if not isinstance(error, StatusFault)]
            if reply.status >= 400:
                self._errors.append(HostError(message) if self._has_events else StatusFault(message))
                if self._events is not None:
                    # Otherwise the package would wait for an event that answers the message.
                    self._events.break_off()
        elif self._has_events:
            if reply.status != 200:
                self._errors.append(HostError(message))
            self._events = reply


def _read_origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


class _Body(httpx2.AsyncByteStream):
    """The body of a reply, which closes the connection at its end."""

    def __init__(self, reply: HostReply, stack: AsyncExitStack, host_errors: list[HostError]) -> None:
        self._reply = reply
        self._stack = stack
        self._errors = host_errors

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._reply.read_chunks():
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    raise HostError(REPLY_TOO_LONG)
                yield chunk
        except HostError as error:
            self._errors.append(error)
            raise httpx2.ReadError(str(error)) from error

    async def aclose(self) -> None:
        await self._stack.aclose()
