"""The seam between a turn and the tools that the gateway itself runs for a model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
import orjson
from msgspec import Struct, field

from adapters.types import Json
from gateway.core.conversation.private import CallStatus
from gateway.core.prompt.shown_blocks import ShownBlocks
from gateway.core.turn.commands import RunTool
from gateway.core.turn.tool_result import ToolResult
from gateway.core.usage.estimate import CHARS_PER_TOKEN
from gateway.core.usage.gen_ai import CANCELLED_FAILURE
from gateway.run.receipt import GatewayStep, Receipt
from storage.errors import StoreError
from storage.records import Block

_log = logging.getLogger("mnemogate")

# The most calls of one round that run at a time. Not measured: the other calls of the round wait for these.
MAX_PARALLEL = 8
# The result of a tool that the turn does not have, or that failed by a fault of the gateway or the store.
_NOT_AVAILABLE_ERROR = "Error: {name} is not available at the moment."
# A result may take one part in so many of the window. Not measured: a larger part leaves less of the conversation.
_WINDOW_PARTS = 5
# Every result may have this many characters, however small the window is.
_MIN_RESULT_CHARS = 5_000
# The end of a result that was cut.
_CUT_NOTICE = "\n[{cut_chars} more characters were cut off.]"


class ToolAnswer(Struct, frozen=True):
    """The answer of a tool."""

    # The text that the model reads.
    content: str
    # The outcome of the call.
    status: CallStatus = "success"
    # The output of code that the tool ran.
    stdout: str = ""
    # The errors of that code.
    stderr: str = ""
    # Blocks that code has changed in its copy, each with its new value. The caller of the tool writes them.
    changed_blocks: Sequence[tuple[Block, str]] = ()
    # A note about changes of memory meanwhile, which follows the content.
    changes: str = ""
    # The last text of each memory block in content and changes.
    shown: ShownBlocks = field(default_factory=dict)
    # True: the call may have reached the tool; False: it did not, so that it may be made again.
    was_sent: bool = True

    def as_result(self, call_id: str) -> ToolResult:
        """Returns the answer as the result of a call."""
        answer = (self.content, self.status, self.stdout, self.stderr)
        return ToolResult(call_id, *answer, changes=self.changes, shown=self.shown)

    def dump(self) -> bytes:
        """Returns content, status, output and changed blocks as JSON, which `load` reads."""
        fields = {
            "content": self.content,
            "status": self.status,
            "stdout": self.stdout,
            "stderr": self.stderr,
        }
        changed_blocks = [(msgspec.to_builtins(block), value) for block, value in self.changed_blocks]
        return orjson.dumps({**fields, "changed_blocks": changed_blocks} if changed_blocks else fields)

    @classmethod
    def load(cls, data: bytes) -> ToolAnswer:
        """Returns the answer that `dump` has written."""
        return msgspec.json.decode(data, type=cls)

    @classmethod
    def failed(cls, content: str) -> ToolAnswer:
        """Returns the answer of a call that has failed. content: the text that the model reads."""
        return cls(content, "error")

    @classmethod
    def unsent(cls, tool: str, reason: object) -> ToolAnswer:
        """Returns the answer to a call that was not sent. reason: the end of the sentence, without a full stop."""
        return cls(f"Error: {tool} cannot be called: {reason}.", "error", was_sent=False)

    @classmethod
    def lost(cls, tool: str, reason: object) -> ToolAnswer:
        """Returns the answer to a call that was sent, and has no reply that can be read.

        reason: the end of a clause, without a full stop.
        """
        return cls.failed(f"Error: {tool} was called, but {reason}. It may have been done.")


def choose_max_chars(tool_chars: int, window_tokens: int | None) -> int:
    """Returns the most characters that a result may have.

    tool_chars: the limit of the tool.
    window_tokens: the size of the context window; None: not known.
    """
    if window_tokens is None:
        return tool_chars
    return min(tool_chars, max(_MIN_RESULT_CHARS, window_tokens * CHARS_PER_TOKEN // _WINDOW_PARTS))


def cut_result(content: str, max_chars: int) -> str:
    """Returns a result with at most `max_chars` characters, and a line about the cut."""
    if len(content) <= max_chars:
        return content
    return content[:max_chars] + _CUT_NOTICE.format(cut_chars=len(content) - max_chars)


class ForeignCall(Struct, frozen=True):
    """A call of a tool that an application defines or an MCP server has."""

    # The tool's name.
    tool: str
    # The arguments of the call.
    arguments: Json
    # The id that the model gave to the call.
    call_id: str
    # The public id of the agent.
    agent: str
    # The public id of the run.
    run: str
    # The key of the call among all calls of all agents.
    key: str
    # The name of the agent, which only tools that are code read.
    agent_name: str = ""
    # The memory blocks of the agent, which only tools that are code read.
    blocks: Sequence[Block] = ()
    # The project that owns the tool.
    project: str = ""


class CallDeduplicator(Protocol):
    """Performs each call that leaves the gateway only once."""

    async def perform_once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        """Performs a call, unless it was performed before. Returns its answer."""


class Toolbox(Protocol):
    """The tools that the gateway runs in one turn."""

    def list_definitions(self) -> list[dict[str, Any]]:
        """Returns the entries for a request's `tools`. They are the same at each call."""

    def owns(self, name: str) -> bool:
        """Returns whether the toolbox has the tool of this name."""

    def find_serial_group(self, call: RunTool) -> str | None:
        """Returns the serial group of a call, or None for a call that may run at any time.

        Calls of a group run in their order.
        """

    async def run(self, call: RunTool) -> ToolAnswer:
        """Runs a call. After an exception the model reads only that the tool is not available (`run_tool`)."""


