"""Keep-alive comments for a client while its upstream is silent within a reply.

A comment may come between any two events of a stream, and clients ignore it. Watching for silence costs a task for each
read, so it is done only if the settings ask for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any, Final, TypeVar

from gateway.core.turn import commands

T = TypeVar("T")
# The comment itself, so that a relay can write it as it is. It stands between items of any type: compare by identity.
KEEP_ALIVE: Final[Any] = commands.KEEP_ALIVE
_EXHAUSTED: Final[Any] = object()


async def with_keep_alives(items: AsyncIterator[T], every_s: float) -> AsyncGenerator[T]:
    """Yields the items, and `KEEP_ALIVE` after each `every_s` seconds without one."""
    # A task, because a wait that ran out must not cancel the read: its item would be lost.
    task: asyncio.Task[Any] | None = None
    try:
        while True:
            task = asyncio.ensure_future(_next_or_exhausted(items))
            while not (await asyncio.wait((task,), timeout=every_s))[0]:
                yield KEEP_ALIVE
            item = task.result()
            if item is _EXHAUSTED:
                return
            yield item
    finally:
        if task is not None:
            await _cancel_and_wait(task)


def keep_alive(items: AsyncIterator[T], every_s: float) -> AbstractAsyncContextManager[AsyncIterator[T]]:
    """Returns a context with the items of `with_keep_alives`; with `every_s` 0, with the items alone."""
    return aclosing(with_keep_alives(items, every_s)) if every_s else nullcontext(items)


async def await_with_keep_alives(
    work: Awaitable[T], every_s: float, send: Callable[[], Awaitable[None]]
) -> T:
    """Returns the result of `work`; calls `send` after each `every_s` seconds of waiting for it."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait((task,), timeout=every_s))[0]:
            await send()
        return task.result()
    finally:
        await _cancel_and_wait(task)


async def _next_or_exhausted(items: AsyncIterator[T]) -> T:
    return await anext(items, _EXHAUSTED)


async def _cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancels a task, and waits for its end."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    # The caller has left, so a failure does not matter. If it were not read, asyncio would log it as an error.
    if not task.cancelled():
        task.exception()
