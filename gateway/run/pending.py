"""Writes that outlive their request, because it was answered, failed or was cut before the store had its turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from storage.errors import StoreError
from storage.records import Scope

_log = logging.getLogger("mnemogate")
# Rounds of the event loop from a connection that closes to the end of its turn. Measured: 1 to 3 where the next request
# comes at once, as it does when a voice agent is interrupted.
LEAVING_TICKS = 5


class Pending:
    """Writes that no reply waits for any more.

    The process waits for them when it stops, and so does the next request of a client that hung up or got an error.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: dict[asyncio.Task[None], Scope] = {}
        self._under_way: dict[Scope, int] = {}

    def began(self, scope: Scope) -> None:
        """Notes that a turn of this scope is being answered."""
        self._under_way[scope] = self._under_way.get(scope, 0) + 1

    def ended(self, scope: Scope) -> None:
        left = self._under_way.pop(scope) - 1
        if left:
            self._under_way[scope] = left

    def add(self, work: Awaitable[object], what: str, left: Scope | None = None) -> None:
        """Takes over a write.

        what: its name, which begins a line of the log.
        left: the scope of a client with a reply without a proper end.
        """
        task = asyncio.ensure_future(self._run(work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if left is not None:
            self._left[task] = left
            task.add_done_callback(self._left.pop)

    async def written(self, scope: Scope, timeout_s: float) -> None:
        """Waits until the turns that this scope's clients left, or that failed, are on disk.

        A conversation is recognised by what is stored, so the next request has to come after the write.
        """
        if scope in self._under_way:
            for _ in range(LEAVING_TICKS):
                await asyncio.sleep(0)
        if self._left and (tasks := [task for task, left in self._left.items() if left == scope]):
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _run(self, work: Awaitable[object], what: str) -> None:
        try:
            await work
        except StoreError as error:
            _log.warning("%s could not be stored: %s", what, error.message)
        except Exception:
            _log.exception("%s could not be stored, by a fault in the gateway.", what)

    async def drain(self, timeout_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
