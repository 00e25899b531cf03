"""The runs that have not ended: those that this process performs can be stopped, and all of them cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gateway.agents.runs.background.ends import RunEnds
from gateway.agents.runs.steps import RunMemory
from gateway.core.turn.stop_reason import StopReason
from gateway.run.turn import TurnRun
from storage.listing import Page, RunFilter
from storage.records import Agent
from storage.run_records import Run, RunState
from storage.sql.store import Store

# The most runs that one request cancels.
_MAX_CANCELLED = 1000


class _LiveRun(NamedTuple):
    """A run that is performed here."""

    # The row of its agent.
    agent_row: int
    turn: TurnRun


class LiveRuns:
    """The turns of the runs that are performed here, and the cancelling of runs wherever they are performed."""

    def __init__(self, store: Store, ends: RunEnds, now: Callable[[], float]) -> None:
        self._store, self._ends, self._now = store, ends, now
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

    async def cancel(self, run: Run) -> Run:
        """Cancels a run, if it has not ended. Returns the run as it is now."""
        self.stop(run.uid)
        ended = await self._store.runs.end_run(
            run.agent_row, run.id, RunState.CANCELLED, StopReason.CANCELLED, self._now()
        )
        self._ends.notify(run)
        return ended

    async def cancel_all(self, agent: Agent, conversation_row: int | None = None) -> list[Run]:
        """Cancels the newest thousand live runs of an agent. Returns them as they are now.

        conversation_row: of the one conversation with runs to be cancelled; None: of all conversations.
        """
        live = RunFilter(agent.id, conversation_row, (RunState.CREATED, RunState.RUNNING))
        page: Page[int] = Page(limit=_MAX_CANCELLED)
        entries = await self._store.runs.list_runs(agent.scope.project, live, page)
        return [await self.cancel(entry.run) for entry in entries]

    def stop(self, uid: str) -> None:
        """Stops a run that was ended, if it is performed here."""
        if uid in self._runs:
            self._runs[uid].turn.stop(StopReason.CANCELLED)

    def stop_deleted(self, agent_row: int) -> None:
        """Stops the runs of an agent that is deleted; their clients get an error, since nothing can be stored."""
        for run in self._runs.values():
            if run.agent_row == agent_row:
                run.turn.stop(StopReason.CANCELLED)
