"""Runs in the background: stored when they are accepted, performed by a job, continued after a process died.

    run = await background.acceptance.accept(run_request)  # returns when run, request and job are on disk
    await background.perform(job, run.id)  # called by the job (gateway.agents.runs.background.run_service)

A run has a ticket in the queue of its conversation from its acceptance on; after a restart it gets the ticket before
any request is served. Its caller may disconnect. An upstream's error ends the run. The run is tried again only if the
process died or the store failed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.registry.agent_resolver import AgentResolver
from gateway.agents.runs.abandoned_runs import ABANDONED_ERROR
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.background.acceptance import RunAcceptance
from gateway.agents.runs.background.open_runs import OpenRun, OpenRuns, RunPhase
from gateway.agents.runs.background.run_dialect import RunDialect
from gateway.agents.runs.background.run_follower import RunFollower
from gateway.agents.runs.background.run_logs import RunLogs
from gateway.agents.runs.background.run_recovery import RunRecovery
from gateway.agents.runs.background.stored_request import StoredRequest
from gateway.agents.runs.run import AcceptedRun, RunStart
from gateway.agents.runs.run_starter import MessageGone
from gateway.agents.runs.stored_run import INTERNAL_ERROR, fail_run
from gateway.core.conversation.kind import QueueName
from gateway.core.turn.client_view import UnseenView, ViewFactory
from gateway.errors import GatewayError
from gateway.run.event_log import EventLog
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.queue import QueueTicket
from gateway.run.sink import Sink, UnseenSink
from storage.errors import NotFound, StoreError
from storage.job_records import Job
from storage.records import Agent
from storage.run_records import Run, RunState, RunTextKind

# The most attempts at a run that has begun, if each attempt is broken off: the run may be the reason why the process
# dies. A run that has not begun gets `_MAX_BEGINNINGS` attempts. Not measured.
_MAX_TRIES = 3
_MAX_BEGINNINGS = 30
# The error of a run without its request.
_REQUEST_GONE = "What this run was asked is gone: it was forgotten, or its conversation was deleted."
_log = logging.getLogger("mnemogate")


class _RunAttempt(Struct, frozen=True):
    """One attempt to perform a run that holds its conversation's ticket."""

    # The agent of the run.
    agent: Agent
    # The run as it was before the attempt.
    run: Run
    # The `Conversation.name` of the run's conversation.
    conversation_name: str
    # The run's entry among the open runs of this process.
    open_run: OpenRun
    # The ticket in the queue of the conversation.
    ticket: QueueTicket
    # The attempt of the run's job.
    job: Job


class PerformedRun(Struct, frozen=True):
    """A run that has ended."""

    # The run in its final state.
    run: Run
    # The URL to call; None: no URL is called.
    callback: str | None


