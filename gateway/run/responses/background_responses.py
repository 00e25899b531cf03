"""Responses in the background: each is a run without a stored conversation, performed by a durable job.

    queued -> in_progress -> completed | incomplete | failed | cancelled

The run holds the request, and the response as it is shown before its turn is stored (`response_runs`). Its events are
numbered and stored, so that a reader can continue where it was, in any process. `ResponseMaker` (`response_maker`)
performs the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from adapters.types import Json
from gateway.core.request.identity import Identity
from gateway.core.usage.reported import PENDING_STATUSES
from gateway.errors import Conflict
from gateway.run.background.worker import UNLIMITED_TRIES, Worker, WorkerLimits
from gateway.run.event_log import load_events
from gateway.run.memory.leases import make_lock_name
from gateway.run.receipt import Receipt
from gateway.run.request_context import RequestContext
from gateway.run.responses.response_attempt import FORGOTTEN_ERROR
from gateway.run.responses.response_maker import MAX_ACCEPTED_RESPONSES, RESPONSE_JOB, ResponseMaker
from gateway.run.responses.response_runs import NewResponse
from gateway.run.responses.response_services import ResponseServices
from gateway.run.store_errors import map_store_errors
from gateway.run.stored_responses import ResponseOwner
from storage.errors import NotFound, StaleWrite
from storage.forget_commands import ForgetTarget
from storage.records import Agent
from storage.run_commands import EnqueuedResponse
from storage.run_records import Run, RunState

# The most responses that are made at a time. It bounds the connections to upstreams, which each response holds for
# minutes. Not measured: with fewer, responses wait longer in their queue.
RESPONSES_AT_ONCE: Final = 16
# The pause before a reader queries the events of another process again.
_EVENTS_POLL_S: Final = 0.2
# The time within which the same request of a caller is a retry of its client: OpenAI's SDKs wait ten minutes for an
# answer, and try twice more. So it is three times ten minutes.
_RETRY_WINDOW_S: Final = 1_800.0


class _AnsweredRequest(NamedTuple):
    """A request that was answered with a new response."""

    # Seconds since the epoch.
    answered_at: float
    # The tag of the response.
    tag: str


@dataclass(eq=False)
class BackgroundResponses:
    """Accepts and shows responses in the background. One for the process."""

    # The services that make responses.
    services: ResponseServices
    # Counts an attempt of a job, by its kind and outcome.
    count_outcome: Callable[[str, str], None]
    # Makes the responses.
    maker: ResponseMaker = field(init=False)
    # The requests that were answered last, by their digest, the oldest answer first.
    _answered_requests: dict[bytes, _AnsweredRequest] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.maker = ResponseMaker(self.services)

    def make_tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Returns the tasks that perform responses until they are cancelled."""
        limits = WorkerLimits(
            concurrency=RESPONSES_AT_ONCE, tries=UNLIMITED_TRIES, backoff_first_s=1.0, backoff_max_s=10.0
        )
        return [
            Worker(
                self.services.store.jobs, {RESPONSE_JOB: self.maker.perform}, limits, self.count_outcome
            ).run()
        ]

    # -- requests

    async def accept(
        self,
        response: NewResponse,
        agent: Agent,
        identity: Identity,
        request_context: RequestContext,
        receipt: Receipt,
    ) -> EnqueuedResponse:
        """Accepts a response: it is on disk when this returns.

        The responses of one conversation are made in the order in which they were accepted.

        agent: the memory in which the response is stored.
        identity: the identity of the request's caller and user.
        request_context: the request's headers and caller, which are not stored.
        receipt: the receipt of the request. Its reserved tokens and cost stay reserved until the response has ended.

        Returns the run of this tag.

        Raises: MemoryUnavailable; Conflict: the memory was forgotten meanwhile.
        """
        draft = Run.make_draft(response.tag, response.created_at, agent_row=agent.id, background=True)
        conversation_key = identity.conversation_key
        job_key = response.tag if conversation_key is None else make_lock_name(agent.uid, conversation_key)
        shown_json = orjson.dumps(response.shown)
        with map_store_errors():
            try:
                accepted_response = await self.services.store.responses.accept(
                    draft, agent.scope.project, RESPONSE_JOB, job_key, response.request, shown_json
                )
            except StaleWrite:
                self.services.store.agents.uncache(agent.scope)
                raise Conflict("The memory was forgotten meanwhile. Send the request again.") from None
        reservation = self.services.limiter.pop_reservation(receipt) if accepted_response.is_new else None
        self.maker.note_accepted_response(accepted_response.run.id, request_context, reservation)
        # A digest that comes again moves to the end: the first one is dropped.
        self._answered_requests.pop(response.digest, None)
        self._answered_requests[response.digest] = _AnsweredRequest(response.created_at, response.tag)
        if len(self._answered_requests) > MAX_ACCEPTED_RESPONSES:
            del self._answered_requests[next(iter(self._answered_requests))]
        return accepted_response

    def find_accepted_tag(self, digest: bytes) -> str | None:
        """Returns the tag of a response that this process has lately accepted for the same request, if any."""
        answered_request = self._answered_requests.get(digest)
        if answered_request is None or self.services.now() - answered_request.answered_at >= _RETRY_WINDOW_S:
            return None
        return answered_request.tag

    async def find(self, owner: ResponseOwner, tag: str) -> Run | None:
        """Returns the run of a response in the background, or None if this owner may read no such run."""
        with map_store_errors():
            stored_response = await self.services.store.responses.find(owner.project, tag)
        if stored_response is None or not owner.may_read(stored_response.agent):
            return None
        return stored_response.run

    async def find_request(self, run: Run) -> bytes | None:
        """Returns the request of a run as it is stored; None: it was forgotten. Raises: MemoryUnavailable."""
        return await self.services.runs.find_request(run)

    async def find_response(self, run: Run) -> Json | None:
        """Returns the response of a run as it is shown before its turn is stored; None: it was forgotten.

        Raises: MemoryUnavailable.
        """
        return await self.services.runs.find_response(run)

    async def cancel(self, run: Run) -> None:
        """Cancels a response that has not ended. Raises: MemoryUnavailable."""
        with map_store_errors(), suppress(NotFound):
            await self.services.store.runs.end_run(
                run.agent_row, run.id, RunState.CANCELLED, "cancelled", self.services.now()
            )
        if (log := self.maker.logs.get(run.id)) is not None:
            log.cancel_turn()

    async def remove(self, run: Run, rows: Collection[int]) -> None:
        """Cancels a response, forgets the turns that its attempts have begun, and deletes its run.

        rows: the rows of the turn with the response.

        Raises: MemoryUnavailable.
        """
        await self.cancel(run)
        with map_store_errors():
            forget = self.services.store.forgetting.forget
            has_begun = bool(await self.services.store.responses.load_turns(run.agent_row, run.id))
            if has_begun and run.state not in (RunState.COMPLETED, RunState.FAILED):
                # Forgets nothing. It raises the memory's epoch, so that an attempt under way commits no turn any more.
                await forget(run.agent_row, ForgetTarget())
            rows = {*rows, *(turn.exchange.id for turn in await self.services.runs.load_turns(run))}
            if rows:
                await forget(run.agent_row, ForgetTarget(exchange_rows=[*rows], keeps_replaced=True))
            # The last step, so that a client can ask again after an error.
            await self.services.store.responses.remove(run.agent_row, run.id)

    async def follow_events(self, run: Run, after: int, shown_response: Json) -> AsyncGenerator[bytes, None]:
        """Yields the events of a response after a number. The last event has the end of the response.

        Yields nothing if the event with that number has the end.

        after: the number of an event, from 0; -1: all events are yielded.
        shown_response: the response as it was last shown.

        Raises: MemoryUnavailable.
        """
        with map_store_errors():
            while True:
                log = self.maker.logs.get(run.id)
                if log is not None and not log.is_over:
                    async for event in log.read_after(after):
                        yield event
                        if self.services.dialect.find_ended_response(event) is not None:
                            return
                    # Without an end in the log the attempt has failed, and another one follows.
                    after = max(after, log.next_number - 1)
                # Loaded before the events are read: if the run is over here, all its events are stored.
                current_run = await self.services.store.runs.find_run(run.agent_row, run.id)
                async for number, event in load_events(self.services.store, run, after):
                    after = number
                    yield event
                    if self.services.dialect.find_ended_response(event) is not None:
                        return
                if current_run is None or current_run.is_over:
                    break
                await asyncio.sleep(_EVENTS_POLL_S)
            if await self._has_end(run, after):
                return
            # No attempt has written the end, or the events are not stored any more.
            ended_response = await self._render_ended_response(current_run, shown_response)
            yield (
                self.services.dialect.render_whole_events(ended_response)
                if after < 0
                else self.services.dialect.render_last_events(ended_response, after + 1)
            )

    async def _has_end(self, run: Run, event_number: int) -> bool:
        """Returns whether the event with a number is stored, and has the end of the response."""
        async for event in load_events(self.services.store, run, event_number - 1):
            return (
                event.number == event_number
                and self.services.dialect.find_ended_response(event.data) is not None
            )
        return False

    async def _render_ended_response(self, run: Run | None, shown_response: Json) -> Json:
        """Returns a response that has ended.

        run: its run; None: the run was deleted.
        shown_response: the response as it was shown before.
        """
        if shown_response["status"] not in PENDING_STATUSES:
            return shown_response
        stored_response = None if run is None else await self.services.runs.find_response(run)
        if stored_response is not None and stored_response["status"] not in PENDING_STATUSES:
            return stored_response
        if run is not None and run.state is RunState.FAILED:
            return self.services.dialect.as_failed(shown_response, code=None, message=FORGOTTEN_ERROR)
        return self.services.dialect.as_cancelled(shown_response)