class NoTools:
    """The toolbox of a turn to which no tools are offered. `Toolbox` documents the methods."""

    def list_definitions(self) -> list[dict[str, Any]]:
        return []

    def owns(self, name: str) -> bool:
        return False

    def find_serial_group(self, call: RunTool) -> str | None:
        return None

    async def run(self, call: RunTool) -> ToolAnswer:
        return ToolAnswer.failed(_NOT_AVAILABLE_ERROR.format(name=call.name))


NO_TOOLS = NoTools()


async def run_tools(
    toolbox: Toolbox, calls: Sequence[RunTool], answers: dict[int, ToolAnswer], receipt: Receipt
) -> None:
    """Runs the calls of one round; calls of one serial group run one after another.

    Serial calls (`RunTool.is_serial`) are one group. A cancellation cancels the calls that still run, and waits for
    their end.

    answers: the answers so far, by the index of their calls; each answer is added as it comes.
    receipt: the receipt of the request, in which each call is noted.
    """
    serial_groups: dict[str, list[int]] = {}
    for n, call in enumerate(calls):
        name = toolbox.find_serial_group(call) or ("serial" if call.is_serial else f"call {n}")
        serial_groups.setdefault(name, []).append(n)
    slots = asyncio.Semaphore(MAX_PARALLEL)

    async def run(serial_group: Sequence[int]) -> None:
        for n in serial_group:
            async with slots:
                answers[n] = await _run_and_note(toolbox, calls[n], receipt)

    # One serial group needs no task: most rounds have one call.
    if len(serial_groups) == 1:
        await run(range(len(calls)))
    else:
        async with asyncio.TaskGroup() as tasks:
            for serial_group in serial_groups.values():
                tasks.create_task(run(serial_group))


async def _run_and_note(toolbox: Toolbox, call: RunTool, receipt: Receipt) -> ToolAnswer:
    """Runs one call and notes it in the receipt, also if it is cancelled. Returns its answer."""
    started_at = time.perf_counter()
    failure = CANCELLED_FAILURE
    try:
        answer = await run_tool(toolbox, call)
        failure = "" if answer.status == "success" else answer.status
        return answer
    finally:
        step = GatewayStep("execute_tool", started_at, time.perf_counter(), name=call.name, failure=failure)
        receipt.steps.append(step)


async def run_tool(toolbox: Toolbox, call: RunTool) -> ToolAnswer:
    """Runs one call. Returns its answer; for an exception, an error without details."""
    if not toolbox.owns(call.name):
        return ToolAnswer.failed(_NOT_AVAILABLE_ERROR.format(name=call.name))
    try:
        return await toolbox.run(call)
    except StoreError as error:
        _log.warning("A tool could not be run; the model got an error: %s", error.message)
    except Exception:
        _log.exception("A tool failed by a fault in the gateway; the model got an error.")
    # A tool that fails must not end the turn: the model answers without its result.
    return ToolAnswer.failed(_NOT_AVAILABLE_ERROR.format(name=call.name))
