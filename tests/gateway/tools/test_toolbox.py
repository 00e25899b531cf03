"""Calls of one round run side by side where they are independent, and in their order where they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.core.turn.commands import RunTool
from gateway.run.tools.toolbox import MAX_PARALLEL, NO_TOOLS, ToolAnswer, Toolbox
from storage.errors import StoreUnavailable
from tests.gateway.tools.run_round import run_all


class Doors:
    """Each call waits until its door is opened. begun, ended: ids in the order in which it happened."""

    def __init__(self, serial_groups: Mapping[str, str] | None = None) -> None:
        self._lanes = serial_groups or {}
        self._open: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []

    def list_definitions(self) -> list[dict[str, Any]]:
        return []

    def owns(self, name: str) -> bool:
        return name == "wait"

    def find_serial_group(self, call: RunTool) -> str | None:
        return self._lanes.get(call.call_id)

    def door(self, id: str) -> asyncio.Event:
        return self._open.setdefault(id, asyncio.Event())

    async def run(self, call: RunTool) -> ToolAnswer:
        self.begun.append(call.call_id)
        try:
            await self.door(call.call_id).wait()
        except asyncio.CancelledError:
            self.cancelled.append(call.call_id)
            raise
        if "fails" in call.arguments:
            raise call.arguments["fails"]
        self.ended.append(call.call_id)
        return ToolAnswer(f"done {call.call_id}")


def calls(*ids: str, **arguments: Any) -> list[RunTool]:
    return [RunTool(id, "wait", arguments) for id in ids]


async def contents(running: asyncio.Future[list[ToolAnswer]]) -> list[str]:
    return [answer.content for answer in await running]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_independent_calls_run_side_by_side_and_answer_in_their_order() -> None:
    box = Doors()
    running = asyncio.ensure_future(run_all(box, calls("a", "b", "c")))
    await settle()
    assert box.begun == ["a", "b", "c"]
    for id in "cba":
        box.door(id).set()
        await settle()
    assert box.ended == ["c", "b", "a"]
    assert await contents(running) == ["done a", "done b", "done c"]


async def test_calls_of_one_lane_keep_their_order() -> None:
    box = Doors({"a": "block human", "c": "block human"})
    running = asyncio.ensure_future(run_all(box, calls("a", "b", "c")))
    box.door("b").set()
    box.door("c").set()
    await settle()
    assert box.begun == ["a", "b"]
    box.door("a").set()
    assert await contents(running) == ["done a", "done b", "done c"]
    assert box.ended == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("error", "is_logged_as"),
    [(ValueError("secret detail"), "ERROR"), (StoreUnavailable("the disk is gone"), "WARNING")],
)
async def test_a_call_that_fails_is_reported_to_the_model_and_fails_no_other(
    caplog: pytest.LogCaptureFixture, error: Exception, is_logged_as: str
) -> None:
    box = Doors()
    for id in "ab":
        box.door(id).set()
    failing, fine = calls("a", fails=error), calls("b")
    results = await run_all(box, [*failing, *fine])
    assert results[1] == ToolAnswer("done b")
    assert results[0].status == "error"
    assert results[0].content.startswith("Error:")
    assert str(error) not in results[0].content
    (record,) = caplog.records
    # A store that is down is no fault of the gateway's, and shows no trace.
    assert (record.levelname, record.exc_info is not None) == (is_logged_as, is_logged_as == "ERROR")


@pytest.mark.parametrize("ids", [("a",), ("a", "b")])
async def test_a_client_that_leaves_leaves_no_call_running(ids: tuple[str, ...]) -> None:
    box = Doors()
    running = asyncio.ensure_future(run_all(box, calls(*ids)))
    await settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(box.cancelled) == list(ids)
    assert box.ended == []


def test_a_test_double_is_a_toolbox() -> None:
    box: Toolbox = Doors()
    assert box.owns("wait")
    assert not box.owns("walk")


async def test_a_call_of_another_box_is_not_run() -> None:
    box = Doors()
    (result,) = await run_all(box, [RunTool("a", "walk", {})])
    assert result.content.startswith("Error:")
    assert box.begun == []


async def test_serial_calls_wait_for_each_other_and_for_no_other() -> None:
    box = Doors()
    made = [RunTool(id, "wait", {}, is_serial=id != "b") for id in "abc"]
    running = asyncio.ensure_future(run_all(box, made))
    await settle()
    assert box.begun == ["a", "b"]
    for id in "abc":
        box.door(id).set()
    assert await contents(running) == ["done a", "done b", "done c"]


async def test_only_so_many_calls_run_side_by_side() -> None:
    box = Doors()
    ids = [f"call{n}" for n in range(MAX_PARALLEL + 2)]
    running = asyncio.ensure_future(run_all(box, calls(*ids)))
    await settle()
    assert box.begun == ids[:MAX_PARALLEL]
    for id in ids:
        box.door(id).set()
    assert await contents(running) == [f"done {id}" for id in ids]


async def test_where_no_tools_are_offered_a_call_is_an_error() -> None:
    assert NO_TOOLS.list_definitions() == []
    for answers in (await run_all(NO_TOOLS, calls("a", "b")), [await NO_TOOLS.run(*calls("a"))]):
        assert {(each.status, each.content) for each in answers} == {
            ("error", "Error: wait is not available at the moment.")
        }
