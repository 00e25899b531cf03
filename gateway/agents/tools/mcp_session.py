"""A session with an MCP server, by the `mcp` package. The first call loads this module, which needs the extra `mcp`.

HTTP goes through `ToolHosts`, not through the package's own connections.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
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

from gateway.agents.tools.hosts import HostError, HostReply, StatusFault, ToolHosts
from gateway.agents.tools.mcp_report import SessionReport

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# The most bytes of one reply. Not measured: it bounds the memory that a faulty server can take.
MAX_REPLY_BYTES = 1_000_000
_REPLY_TOO_LONG = f"its reply has more than {MAX_REPLY_BYTES:,} bytes"
# The most seconds of the request that ends a session, which some servers never answer. Not measured: the results of the
# call wait for it.
END_S = 2.0
_SELF = Implementation(name="mnemogate", version=version("mnemogate"))
# These packages log whole messages. The error that the caller gets has the fault.
for _name in ("mcp", "httpx2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
# The types of parts of a result that the package knows.
_BLOCK_TYPES = frozenset(("text", "image", "audio", "resource", "resource_link"))
# Headers that the connection to the host sets itself.
_OWN_HEADERS = ("host", "connection", "content-length", "accept-encoding", "user-agent", "cookie")


@asynccontextmanager
async def open_http_session(
    hosts: ToolHosts, url: str, headers: Mapping[str, str], report: SessionReport
) -> AsyncIterator[Client]:
    """Opens a session over streamable HTTP. headers: the headers of each request."""
    transport = _HostTransport(hosts, url, headers, report.host_errors)
    async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
        streams = streamable_http_client(url, http_client=client, max_sse_event_size=MAX_REPLY_BYTES)
        async with _Client(_with_lenient_stream(streams, report), client_info=_SELF) as session:
            yield session


@asynccontextmanager
async def open_sse_session(
    hosts: ToolHosts, url: str, headers: Mapping[str, str], report: SessionReport
) -> AsyncIterator[Client]:
    """Opens a session over HTTP with server-sent events, the transport of MCP before 2025.

    headers: the headers of each request.
    """
    transport = _HostTransport(hosts, url, headers, report.host_errors, has_events=True)

    def make_client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=None)

    streams = sse_client(url, httpx_client_factory=make_client)
    async with _Client(_with_lenient_stream(streams, report), client_info=_SELF) as session:
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
                report.host_errors.append(HostError(_REPLY_TOO_LONG))
                session_timeout.reschedule(0.0)

            _end_session.set(end_session)
            streams = stdio_client(parameters, errlog=nowhere)
            async with _Client(_with_lenient_stream(streams, report), client_info=_SELF) as session:
                yield session


# The function that ends the session of this task after a reply that is too long.
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


class _HostTransport(httpx2.AsyncBaseTransport):
    """Sends requests through `ToolHosts` to one server alone, since the headers are for no other server.

    has_events: the server answers each message by an event of the stream that the first GET opened.
    """

    def __init__(
        self,
        hosts: ToolHosts,
        url: str,
        headers: Mapping[str, str],
        host_errors: list[HostError],
        *,
        has_events: bool = False,
    ) -> None:
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
                    raise HostError(_REPLY_TOO_LONG)
                yield chunk
        except HostError as error:
            self._errors.append(error)
            raise httpx2.ReadError(str(error)) from error

    async def aclose(self) -> None:
        await self._stack.aclose()
