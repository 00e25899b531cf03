"""Work that outlives its request, mostly writes: the request was answered, failed or was cancelled before their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Set
from contextlib import contextmanager, suppress
from typing import Protocol

from storage.errors import StoreError
from storage.records import Scope
from storage.task_set import TaskSet

_log = logging.getLogger("mnemogate")
# The rounds of the event loop that a request waits for the gateway to learn that the client has left the turn before,
# as when a voice agent is interrupted. Measured: the gateway learns it in 2 at most.
LEAVING_TICKS = 5


class Client(Protocol):
    """The client of a turn, which may leave."""

    @property
    def is_gone(self) -> bool:
        """True once the client has left."""


class PendingWrites:
    """The writes, and other work, that go on after their requests.

    When the process stops, it waits for them; the next request of a memory waits for the writes of its turns.
    """

    def __init__(self) -> None:
        # The tasks of the work.
        self._tasks = TaskSet()
        # The scope of each turn that is being written, by the task that writes it.
        self._awaited_scopes: dict[asyncio.Task[None], Scope] = {}
        # The clients of the turns that are being answered, by scope and by a future of each turn, which is done once
        # the write of the turn has begun.
        self._open_turns: dict[Scope, dict[asyncio.Future[None], Client]] = {}

    @contextmanager
    def track_turn(self, scope: Scope, client: Client) -> Iterator[None]:
        """Returns a context in which a turn of this scope counts as being answered."""
        end = asyncio.get_running_loop().create_future()
        turns = self._open_turns.setdefault(scope, {})
        turns[end] = client
        try:
            yield
        finally:
            del turns[end]
            if not turns:
                del self._open_turns[scope]
            end.set_result(None)

    def add(self, work: Awaitable[object], subject: str, turn_scope: Scope | None = None) -> None:
        """Adds a write, or other work, that goes on after its request.

        subject: the name of the work, with which a line of the log begins.
        turn_scope: the scope of the turn that is written; the scope's next request waits for it. None: the work writes
            no turn.
        """
        task = self._tasks.start(_log_failure(work, subject))
        if turn_scope is not None:
            self._awaited_scopes[task] = turn_scope
            task.add_done_callback(self._awaited_scopes.pop)

    async def wait_written(self, scope: Scope, timeout_s: float) -> None:
        """Waits until the turns of this scope that were left, failed, or were answered before their commit are on disk.

        The next request has to be matched after the write, since a conversation is recognised by its stored messages.
        """
        if scope in self._open_turns or self._awaited_scopes:
            await self._wait_for({scope}, timeout_s)

    async def wait_project_written(
        self, project: str, timeout_s: float, *, only_unnamed: bool = False
    ) -> None:
        """Waits for the turns of a project, as `wait_written` does for the turns of a scope.

        only_unnamed: True: waits only for turns that name no user.
        """
        scopes = {
            each
            for each in (*self._open_turns, *self._awaited_scopes.values())
            if each.project == project and not (only_unnamed and each.spans_conversations)
        }
        if scopes:
            await self._wait_for(scopes, timeout_s)

    async def _wait_for(self, scopes: Set[Scope], timeout_s: float) -> None:
        """Waits for the turns that clients have left, and then for the writes, but at most `timeout_s` seconds."""
        if not scopes.isdisjoint(self._open_turns):
            for _ in range(LEAVING_TICKS):
                await asyncio.sleep(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while ends := self._list_ends_of_left_turns(scopes):
                    await asyncio.wait(ends)
                if tasks := [task for task, scope in self._awaited_scopes.items() if scope in scopes]:
                    await asyncio.wait(tasks)

    def _list_ends_of_left_turns(self, scopes: Set[Scope]) -> list[asyncio.Future[None]]:
        """Returns the ends of the turns that are being answered to clients which have left."""
        turns = [turn for scope in scopes for turn in self._open_turns.get(scope, {}).items()]
        return [end for end, client in turns if client.is_gone]

    async def drain(self, timeout_s: float) -> None:
        """Waits until all work is done, for at most `timeout_s`."""
        await self._tasks.drain(timeout_s)


async def _log_failure(work: Awaitable[object], subject: str) -> None:
    """Waits for work, and logs its error if it fails. subject: the name of the work, for the log."""
    try:
        await work
    except StoreError as error:
        _log.warning("%s could not be stored: %s", subject, error.message)
    except Exception:
        _log.exception("%s could not be stored, by a fault in the gateway.", subject)
