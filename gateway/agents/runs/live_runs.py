"""The runs that this process performs now, so that they can be stopped when they are ended from outside."""

from __future__ import annotations

from typing import NamedTuple

from gateway.agents.runs.steps import RunMemory
from gateway.core.turn.stop_reason import StopReason
from gateway.run.turn import TurnRun
from storage.records import RunState
from storage.sql.store import Store


class _LiveRun(NamedTuple):
    """A run that is performed here."""

    # The row of its agent.
    agent_row: int
    turn: TurnRun


class LiveRuns:
    """The turns of the runs that are performed here."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # The runs by uid, because a run may have no row yet.
        self._runs: dict[str, _LiveRun] = {}

    async def perform(self, turn: TurnRun, memory: RunMemory) -> int:
        """Performs the turn of a run, which can be stopped meanwhile. Returns the status of its reply.

        Returns 200 without performing it if the run has been cancelled or deleted before this call.
        """
        run = memory.run
        self._runs[run.uid] = _LiveRun(memory.context.agent.id, turn)
        try:
            # These were stored some time ago, so they may have been cancelled before they were added to `_runs`.
            if run.background or run.state is RunState.CREATED:
                stored_run = await self._store.runs.find_run(run.agent_row, run.id)
                if stored_run is None or stored_run.is_over:
                    # The caller reports the run as it is stored; a deleted one as it was.
                    memory.run = stored_run or run
                    return 200
            return await turn.run()
        finally:
            del self._runs[run.uid]

    def stop(self, uid: str) -> None:
        """Stops a run that was ended, if it is performed here."""
        if uid in self._runs:
            self._runs[uid].turn.stop(StopReason.CANCELLED)

    def stop_deleted(self, agent_row: int) -> None:
        """Stops the runs of an agent that is deleted; their clients get an error, since nothing can be stored."""
        for run in self._runs.values():
            if run.agent_row == agent_row:
                run.turn.stop(StopReason.CANCELLED)
