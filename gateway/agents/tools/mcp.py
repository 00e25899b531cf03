"""Tools of MCP servers: over HTTP, or over stdio of a program that the settings allow.

Each call has a session of its own, so that no agent's call leaves anything for another's, and a server that has died
is no fault of later calls. OAuth is not supported.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import orjson
from msgspec import Struct
from yarl import URL

from adapters.types import Json
from gateway.agents.core.mcp_server import MASK, McpSecrets
from gateway.agents.tools.hosts import HostError, StatusFault, ToolHosts
from gateway.core.definition import MOST_SCHEMA_BYTES, McpServerDefinition
from gateway.run.tools.toolbox import ToolAnswer, failed_answer
from gateway.settings import ToolHeader, ToolSettings

if TYPE_CHECKING:
    from mcp import Client

TIMEOUT_S = 30.0
# Of one server, and as many that cannot be called.
MOST_TOOLS = 500
# Against a server whose list of tools never ends; no measurement.
_MOST_PAGES = 100
_MISSING = "The extra `mcp` is not installed on the gateway's machine: pip install -e '.[mcp]' in the clone."
NO_SECRETS = McpSecrets()
# Within `McpServers`, `list` is its method.
_Names = list[str]
# Characters; no measurement, as any value from 6 to 12 behaves alike.
_LEAST_SECRET = 8
# The package's messages where it knows no more than the status.
_STATUS_MESSAGES = ("Server returned an error response", "Session terminated", "Not Found")


class McpFault(Exception):
    """A server that cannot be asked, or that does not answer. Its text is for the user who named the server."""


class ListedTool(Struct, frozen=True):
    """A tool as its server lists it."""

    name: str
    description: str
    # A JSON schema; None: there is none by which it can be called.
    parameters: Json | None


class McpServers:
    """Lists and calls the tools of MCP servers."""

    def __init__(self, settings: ToolSettings, hosts: ToolHosts) -> None:
        self._hosts = hosts
        self._headers = {each.name: each for each in settings.headers}
        self._commands = [shlex.split(each) for each in settings.mcp_stdio]
        self._variables = frozenset(settings.mcp_stdio_env)

    def check(self, server: McpServerDefinition, secrets: McpSecrets = NO_SECRETS) -> None:
        """Refuses a server that no setting allows, without asking it. Raises: McpFault."""
        if server.command:
            if list(server.command) not in self._commands:
                raise McpFault(
                    f"the setting tools.mcp_stdio does not name the command `{shlex.join(server.command)}`"
                )
            for name in secrets.variables:
                if name not in self._variables:
                    raise McpFault(f"the setting tools.mcp_stdio_env does not name the variable {name}")
            return
        try:
            self._hosts.check(server.url)
        except HostError as error:
            raise McpFault(str(error)) from error
        self._header(server)

    async def list(
        self, server: McpServerDefinition, secrets: McpSecrets = NO_SECRETS
    ) -> Sequence[ListedTool]:
        """Returns a server's tools. secrets: what it is sent. Raises: McpFault."""
        found: list[ListedTool] = []
        left_out: list[str] = []
        async with self._session(server, secrets, left_out) as session:
            cursor = None
            for _ in range(_MOST_PAGES):
                page = await session.list_tools(cursor=cursor)
                for tool in page.tools:
                    description = self._masked(server, secrets, tool.description or "")
                    found.append(ListedTool(tool.name, description, _stored_schema(tool.input_schema)))
                cursor = page.next_cursor
                if not cursor or max(len(found), len(left_out)) >= MOST_TOOLS:
                    break
        return [*found[:MOST_TOOLS], *(ListedTool(name, "", None) for name in left_out[:MOST_TOOLS])]

    async def call(
        self, server: McpServerDefinition, tool: str, arguments: Json, secrets: McpSecrets = NO_SECRETS
    ) -> ToolAnswer:
        """Returns the result of a call, as text. secrets: what the server is sent."""
        try:
            async with self._session(server, secrets, []) as session:
                result = await session.call_tool(tool, arguments)
        except McpFault as error:
            return failed_answer(f"Error: {tool} cannot be called: {error}.")
        texts = [_text_of(each) for each in result.content]
        if not texts and result.structured_content is not None:
            texts = [json.dumps(result.structured_content, ensure_ascii=False)]
        text = self._masked(server, secrets, "\n".join(texts))
        return ToolAnswer(text, "error" if result.is_error else "success")

    @asynccontextmanager
    async def _session(
        self, server: McpServerDefinition, secrets: McpSecrets, left_out: _Names
    ) -> AsyncIterator[Client]:
        """Opens a session, which has its time from here to its end. Raises: McpFault, also within.

        left_out: gets the names of tools that are listed and cannot be called.
        """
        self.check(server, secrets)
        faults: list[HostError] = []
        try:
            async with asyncio.timeout(TIMEOUT_S):
                # It takes half a second to load, which must not be the loop's.
                package = await asyncio.to_thread(_load)
                if server.command:
                    opened = package.stdio_session(left_out, secrets.variables, *server.command)
                else:
                    headers = self._headers_of(server, secrets)
                    open_session = package.sse_session if server.transport == "sse" else package.http_session
                    opened = open_session(self._hosts, server.url, headers, faults, left_out)
                async with opened as session:
                    yield session
        except TimeoutError as error:
            late = f"its server did not answer within {TIMEOUT_S:.0f} s"
            raise McpFault(str(faults[0]) if faults else late) from error
        except McpFault:
            raise
        except Exception as error:
            # The package raises what its parts raise, in groups of groups.
            raise McpFault(_error_message(error, faults, partial(self._masked, server, secrets))) from error

    def _headers_of(self, server: McpServerDefinition, secrets: McpSecrets) -> dict[str, str]:
        """Returns the headers of each request to a server. Raises: McpFault."""
        header = self._header(server)
        return {**secrets.headers, **({} if header is None else {header.header: header.value})}

    def _masked(self, server: McpServerDefinition, secrets: McpSecrets, text: str) -> str:
        """Returns a text of a server with each secret masked that it was sent: models and other callers read it."""
        values = [*self._headers_of(server, secrets).values(), *secrets.variables.values()]
        # The scheme of a header is no secret, and neither is what is as short.
        words = {word for value in values for word in value.split() if len(word) >= _LEAST_SECRET}
        for word in sorted(words, key=len, reverse=True):
            text = text.replace(word, MASK)
        return text

    def _header(self, server: McpServerDefinition) -> ToolHeader | None:
        """Returns the header that the settings have for a server. Raises: McpFault: none for this host."""
        if server.header is None:
            return None
        found = self._headers.get(server.header)
        if found is None or found.host != (URL(server.url).raw_host or "").lower():
            raise McpFault(f"the setting tools.headers has no entry {server.header!r} for this host")
        return found


