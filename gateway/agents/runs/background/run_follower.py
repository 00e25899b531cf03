"""Reads runs in the background for clients, whichever process performs them: their events, and their ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec import Struct

from gateway.agents.runs.background.open_runs import OpenRuns
from gateway.agents.runs.background.remote_runs import read_remote_events
from gateway.agents.runs.background.run_dialect import RunDialect
from gateway.agents.runs.background.run_ends import RunEnds
from gateway.agents.runs.background.run_logs import RunLogs
from storage.run_records import Run
from storage.sql.store import Store


class RunFollower(Struct, frozen=True):
    """Follows runs for their readers."""

    # The open background runs of this process.
    open_runs: OpenRuns
    # The event logs of this process's runs.
    logs: RunLogs
    # The ends of the runs of all processes.
    ends: RunEnds
    # The store with the events of runs.
    store: Store
    # The dialect in which events are logged.
    dialect: RunDialect

    async def wait_for_end(self, run: Run) -> Run:
        """Waits for the end of a run. Returns the run as it is then.

        run: a run in the background, or the live run of the same send.
        """
        if not self.ends.is_shared and (open_run := self.open_runs.find(run.uid)) is not None:
            await open_run.end_event.wait()
        return await self.ends.wait_for_end(run)

    async def read_events(self, run: Run, after: int) -> AsyncIterator[bytes]:
        """Yields the events of a run, stored and to come. Without a log, yields whole messages at the run's end.

        after: the number of the last event that the reader has; 0: the reader has none.

        Raises: StoreError.
        """
        with self.ends.mark_awaited(run):
            open_run = self.open_runs.find(run.uid)
            log = None if open_run is None else open_run.log or await self.logs.open_ahead(open_run, run)
            last_event = b""
            is_logged = log is not None
            if log is not None:
                async for last_event in log.read_after(after):
                    yield last_event
                await log.flush()
                after = max(after, log.next_number - 1)
            if self.ends.is_shared and not self.dialect.is_end(last_event):
                # Another attempt goes on, perhaps in another process.
                async for number, last_event in read_remote_events(self.store, self.dialect, run, after):
                    after, is_logged = number, True
                    yield last_event
            if not self.dialect.is_end(last_event):
                ended_run = await self.wait_for_end(run)
                async for event in self.logs.read_ended(ended_run, after, is_logged=is_logged):
                    yield event
