"""Makes responses in the background, in attempts that each go on from those before.

An attempt that ends with its process is repeated, with the replies and the calls that its journal has; its events
continue at a later multiple of 10,000. Keys and headers of the caller are in memory alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import orjson
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
from gateway.run.background.job_context import JobContext, Postponed
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
from storage.errors import NotFound, RunOver, Stale, StoreError
from storage.job_records import Job
from storage.records import State
from storage.run_commands import ResponseEnd
from storage.run_records import Run, RunState, RunTextKind
from storage.sql.store import Store

# The kind of the job.
RESPONSE_JOB: Final = "response"
# How many attempts may end with their process, or by an error of the database: each of them may have asked the model.
# Chosen, not measured; any value from 2 to 5 behaves alike.
MAX_TRIES: Final = 3
NOT_STORED_ERROR: Final = (
    "The response could not be stored: its memory was changed by a forgetting, or is not available."
)
GIVEN_UP_ERROR: Final = (
    "It was given up: its attempts have ended with their processes, or by errors of the database."
)
FORGOTTEN_ERROR: Final = "Something of its memory was forgotten before the response was made."
# The pause before an attempt queries its state again.
_STATE_POLL_S: Final = 1.0
# If this gateway does not know the model of a response, it leaves the response to other gateways for this time, since
# they may have newer settings. Not measured: a response whose model no gateway knows fails this much later.
_ELSEWHERE_S: Final = 600.0
# The pause before such a response is tried here again. Not measured: some 600 attempts fit into `_ELSEWHERE_S`.
_ELSEWHERE_POLL_S: Final = 1.0
# How long a response waits for the commit of its turn: no client waits for it.
_DISK_WAIT_S: Final = 3600.0
# The accepted responses of which the caller is in memory, or the hash of the request. Not measured: it bounds the
# memory that they take.
MAX_ACCEPTED_RESPONSES: Final = 4_096
_KEY_REFUSED_STATUSES: Final = (401, 403)
KEY_GONE_ERROR: Final = (
    "Another process made the response than the one that took the request, and no caller's key is stored. Send the "
    "request again, or give the upstream a key in the settings."
)


class _MadeResponse(NamedTuple):
    """A response that is made."""

    response: Json
    # The name of its turn.
    turn_name: TurnName


@dataclass(slots=True)
class _AcceptedResponse:
    """The facts that only this process knows of a response that it has accepted."""

    request_context: RequestContext
    # What the request has reserved.
    reservation: LimitReservation


@dataclass(eq=False)
class ResponseMaker:
    """Makes the responses of jobs. One for the process."""

    store: Store
    chat: Chat
    dialect: ResponsesDialect
    # Seconds since the epoch.
    now: Callable[[], float]
    receipts: Receipts
    limiter: Limiter
    runs: ResponseRuns
    # The logs of the responses that are being made here, by the rows of their runs.
    logs: dict[int, ResponseLog] = field(default_factory=dict, init=False)
    # The responses that were accepted here and that, for all this process knows, have not ended; by the same rows.
    _accepted: dict[int, _AcceptedResponse] = field(default_factory=dict, init=False)
    # When this process first left a response to other gateways, by the same rows.
    _left_at: dict[int, float] = field(default_factory=dict, init=False)

    def note_accepted(
        self, number: int, request_context: RequestContext, reservation: LimitReservation | None
    ) -> None:
        """Notes a response that was accepted here.

        number: the row of its run.
        reservation: what its request has reserved; None: the response was accepted before, and has its reservation.
        """
        accepted_before = self._accepted.pop(number, None)
        if reservation is None:
            reservation = LimitReservation() if accepted_before is None else accepted_before.reservation
        self._accepted[number] = _AcceptedResponse(request_context, reservation)
        if len(self._accepted) > MAX_ACCEPTED_RESPONSES:  # other processes may perform those that stay
            self._drop(next(iter(self._accepted)))

    async def perform(self, job: JobContext) -> None:
        """Makes the first response of a job. The other responses get a new job, which counts its own attempts."""
        payload = orjson.loads(job.payload)
        agent_row = payload["agent"]
        later_runs = payload.get("later")
        await self._make(job, agent_row, payload["run"])
        if later_runs:
            enqueue = self.store.responses.enqueue
            await job.finish(
                lambda connection: enqueue(connection, RESPONSE_JOB, job.job.key, agent_row, later_runs)
            )

    async def _make(self, job: JobContext, agent_row: int, number: int) -> None:
        """Makes a response. agent_row, number: the rows of its memory and of its run."""
        run = await self.store.runs.find_run(agent_row, number)
        if run is None or run.is_over:
            self._drop(number)
            return
        # A request that cannot be read, as after an upgrade, fails each attempt, and is given up in the end.
        is_given_up = job.job.tries > MAX_TRIES
        request = None if is_given_up else await self.runs.find_request(run)
        shown = await self.runs.find_response(run)
        if shown is None or (request is None and not is_given_up):
            await self.store.runs.end_run(
                run.agent_row, run.id, RunState.FAILED, "error", self.now(), job=job.job
            )
            return
        log = await self._open_log(run, job.job, shown)
        self.logs[run.id] = log
        watch: asyncio.Task[None] | None = None
        if self.store.database.is_shared:
            watch = asyncio.create_task(self._leave_when_over(log))
        try:
            is_begun = bool(await self.store.responses.load_turns(run.agent_row, run.id))
            made_response = await self._find_made_response(run) if is_begun else None
            if made_response is not None:
                await self._end(log, made_response.response, made_response.turn_name)
            elif request is None:
                await self._fail(log, GIVEN_UP_ERROR)
            else:
                await self._begin(log, request, is_begun=is_begun)
        finally:
            if watch is not None:
                watch.cancel()
            await log.close()
            del self.logs[run.id]
            current_run = await self.store.runs.find_run(run.agent_row, run.id)
            if current_run is None or current_run.is_over:
                self._drop(run.id)

    def _drop(self, number: int) -> None:
        """Drops from this process what it holds of a response that has ended. number: the row of its run."""
        if (accepted := self._accepted.pop(number, None)) is not None:
            self.limiter.release_reservation(accepted.reservation)
        self._left_at.pop(number, None)

    async def drop_ended(self) -> None:
        """Drops from this process what it holds of responses that were cancelled, or that other processes have made.

        Raises: StoreError.
        """
        if numbers := [*self._accepted, *self._left_at]:
            for number in {*numbers} - await self.store.responses.find_open_among(numbers):
                self._drop(number)

    async def _open_log(self, run: Run, job: Job, shown: Json) -> ResponseLog:
        epoch = await self.store.responses.load_epoch(run.agent_row)
        log = ResponseLog(self.store, run, epoch, self.dialect, job=job, shown=shown, next_number=0)
        if job.attempt > 1 and await log.resume(epoch, job.attempt):
            log.has_events = True
            await self.store.responses.drop_events(run.agent_row, run.id, job)
        log.first_number = log.next_number
        return log

    async def _leave_when_over(self, log: ResponseLog) -> None:
        """Cancels an attempt when another process has cancelled or deleted its response."""
        while True:
            await asyncio.sleep(_STATE_POLL_S)
            with suppress(StoreError):
                current_run = await self.store.runs.find_run(log.run.agent_row, log.run.id)
                if current_run is None or current_run.is_over:
                    log.cancel_turn()
                    return

    async def _begin(self, log: ResponseLog, request: BackgroundRequest, *, is_begun: bool) -> None:
        """Shows a response as one in progress, and makes it. is_begun: an earlier attempt has begun a turn."""
        run = log.run
        begun_run = await self.store.runs.begin_run(run.agent_row, run.id, self.now())
        if begun_run.is_over:
            await self._end(log, self.dialect.as_cancelled(log.shown))
            return
        log.shown = {**log.shown, "status": "in_progress"}
        await self.store.responses.show(run.agent_row, run.id, orjson.dumps(log.shown), log.job)
        identity = request.chat.identity
        assert identity is not None  # it was stored with the request
        record = await self._record_of(log, is_begun=is_begun)
        if record is None:
            await self._fail(log, FORGOTTEN_ERROR)
            return
        with self.receipts.work(identity.project, kind="response", key_id=request.key_id) as receipt:
            accepted = self._accepted.get(run.id)
            if accepted is not None and accepted.reservation.amounts:
                self.limiter.assign_reservation(receipt, accepted.reservation)
                accepted.reservation = LimitReservation()
            await self._answer(log, request, identity, receipt, record)

    async def _find_made_response(self, run: Run) -> _MadeResponse | None:
        """Returns the response that an earlier attempt has made without ending the run."""
        for turn in await self.runs.load_turns(run):
            if turn.exchange.state is State.FINISHED:
                response = self.dialect.rebuild(run.uid, turn.reply)
                if response is not None:
                    return _MadeResponse(response, turn.name)
        return None

    async def _note_turn(self, log: ResponseLog, name: TurnName) -> None:
        """Notes a turn that an attempt begins.

        Raises: ClientGone: the response has ended, or is gone; RunOver: another attempt makes it; StoreError.
        """
        run = log.run
        try:
            is_noted = await self.store.responses.note_turn(run.agent_row, run.id, name.encode(), log.job)
        except Stale as error:
            # A turn that is stale is planned again, which would be in vain.
            raise RunOver(error.message) from error
        if not is_noted:
            raise ClientGone

    async def _record_of(self, log: ResponseLog, *, is_begun: bool) -> TurnRecord | None:
        """Returns the record of a response's turn, with what earlier attempts have done.

        Returns None if the record was erased, because something of the memory was forgotten.

        is_begun: an earlier attempt has begun a turn.
        """

        async def read(kind: RunTextKind) -> dict[int, bytes]:
            """Returns the stored texts of a kind by their numbers, in order."""
            texts = await store.run_texts.load_texts(run.agent_row, run.id, kind)
            return {text.seq: text.data for text in texts}

        store, run = self.store, log.run
        journal = CallJournal(partial(store.responses.add_text, run.agent_row, run.id, job=log.job))
        record = TurnRecord(partial(self._note_turn, log), journal)
        if not is_begun:
            return record
        if not journal.restore_calls(await read(RunTextKind.CALL), await read(RunTextKind.RESULT)):
            return None
        replies = await read(RunTextKind.REPLY)
        journal.stored_replies.update(replies)
        return replace(record, replies=list(replies.values()))

    async def _answer(
        self,
        log: ResponseLog,
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
                make_view = request.view_factory(
                    turn_name=receipt.begun_turn,
                    count_usage=receipt.count_usage,
                    answering_model=receipt.answering_model,
                    first_number=log.next_number,
                    has_begun=log.has_events,
                )
                request_context = RequestContext((), identity.project)
                if (accepted := self._accepted.get(log.run.id)) is not None:
                    request_context = accepted.request_context
                await self.chat.answer(
                    request.chat, request_context, log, receipt, make_view, continued, record
                )
        except ClientGone:
            await self._end(log, await self.runs.as_cancelled(log.run, log.shown))
            return
        except MemoryUnavailable:
            raise  # another attempt is made
        except GatewayError as error:
            if isinstance(error, UnknownModel) and self._may_be_known_elsewhere(log.run):
                raise Postponed("another gateway has its model", _ELSEWHERE_POLL_S, is_planned=True) from None
            code = error.code if isinstance(error, CallerError) else None
            await self._fail(log, error.message, code)
            drop_tracebacks(error)
            return
        if log.error_reply is None:
            await self._end_answered(log, identity, receipt)
        else:
            await self._end_refused(log, log.error_reply)

    async def _end_refused(self, log: ResponseLog, error: UpstreamErrorReply) -> None:
        """Ends a response with an upstream's error."""
        code, message = error.read()
        if log.run.id not in self._accepted and error.status in _KEY_REFUSED_STATUSES:
            message = KEY_GONE_ERROR
        await self._fail(log, message, code)

    async def _end_answered(self, log: ResponseLog, identity: Identity, receipt: Receipt) -> None:
        """Ends a response that was answered. It fails if its turn is not stored.

        Raises: MemoryUnavailable: the database has failed meanwhile, and another attempt has to be made.
        """
        if log.final is None:
            await self._fail(log, "The upstream's answer has no end.")
            return
        turn_name = receipt.begun_turn()
        needs_turn = log.final["status"] in ("completed", "incomplete")
        if needs_turn and (turn_name is None or not await self._is_stored(identity, receipt, turn_name)):
            epoch = await self.store.responses.load_epoch(log.run.agent_row)
            if turn_name is not None and epoch == log.epoch:
                # Nothing was forgotten, so the database has failed.
                raise MemoryUnavailable("The turn of a response could not be stored.")
            await self._fail(log, NOT_STORED_ERROR)
            return
        await self._end(log, log.final, turn_name)

    async def _fail(self, log: ResponseLog, message: str, code: str | None = None) -> None:
        """Ends a response with an error."""
        await self._end(log, self.dialect.as_failed(log.shown, code, message))

    def _may_be_known_elsewhere(self, run: Run) -> bool:
        """Returns whether another gateway may know the model of a response: that which has accepted it.

        The time is counted from the first attempt of this gateway, since the response may have waited long before.
        """
        if not self.store.database.is_shared or run.id in self._accepted:
            return False
        now = self.now()
        return now - self._left_at.setdefault(run.id, now) < _ELSEWHERE_S

    async def _is_stored(self, identity: Identity, receipt: Receipt, turn_name: TurnName) -> bool:
        """Returns whether the turn of an answer is on disk."""
        if receipt.headers.get("x-mnemogate-durable") != "false":
            return True
        if identity.scope is not None:
            await self.chat.turns.pending.wait_written(identity.scope, _DISK_WAIT_S)
        exchange = await self.store.messages.find_begun(
            identity.project, turn_name.conversation_uid, parse_turn_begin(turn_name.turn)
        )
        return exchange is not None

    async def _end(self, log: ResponseLog, final: Json, turn_name: TurnName | None = None) -> None:
        """Ends a run and its log. turn_name: of the turn that has the response; None: no turn has it."""
        status = final["status"]
        state = {"failed": RunState.FAILED, "cancelled": RunState.CANCELLED}.get(status, RunState.COMPLETED)
        turn = turn_name.encode() if turn_name is not None and state is RunState.COMPLETED else None
        number = log.next_number
        last_events = log.list_last_events(final)
        # For a reader in another process, no event follows once the run has ended.
        await log.flush()
        last_number = number + len(self.dialect.number_events(last_events, number)) - 1
        end = ResponseEnd(
            state=state,
            at=self.now(),
            shown=orjson.dumps(final),
            turn=turn,
            events=last_events,
            last_number=last_number,
            epoch=log.epoch,
        )
        try:
            ended_run = await self.store.responses.finish(log.run, end, log.job)
        except NotFound:
            return
        # If the run was cancelled, or ended by another attempt, `events` reads how it ended.
        if (ended_run.state, ended_run.otid) == (state, turn):
            log.add_stored(last_events)

    async def _reserve(
        self, project: str, request: BackgroundRequest, ticket: QueueTicket
    ) -> ContinuedConversation | None:
        """Returns the conversation of a request, with the waiting items that it had when the request was accepted.

        None: the request names no conversation.
        """
        if request.conversation_id is None:
            return None
        with suppress(UnknownId):
            conversations = self.chat.conversations
            owner = ResponseOwner(project, user=None)
            conversation = await conversations.reserve(owner, request.conversation_id, ticket)
            accepted_ids = request.waiting_ids  # items that were added since wait for the next response
            accepted_items = [item for item in conversation.items if item["id"] in accepted_ids]
            return ContinuedConversation(conversation, accepted_items)
        if request.conversation_id.startswith("conv_"):
            raise Conflict("The conversation was deleted before its response was made.")
        return None
