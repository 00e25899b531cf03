"""Runs in the background that an earlier process left open, and runs that have lost their jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Set

from msgspec import Struct

from gateway.agents.runs.abandoned_runs import ABANDONED_ERROR
from gateway.agents.runs.background.open_runs import OpenRuns, RunPhase
from gateway.agents.runs.background.run_logs import RunLogs
from gateway.agents.runs.live_runs import LiveRuns
from gateway.agents.runs.stored_run import fail_run
from gateway.core.conversation.kind import QueueName
from gateway.run.memory.keeper import MemoryKeeper
from storage.errors import NotFound
from storage.listing import RunEntry
from storage.run_records import Run, RunState

_PAGE = 1000  # the most runs that one read returns


class RunRecovery(Struct, frozen=True):
    """Opens the stored runs after a restart, and closes open runs that no job performs."""

    # The memory, with the store and the clock.
    keeper: MemoryKeeper
    # The open background runs of this process.
    open_runs: OpenRuns
    # Cancels runs, and stops those that this process performs.
    live_runs: LiveRuns
    # The event logs of this process's runs.
    logs: RunLogs

    async def reserve_tickets(self) -> None:
        """Reserves tickets for the runs that earlier processes left open. Called before requests are served.

        Raises: StoreError, after which it may be called again.
        """
        jobless_runs = []
        async for entry, has_job in self._list_open_runs():
            if not has_job:
                jobless_runs.append(entry.run)
            elif self.open_runs.find(entry.run.uid) is None:  # otherwise the job has begun already
                self.open_runs.add(entry.run.uid, QueueName(entry.agent_uid, entry.conversation_name))
        for run in jobless_runs:
            await fail_run(self.keeper.store, run, ABANDONED_ERROR, self.keeper.now())
        # Lets each reservation enter its queue.
        await asyncio.sleep(0)

    async def close_jobless(self) -> None:
        """Cancels runs without a job, and closes runs that are deleted or have ended. Raises: StoreError."""
        if not self.open_runs:
            return
        open_uids = {run.uid for run in self.open_runs if run.phase is not RunPhase.ACCEPTING}
        for uid in open_uids - await self.cancel_jobless():
            run = await self._find_run(uid)
            open_run = self.open_runs.find(uid)  # None if the run has ended meanwhile
            if run is None and open_run is not None:
                self.logs.close_deleted(open_run)
                self.open_runs.close(open_run)
            elif run is not None and run.state is RunState.CANCELLED:
                self.stop_and_close(uid)
            else:
                self._close_ended(uid)

    async def cancel_jobless(self) -> Set[str]:
        """Cancels the runs of all processes that have no job, since an operator has dropped it.

        Returns the uids of the runs that had not ended before.

        Raises: StoreError.
        """
        stored_uids: set[str] = set()
        jobless_runs = []
        async for entry, has_job in self._list_open_runs():
            stored_uids.add(entry.run.uid)
            if not has_job:
                jobless_runs.append(entry.run)
        for run in jobless_runs:
            await self.live_runs.cancel(run)
        return stored_uids

    async def _list_open_runs(self) -> AsyncIterator[tuple[RunEntry, bool]]:
        """Yields the runs of all processes that have not ended, and whether each has a job. Raises: StoreError."""
        after, is_last_page = 0, False
        while not is_last_page:
            page = await self.keeper.store.runs.list_open_background(after=after, limit=_PAGE)
            for entry, has_job in page:
                after = entry.run.id
                yield entry, has_job
            is_last_page = len(page) < _PAGE

    async def _find_run(self, uid: str) -> Run | None:
        """Returns a run, or None if its agent or its conversation was deleted."""
        try:
            return (await self.keeper.store.runs.get(None, uid)).run
        except NotFound:
            return None

    def stop_and_close(self, uid: str) -> None:
        """Stops a run that was cancelled, and closes it."""
        self.live_runs.stop(uid)
        self._close_ended(uid)

    def _close_ended(self, uid: str) -> None:
        """Closes a run that has ended, unless its job runs in this process: then the job closes the run."""
        open_run = self.open_runs.find(uid)
        if open_run is not None and open_run.phase is not RunPhase.PERFORMED:
            if open_run.log is not None:
                open_run.log.abandon()
            self.open_runs.close(open_run)
