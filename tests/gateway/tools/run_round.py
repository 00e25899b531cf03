"""Runs the calls of one round, as a turn does."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.turn.commands import RunTool
from gateway.run.receipt import Receipt
from gateway.run.tools.toolbox import ToolAnswer, Toolbox, run_tools


async def run_all(toolbox: Toolbox, calls: Sequence[RunTool]) -> list[ToolAnswer]:
    """Returns the answers in the order of the calls."""
    answers: dict[int, ToolAnswer] = {}
    await run_tools(toolbox, calls, answers, Receipt())
    return [answers[n] for n in range(len(calls))]
