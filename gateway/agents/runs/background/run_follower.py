"""Reads runs in the background for clients, whichever process performs them: their events, and their ends.

Where gateways share a database, any of them may perform a run, and the client may read it from any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from msgspec import Struct

from gateway.agents.runs.background.open_runs import OpenRuns
from gateway.agents.runs.background.run_dialect import RunDialect
from gateway.agents.runs.background.run_ends import RunEnds
from gateway.agents.runs.background.run_logs import RunLogs
from gateway.run.event_log import BATCH_S, load_events
from storage.run_records import Run
from storage.sql.store import Store

# The wait for more events after a run has ended, in seconds, if it has some events and if it has none. Not measured:
# an event is written within a fraction of a second, unless its process has died.
_WAIT_FOR_REST_S = 5.0
_WAIT_FOR_ANY_S = 0.5


@dataclass(slots=True)
class _ReadPosition:
    """The position of a reader among the events of a run."""

    # The number of the last event that the reader has; 0: the reader has none.
    number: int
    # True: the run has a log, since the reader has read it in this process or from the store.
    is_logged: bool = False


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
        # The event of a run that no other process can perform saves `ends` from reading the run each second.
        if not self.ends.is_shared and (open_run := self.open_runs.find(run.uid)) is not None:
            await open_run.end_event.wait()
        return await self.ends.wait_for_end(run)

    async def read_events(self, run: Run, after: int) -> AsyncIterator[bytes]:
        """Yields the events of a run, stored and to come. Without a log, yields whole messages at the run's end.

        after: the number of the last event that the reader has; 0: the reader has none.

        Raises: StoreError.
        """
        position = _ReadPosition(after)
        last_event = b""
        with self.ends.mark_awaited(run):
            # Each source yields the events that the sources before it lack.
            for read in (self._read_log, self._read_shared_store, self._read_ended):
                async for last_event in read(run, position):
                    yield last_event
                if self.dialect.is_end(last_event):
                    return

    async def _read_log(self, run: Run, position: _ReadPosition) -> AsyncIterator[bytes]:
        """Yields the events of an attempt of this process, until the attempt ends or is broken off."""
        open_run = self.open_runs.find(run.uid)
        log = None if open_run is None else open_run.log or await self.logs.open_ahead(open_run, run)
        if log is None:
            return
        async for event in log.read_after(position.number):
            yield event
        await log.flush()
        position.number = max(position.number, log.next_number - 1)
        position.is_logged = True

    async def _read_shared_store(self, run: Run, position: _ReadPosition) -> AsyncIterator[bytes]:
        """Yields the events of the attempts of other processes, stored and to come.

        If the process of the run has died, or the run is deleted, the last events may be missing.
        """
        if not self.ends.is_shared:
            return
        clock = asyncio.get_running_loop().time
        over_since = 0.0
        has_events = False
        while True:
            stored_run = await self.store.runs.find_run(run.agent_row, run.id)
            async for number, event in load_events(self.store, run, position.number):
                position.number = number
                position.is_logged = True
                has_events = True
                yield event
                if self.dialect.is_end(event):
                    return
            if stored_run is None:
                return
            if stored_run.is_over:
                over_since = over_since or clock()
                if clock() >= over_since + (_WAIT_FOR_REST_S if has_events else _WAIT_FOR_ANY_S):
                    return
            await asyncio.sleep(2 * BATCH_S)

    async def _read_ended(self, run: Run, position: _ReadPosition) -> AsyncIterator[bytes]:
        """Yields the events that follow when the run has ended."""
        ended_run = await self.wait_for_end(run)
        async for event in self.logs.read_ended(ended_run, position.number, is_logged=position.is_logged):
            yield event
