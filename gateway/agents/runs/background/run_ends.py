"""The ends of runs. A process that ends a run notifies all processes that share the database.

A caller may wait in one process for a background run that another process performs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from weakref import WeakValueDictionary

from storage.database import RUNS
from storage.records import Agent
from storage.run_records import Run
from storage.sql.store import Store

# The kind of the jobs that perform runs.
RUN_JOB = "run"
# The seconds between two reads of a run for whose end a caller waits. The reads matter if a notification was lost, and
# for live runs.
_READ_INTERVAL_S = 1.0


class RunEnds:
    """The ends of the runs of all processes, of which this process is notified."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # The events that are set at the end of a run for which a caller waits, by the run's uid.
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self._end_callbacks: list[Callable[[str], None]] = []
        self._loss_callbacks: list[Callable[[], None]] = []
        store.database.add_listener(RUNS, self._on_notification)

    @property
    def is_shared(self) -> bool:
        """True if other processes may use the database, too."""
        return self._store.database.is_shared

    def add_end_listener(self, on_end: Callable[[str], None], on_loss: Callable[[], None]) -> None:
        """Registers callbacks.

        on_end: the function to call with the uid of each run that any process has ended.
        on_loss: the function to call when notifications may have been lost.
        """
        self._end_callbacks.append(on_end)
        self._loss_callbacks.append(on_loss)

    def notify(self, run: Run) -> None:
        """Notifies all processes that a run has ended."""
        self._store.database.notify(RUNS, run.uid)
        self._handle_end(run.uid)

    def mark_awaited(self, run: Run) -> AbstractContextManager[None]:
        """Marks a run as one that a request waits for: a gateway that stops performs it nevertheless."""
        return self._store.jobs.leases.mark_awaited(RUN_JOB, run.agent_row)

    async def wait_for_end(self, run: Run) -> Run:
        """Waits for the end of a run. Returns the run as it is then. Raises: StoreError."""
        with self.mark_awaited(run):
            while True:
                end_event = self._events.setdefault(run.uid, asyncio.Event())
                stored_run = await self._store.runs.find_run(run.agent_row, run.id)
                if stored_run is None or stored_run.is_over:
                    return stored_run or run
                with suppress(TimeoutError):
                    async with asyncio.timeout(_READ_INTERVAL_S):
                        await end_event.wait()

    async def wait_for_accepted(self, agent: Agent, conversation_name: str) -> None:
        """Waits for the ends of the runs of a conversation that any process has accepted before this call.

        Each process has its own queue, so only the database has the order in which the runs were accepted.

        Raises: StoreError.
        """
        for run in await self._store.runs.list_accepted(agent.id, conversation_name):
            await self.wait_for_end(run)

    def _on_notification(self, payload: str | None) -> None:
        """Handles a notification of any process.

        payload: the text that `notify` sends; None: notifications may have been lost.
        """
        if payload is None:
            for callback in self._loss_callbacks:
                callback()
        else:
            # An earlier version sends the row of the run after the uid.
            self._handle_end(payload.partition(" ")[0])

    def _handle_end(self, uid: str) -> None:
        """Calls the listeners, and wakes the callers that wait for the end of the run."""
        for callback in self._end_callbacks:
            callback(uid)
        if (event := self._events.pop(uid, None)) is not None:
            event.set()
