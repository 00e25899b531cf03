"""Signs of life: between the items, never instead of them, and nothing is left running."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from gateway.run.upstream.keepalive import KEEP_ALIVE, await_with_keep_alives, with_keep_alives

OFTEN_S = 0.001


async def test_silence_beats_and_no_item_is_lost() -> None:
    gate = asyncio.Event()

    async def items() -> AsyncIterator[bytes]:
        yield b"one"
        await gate.wait()
        yield b"two"

    got = []
    async for item in with_keep_alives(items(), OFTEN_S):
        if item is KEEP_ALIVE:
            gate.set()
        else:
            got.append(item)
    assert got == [b"one", b"two"]
    assert gate.is_set()


async def test_an_error_of_the_items_is_raised() -> None:
    async def items() -> AsyncIterator[bytes]:
        yield b"one"
        raise ValueError("broken")

    beating = with_keep_alives(items(), 10.0)
    assert await anext(beating) == b"one"
    with pytest.raises(ValueError, match="broken"):
        await anext(beating)


async def test_closing_early_ends_the_read_that_is_under_way() -> None:
    ended = asyncio.Event()

    async def items() -> AsyncIterator[bytes]:
        try:
            await asyncio.Event().wait()
            yield b"never"
        finally:
            ended.set()

    beating = with_keep_alives(items(), OFTEN_S)
    assert await anext(beating) is KEEP_ALIVE
    await beating.aclose()
    assert ended.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_a_failure_that_nobody_waits_for_any_more_is_no_error_of_the_loop() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    gate = asyncio.Event()

    async def items() -> AsyncIterator[bytes]:
        await gate.wait()
        yield await work()

    async def work() -> bytes:
        await gate.wait()
        raise ValueError("broken")

    async def leave() -> None:
        gate.set()
        await asyncio.sleep(0.01)  # the work fails meanwhile
        raise ConnectionError

    beating = with_keep_alives(items(), OFTEN_S)
    assert await anext(beating) is KEEP_ALIVE
    with suppress(ConnectionError):
        await leave()
    await beating.aclose()
    gate.clear()
    with pytest.raises(ConnectionError):
        await await_with_keep_alives(work(), OFTEN_S, leave)
    del beating
    gc.collect()
    assert complaints == []


async def test_waiting_beats_until_the_result_is_there() -> None:
    gate, beats = asyncio.Event(), 0

    async def work() -> str:
        await gate.wait()
        return "done"

    async def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 3:
            gate.set()

    assert (await await_with_keep_alives(work(), OFTEN_S, beat), beats >= 3) == ("done", True)


async def test_a_beat_that_fails_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def beat() -> None:
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError):
        await await_with_keep_alives(work(), OFTEN_S, beat)
    assert ended.is_set()
