"""The seam between a turn and the tools that the gateway itself runs for a model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
from msgspec import Struct, field

from adapters.types import Json
from gateway.core.prompt.shown_blocks import Shown
from gateway.core.turn.commands import RunTool
from gateway.core.turn.events import ToolFinished
from gateway.core.usage.gen_ai import CANCELLED
from gateway.run.receipt import GatewayStep, Receipt

_log = logging.getLogger("mnemogate")
AT_ONCE = 8  # calls of one round that run side by side
FAILED = "Error: {name} is not available at the moment."
LEAST_CHARS = 5_000
CHARS_PER_TOKEN = 4
WINDOW_SHARE = 5  # a result may take one part in so many of the window
CUT = "\n[{left} more characters were cut off.]"


class ToolAnswer(Struct, frozen=True):
    """The answer of a tool."""

    content: str  # as the model reads it
    status: str = "success"  # or error
    stdout: str = ""  # with stderr: the output of code that it ran
    stderr: str = ""
    # Label -> the value that code gave a block in its copy of the agent; whoever runs the code writes them.
    blocks: Mapping[str, str] = field(default_factory=dict)
    changes: str = ""  # as in `ToolResult`
    shown: Shown = field(default_factory=dict)

    def event(self, call_id: str) -> ToolFinished:
        """Returns the end of the call as the turn is fed it."""
        answer = (self.content, self.status, self.stdout, self.stderr)
        return ToolFinished(call_id, *answer, changes=self.changes, shown=self.shown)

    def dump(self) -> bytes:
        """Returns its words as JSON, by the names of the fields."""
        return orjson.dumps(
            {"content": self.content, "status": self.status, "stdout": self.stdout, "stderr": self.stderr}
        )


def failed(content: str) -> ToolAnswer:
    return ToolAnswer(content, "error")


def most_chars(most: int, window: int | None) -> int:
    """Returns how many characters of a result leave room in the window.

    most: at most.
    window: tokens.
    """
    if window is None:
        return most
    return min(most, max(LEAST_CHARS, window * CHARS_PER_TOKEN // WINDOW_SHARE))


def shortened(content: str, most: int) -> str:
    """Returns a result in at most so many characters, with a line about what was cut."""
    return content if len(content) <= most else content[:most] + CUT.format(left=len(content) - most)


class ForeignCall(Struct, frozen=True):
    """A call of a tool that is not the gateway's own."""

    # Its name.
    tool: str
    arguments: Json
    call_id: str
    # agent, run: public names.
    agent: str
    run: str
    # The call's own name among all calls of all agents.
    key: str
    # {"id", "name", "blocks"}, for code.
    agent_state: Json = field(default_factory=dict)
    # The tool's owner.
    project: str = ""


class KeepsCalls(Protocol):
    """Keeps what is known of the calls that leave the gateway."""

    async def once(self, call: RunTool, perform: Callable[[], Awaitable[ToolAnswer]]) -> ToolAnswer:
        """Returns the answer to a call, which is made unless it was made before."""


class Toolbox(Protocol):
    """Tools of one turn."""

    def definitions(self) -> list[dict[str, Any]]:
        """Returns the entries for a request's `tools`, always the same ones."""

    def owns(self, name: str) -> bool:
        """Returns whether the tool of this name is in this box."""

    def serial_group(self, call: RunTool) -> str | None:
        """Returns the serial group of a call: those of one serial group run in their order.

        None: it depends on no other.
        """

    async def run(self, call: RunTool) -> ToolAnswer:
        """Returns the result. An exception becomes an error without details."""


class NoTools:
    """The toolbox of a turn to which no tools are offered."""

    def definitions(self) -> list[dict[str, Any]]:
        return []

    def owns(self, name: str) -> bool:
        return False

    def serial_group(self, call: RunTool) -> str | None:
        return None

    async def run(self, call: RunTool) -> ToolAnswer:
        return failed(FAILED.format(name=call.name))


NO_TOOLS = NoTools()


async def run_tools(
    toolbox: Toolbox,
    calls: Sequence[RunTool],
    made: dict[int, ToolAnswer] | None = None,
    receipt: Receipt | None = None,
) -> list[ToolAnswer]:
    """Runs the calls of one round side by side, as far as they are independent. Returns their results, in their order.

    Calls that are to run alone have a serial group of their own.

    made: takes each result as it comes, by the call's place.
    receipt: of the request; each run is noted in it.

    Cancelled, it cancels what still runs and waits for its end.
    """
    serial_groups: dict[str, list[int]] = {}
    for n, call in enumerate(calls):
        name = toolbox.serial_group(call) or ("alone" if call.alone else f"call {n}")
        serial_groups.setdefault(name, []).append(n)
    results: dict[int, ToolAnswer] = {} if made is None else made
    places = asyncio.Semaphore(AT_ONCE)

    async def run(serial_group: Sequence[int]) -> None:
        for n in serial_group:
            async with places:
                begun, failure = time.perf_counter(), CANCELLED
                try:
                    results[n] = answer = await run_tool(toolbox, calls[n])
                    failure = "" if answer.status == "success" else answer.status
                finally:
                    if receipt is not None:
                        step = GatewayStep("execute_tool", begun, time.perf_counter(), calls[n].name, failure)
                        receipt.steps.append(step)

    # One serial group needs no task: most rounds have one call.
    if len(serial_groups) == 1:
        await run(range(len(calls)))
    else:
        async with asyncio.TaskGroup() as tasks:
            for serial_group in serial_groups.values():
                tasks.create_task(run(serial_group))
    return [results[n] for n in range(len(calls))]


async def run_tool(toolbox: Toolbox, call: RunTool) -> ToolAnswer:
    """Runs one call. Returns its result; an exception becomes an error without details."""
    if not toolbox.owns(call.name):
        return failed(FAILED.format(name=call.name))
    try:
        return await toolbox.run(call)
    except Exception:
        # A tool never breaks chat: the model gets an error, and answers without.
        _log.exception("A tool failed by a fault in the gateway; the model got an error.")
        return failed(FAILED.format(name=call.name))
