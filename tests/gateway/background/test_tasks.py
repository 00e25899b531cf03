"""Whatever goes wrong in a step, the next one comes."""

from __future__ import annotations

import asyncio

import pytest

from gateway.run.background.tasks import PeriodicTask
from storage.errors import StoreLocked


@pytest.mark.parametrize("error", [StoreLocked("held"), KeyError("a bug of ours")])
async def test_a_step_that_fails_is_logged_and_not_the_last(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    count, seen = 0, asyncio.Event()

    async def step() -> float | None:
        nonlocal count
        count += 1
        seen.set()
        if count == 1:
            raise error
        return None

    periodic = PeriodicTask("work", step)
    task = asyncio.create_task(periodic.run())
    await seen.wait()
    seen.clear()
    periodic.wake()
    await seen.wait()
    assert count == 2
    assert [record.message[:22] for record in caplog.records] == ["Background task 'work'"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_wake_up_within_a_step_leads_to_another_one() -> None:
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
