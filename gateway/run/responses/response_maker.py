"""Makes responses in the background, in attempts that each continue the attempt before.

An attempt that ends with its process is repeated, with the replies and the calls that its journal has; its events
continue at a later multiple of 10,000. Keys and headers of the caller are in memory alone.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import orjson

from adapters.types import Json
from gateway.core.usage.limit_rules import LimitReservation
from gateway.run.background.job_context import JobContext
from gateway.run.request_context import RequestContext
from gateway.run.responses.response_attempt import AcceptedResponse, ResponseAttempt
from gateway.run.responses.response_log import ResponseLog
from gateway.run.responses.response_runs import BackgroundRequest
from gateway.run.responses.response_services import ResponseServices
from storage.errors import StoreError
from storage.job_records import Job
from storage.run_records import Run, RunState

# The kind of the job.
RESPONSE_JOB: Final = "response"
# The most attempts that may end with their process, or by an error of the database: each of them may have asked the
# model. Chosen, not measured; any value from 2 to 5 behaves alike.
MAX_TRIES: Final = 3
# The pause before an attempt queries its state again.
_STATE_POLL_S: Final = 1.0
# If this gateway does not know the model of a response, it leaves the response to other gateways for this time, since
# they may have newer settings. Not measured: a response with a model that no gateway knows fails this much later.
_ELSEWHERE_S: Final = 600.0
# The accepted responses of which the caller is in memory, or the hash of the request. Not measured: it bounds the
# memory that they take.
MAX_ACCEPTED_RESPONSES: Final = 4_096


@dataclass(eq=False)
class ResponseMaker:
    """Makes the responses of jobs. One for the process."""

    # The services that make responses.
    services: ResponseServices
    # The logs of the responses that are being made here, by the rows of their runs.
    logs: dict[int, ResponseLog] = field(default_factory=dict, init=False)
    # The responses that were accepted here and that, for all this process knows, have not ended; by the same rows.
    _accepted_responses: dict[int, AcceptedResponse] = field(default_factory=dict, init=False)
    # The time at which this process first left a response to other gateways, by the same rows.
    _left_at: dict[int, float] = field(default_factory=dict, init=False)

    def note_accepted_response(
        self, run_row: int, request_context: RequestContext, reservation: LimitReservation | None
    ) -> None:
        """Notes a response that was accepted here.

        run_row: the row of the response's run.
        reservation: the reservation of its request; None: the response was accepted before, and has its reservation.
        """
        earlier_response = self._accepted_responses.pop(run_row, None)
        if reservation is None:
            reservation = LimitReservation() if earlier_response is None else earlier_response.reservation
        self._accepted_responses[run_row] = AcceptedResponse(request_context, reservation)
        # A response that is dropped is made even so, by this process without the caller's key, or by another.
        if len(self._accepted_responses) > MAX_ACCEPTED_RESPONSES:
            self._drop(next(iter(self._accepted_responses)))

    async def perform(self, job: JobContext) -> None:
        """Makes the first response of a job. The other responses get a new job, which counts its own attempts."""
        payload = orjson.loads(job.payload)
        agent_row = payload["agent"]
        later_runs = payload.get("later")
        await self._make_response(job, agent_row, payload["run"])
        if later_runs:
            enqueue = self.services.store.responses.enqueue
            await job.finish(
                lambda connection: enqueue(connection, RESPONSE_JOB, job.job.key, agent_row, later_runs)
            )

    async def _make_response(self, job: JobContext, agent_row: int, run_row: int) -> None:
        """Makes a response.

        agent_row: the row of its memory.
        run_row: the row of its run.
        """
        run = await self.services.store.runs.find_run(agent_row, run_row)
        if run is None or run.is_over:
            self._drop(run_row)
            return
        # A request that cannot be read, as after an upgrade, fails each attempt, and is given up in the end.
        is_given_up = job.job.tries > MAX_TRIES
        stored_request = None if is_given_up else await self.services.runs.find_request(run)
        request = None
        if stored_request is not None:
            request = self.services.dialect.restore(stored_request, run.uid, run.created)
        shown_response = await self.services.runs.find_response(run)
        if shown_response is None or (request is None and not is_given_up):
            await self.services.store.runs.end_run(
                run.agent_row, run.id, RunState.FAILED, "error", self.services.now(), job=job.job
            )
            return
        await self._perform_attempt(await self._open_log(run, job.job, shown_response), request)

    async def _perform_attempt(self, log: ResponseLog, request: BackgroundRequest | None) -> None:
        """Performs an attempt, and watches meanwhile whether the run is over elsewhere.

        request: the request of the response; None: no attempt is left.
        """
        run = log.run
        self.logs[run.id] = log
        watch: asyncio.Task[None] | None = None
        if self.services.store.database.is_shared:
            watch = asyncio.create_task(self._leave_when_over(log))
        try:
            attempt = ResponseAttempt(
                self.services,
                log,
                find_accepted_response=partial(self._accepted_responses.get, run.id),
                may_be_known_elsewhere=partial(self._may_be_known_elsewhere, run),
            )
            await attempt.perform(request)
        finally:
            if watch is not None:
                watch.cancel()
            await log.close()
            del self.logs[run.id]
            current_run = await self.services.store.runs.find_run(run.agent_row, run.id)
            if current_run is None or current_run.is_over:
                self._drop(run.id)

    def _drop(self, run_row: int) -> None:
        """Drops what this process holds of a response that has ended. run_row: the row of its run."""
        if (accepted_response := self._accepted_responses.pop(run_row, None)) is not None:
            self.services.limiter.release_reservation(accepted_response.reservation)
        self._left_at.pop(run_row, None)

    async def drop_ended(self) -> None:
        """Drops what this process holds of responses that were cancelled, or that other processes have made.

        Raises: StoreError.
        """
        if run_rows := [*self._accepted_responses, *self._left_at]:
            for run_row in {*run_rows} - await self.services.store.responses.find_open_among(run_rows):
                self._drop(run_row)

    async def _open_log(self, run: Run, job: Job, shown_response: Json) -> ResponseLog:
        """Returns the log of a response, with the events of earlier attempts."""
        epoch = await self.services.store.responses.load_epoch(run.agent_row)
        log = ResponseLog(
            self.services.store,
            run,
            epoch,
            self.services.dialect,
            job=job,
            shown_response=shown_response,
            next_number=0,
        )
        if job.attempt > 1 and await log.resume(epoch, job.attempt):
            log.has_events = True
            await self.services.store.responses.drop_events(run.agent_row, run.id, job)
        log.first_number = log.next_number
        return log

    async def _leave_when_over(self, log: ResponseLog) -> None:
        """Cancels an attempt when another process has cancelled or deleted its response."""
        while True:
            await asyncio.sleep(_STATE_POLL_S)
            with suppress(StoreError):
                current_run = await self.services.store.runs.find_run(log.run.agent_row, log.run.id)
                if current_run is None or current_run.is_over:
                    log.cancel_turn()
                    return

    def _may_be_known_elsewhere(self, run: Run) -> bool:
        """Returns whether another gateway may know the model of a response: the gateway that has accepted it.

        The time is counted from the first attempt of this gateway, since the response may have waited long before.
        """
        if not self.services.store.database.is_shared or run.id in self._accepted_responses:
            return False
        now = self.services.now()
        return now - self._left_at.setdefault(run.id, now) < _ELSEWHERE_S
