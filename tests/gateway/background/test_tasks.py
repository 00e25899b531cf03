"""Whatever goes wrong in a step, the next one comes."""

from __future__ import annotations

import asyncio

import pytest

from gateway.run.background.tasks import PeriodicTask
from storage.errors import Locked


@pytest.mark.parametrize(("error", "starts"), [(Locked("held"), 2), (KeyError("a bug of ours"), 1)])
async def test_a_step_that_fails_is_logged_and_not_the_last(
    error: Exception, starts: int, caplog: pytest.LogCaptureFixture
) -> None:
    count, begun, seen = 0, 0, asyncio.Event()

    async def step() -> float | None:
        nonlocal count
        count += 1
        seen.set()
        if count == 1:
            raise error
        return None

    async def start() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise error

    periodic = PeriodicTask("work", step, start)
    task = asyncio.create_task(periodic.run())
    await seen.wait()
    seen.clear()
    periodic.wake()
    await seen.wait()
    assert (count, begun) == (2, starts)  # what a database that was down has kept from beginning begins later
    assert [record.message[:22] for record in caplog.records] == ["Background task 'work'"] * 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_happens_within_a_step_leads_to_another_one() -> None:
    """The step may have looked before it happened, and has named a time before."""
    woken, pauses = asyncio.Event(), [None, 0.0]

    async def step() -> float | None:
        if not pauses:
            woken.set()
            return None
        if len(pauses) == 1 and periodic.sleeps_until_woken:
            periodic.wake()
        return pauses.pop()

    periodic = PeriodicTask("work", step)
    task = asyncio.create_task(periodic.run())
    await woken.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
