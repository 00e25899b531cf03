"""The runs that have not ended: any run can be cancelled, and a run that this process performs is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gateway.agents.runs.background.run_ends import RunEnds
from gateway.agents.runs.run_memory import RunMemory
from gateway.core.turn.stop_reason import StopReason
from gateway.run.turn import TurnRun
from storage.listing import Page, RunFilter
from storage.records import Agent
from storage.run_records import Run, RunState
from storage.sql.store import Store

# The states of a run that has not ended.
LIVE_STATES = (RunState.CREATED, RunState.RUNNING)
# The most runs that one request cancels.
_MAX_CANCELLED = 1000


class _LiveRun(NamedTuple):
    """A run that this process performs."""

    # The row of its agent.
    agent_row: int
    # The turn of the run, which can be stopped.
    turn: TurnRun


class LiveRuns:
    """The turns of the runs that this process performs. Cancels runs of all processes."""

    def __init__(self, store: Store, ends: RunEnds, now: Callable[[], float]) -> None:
        self._store = store
        self._ends = ends
        self._now = now
        # The runs by uid, because a run may have no row yet.
        self._runs: dict[str, _LiveRun] = {}

    async def perform(self, turn: TurnRun, memory: RunMemory) -> int:
        """Performs the turn of a run, which can be stopped meanwhile. Returns the status of its reply.

        If the run has been cancelled or deleted before this call, it is not performed, and 200 is returned.
        """
        run = memory.run
        self._runs[run.uid] = _LiveRun(memory.context.agent.id, turn)
        try:
            # Such a run was stored some time ago, and may have been cancelled before it was added to `_runs`.
            if run.background or run.state is RunState.CREATED:
                stored_run = await self._store.runs.find_run(run.agent_row, run.id)
                if stored_run is None or stored_run.is_over:
                    # The caller reports the stored run, and of a deleted run the state that it had here.
                    memory.run = stored_run or run
                    return 200
            return await turn.run()
        finally:
            del self._runs[run.uid]

    async def cancel(self, run: Run) -> Run:
        """Cancels a run, if it has not ended. Returns the run as it is now."""
        self.stop(run.uid)
        ended_run = await self._store.runs.end_run(
            run.agent_row, run.id, RunState.CANCELLED, StopReason.CANCELLED, self._now()
        )
        self._ends.notify(run)
        return ended_run

    async def cancel_all(self, agent: Agent, conversation_row: int | None = None) -> list[Run]:
        """Cancels the newest thousand live runs of an agent. Returns these runs as they are now.

        conversation_row: the row of the only conversation with runs to be cancelled; None: all conversations.
        """
        live = RunFilter(agent.id, conversation_row, LIVE_STATES)
        page: Page[int] = Page(limit=_MAX_CANCELLED)
        entries = await self._store.runs.list_runs(agent.scope.project, live, page)
        return [await self.cancel(entry.run) for entry in entries]

    def stop(self, uid: str) -> None:
        """Stops a run that was ended, if this process performs it."""
        if uid in self._runs:
            self._runs[uid].turn.stop(StopReason.CANCELLED)

    def stop_deleted(self, agent_row: int) -> None:
        """Stops the runs of an agent that is deleted; their clients get an error, since nothing can be stored."""
        for run in self._runs.values():
            if run.agent_row == agent_row:
                run.turn.stop(StopReason.CANCELLED)
