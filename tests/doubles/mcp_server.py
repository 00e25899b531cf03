"""An MCP server by the `mcp` package. Its argument is `stdio`, or `http`: then the first line it prints is its port.

Options of `http` and of `make_app`:

    large     with a tool `large`: its schema and its result have numbers beyond 64 bits
    deaf      speaks in sessions, as servers did before 2026, and never answers that one ends
    sse       speaks with server-sent events, as servers did before 2025
    told      with a tool `told`, which returns a header of the request
    json      its replies are no streams
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Annotated, Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult
from pydantic import Field
from starlette.responses import Response

LARGE = 2**80


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def hello(name: str) -> str:
    """Says hello."""
    return f"Hello {name}"


def fail() -> str:
    """Fails."""
    raise ToolError("no luck")


def die() -> str:
    """Ends the server."""
    os._exit(1)


async def hang() -> str:
    """Never answers."""
    await asyncio.Event().wait()
    return ""


def flood() -> str:
    """Returns more than a client reads."""
    return "x" * 2_000_000


def variables() -> str:
    """Returns its variables."""
    return ",".join(sorted(os.environ))


def large(n: Annotated[int, Field(le=LARGE)]) -> Annotated[CallToolResult, dict[str, int]]:
    """Returns a large number."""
    return CallToolResult(content=[], structured_content={"large": LARGE})


_heard: dict[str, str] = {}


def told(name: str) -> str:
    """Returns a header or a variable, backwards unless it is short: a secret that comes as it was sent is masked."""
    value = _heard.get(name.lower()) or os.environ.get(name, "nothing")
    return value if len(value) < 8 else value[::-1]


def hearing(app: Any) -> Any:
    """Returns the application with a record of the headers of each message."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("method") == "POST":
            _heard.clear()
            _heard.update({name.decode(): value.decode() for name, value in scope["headers"]})
        await app(scope, receive, send)

    return serve


def deaf(app: Any) -> Any:
    """Returns the application without the protocol that has no sessions, and without an answer to DELETE."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("method") == "DELETE":
            await asyncio.Event().wait()
        elif dict(scope.get("headers", ())).get(b"mcp-method") == b"server/discover":
            await Response(status_code=400)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return serve


def make_server(*options: str) -> MCPServer:
    """Returns a server with the tools of all, and those of these options."""
    server = MCPServer("double")
    for tool in (add, hello, fail, die, hang, flood, variables):
        server.tool(name="say.hello" if tool is hello else None)(tool)
    for tool in (told, large):
        if tool.__name__ in options:
            server.tool()(tool)
    return server


def make_app(*options: str) -> Any:
    """Returns what serves it over HTTP."""
    server = make_server(*options)
    app: Any = (
        server.sse_app() if "sse" in options else server.streamable_http_app(json_response="json" in options)
    )
    app = hearing(app) if "told" in options else app
    return deaf(app) if "deaf" in options else app


if __name__ == "__main__":
    transport, *options = sys.argv[1:]
    if transport == "stdio":
        make_server().run()
    else:
        listening = socket.create_server(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(make_app(*options), log_level="critical")).run([listening])
