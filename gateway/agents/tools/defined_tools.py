"""Runs tools that are not built in, each by its definition. A process has one `DefinedTools`."""

from __future__ import annotations

from collections.abc import Callable

from gateway.agents.core.mcp_server import McpToolSource
from gateway.agents.tools.children import Children
from gateway.agents.tools.hosts import HostError, ToolHosts
from gateway.agents.tools.mcp import McpServers
from gateway.agents.tools.sandbox import Sandbox
from gateway.agents.tools.secret import SecretCipher, SecretFault
from gateway.agents.tools.webhook import Webhooks
from gateway.core.definition import McpServerDefinition, ToolDefinition
from gateway.errors import BadRequest
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer
from gateway.settings import ToolSettings
from storage.definition_records import DefinitionKind
from storage.sql.store import Store

_NOT_RUN = "Error: {name} cannot run here. Nothing was done."


class DefinedTools:
    """Runs calls by the definitions of their tools."""

    def __init__(self, settings: ToolSettings, store: Store, now: Callable[[], float]) -> None:
        """Makes the clients and the sandbox that run tools. now: the clock, in seconds since the epoch."""
        self._store = store
        self.children = Children()
        self._hosts = ToolHosts(settings)
        self.mcp = McpServers(settings, self._hosts)
        self.secrets = SecretCipher(settings.secrets_key)
        self._sandbox = Sandbox(settings.python, settings.python_timeout_s)
        self.webhooks = Webhooks(self._hosts, settings.webhook_secret, now)

    def check_callback(self, url: str | None) -> None:
        """Raises: BadRequest if the settings do not allow the URL of a callback. url: None: there is no callback."""
        if url is not None and (reason := self._explain_host_refusal(url)) is not None:
            raise BadRequest(f"The URL cannot be called: {reason}.", param="callback_url")

    def _explain_host_refusal(self, url: str) -> str | None:
        """Returns the reason why the host of a URL may not be called; None if it may be called."""
        try:
            self._hosts.check(url)
        except HostError as error:
            return str(error)
        return None

    async def explain_refusal(self, tool: ToolDefinition) -> str | None:
        """Returns the reason why a tool cannot be created here; None if it can be created."""
        if tool.source_type == "webhook" and (reason := self._explain_host_refusal(tool.source)) is not None:
            return f"The webhook cannot be called: {reason}."
        if tool.source_type == "python":
            return await self._sandbox.explain_refusal()
        if tool.source_type == "typescript":
            return "TypeScript is not run here: write it in Python, or make a webhook of it."
        return None

    async def run(self, tool: ToolDefinition, call: ForeignCall) -> ToolAnswer:
        """Returns the result of a call. A failure of the call is a result as well."""
        if tool.source_type == "webhook":
            return await self.webhooks.run(tool.source, call)
        if tool.source_type == "python":
            return await self._sandbox.run(tool.source, call)
        if (source := McpToolSource.of(tool)) is not None:
            server = await self._store.definitions.find(call.project, DefinitionKind.MCP, source.server_uid)
            if server is None:
                return ToolAnswer.failed(f"Error: the server of {call.tool} was deleted. Nothing was done.")
            try:
                secrets = await self.secrets.decrypt_all(server)
            except SecretFault as error:
                return ToolAnswer.unsent(call.tool, error)
            return await self.mcp.call_tool(
                McpServerDefinition.of(server.body), source.tool_name, call.arguments, secrets
            )
        return ToolAnswer.failed(_NOT_RUN.format(name=call.tool))
