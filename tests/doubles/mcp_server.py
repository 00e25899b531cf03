"""An MCP server by the `mcp` package. Its argument is `stdio`, or `http`: then the first line it prints is its port.

`stdio PATH`: with a tool `ring`, which notes each bell in that file.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("double")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool(name="say.hello")
def hello(name: str) -> str:
    """Says hello."""
    return f"Hello {name}"


@server.tool()
def fail() -> str:
    """Fails."""
    raise ToolError("no luck")


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(1)


@server.tool()
async def hang() -> str:
    """Never answers."""
    await asyncio.Event().wait()
    return ""


@server.tool()
def flood() -> str:
    """Says more than anybody reads."""
    return "x" * 2_000_000


@server.tool()
def variables() -> str:
    """Tells its variables."""
    return ",".join(sorted(os.environ))


async def ring(bell: str) -> str:
    """Rings a bell; the bell `long` for a minute."""
    with open(sys.argv[2], "a") as bells:  # noqa: ASYNC230
        bells.write(f"{bell}\n")
    await asyncio.sleep(60 if bell == "long" else 0)
    return f"{bell} rang"


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        if len(sys.argv) > 2:
            server.tool()(ring)
        server.run()
    else:
        listening = socket.create_server(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        app = server.streamable_http_app(json_response="json" in sys.argv)
        uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([listening])
