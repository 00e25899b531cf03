"""Abandoned runs: no process performs them, since their process has died or could not write their ends."""

from __future__ import annotations

from collections.abc import Set

from gateway.agents.runs.stored_run import fail_run
from gateway.core.conversation.kind import QueueName
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.leases import make_lock_name
from storage.run_records import Run

# The error message of a run that was ended for this reason.
ABANDONED_ERROR = "The gateway was stopped while it performed this run."


class AbandonedRuns:
    """Finds and ends the runs that no process performs. A run leaves its queue after its end is written."""

    def __init__(self, keeper: MemoryKeeper) -> None:
        self._keeper = keeper

    async def end_all(self) -> None:
        """Fails all abandoned runs. Raises: StoreError, after which it may be called again."""
        for run in await self._find():
            await self._fail(run)

    async def end_if_abandoned(self, run: Run, own_queue: QueueName) -> Run:
        """Fails a run if no process performs it. Returns the run as it is now. Raises: StoreError.

        own_queue: the queue that this process holds for another run.
        """
        abandoned = {abandoned_run.id for abandoned_run in await self._find(own_queue)}
        return await self._fail(run) if run.id in abandoned else run

    async def _find(self, own_queue: QueueName | None = None) -> list[Run]:
        """Returns the open runs in queues that no process uses.

        own_queue: a queue that counts as unused, since this process holds it for another run; None: there is none.
        """
        open_runs = await self._keeper.store.runs.list_open_foreground()
        queues = {each.run.id: QueueName(each.agent_uid, each.conversation_name) for each in open_runs}
        in_use = await self._find_used_queues({*queues.values()}) - {own_queue}
        return [open_run.run for open_run in open_runs if queues[open_run.run.id] not in in_use]

    async def _find_used_queues(self, names: Set[QueueName]) -> set[QueueName]:
        """Returns the queues among `names` that a process uses."""
        locks = self._keeper.store.conversation_locks
        if not locks.is_needed:
            return {name for name in names if self._keeper.queues.is_in_use(name)}
        names_by_lock = {make_lock_name(*name): name for name in names}
        return {names_by_lock[lock] for lock in await locks.load_held(names_by_lock)}

    async def _fail(self, run: Run) -> Run:
        return await fail_run(self._keeper.store, run, ABANDONED_ERROR, self._keeper.now())
