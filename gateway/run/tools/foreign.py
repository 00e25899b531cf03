"""Tools that are not the gateway's own, each performed as its definition says. One for the process."""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.definition import ToolDefinition
from gateway.run.tools.hosts import HostError, ToolHosts
from gateway.run.tools.sandbox import Sandbox
from gateway.run.tools.toolbox import ForeignCall, ToolAnswer, failed
from gateway.run.tools.webhook import Webhooks
from gateway.settings import ToolSettings

NOBODY = "Error: nobody runs {name} here. Nothing was done."


class ForeignTools:
    """Performs calls. now: seconds since the epoch. hosts: those of the settings unless told otherwise."""

    def __init__(
        self, settings: ToolSettings, now: Callable[[], float], hosts: ToolHosts | None = None
    ) -> None:
        self._hosts = hosts or ToolHosts(settings)
        self._sandbox = Sandbox(settings.python, settings.python_timeout_s)
        self._webhooks = Webhooks(self._hosts, settings.webhook_secret, now)

    async def refusal(self, tool: ToolDefinition) -> str | None:
        """Returns why a tool cannot be made here; None: it can."""
        if tool.source_type == "webhook":
            try:
                self._hosts.check(tool.source)
            except HostError as error:
                return f"The webhook cannot be called: {error}."
        if tool.source_type == "python":
            return await self._sandbox.refusal()
        return None

    async def run(self, tool: ToolDefinition, call: ForeignCall) -> ToolAnswer:
        """Returns the result of a call; what goes wrong with it is one, too."""
        if tool.source_type == "webhook":
            return await self._webhooks.run(tool.source, call)
        if tool.source_type == "python":
            return await self._sandbox.run(tool.source, call)
        return failed(NOBODY.format(name=call.tool))
