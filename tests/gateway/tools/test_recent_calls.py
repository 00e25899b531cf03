"""Calls that were just made: what is the same call, and how long."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakSet

import pytest

from gateway.core.turn.commands import RunTool
from gateway.run.tools.recent_calls import MAX_RESULTS, RecentCalls
from gateway.run.tools.toolbox import ToolAnswer


class Tool:
    """Counts its calls; each answers with its number once the gate is open."""

    def __init__(self) -> None:
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> ToolAnswer:
        self.calls += 1
        number = self.calls
        await self.gate.wait()
        if number == 13:
            raise RuntimeError("unlucky")
        return ToolAnswer(str(number))


@pytest.fixture
def tool() -> Tool:
    return Tool()


def call(name: str = "pay", **arguments: Any) -> RunTool:
    return RunTool("any", name, arguments)


async def test_the_same_call_at_the_same_place_is_made_once(tool: Tool) -> None:
    recent = RecentCalls()
    first = await recent.for_turn("here").perform_once(call(a=1, b=2), tool)
    assert await recent.for_turn("here").perform_once(call(b=2, a=1), tool) == first == ToolAnswer("1")
    for place, other in (("there", call(a=1, b=2)), ("here", call(a=1)), ("here", call("sell", a=1, b=2))):
        await recent.for_turn(place).perform_once(other, tool)
    assert tool.calls == 4


async def test_a_turn_that_calls_twice_means_two_calls(tool: Tool) -> None:
    recent = RecentCalls()
    for _ in range(2):
        turn = recent.for_turn("here")
        assert [(await turn.perform_once(call(), tool)).content for _ in range(2)] == ["1", "2"]


async def test_whoever_leaves_a_call_is_made_to_its_end(tool: Tool) -> None:
    recent = RecentCalls()
    tool.gate.clear()
    first = asyncio.ensure_future(recent.for_turn("here").perform_once(call(), tool))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.ensure_future(recent.for_turn("here").perform_once(call(), tool))
    tool.gate.set()
    assert (await second, tool.calls) == (ToolAnswer("1"), 1)


async def test_a_result_is_not_held_for_ever(tool: Tool) -> None:
    recent = RecentCalls(lifetime_s=0.0)
    await recent.for_turn("here").perform_once(call(), tool)
    for _ in range(5):
        await asyncio.sleep(0)
    assert await recent.for_turn("here").perform_once(call(), tool) == ToolAnswer("2")


async def test_a_call_that_did_not_reach_its_tool_is_tried_again(tool: Tool) -> None:
    recent = RecentCalls()

    async def unreachable() -> ToolAnswer:
        return ToolAnswer.unsent("buy", "it could not be reached")

    assert (await recent.for_turn("here").perform_once(call(), unreachable)).status == "error"
    assert await recent.for_turn("here").perform_once(call(), tool) == ToolAnswer("1")


async def test_a_call_that_failed_in_the_gateway_is_tried_again(tool: Tool) -> None:
    recent, tool.calls = RecentCalls(), 12
    with pytest.raises(RuntimeError):
        await recent.for_turn("here").perform_once(call(), tool)
    await asyncio.sleep(0)
    assert await recent.for_turn("here").perform_once(call(), tool) == ToolAnswer("14")


class Place:
    """Where a call is made."""


async def test_only_so_many_are_held(tool: Tool) -> None:
    """Also not by what would drop them later: results may be large, and calls many in that time."""
    recent, places = RecentCalls(), WeakSet[Place]()
    for _ in range(MAX_RESULTS + 20):
        places.add(place := Place())
        await recent.for_turn(place).perform_once(call(), tool)
        tool.calls = 0
    del place
    assert len(places) == MAX_RESULTS
