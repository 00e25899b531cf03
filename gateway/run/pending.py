"""Writes that outlive their request, because it was answered, failed or was cut before they were done."""

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


class PendingWrites:
    """The writes that go on after their requests.

    The process waits for them when it stops, and so does the next request of their memory.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._awaited: dict[asyncio.Task[None], Scope] = {}
        self._open_turns: dict[Scope, int] = {}

    def turn_began(self, scope: Scope) -> None:
        """Counts a turn of this scope as being answered, until `turn_ended`."""
        self._open_turns[scope] = self._open_turns.get(scope, 0) + 1

    def turn_ended(self, scope: Scope) -> None:
        remaining = self._open_turns.pop(scope) - 1
        if remaining:
            self._open_turns[scope] = remaining

    def add(self, work: Awaitable[object], what: str, awaited_by: Scope | None = None) -> None:
        """Takes over a write.

        what: its name, which begins a line of the log.
        awaited_by: the scope whose next request waits for the write, which is of a turn.
        """
        task = asyncio.ensure_future(self._run(work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if awaited_by is not None:
            self._awaited[task] = awaited_by
            task.add_done_callback(self._awaited.pop)

    async def wait_written(self, scope: Scope, timeout_s: float) -> None:
        """Waits until the turns of this scope that were left, failed, or were answered before their commit are on disk.

        A conversation is recognised by what is stored, so the next request has to come after the write.
        """
        if scope in self._open_turns:
            # A turn whose client has just hung up comes to `add` within these rounds.
            for _ in range(LEAVING_TICKS):
                await asyncio.sleep(0)
        if self._awaited and (tasks := [task for task, by in self._awaited.items() if by == scope]):
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
