"""One attempt at a response in the background."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.conversation.turn_hex import parse_turn_begin
from gateway.core.request.identity import Identity
from gateway.core.turn_name import TurnName
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
from gateway.run.chat import Chat
from gateway.run.memory.queue import QueueTicket
from gateway.run.receipt import Receipt
from gateway.run.receipts import Receipts
from gateway.run.request_context import RequestContext
from gateway.run.response_conversations import ContinuedConversation
from gateway.run.response_log import ResponseLog, UpstreamErrorReply
from gateway.run.response_runs import BackgroundRequest, ResponseRuns, ResponsesDialect
from gateway.run.sink import ClientGone
from gateway.run.stored_responses import ResponseOwner
from gateway.run.tools.call_journal import CallJournal
from gateway.run.usage.limiter import Limiter
from storage.errors import NotFound, RunEnded, StaleWrite
from storage.records import ExchangeState
from storage.run_commands import ResponseEnd
from storage.run_records import RunState, RunTextKind
from storage.sql.store import Store

# The errors of responses that have failed, as their clients read them.
_NOT_STORED_ERROR: Final = (
    "The response could not be stored: its memory was changed by a forgetting, or is not available."
)
GIVEN_UP_ERROR: Final = (
    "It was given up: its attempts have ended with their processes, or by errors of the database."
)
FORGOTTEN_ERROR: Final = "Something of its memory was forgotten before the response was made."
# The pause before a response is tried here again if another gateway may know its model. Not measured: some 600 attempts
# fit into the time for which it is left to others.
_ELSEWHERE_POLL_S: Final = 1.0
# The most seconds that a response waits for the commit of its turn: no client waits for it.
_DISK_WAIT_S: Final = 3600.0
# The statuses with which an upstream refuses a key.
_KEY_REFUSED_STATUSES: Final = (401, 403)
_KEY_GONE_ERROR: Final = (
    "Another process made the response than the one that took the request, and no caller's key is stored. Send the "
    "request again, or give the upstream a key in the settings."
)


class ResponseServices(Struct, frozen=True):
    """The services of the process that make responses."""

    # The store of the responses.
    store: Store
    # Answers the request.
    chat: Chat
    # Reads requests and renders responses.
    dialect: ResponsesDialect
    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Gets the receipts of attempts.
    receipts: Receipts
    # The limits that bound the requests.
    limiter: Limiter
    # Reads the runs of responses.
    runs: ResponseRuns


class _MadeResponse(NamedTuple):
    """A response that is made."""

    # The response.
    response: Json
    # The name of its turn.
    turn_name: TurnName


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

    async def perform(self, request: BackgroundRequest | None) -> None:
        """Makes the response, unless an earlier attempt has. request: None: the response is given up."""
        run = self.log.run
        is_begun = bool(await self.services.store.responses.load_turns(run.agent_row, run.id))
        made_response = await self._find_made_response() if is_begun else None
        if made_response is not None:
            await self._end(made_response.response, made_response.turn_name)
        elif request is None:
            await self._fail(GIVEN_UP_ERROR)
        else:
            await self._begin(request, is_begun=is_begun)

    async def _begin(self, request: BackgroundRequest, *, is_begun: bool) -> None:
        """Shows a response as one in progress, and makes it. is_begun: an earlier attempt has begun a turn."""
        run = self.log.run
        begun_run = await self.services.store.runs.begin_run(run.agent_row, run.id, self.services.now())
        if begun_run.is_over:
            await self._end(self.services.dialect.as_cancelled(self.log.shown_response))
            return
        self.log.shown_response = {**self.log.shown_response, "status": "in_progress"}
        await self.services.store.responses.show(
            run.agent_row, run.id, orjson.dumps(self.log.shown_response), self.log.job
        )
        identity = request.chat.identity
        assert identity is not None  # it was stored with the request
        record = await self._make_record(is_begun=is_begun)
        if record is None:
            await self._fail(FORGOTTEN_ERROR)
            return
        with self.services.receipts.work(identity.project, kind="response", key_id=request.key_id) as receipt:
            accepted = self.find_accepted_response()
            if accepted is not None and accepted.reservation.amounts:
                self.services.limiter.assign_reservation(receipt, accepted.reservation)
                accepted.reservation = LimitReservation()
            await self._answer(request, identity, receipt, record)

    async def _find_made_response(self) -> _MadeResponse | None:
        """Returns the response that an earlier attempt has made without ending the run."""
        run = self.log.run
        for turn in await self.services.runs.load_turns(run):
            if turn.exchange.state is ExchangeState.FINISHED:
                response = self.services.dialect.rebuild(run.uid, turn.reply)
                if response is not None:
                    return _MadeResponse(response, turn.name)
        return None

    async def _note_turn(self, name: TurnName) -> None:
        """Notes a turn that an attempt begins.

        Raises: ClientGone: the response has ended, or is gone; RunEnded: another attempt makes it; StoreError.
        """
        run = self.log.run
        try:
            is_noted = await self.services.store.responses.note_turn(
                run.agent_row, run.id, name.encode(), self.log.job
            )
        except StaleWrite as error:
            # A turn that is stale is planned again, which would be in vain.
            raise RunEnded(error.message) from error
        if not is_noted:
            raise ClientGone

    async def _make_record(self, *, is_begun: bool) -> TurnRecord | None:
        """Returns the record of a response's turn, with the replies and the calls of earlier attempts.

        Returns None if the record was erased, because something of the memory was forgotten.

        is_begun: an earlier attempt has begun a turn.
        """
        run = self.log.run
        add_text = partial(self.services.store.responses.add_text, run.agent_row, run.id, job=self.log.job)
        journal = CallJournal(add_text)
        record = TurnRecord(self._note_turn, journal)
        if not is_begun:
            return record
        calls, results = await self._load_texts(RunTextKind.CALL), await self._load_texts(RunTextKind.RESULT)
        if not journal.restore_calls(calls, results):
            return None
        replies = await self._load_texts(RunTextKind.REPLY)
        journal.stored_replies.update(replies)
        return replace(record, replies=list(replies.values()))

    async def _load_texts(self, kind: RunTextKind) -> dict[int, bytes]:
        """Returns the stored texts of a kind by their numbers, in order."""
        run = self.log.run
        texts = await self.services.store.run_texts.load_texts(run.agent_row, run.id, kind)
        return {text.seq: text.data for text in texts}

    async def _answer(
        self,
        request: BackgroundRequest,
        identity: Identity,
        receipt: Receipt,
        record: TurnRecord,
    ) -> None:
        """Makes a response, and ends its run."""
        try:
            with QueueTicket() as ticket:
                continued = await self._reserve(identity.project, request, ticket)
                if continued is not None:
                    # All other items are in a turn already: another response's, or that of an earlier attempt.
                    request = request.with_waiting({item["id"] for item in continued.items})
                make_view = request.make_view_factory(
                    turn_name=receipt.find_begun_turn,
                    count_usage=receipt.count_usage,
                    answering_model=receipt.name_answering_model,
                    first_number=self.log.next_number,
                    has_begun=self.log.has_events,
                )
                request_context = RequestContext((), identity.project)
                if (accepted := self.find_accepted_response()) is not None:
                    request_context = accepted.request_context
                await self.services.chat.answer(
                    request.chat,
                    request_context,
                    self.log,
                    receipt,
                    make_view,
                    continued=continued,
                    record=record,
                )
        except ClientGone:
            await self._end(await self.services.runs.as_cancelled(self.log.run, self.log.shown_response))
            return
        except MemoryUnavailable:
            raise  # another attempt is made
        except GatewayError as error:
            if isinstance(error, UnknownModel) and self.may_be_known_elsewhere():
                raise JobPostponed(
                    "another gateway has its model", _ELSEWHERE_POLL_S, is_planned=True
                ) from None
            code = error.code if isinstance(error, CallerError) else None
            await self._fail(error.message, code)
            drop_tracebacks(error)
            return
        if self.log.error_reply is None:
            await self._end_answered(identity, receipt)
        else:
            await self._end_refused(self.log.error_reply)

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

    async def _end_refused(self, error: UpstreamErrorReply) -> None:
        """Ends a response with an upstream's error."""
        code, message = error.read_fields()
        if self.find_accepted_response() is None and error.status in _KEY_REFUSED_STATUSES:
            message = _KEY_GONE_ERROR
        await self._fail(message, code)

    async def _end_answered(self, identity: Identity, receipt: Receipt) -> None:
        """Ends a response that was answered. It fails if its turn is not stored.

        Raises: MemoryUnavailable: the database has failed meanwhile, and another attempt has to be made.
        """
        if self.log.final_response is None:
            await self._fail("The upstream's answer has no end.")
            return
        turn_name = receipt.find_begun_turn()
        needs_turn = self.log.final_response["status"] in ("completed", "incomplete")
        if needs_turn and (turn_name is None or not await self._is_stored(identity, receipt, turn_name)):
            epoch = await self.services.store.responses.load_epoch(self.log.run.agent_row)
            if turn_name is not None and epoch == self.log.epoch:
                # Nothing was forgotten, so the database has failed.
                raise MemoryUnavailable("The turn of a response could not be stored.")
            await self._fail(_NOT_STORED_ERROR)
            return
        await self._end(self.log.final_response, turn_name)

    async def _is_stored(self, identity: Identity, receipt: Receipt, turn_name: TurnName) -> bool:
        """Returns whether the turn of an answer is on disk."""
        if receipt.headers.get("x-mnemogate-durable") != "false":
            return True
        if identity.scope is not None:
            await self.services.chat.turn_services.pending.wait_written(identity.scope, _DISK_WAIT_S)
        exchange = await self.services.store.messages.find_begun(
            identity.project, turn_name.conversation_uid, parse_turn_begin(turn_name.turn)
        )
        return exchange is not None

    async def _fail(self, message: str, code: str | None = None) -> None:
        """Ends a response with an error."""
        await self._end(self.services.dialect.as_failed(self.log.shown_response, code, message))

    async def _end(self, final: Json, turn_name: TurnName | None = None) -> None:
        """Ends the run and its log. turn_name: the name of the turn with the response; None: no turn has it."""
        status = final["status"]
        state = {"failed": RunState.FAILED, "cancelled": RunState.CANCELLED}.get(status, RunState.COMPLETED)
        turn = turn_name.encode() if turn_name is not None and state is RunState.COMPLETED else None
        number = self.log.next_number
        last_events = self.log.list_last_events(final)
        # For a reader in another process, no event follows once the run has ended.
        await self.log.flush()
        last_number = number + len(self.services.dialect.number_events(last_events, number)) - 1
        end = ResponseEnd(
            state=state,
            at=self.services.now(),
            shown=orjson.dumps(final),
            turn=turn,
            events=last_events,
            last_number=last_number,
            epoch=self.log.epoch,
        )
        try:
            ended_run = await self.services.store.responses.finish(self.log.run, end, self.log.job)
        except NotFound:
            return
        # A run that was cancelled, or ended by another attempt, has other last events (`follow_events` reads them).
        if (ended_run.state, ended_run.otid) == (state, turn):
            self.log.add_stored(last_events)
