"""Retention: forgets messages that are older than their project allows, and resumes interrupted forgettings.

A process with a database of its own does this every few hours. If processes share a database, one of them does it as a
job once a day. An interrupted forgetting goes on within a minute, since no job of its memory begins before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.core.dates import DAY_S
from gateway.run.background.tasks import PeriodicTask
from gateway.run.clock_jumps import ClockJumps, read_steady_clock
from gateway.run.stored_responses import UNNAMED_PREFIX
from gateway.settings import Settings
from storage.errors import StoreUnavailable
from storage.forget_commands import ForgetTarget
from storage.job_records import NO_AGENT
from storage.records import IMPORTING_PREFIX
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The kind of the job.
RETENTION = "retention"
# The key of a job that only resumes interrupted forgettings.
_RESUME = "resume"
# The seconds between two searches for old messages. Retention is counted in days, so hours are enough.
_PERIOD_S = 6 * 3600.0
# The same period if processes share a database.
_SHARED_PERIOD_S = DAY_S
# The seconds between two checks whether a search is due, or a forgetting was interrupted.
_CHECK_INTERVAL_S = 60.0
# The longest time, in seconds, for which a forgetting waits for the open runs of its memory, since it would end them.
# Not measured: it comes at most this much later than its setting demands.
_RUN_WAIT_S = DAY_S
# The age of an upload, in seconds, until which it may be under way in another process.
YOUNG_S = 3600.0
# The days without a new turn after which an import counts as interrupted.
_IMPORT_DAYS = 1.0
# The most memories or conversations that one search finds. Not measured: all pages are read in any case.
_PAGE_MEMORIES = 64


def make_retention(settings: Settings, store: Store, now: Callable[[], float]) -> Retention:
    """Makes the retention of the settings. now: returns the seconds since the epoch."""
    return Retention(
        store=store,
        retention_days={
            name: project.retention_days
            for name, project in settings.projects.items()
            if project.retention_days is not None
        },
        now=now,
        unnamed_days=settings.responses.keep_days,
        keep_why_days=settings.memory.keep_why_days,
        audit_days=settings.ui.audit_days,
    )


@dataclass(eq=False)
class Retention:
    """Forgets messages that are older than their project allows."""

    # The store of the memories.
    store: Store
    # The days for which memories are retained, by project.
    retention_days: Mapping[str, float]
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # The days for which stored responses without a user are retained, and conversations without a response.
    unnamed_days: float = 30.0
    # The days for which the records of recalls are retained.
    keep_why_days: float = 7.0
    # The days for which the audit is retained.
    audit_days: float = 90.0
    # Returns the seconds since any moment, by a clock that is never set.
    steady_now: Callable[[], float] = read_steady_clock
    # The last period, counted since the epoch, in which this process has searched or enqueued the job.
    _period: int = field(default=-1, init=False)
    # Notices when the clock is set.
    _clock_jumps: ClockJumps = field(init=False)

    def __post_init__(self) -> None:
        self._clock_jumps = ClockJumps(self.now, self.steady_now)

    def run(self) -> Coroutine[Any, Any, None]:
        """Runs until it is cancelled."""
        return PeriodicTask("forget what is too old", self.perform_due).run()

    async def perform_due(self) -> float:
        """Does the work that is due. Processes that share a database enqueue it as a job instead.

        Returns the seconds until the next call.

        Raises: StoreError.
        """
        self.store.begin_work()
        is_shared = self.store.database.is_shared
        period = int(self.now() // (_SHARED_PERIOD_S if is_shared else _PERIOD_S))
        is_due = period != self._period and not self._clock_jumps.has_jumped_lately()
        if is_due or await self.store.forgetting.list_unfinished():
            key = str(period) if is_due else _RESUME
            if is_shared:
                await self.store.jobs.enqueue(RETENTION, NO_AGENT, key)
            else:
                await self.perform(key)
            if is_due:
                self._period = period
        return _CHECK_INTERVAL_S

    async def perform(self, key: str) -> None:
        """Performs the job with a key."""
        # The process that has enqueued the job may have another clock.
        if key != _RESUME and not self._clock_jumps.has_jumped_lately():
            await self.forget_old()
        elif await self._resume_unfinished():
            await self.store.forgetting.sweep()

    async def forget_old(self) -> int:
        """Forgets all that is too old now, and resumes interrupted forgettings.

        Returns the number of memories in which something was forgotten, and of conversations removed without a memory.
        """
        count = await self._resume_unfinished() + await self._forget_old_messages()
        # Stored responses that name no user.
        count += await self._forget_inactive(f"conversation:{UNNAMED_PREFIX}", self.unnamed_days)
        count += await self._remove_unbound()
        # Interrupted imports, which no request finds.
        count += await self._forget_inactive(IMPORTING_PREFIX, _IMPORT_DAYS)
        if count:
            await self.store.forgetting.sweep()
        await self.store.recalls.delete_older(self.now() - self.keep_why_days * DAY_S)
        await self.store.audit.delete_older(self.now() - self.audit_days * DAY_S)
        return count

    async def _resume_unfinished(self) -> int:
        """Ends interrupted forgettings, and forgets uploads that the end of a process has cut off.

        Returns the number of memories in which something was forgotten.
        """
        forgetting = self.store.forgetting
        # An upload that was cut off must not be searched.
        while uploads := await self.store.files.list_unfinished(self.now() - YOUNG_S):
            for memory_row, file_row in uploads:
                await forgetting.begin(memory_row, ForgetTarget(file_rows=[file_row]))
        return sum([await self._run_forgetting(each) for each in await forgetting.list_unfinished()])

    async def _forget_old_messages(self) -> int:
        """Forgets messages that are older than their project allows. Returns the number of memories that had some."""
        forgetting = self.store.forgetting
        count = 0
        for project, days in self.retention_days.items():
            before = self.now() - days * DAY_S
            after = 0
            while agent_rows := await self.store.forget_targets.list_older(
                project, before, run_wait_s=_RUN_WAIT_S, after=after, limit=_PAGE_MEMORIES
            ):
                for agent_row in agent_rows:
                    forgetting_id = await forgetting.begin(agent_row, ForgetTarget(before=before))
                    count += await self._run_forgetting(forgetting_id)
                after = agent_rows[-1]
        return count

    async def _forget_inactive(self, prefix: str, days: float) -> int:
        """Forgets the memories without a turn for some days.

        prefix: the beginning of their subjects.

        Returns the number of forgotten memories.
        """
        forgetting = self.store.forgetting
        count = 0
        before = self.now() - days * DAY_S
        while agent_rows := await self.store.forget_targets.list_inactive(
            before, prefix, limit=_PAGE_MEMORIES
        ):
            for agent_row in agent_rows:
                forgetting_id = await forgetting.begin(agent_row, ForgetTarget(is_all=True))
                count += await self._run_forgetting(forgetting_id)
        return count

    async def _remove_unbound(self) -> int:
        """Removes conversations with items that no response has put into a memory. Returns their number."""
        count = 0
        for project, days in [(None, self.unnamed_days), *self.retention_days.items()]:
            before = self.now() - days * DAY_S
            while removed_count := await self.store.definitions.remove_unbound(
                project, before, _PAGE_MEMORIES
            ):
                count += removed_count
        return count

    async def _run_forgetting(self, forgetting_id: int) -> bool:
        """Runs a forgetting to its end.

        Returns False if a fault of the gateway has stopped it. Then it is resumed at the next check, and the other
        forgettings go on.
        """
        try:
            return await self.store.forgetting.run(forgetting_id)
        except StoreUnavailable:
            raise
        except Exception:
            _log.exception(
                "Forgetting %d is not finished, by a fault in the gateway. Trying again in %g s.",
                forgetting_id, _CHECK_INTERVAL_S,
            )  # fmt: skip
            return False
