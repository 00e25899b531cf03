"""Writes that outlive their request: what was answered, failed or hung up before the store had it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from storage.errors import StoreError
from storage.records import Scope

__all__ = ["Pending"]

_log = logging.getLogger("mnemogate")
# Turns of the loop from a connection that closes to the end of its turn: 1 to 3 where the next request comes with it.
LEAVING_TICKS = 5


class Pending:
    """Writes that no reply waits for any more: the process does when it stops, and who hung up and speaks on."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: dict[asyncio.Task[None], Scope] = {}
        self._under_way: dict[Scope, int] = {}

    def began(self, scope: Scope) -> None:
        """One of its turns is being answered."""
        self._under_way[scope] = self._under_way.get(scope, 0) + 1

    def ended(self, scope: Scope) -> None:
        left = self._under_way.pop(scope) - 1
        if left:
            self._under_way[scope] = left

    def add(self, work: Awaitable[object], what: str, left: Scope | None = None) -> None:
        """left: whose client did not stay for the end of its turn."""
        task = asyncio.ensure_future(self._run(work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if left is not None:
            self._left[task] = left
            task.add_done_callback(self._left.pop)

    async def written(self, scope: Scope, timeout_s: float) -> None:
        """Until the turns are on disk that this scope's clients left: what the store has not cannot be recognised."""
        if scope in self._under_way:
            for _ in range(LEAVING_TICKS):
                await asyncio.sleep(0)
        if self._left and (tasks := [task for task, left in self._left.items() if left == scope]):
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _run(self, work: Awaitable[object], what: str) -> None:
        try:
            await work
        except StoreError as error:
            _log.warning("%s was not written: %s", what, error.message)
        except Exception:
            _log.exception("%s was not written", what)

    async def drain(self, timeout_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
