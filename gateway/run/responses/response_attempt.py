"""One attempt at a response in the background."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import orjson

from gateway.core.request.identity import Identity
from gateway.core.usage.limit_rules import LimitReservation
from gateway.errors import (
    CallerError,
    Conflict,
    GatewayError,
    MemoryUnavailable,
    UnknownId,
    UnknownModel,
    drop_tracebacks,
)
from gateway.run.background.job_context import JobPostponed
from gateway.run.call import TurnRecord
from gateway.run.memory.queue import QueueTicket
from gateway.run.receipt import Receipt
from gateway.run.request_context import RequestContext
from gateway.run.response_conversations import ContinuedConversation
from gateway.run.responses.response_ending import ResponseEnding
from gateway.run.responses.response_log import ResponseLog
from gateway.run.responses.response_progress import ResponseProgress
from gateway.run.responses.response_runs import BackgroundRequest
from gateway.run.responses.response_services import ResponseServices
from gateway.run.sink import ClientGone
from gateway.run.stored_responses import ResponseOwner

# The errors of responses that have failed, as their clients read them.
GIVEN_UP_ERROR: Final = (
    "It was given up: its attempts have ended with their processes, or by errors of the database."
)
FORGOTTEN_ERROR: Final = "Something of its memory was forgotten before the response was made."
# The pause before a response is tried here again if another gateway may know its model. Not measured: some 600 attempts
# fit into the time for which it is left to others.
_ELSEWHERE_POLL_S: Final = 1.0


@dataclass(slots=True)
class AcceptedResponse:
    """The facts that only this process knows of a response that it has accepted."""

    # The headers and the caller of the request.
    request_context: RequestContext
    # The tokens and the cost that the request has reserved.
    reservation: LimitReservation


@dataclass(eq=False)
class ResponseAttempt:
    """One attempt: makes the response, and ends its run and its log."""

    # The services that make responses.
    services: ResponseServices
    # The events of the response.
    log: ResponseLog
    # Returns the response as this process has accepted it; None: another process has accepted it.
    find_accepted_response: Callable[[], AcceptedResponse | None]
    # Returns whether another gateway may know the response's model.
    may_be_known_elsewhere: Callable[[], bool]

    def __post_init__(self) -> None:
        self._progress = ResponseProgress(self.services, self.log)
        self._ending = ResponseEnding(self.services, self.log)

    async def perform(self, request: BackgroundRequest | None) -> None:
        """Makes the response, unless an earlier attempt has. request: None: the response is given up."""
        is_begun = await self._progress.has_begun()
        made_response = await self._progress.find_made_response() if is_begun else None
        if made_response is not None:
            await self._ending.end(made_response.response, made_response.turn_name)
        elif request is None:
            await self._ending.fail(GIVEN_UP_ERROR)
        else:
            await self._begin(request, is_begun=is_begun)

    async def _begin(self, request: BackgroundRequest, *, is_begun: bool) -> None:
        """Shows a response as one in progress, and makes it. is_begun: True if an earlier attempt has begun a turn."""
        run = self.log.run
        begun_run = await self.services.store.runs.begin_run(run.agent_row, run.id, self.services.now())
        if begun_run.is_over:
            await self._ending.end(self.services.dialect.as_cancelled(self.log.shown_response))
            return
        self.log.shown_response = {**self.log.shown_response, "status": "in_progress"}
        await self.services.store.responses.replace_shown(
            run.agent_row, run.id, orjson.dumps(self.log.shown_response), self.log.job
        )
        identity = request.chat.identity
        assert identity is not None  # it was stored with the request
        record = await self._progress.make_record(is_begun=is_begun)
        if record is None:
            await self._ending.fail(FORGOTTEN_ERROR)
            return
        with self.services.receipts.work(identity.project, kind="response", key_id=request.key_id) as receipt:
            accepted_response = self.find_accepted_response()
            if accepted_response is not None and accepted_response.reservation.amounts:
                self.services.limiter.assign_reservation(receipt, accepted_response.reservation)
                accepted_response.reservation = LimitReservation()
            await self._answer(request, identity, receipt, record)

    async def _answer(
        self,
        request: BackgroundRequest,
        identity: Identity,
        receipt: Receipt,
        record: TurnRecord,
    ) -> None:
        """Makes a response, and ends its run."""
        try:
            await self._make_response(request, identity.project, receipt, record)
        except ClientGone:
            await self._ending.end(
                await self.services.runs.as_cancelled(self.log.run, self.log.shown_response)
            )
            return
        except MemoryUnavailable:
            raise  # another attempt is made
        except GatewayError as error:
            if isinstance(error, UnknownModel) and self.may_be_known_elsewhere():
                raise JobPostponed(
                    "another gateway has its model", _ELSEWHERE_POLL_S, is_planned=True
                ) from None
            code = error.code if isinstance(error, CallerError) else None
            await self._ending.fail(error.message, code)
            drop_tracebacks(error)
            return
        if self.log.error_reply is None:
            await self._ending.end_answered(identity, receipt)
        else:
            has_caller_key = self.find_accepted_response() is not None
            await self._ending.end_refused(self.log.error_reply, has_caller_key=has_caller_key)

    async def _make_response(
        self, request: BackgroundRequest, project: str, receipt: Receipt, record: TurnRecord
    ) -> None:
        """Has the request answered into the log. Raises: as `Chat.answer`; Conflict."""
        with QueueTicket() as ticket:
            continued = await self._reserve(project, request, ticket)
            if continued is not None:
                # All other items are in a turn already: another response's, or that of an earlier attempt.
                request = request.with_waiting({item["id"] for item in continued.items})
            make_view = request.make_view_factory(
                turn_name=receipt.find_turn_name,
                count_usage=receipt.count_usage,
                answering_model=receipt.name_answering_model,
                first_number=self.log.next_number,
                has_begun=self.log.has_events,
            )
            request_context = RequestContext((), project)
            if (accepted_response := self.find_accepted_response()) is not None:
                request_context = accepted_response.request_context
            await self.services.chat.answer(
                request.chat,
                request_context,
                self.log,
                receipt,
                make_view,
                continued=continued,
                record=record,
            )

    async def _reserve(
        self, project: str, request: BackgroundRequest, ticket: QueueTicket
    ) -> ContinuedConversation | None:
        """Returns the conversation of a request, with the waiting items that it had when the request was accepted.

        Returns None if the request names no conversation.
        """
        if request.conversation_id is None:
            return None
        with suppress(UnknownId):
            conversations = self.services.chat.conversations
            owner = ResponseOwner(project, user=None)
            conversation = await conversations.reserve(owner, request.conversation_id, ticket)
            accepted_ids = request.waiting_ids  # items that were added since wait for the next response
            accepted_items = [item for item in conversation.items if item["id"] in accepted_ids]
            return ContinuedConversation(conversation, accepted_items)
        if request.conversation_id.startswith("conv_"):
            raise Conflict("The conversation was deleted before its response was made.")
        return None
