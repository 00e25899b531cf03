"""Tools of MCP servers: over HTTP, or over stdio of a program that the settings allow.

Each call has a session of its own, so that it leaves nothing for another agent's call, and does not fail because the
server of an earlier call has died. OAuth is not supported.
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
from gateway.agents.tools.mcp_report import SessionReport
from gateway.core.definition import MAX_SCHEMA_BYTES, McpServerDefinition
from gateway.run.tools.toolbox import ToolAnswer
from gateway.settings import ToolHeader, ToolSettings

if TYPE_CHECKING:
    from mcp import Client

# The most seconds of one call, from connecting to closing. Not measured: the model and its user wait for as long.
TIMEOUT_S = 30.0
# The most tools of one server that can be called, and the most that cannot be called.
MAX_TOOLS = 500
# The most pages of a server's tools, since a server could have an endless list. Not measured: far more than `MAX_TOOLS`
# tools need.
_MAX_PAGES = 100
MISSING_EXTRA = (
    "the extra `mcp` is not installed on the gateway's machine: in the clone run pip install -e '.[mcp]', or "
    "uv sync --extra mcp"
)
NO_SECRETS = McpSecrets()
# The most characters of a server's error that are shown: enough for a sentence.
_MAX_ERROR_CHARS = 200
# The least length of a word that is masked. Not measured: any value from 6 to 12 behaves alike.
_MIN_SECRET_CHARS = 8
# The codes of errors of a server that knows no such method, or takes no such parameters, such as the name or the
# arguments of a tool (jsonrpc.org/specification, "Error object"; the MCP specification, "Tools", "Error handling").
_REFUSAL_CODES = (-32601, -32602)
# The messages of errors of the package `mcp` that say no more than the status.
_STATUS_MESSAGES = ("Server returned an error response", "Session terminated", "Not Found")


class McpFault(Exception):
    """A server cannot be asked, or does not answer. The text is for the user who named the server."""


class McpRefusal(McpFault):
    """A server has refused a request, and did nothing for it."""


class ListedTool(Struct, frozen=True):
    """A tool in the list of its server."""

    # The name at the server.
    name: str
    # The description, without the server's secrets.
    description: str
    # A JSON schema; None: the tool has no schema by which it could be called.
    parameters: Json | None


class McpServers:
    """Lists and calls the tools of MCP servers."""

    def __init__(self, settings: ToolSettings, hosts: ToolHosts) -> None:
        self._hosts = hosts
        self._headers = {header.name: header for header in settings.headers}
        self._commands = [shlex.split(command) for command in settings.mcp_stdio]
        self._variables = frozenset(settings.mcp_stdio_env)

    def check(self, server: McpServerDefinition, secrets: McpSecrets = NO_SECRETS) -> None:
        """Checks that the settings allow a server, without asking it. Raises: McpFault."""
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
        self._find_header(server)

    async def list_tools(
        self, server: McpServerDefinition, secrets: McpSecrets = NO_SECRETS
    ) -> Sequence[ListedTool]:
        """Returns a server's tools. secrets: the headers and variables that the server gets. Raises: McpFault."""
        tools: list[ListedTool] = []
        async with self._open_session(server, secrets) as (session, report):
            cursor = None
            for _ in range(_MAX_PAGES):
                page = await session.list_tools(cursor=cursor)
                for tool in page.tools:
                    description = self._mask_secrets(server, secrets, tool.description or "")
                    tools.append(ListedTool(tool.name, description, _make_stored_schema(tool.input_schema)))
                cursor = page.next_cursor
                if not cursor or max(len(tools), len(report.uncallable)) >= MAX_TOOLS:
                    break
        uncallable = [ListedTool(name, "", None) for name in report.uncallable[:MAX_TOOLS]]
        return [*tools[:MAX_TOOLS], *uncallable]

    async def call_tool(
        self, server: McpServerDefinition, tool: str, arguments: Json, secrets: McpSecrets = NO_SECRETS
    ) -> ToolAnswer:
        """Returns the result of a call, as text. secrets: the headers and variables that the server gets."""
        result = None
        was_sent = False
        try:
            async with self._open_session(server, secrets) as (session, _):
                was_sent = True
                result = await session.call_tool(tool, arguments)
        except McpFault as error:
            # A result counts even if the end of its session has failed.
            if result is None:
                may_be_done = was_sent and not isinstance(error, McpRefusal)
                return ToolAnswer.lost(tool, error) if may_be_done else ToolAnswer.unsent(tool, error)
        assert result is not None  # a session that ends without a result raises
        texts = [_read_text(content) for content in result.content]
        if not texts and result.structured_content is not None:
            texts = [json.dumps(result.structured_content, ensure_ascii=False)]
        text = self._mask_secrets(server, secrets, "\n".join(texts))
        return ToolAnswer(text, "error" if result.is_error else "success")

    @asynccontextmanager
    async def _open_session(
        self, server: McpServerDefinition, secrets: McpSecrets
    ) -> AsyncIterator[tuple[Client, SessionReport]]:
        """Opens a session, which may take TIMEOUT_S to its end. Raises: McpFault, even in the block."""
        self.check(server, secrets)
        report = SessionReport()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                # The package `mcp` takes half a second to load, which must not block the loop.
                sessions = await asyncio.to_thread(_load_sessions)
                if server.command:
                    opening = sessions.open_stdio_session(server.command, secrets.variables, report)
                else:
                    headers = self._make_headers(server, secrets)
                    is_sse = server.transport == "sse"
                    open_session = sessions.open_sse_session if is_sse else sessions.open_http_session
                    opening = open_session(self._hosts, server.url, headers, report)
                async with opening as session:
                    yield session, report
        except TimeoutError as error:
            timeout_message = f"its server did not answer within {TIMEOUT_S:.0f} s"
            raise McpFault(str(report.host_errors[0]) if report.host_errors else timeout_message) from error
        except McpFault:
            raise
        except Exception as error:
            cause = _unwrap_error(error)
            error_type = McpRefusal if getattr(cause, "code", None) in _REFUSAL_CODES else McpFault
            mask = partial(self._mask_secrets, server, secrets)
            raise error_type(_render_error(cause, report.host_errors, mask)) from error

    def _make_headers(self, server: McpServerDefinition, secrets: McpSecrets) -> dict[str, str]:
        """Returns the headers of each request to a server. Raises: McpFault."""
        header = self._find_header(server)
        return {**secrets.headers, **({} if header is None else {header.header: header.value})}

    def _mask_secrets(self, server: McpServerDefinition, secrets: McpSecrets, text: str) -> str:
        """Masks the secrets that a server was sent in a text of the server, since models and other callers read it."""
        values = [*self._make_headers(server, secrets).values(), *secrets.variables.values()]
        # A short word, such as the scheme of a header, is no secret.
        words = {word for value in values for word in value.split() if len(word) >= _MIN_SECRET_CHARS}
        for word in sorted(words, key=len, reverse=True):
            text = text.replace(word, MASK)
        return text

    def _find_header(self, server: McpServerDefinition) -> ToolHeader | None:
        """Returns the header of the settings that a server names. Raises: McpFault if there is none for its host."""
        if server.header is None:
            return None
        header = self._headers.get(server.header)
        if header is None or header.host != (URL(server.url).raw_host or "").lower():
            raise McpFault(f"the setting tools.headers has no entry {server.header!r} for this host")
        return header


