"""The event logs of background runs: opened for an attempt, completed at a run's end, and read after it.

Each event is numbered and stored, so that a returning reader goes on after the last event that it has seen. A run has
no log if its caller did not ask for events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec.structs import replace

from gateway.agents.runs.background.open_runs import OpenRun, RunPhase
from gateway.agents.runs.background.run_dialect import RunDialect
from gateway.agents.runs.background.stored_request import StoredRequest
from gateway.errors import Conflict
from gateway.run.event_log import EventLog, load_events
from storage.job_records import Job
from storage.records import Agent
from storage.run_records import Run, RunState, RunTextKind
from storage.sql.store import Store

_DELETED_ERROR = "The agent of this run, or its conversation, is deleted."


class RunLogs:
    """Opens and completes the event logs of a process's background runs.

    A log is made with its run (`make`, then `begin` once the run is on disk), or opened when an attempt begins
    (`open`). The log of a run that an earlier process left may be opened before the attempt (`open_ahead`), for
    readers. `complete` closes a log.
    """

    def __init__(self, store: Store, dialect: RunDialect) -> None:
        """Begins without logs. dialect: the dialect in which events are logged."""
        self._store = store
        self._dialect = dialect

    def make(self, run: Run, agent: Agent) -> EventLog:
        """Returns an empty log. run: the stored run, or a draft, after whose write `begin` follows."""
        return EventLog(self._store, run, agent.epoch, self._dialect)

    async def open(
        self, agent: Agent, run: Run, open_run: OpenRun, request: StoredRequest, job: Job
    ) -> EventLog | None:
        """Returns the log of a run, open for the events of this attempt; None if the run has no log.

        request: the stored request of the run.
        job: the attempt.
        """
        is_new = open_run.log is None
        # The request may be erased by now. A log that has readers is written to its end all the same.
        if request.event_options is None and is_new:
            return None
        log = open_run.log = open_run.log or self.make(run, agent)
        attempt = job.attempt
        log.job = job
        self.begin(log, run)
        if is_new and attempt == 1 and self._store.database.is_shared:
            log.add(self._dialect.make_first_event(run.uid))
        elif attempt > 1 or is_new:
            logged_events = await log.resume(agent.epoch, attempt)
            if not logged_events:
                log.add(self._dialect.make_first_event(run.uid))
            running, options = replace(run, state=RunState.RUNNING), request.event_options or {}
            log.add(await self._dialect.make_missing_events(running, options, logged_events, attempt))
        return log

    def begin(self, log: EventLog, run: Run) -> None:
        """Adds the first event of a log that was made before its run was on disk."""
        if not log.run.is_stored:
            log.run = run
            log.add(self._dialect.make_first_event(run.uid))

    async def open_ahead(self, open_run: OpenRun, run: Run) -> EventLog | None:
        """Returns the log of a run that an earlier process left, before the run goes on here, or None."""
        if self._store.database.is_shared:
            return None
        agent = await self._store.agents.find_by_id(run.agent_row)
        texts = await self._store.run_texts.load_texts(run.agent_row, run.id, RunTextKind.REQUEST)
        if agent is None or not texts or StoredRequest.decode(texts[0].data).event_options is None:
            return None
        log = self.make(run, agent)
        await log.resume(agent.epoch, 1)
        if open_run.phase is RunPhase.ENDED:
            return None
        # Its job may have begun meanwhile and opened the log.
        open_run.log = open_run.log or log
        return open_run.log

    async def complete(self, log: EventLog, run: Run, request: StoredRequest, attempt: int) -> None:
        """Adds the missing last events of a run that has ended to its log, and closes the log."""
        await log.flush()
        logged_events = [event async for _, event in load_events(self._store, run, 0)]
        if not (logged_events and self._dialect.is_end(logged_events[-1])):
            options = request.event_options or {}
            log.add(await self._dialect.make_missing_events(run, options, logged_events, attempt))
        await log.close()

    def close_deleted(self, open_run: OpenRun) -> None:
        """Closes the log of a run that is deleted, with an error for its readers."""
        if open_run.log is not None:
            error = Conflict(_DELETED_ERROR)
            open_run.log.close_unwritten(self._dialect.make_error_events(open_run.uid, error))

    async def read_ended(self, run: Run, after: int, *, is_logged: bool) -> AsyncIterator[bytes]:
        """Yields the events of a run that has ended: the stored events, then the missing last events.

        after: the number of the last event that the reader has; 0: the reader has none.
        is_logged: True if the reader has followed the log, of which the events may be erased by now.
        """
        number = 0
        logged_events: list[bytes] = []
        async for number, event in load_events(self._store, run, 0):
            logged_events.append(event)
            if number > after:
                yield event
        if logged_events and self._dialect.is_end(logged_events[-1]):
            return
        if await self._store.agents.find_by_id(run.agent_row) is None:
            first_number = after + 1
            missing = self._dialect.make_error_events(run.uid, Conflict(_DELETED_ERROR))
        else:
            # Without a log the events are whole messages, with the same numbers for all readers.
            first_number = max(number, after) + 1 if logged_events or is_logged else 1
            missing = await self._dialect.make_missing_events(run, {}, logged_events, 1)
        for number, event in enumerate(self._dialect.number_events(missing, first_number), first_number):
            if number > after:
                yield event