class BackgroundRuns:
    """Performs the background runs of a process."""

    def __init__(
        self, agent_runs: AgentRuns, resolver: AgentResolver, keeper: MemoryKeeper, dialect: RunDialect
    ) -> None:
        """Begins without open runs. dialect: the dialect in which events are logged."""
        self._agent_runs = agent_runs
        self._resolver = resolver
        self._keeper = keeper
        self._store = keeper.store
        self._dialect = dialect
        self._open = OpenRuns(keeper.queues)
        self._ends = agent_runs.ends
        self._logs = RunLogs(keeper.store, dialect)
        self.acceptance = RunAcceptance(agent_runs, keeper, self._open, self._logs)
        self.follower = RunFollower(self._open, self._logs, self._ends, keeper.store, dialect)
        self.recovery = RunRecovery(keeper, self._open, agent_runs.live, self._logs)
        self._ends.add_end_listener(self.recovery.stop_and_close, keeper.store.jobs.wake_here)

    async def perform(self, job: Job, run_row: int) -> PerformedRun | None:
        """Performs an accepted run up to its end. Returns the ended run; None if it was deleted.

        job: the attempt that performs the run.

        Raises: StoreError or CancelledError, after which the run can be tried again.
        """
        store = self._store
        agent = await store.agents.find_by_id(job.agent_row)
        run = None if agent is None else await store.runs.find_run(job.agent_row, run_row)
        if agent is None or run is None:
            return None
        try:
            entry = await store.runs.get(agent.scope.project, run.uid)
        except NotFound:
            # The conversation of the run was deleted.
            if not run.is_over:
                await self._fail(run, _REQUEST_GONE, job)
            if (open_run := self._open.find(run.uid)) is not None:
                self._logs.close_deleted(open_run)
                self._open.close(open_run)
            return None
        # Looked up after the reads, since a cancel may close the run meanwhile.
        waiting_run = self._open.find(run.uid)
        # An open run stays in its conversation's queue, even if the conversation was deleted and its name used again.
        queue = QueueName(agent.uid, entry.conversation_name)
        open_run = waiting_run or self._open.add(run.uid, queue, phase=RunPhase.PERFORMED)
        attempt = _RunAttempt(agent, run, entry.conversation_name, open_run, QueueTicket(), job=job)
        if run.is_over and waiting_run is None:
            # A process that died had ended the run. The work after the end needs no ticket.
            try:
                return await self._make_attempt(attempt)
            finally:
                self._open.close(open_run)
        async with self._enter_queue(open_run) as ticket:
            if ticket is not None:
                return await self._make_attempt(replace(attempt, ticket=ticket))
        # The run was cancelled or deleted while it waited.
        return await self.perform(job, run_row)

    @asynccontextmanager
    async def _enter_queue(self, open_run: OpenRun) -> AsyncIterator[QueueTicket | None]:
        """Waits until a run is first in its conversation. Yields its ticket; None: the run was closed meanwhile.

        After an error with which the run is tried again, it is still first in the queue.
        """
        reservation = self._open.begin(open_run)
        try:
            yield await self._open.wait(open_run, reservation)
        except (StoreError, asyncio.CancelledError):
            if self._ends.is_shared:
                # Another process may continue the run, with a log of its own, and has to find the conversation free.
                reservation.release_lock()
                if open_run.log is not None:
                    open_run.log.abandon()
                    open_run.log = None
            self._open.put_back(open_run, reservation)
            raise
        except BaseException:
            reservation.drop()
            raise
        finally:
            self._open.stop(open_run)
        reservation.drop()

    # -- one attempt

    async def _make_attempt(self, attempt: _RunAttempt) -> PerformedRun | None:
        """Makes one attempt, and closes the run after its end. Returns the ended run; None if it was deleted."""
        store, agent, job = self._store, attempt.agent, attempt.job
        # The run may have been cancelled while it waited.
        run = await store.runs.find_run(agent.id, attempt.run.id)
        if run is None:
            return None
        texts = await store.run_texts.load_texts(agent.id, run.id, RunTextKind.REQUEST)
        request = StoredRequest.decode(texts[0].data if texts else b"")
        log = await self._logs.open(agent, run, attempt.open_run, request, job)
        if not run.is_over:
            if job.tries > (_MAX_BEGINNINGS if run.state is RunState.CREATED else _MAX_TRIES):
                await self._fail(run, f"{ABANDONED_ERROR} It was tried {job.tries - 1} times.", job)
            else:
                await self._run_agent(replace(attempt, run=run), request, log)
            run = await store.runs.find_run(agent.id, run.id) or run
        if not run.is_over:
            run = await self._fail(run, INTERNAL_ERROR, job)
        if log is not None:
            await self._logs.complete(log, run, request, job.attempt)
        self._open.close(attempt.open_run)
        self._ends.notify(run)
        return PerformedRun(run, request.callback)

    async def _run_agent(self, attempt: _RunAttempt, request: StoredRequest, log: EventLog | None) -> None:
        """Runs the agent. Fails the run on an error that another attempt would meet as well.

        request: the stored request of the run.
        log: the log of the run's events; None: no events are logged.

        Raises: StoreError or CancelledError, after which the run can be tried again.
        """
        agent = attempt.agent
        run = attempt.run
        options = request.event_options or {}

        def choose_view(start: RunStart) -> ViewFactory:
            return UnseenView if log is None else self._dialect.make_view(start, options)

        sink: Sink = UnseenSink() if log is None else log
        try:
            conversation_name = attempt.conversation_name
            resolved = await self._resolver.resolve_for_send(
                agent.scope.project, agent.uid, conversation_name, model=request.model, system=request.system
            )
            run_request = request.make_run_request(resolved, conversation_name, attempt.open_run.forwarded)
            replaced_run = (
                await self._store.runs.find_run(agent.id, request.replaces) if request.replaces else None
            )
            accepted = AcceptedRun(run, request.encode(includes_messages=False), attempt.job, replaced_run)
            await self._agent_runs.perform_accepted(run_request, accepted, attempt.ticket, choose_view, sink)
        except (MessageGone, NotFound):
            await self._fail(run, _REQUEST_GONE, attempt.job)
        except (StoreError, asyncio.CancelledError):
            if log is not None:
                await log.flush()
            raise
        except GatewayError as error:
            await self._fail(run, error.message, attempt.job, error.status)
            if log is not None:
                log.add(self._dialect.make_error_events(run.uid, error))
        except Exception:
            _log.exception("A background run failed by a fault in the gateway.")
            await self._fail(run, INTERNAL_ERROR, attempt.job)

    async def _fail(self, run: Run, error: str, job: Job, status: int = 0) -> Run:
        """Ends a run with an error, as `fail_run` does. status: the error's HTTP status; 0: the error has none."""
        return await fail_run(self._store, run, error, self._keeper.now(), job=job, error_status=status)