def _load_sessions() -> ModuleType:
    """Imports gateway/agents/tools/mcp_session.py. Raises: McpFault if a package that it needs is not installed."""
    try:
        from gateway.agents.tools import mcp_session
    except ImportError as error:
        raise McpFault(MISSING_EXTRA) from error
    return mcp_session


def _make_stored_schema(schema: Any) -> Json | None:
    """Returns a schema as it is stored; None if the schema is too large, or no JSON."""
    try:
        data = json.dumps(schema, ensure_ascii=False, allow_nan=False).encode(errors="replace")
    except ValueError:  # the package `mcp` reads NaN and Infinity
        return None
    # orjson reads integers beyond 64 bits as floats, since it could not write them.
    return None if len(data) > MAX_SCHEMA_BYTES else orjson.loads(data)


def _read_text(block: Any) -> str:
    """Returns a block of a result as a model reads it: its text, or else its name and address."""
    if block.type == "text":
        return str(block.text)
    content = block.resource if block.type == "resource" else block
    if isinstance(text := getattr(content, "text", None), str):
        return text
    fields = ("name", "uri", "mime_type", "description")
    values = [str(value) for name in fields if (value := getattr(content, name, None))]
    return f"[{block.type}: {', '.join(values)}]" if values else f"[{block.type}]"


def _unwrap_error(error: BaseException) -> BaseException:
    """Returns the error with which a session failed. The package `mcp` raises errors of its parts in nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _render_error(error: BaseException, host_errors: Sequence[HostError], mask: Callable[[str], str]) -> str:
    """Returns the error of a session as text, for the user who named the server.

    host_errors: the errors of the host, which the package `mcp` hides.
    mask: the function that removes the server's secrets from a text.
    """
    text = mask(" ".join(str(error).split()))[:_MAX_ERROR_CHARS]
    for host_error in host_errors:
        # A status alone says less than the server's own message.
        if not isinstance(host_error, StatusFault) or text in _STATUS_MESSAGES:
            return str(host_error)
    if isinstance(error, FileNotFoundError):
        return "its program is not there"
    return f"its server failed ({text or type(error).__name__})"