def _load() -> ModuleType:
    """Returns gateway/agents/tools/mcp_session.py. Raises: McpFault: what it needs is not installed."""
    try:
        from gateway.agents.tools import mcp_session
    except ImportError as error:
        raise McpFault(_MISSING) from error
    return mcp_session


def _stored_schema(schema: Any) -> Json | None:
    """Returns a schema as it is stored: a number beyond 64 bits is rounded. None: it is too large."""
    data = json.dumps(schema, ensure_ascii=False).encode(errors="replace")
    return None if len(data) > MOST_SCHEMA_BYTES else orjson.loads(data)


def _text_of(block: Any) -> str:
    """Returns a block of a result as a model reads it."""
    if block.type == "text":
        return str(block.text)
    text = getattr(getattr(block, "resource", None), "text", None)
    return text if isinstance(text, str) else f"[{block.type}]"


def _error_message(error: BaseException, faults: Sequence[HostError], masked: Callable[[str], str]) -> str:
    """Returns why a session failed, for the user who named the server."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = masked(" ".join(str(error).split()))[:200]
    for fault in faults:
        if not isinstance(fault, StatusFault) or text in _STATUS_MESSAGES:
            return str(fault)
    if isinstance(error, FileNotFoundError):
        return "its program is not there"
    return f"its server failed ({text or type(error).__name__})"
