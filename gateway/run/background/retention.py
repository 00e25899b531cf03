"""Retention: forgets what is older than its project stores it, and goes on with forgettings that were broken off.

One process does it every few hours; of processes that share a database, one does it as a job once a day. Both do so
within a minute where a forgetting is unfinished, since no job of its memory begins before its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.core.request.identity import UNNAMED_PREFIX
from gateway.run.background.budget import DAY_S
from gateway.run.background.tasks import PeriodicTask
from gateway.settings import Settings
from storage.commands import ForgetTarget
from storage.errors import Unavailable
from storage.records import IMPORTING_PREFIX
from storage.sql.jobs import NO_AGENT
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

RETENTION = "retention"  # of the job
# Its key where nothing is looked for that is too old.
_RESUME = "resume"
# How often what is too old is searched. Retention is counted in days, so hours are enough.
_PERIOD_S = 6 * 3600.0
# The same where processes share a database.
_SHARED_PERIOD_S = DAY_S
# How often it is looked whether that is due, or a forgetting was broken off.
_LOOK_S = 60.0
# How long what is too old waits for the open runs of its memory, which a forgetting would end; no measurement.
_RUN_WAIT_S = DAY_S
# What is younger may be under way in another process.
YOUNG_S = 3600.0
# What has begun to be imported before may not be under way any more.
_IMPORT_DAYS = 1.0
# Memories that one search begins to forget at a time.
_PAGE = 64


def make_retention(settings: Settings, store: Store, now: Callable[[], float]) -> Retention:
    """Makes the retention that the settings ask for. now: seconds since the epoch."""
    return Retention(
        store,
        {
            name: each.retention_days
            for name, each in settings.projects.items()
            if each.retention_days is not None
        },
        now,
        settings.responses.keep_days,
        settings.memory.keep_why_days,
        settings.ui.audit_days,
    )


@dataclass(eq=False)
class Retention:
    """Forgets what is older than its project keeps."""

    store: Store
    # How long memories are retained, by project.
    retention_days: Mapping[str, float]
    # Seconds since the epoch.
    now: Callable[[], float]
    # Of stored responses where no user is named, and of conversations without a response.
    unnamed_days: float = 30.0
    # How long it is kept why replies recalled what they did, and what operators did.
    keep_why_days: float = 7.0
    audit_days: float = 90.0
    _started: float = field(init=False)
    # The last one in which this process has searched, or enqueued the job; counted since the epoch.
    _period: int = -1

    def __post_init__(self) -> None:
        self._started = self.now()

    def run(self) -> Coroutine[Any, Any, None]:
        """Runs until it is cancelled."""
        return PeriodicTask("forget what is too old", self.look).run()

    async def look(self) -> float:
        """Does what is due, or enqueues it as a job. Returns the seconds until the next look. Raises: StoreError."""
        is_shared = self.store.database.is_shared
        period = int(self.now() // (_SHARED_PERIOD_S if is_shared else _PERIOD_S))
        is_due = period != self._period
        if is_due or await self.store.forgetting.list_unfinished():
            key = str(period) if is_due else _RESUME
            if is_shared:
                await self.store.jobs.enqueue(RETENTION, NO_AGENT, key)
            else:
                await self.perform(key)
            self._period = period
        return _LOOK_S

    async def perform(self, key: str) -> None:
        """Performs the job with a key."""
        if key != _RESUME:
            await self.step()
        elif await self._resume_unfinished():
            await self.store.forgetting.sweep()

    async def step(self) -> int:
        """Forgets all that is too old now, and what an earlier process had begun.

        Returns the number of memories, and of conversations that belong to none.
        """
        count = await self._resume_unfinished() + await self._forget_old()
        # Stored responses where no user is named.
        count += await self._forget_inactive(f"conversation:{UNNAMED_PREFIX}", self.unnamed_days)
        count += await self._remove_unbound()
        # Imports that were broken off: no request finds them.
        count += await self._forget_inactive(IMPORTING_PREFIX, _IMPORT_DAYS)
        if count:
            await self.store.forgetting.sweep()
        await self.store.recalls.delete_older(self.now() - self.keep_why_days * DAY_S)
        await self.store.audit.delete_older(self.now() - self.audit_days * DAY_S)
        return count

    async def _resume_unfinished(self) -> int:
        """Ends what an earlier process had begun to forget, and forgets uploads that its end cut off."""
        forgetting = self.store.forgetting
        # An upload that was cut off is not to be searched.
        started = self.now() - YOUNG_S if self.store.database.is_shared else self._started
        while uploads := await self.store.files.list_unfinished(started):
            for memory, file in uploads:
                await forgetting.begin(memory, ForgetTarget(files=[file]))
        return sum([await self._carry_out(id) for id in await forgetting.list_unfinished()])

    async def _forget_old(self) -> int:
        """Forgets what is older than its project retains it."""
        forgetting, count = self.store.forgetting, 0
        for project, days in self.retention_days.items():
            before, after = self.now() - days * DAY_S, 0
            while agent_rows := await forgetting.find_older(
                project, before, run_wait_s=_RUN_WAIT_S, after=after, limit=_PAGE
            ):
                for agent_row in agent_rows:
                    id = await forgetting.begin(agent_row, ForgetTarget(before=before))
                    count += await self._carry_out(id)
                after = agent_rows[-1]
        return count

    async def _forget_inactive(self, prefix: str, days: float) -> int:
        """Forgets the memories in which nothing came for some days. prefix: of their subjects."""
        forgetting, count = self.store.forgetting, 0
        before = self.now() - days * DAY_S
        while agent_rows := await forgetting.find_inactive(before, prefix, limit=_PAGE):
            for agent_row in agent_rows:
                id = await forgetting.begin(agent_row, ForgetTarget(is_all=True))
                count += await self._carry_out(id)
        return count

    async def _remove_unbound(self) -> int:
        """Removes conversations with items that no response has put into a memory. Returns how many they were."""
        count, projects = 0, [*self.retention_days.items()]
        for project, days in [(None, self.unnamed_days), *projects]:
            before = self.now() - days * DAY_S
            while gone := await self.store.definitions.remove_unbound(project, before, _PAGE):
                count += gone
        return count

    async def _carry_out(self, id: int) -> bool:
        """Runs a forgetting to its end.

        Returns False where a fault of the gateway has stopped it: it is tried again next time, and others go on.
        """
        try:
            return await self.store.forgetting.run(id)
        except Unavailable:
            raise
        except Exception:
            _log.exception(
                "Forgetting %d is not finished, by a fault in the gateway. Trying again in %g s.", id, _LOOK_S
            )
            return False
