"""The official MCP client, one session after the other, for tests without a loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.patience import PATIENCE_S

T = TypeVar("T")
EDITOR = types.Implementation(name="Editor", version="1.2")
# The eras of the protocol, as the client's `mode` has them.
ERAS = ("legacy", "auto")


@asynccontextmanager
async def opened(url: str, headers: Mapping[str, str], mode: str = "auto") -> AsyncIterator[Client]:
    """Opens a session over HTTP."""
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=PATIENCE_S) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode, client_info=EDITOR) as client,
    ):
        yield client


def session(
    url: str, headers: Mapping[str, str], work: Callable[[Client], Awaitable[T]], mode: str = "auto"
) -> T:
    """Performs some work in a session over HTTP."""

    async def run() -> T:
        async with opened(url, headers, mode) as client:
            return await work(client)

    return asyncio.run(run())


class Tools:
    """The tools of `/mcp`, called by one person's program."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, mode: str = "auto") -> None:
        self.url, self.headers, self.mode = f"{url}/mcp", headers or {}, mode

    def call(self, tool: str, **arguments: Any) -> types.CallToolResult:
        """Returns the result of a call in a session of its own."""
        return session(self.url, self.headers, lambda client: client.call_tool(tool, arguments), self.mode)

    def ask(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Returns the value of a call that goes well, which is structured and text alike."""
        result = self.call(tool, **arguments)
        assert not result.is_error, result.content
        return value_of(result)

    def fail(self, tool: str, **arguments: Any) -> str:
        """Returns the sentence of a call that fails."""
        result = self.call(tool, **arguments)
        assert result.is_error, result.structured_content
        assert result.structured_content is None
        (said,) = result.content
        assert isinstance(said, types.TextContent)
        return said.text


def value_of(result: types.CallToolResult) -> dict[str, Any]:
    """Returns the value of a result."""
    (said,) = result.content
    assert isinstance(said, types.TextContent)
    value: dict[str, Any] = result.structured_content
    assert json.loads(said.text) == value
    return value
