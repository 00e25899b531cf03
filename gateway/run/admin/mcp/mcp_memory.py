"""The calls of MCP's tools on a memory.

A call is let in by the limits on requests, and counted. It runs to its end even when its caller has left, so it writes
all or nothing. A failure is an answer of one sentence; nothing of a memory is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec
import orjson
from msgspec import Struct

from gateway.core.agent import AgentSpec
from gateway.core.memory.mcp_tools import TOOLS, McpAnswer, McpCaller, make_client_name
from gateway.core.nul import without_nul
from gateway.errors import BadRequest, GatewayError, MemoryUnavailable, NotAllowed
from gateway.run.admin.fault_errors import make_fault_error
from gateway.run.admin.mcp.mcp_tool_calls import McpToolCall, McpTools, make_mcp_scope
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from gateway.run.memory.memory_agent import check_not_paused
from gateway.run.receipt import Receipt
from gateway.run.usage.accounting import Accounting
from gateway.validation import InvalidValue, convert
from storage.errors import StoreError
from storage.records import Agent, Scope
from storage.task_set import TaskSet

_log = logging.getLogger("mnemogate")

# The operation by which the command line performs a call.
MCP_CALL: Final = "mcp-call"
_NO_USER_MESSAGE = (
    "No user was named: the key can be one person's, else name them by the header x-mnemogate-user or by ?user= in the "
    "URL."
)


class McpMemory:
    """Performs the calls of one process."""

    def __init__(
        self,
        tools: McpTools,
        spec_of: Callable[[str], AgentSpec | None],
        accounting: Accounting,
        default_profile: Callable[[str], str],
    ) -> None:
        """Makes the operations of a process in which no call is under way.

        spec_of: returns the agent of a profile; None: there is no such profile.
        default_profile: returns the default profile of a project.
        """
        self._tools = tools
        self._spec_of = spec_of
        self._receipts = accounting.receipts
        self._limiter = accounting.limiter
        self._default_profile = default_profile
        self._calls = TaskSet()

    async def call(self, caller: McpCaller, tool: str, arguments: RawArguments) -> McpAnswer:
        """Performs a call. tool: one of TOOLS."""
        return await asyncio.shield(self._calls.start(self._answer_counted(caller, tool, arguments)))

    async def call_for_command_line(self, raw: RawArguments) -> dict[str, Any]:
        """Performs a call for the command line. Raises: BadRequest."""
        fields = Arguments(raw)
        project, tool = fields.read_text("project"), fields.read_text("tool")
        if tool not in TOOLS:
            raise BadRequest(f"There is no tool {tool!r}.", param="tool")
        arguments = fields.read_optional_object("arguments")
        profile = fields.read_optional_text("profile") or self._default_profile(project)
        client = make_client_name(fields.read_optional_text("client") or "", "")
        user = fields.read_optional_id("user")
        caller = McpCaller(project, profile, user, may_write=not fields.read_flag("read"), client=client)
        answer = await self.call(caller, tool, arguments)
        return {"value": answer.value, "error": answer.error}

    async def drain(self, timeout_s: float) -> None:
        """Waits for the calls under way, for this time at most, and stops the forgetting that they began."""
        await self._calls.drain(timeout_s)
        await self._tools.forgetting.aclose()

    async def _answer_counted(self, caller: McpCaller, tool: str, arguments: RawArguments) -> McpAnswer:
        """Returns the answer to a call, which a receipt of its own counts. Each error becomes an answer."""
        receipt = Receipt(project=caller.project, key_id=caller.key_id)
        receipt.user = caller.user or ""
        receipt.asks_model = False
        receipt.status = 200
        try:
            return await self._perform_call(receipt, caller, tool, arguments)
        except GatewayError as error:
            return McpAnswer(error=error.message)
        except StoreError as error:
            receipt.status = MemoryUnavailable.status
            return McpAnswer(error=MemoryUnavailable.for_status(error.status).message)
        except Exception as error:
            receipt.status = 500
            _log.error(
                "The tool %s failed by a fault in the gateway: %s", tool, type(error).__name__, exc_info=error
            )
            return McpAnswer(error="Something went wrong inside the gateway. Its log says more.")
        finally:
            self._receipts.publish(receipt)

    async def _perform_call(
        self, receipt: Receipt, caller: McpCaller, tool: str, arguments: RawArguments
    ) -> McpAnswer:
        """Returns the answer to a call that the limits let in. Raises: GatewayError, StoreError."""
        definition = TOOLS[tool]
        await self._limiter.admit(receipt, None)
        if caller.user is None:
            raise BadRequest(_NO_USER_MESSAGE, param="user")
        if definition.writes and not caller.may_write:
            raise NotAllowed(f"This connection only reads, so {tool} is refused.")
        spec = self._spec_of(caller.profile)
        if spec is None:
            raise BadRequest(f"There is no profile {caller.profile!r}.", param="profile")
        read_arguments = _read_arguments(arguments, definition.arguments)
        agent = await self._find_agent(make_mcp_scope(caller, caller.user))
        call = McpToolCall(caller, caller.user, spec, agent)
        result = await self._tools.perform(tool, call, read_arguments)
        return McpAnswer(msgspec.to_builtins(result))

    async def _find_agent(self, scope: Scope) -> Agent | None:
        """Returns the memory of a user, or None if it has not begun. Raises: NotAllowed: the memory is paused."""
        agent = await self._tools.store.agents.find_current(scope)
        if agent is not None:
            check_not_paused(agent)
        return agent


def _read_arguments(raw: RawArguments, struct_type: type[Struct]) -> Struct:
    """Returns the arguments of a tool. One that is null counts as left out. Raises: BadRequest, which names it."""
    for name, value in raw.items():
        try:
            orjson.dumps(value)
        except (TypeError, ValueError) as error:
            raise BadRequest(f"{name} holds text or a number that no JSON can say.", param=name) from error
    try:
        return convert(
            without_nul({name: value for name, value in raw.items() if value is not None}), struct_type
        )
    except InvalidValue as error:
        raise make_fault_error(error.fault) from error
