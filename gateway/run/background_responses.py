"""Responses in the background: each is a run without a stored conversation, performed by a durable job.

    queued -> in_progress -> completed | incomplete | failed | cancelled

The run holds the request, and the response as it is shown before its turn is stored. Its events are numbered and
stored, so that a reader can continue where it was, in any process. An attempt that ends with its process is repeated,
with the replies and the calls that its journal has; its events continue at a later multiple of 10,000. Keys and headers
of the caller are in memory alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import orjson
from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.conversation.canonical import WireMessage
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity
from gateway.core.turn.client_view import MakesView
from gateway.core.turn_name import TurnName
from gateway.core.usage.limit_rules import LimitReservation
from gateway.errors import CallerError, Conflict, GatewayError, MemoryUnavailable, UnknownId
from gateway.run.background.worker import JobContext, Worker, WorkerLimits
from gateway.run.call import TurnRecord
from gateway.run.chat import Chat
from gateway.run.event_log import EventDialect, EventLog, stored_events
from gateway.run.memory.leases import lock_name
from gateway.run.memory.named_turns import NamedTurn, turn_begun
from gateway.run.memory.queue import QueueTicket
from gateway.run.receipt import Receipt
from gateway.run.receipts import Receipts
from gateway.run.request_context import RequestContext
from gateway.run.response_conversations import ContinuedConversation
from gateway.run.sink import ClientGone
from gateway.run.store_errors import map_store_errors
from gateway.run.stored_responses import ResponseOwner
from gateway.run.tools import call_journal
from gateway.run.tools.call_journal import CallJournal
from gateway.run.usage.limiter import Limiter
from storage.commands import ForgetTarget, ResponseEnd
from storage.errors import NotFound, StoreError
from storage.records import Agent, Job, Run, RunState, State
from storage.sql.store import Store

# The kind of the job.
KIND: Final = "response"
# Bounds the connections to upstreams, which each response holds for minutes. No measurement.
AT_ONCE: Final = 16
# How many attempts may end with their process, or by an error of the database: each of them may have asked the model.
# No measurement; any value from 2 to 5 behaves alike.
MAX_TRIES: Final = 3
NOT_STORED: Final = (
    "The response could not be stored: its memory was changed by a forgetting, or is not available."
)
GIVEN_UP: Final = (
    "It was given up: its attempts have ended with their processes, or by errors of the database."
)
FORGOTTEN: Final = "Something of its memory was forgotten before the response was made."
_UNLIMITED_TRIES: Final = 1_000_000  # of the job: `_perform` has a limit of its own
# The pause before a reader queries the events of another process again, and before an attempt queries its state.
_EVENTS_POLL_S, _STATE_POLL_S = 0.2, 1.0
# How long a response waits for the commit of its turn: no client waits for it.
_DISK_WAIT_S: Final = 3600.0
# The accepted requests of which the caller and the hash are in memory. No measurement.
_MAX_ACCEPTED: Final = 4_096
# The time within which the same request of a caller is a retry of its client: OpenAI's SDKs wait ten minutes for an
# answer, and try twice more. No measurement.
_RETRY_WINDOW_S: Final = 1_800.0
_KEY_REFUSED: Final = (401, 403)
KEY_IS_GONE: Final = (
    "Another process made the response than the one that took the request, and no caller's key is stored. Send the "
    "request again, or give the upstream a key in the settings."
)
_UNDER_WAY: Final = ("queued", "in_progress")
_RESPONSE_TEXT: Final = "response"  # the kind of the stored text with the response as it is shown
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class BackgroundRequest(Protocol):
    """A request as its run has it."""

    @property
    def chat(self) -> ChatRequest: ...

    @property
    def key(self) -> int:
        """The id of its caller's key; 0: it had none."""

    @property
    def conversation(self) -> str | None:
        """The id of the conversation that it goes on with."""

    @property
    def previous(self) -> str | None:
        """The id of the response that it goes on from."""

    @property
    def messages(self) -> Sequence[Json]:
        """The messages of its input that its turn alone has, without those that it only names."""

    @property
    def forms(self) -> Mapping[str, Any]:
        """The forms of its tools' calls, as its dialect has them."""

    @property
    def waiting_ids(self) -> Collection[str]:
        """The ids of the items of its conversation that it has before its input."""

    def with_waiting(self, ids: Collection[str]) -> BackgroundRequest:
        """Returns the request with those items of its conversation alone that still wait. ids: of them."""

    def view(
        self,
        turn: Callable[[], TurnName | None],
        count: Callable[[str], Json | None],
        model: Callable[[], str],
        number: int,
        *,
        has_begun: bool,
    ) -> MakesView:
        """Returns what makes its view.

        turn: returns the name of its turn; None: it is not stored.
        count: returns the usage of a reply with a text.
        number: of its first event.
        has_begun: an earlier attempt has sent the first event.
        """


class ResponsesDialect(EventDialect, Protocol):
    """The dialect of the responses. A response is JSON as its client sees it, and its events are bytes."""

    def restore(self, stored: bytes, tag: str, created: float) -> BackgroundRequest:
        """Returns a stored request. tag: that of the response's ids. created: seconds since the epoch."""

    def end_in(self, data: bytes) -> Json | None:
        """Returns the response in the last event of a stream; None: `data` does not end with one."""

    def as_failed(self, shown: Json, code: str | None, message: str) -> Json:
        """Returns a response as it is shown after an error."""

    def as_cancelled(self, shown: Json, output: Sequence[Json] = ()) -> Json:
        """Returns a response as it is shown after its client has cancelled it. output: what came until then."""

    def rebuild(self, tag: str, reply: WireMessage) -> Json | None:
        """Returns the response of a stored reply; None: the reply is not one of a response. tag: that of its ids."""

    def last_events(self, shown: Json, number: int) -> bytes:
        """Returns the last events of a response without a turn. number: that of the first."""

    def whole_events(self, shown: Json, number: int = 0) -> bytes:
        """Returns all events of a response, with each item whole. number: that of the first."""


class NewResponse(Struct, frozen=True):
    """A response in the background as it is accepted."""

    # That of its ids.
    tag: str
    # Seconds since the epoch.
    created: float
    # Its request as it is stored.
    request: bytes
    # The response as it is shown while it waits.
    shown: Json
    # A hash of all that the caller has sent.
    digest: bytes


@dataclass
class _ResponseLog(EventLog):
    """Takes the events of a response, and holds its last ones until its end is on disk."""

    dialect: ResponsesDialect
    job: Job = field(kw_only=True)
    # An earlier attempt has left events.
    has_events: bool = False
    # The number of this attempt's first event.
    first_number: int = 0
    last_events: bytes = b""
    # The response as it ended.
    final: Json | None = None
    # The status and body of an upstream's error.
    error_reply: tuple[int, bytes] | None = None

    async def write(self, data: bytes) -> None:
        end = self.dialect.end_in(data)
        if end is None and not self.last_events:
            self.add(data)
            return
        self.last_events, self.final = self.last_events + data, end or self.final

    async def whole(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        if status >= 300:
            self.error_reply = status, body
        else:
            self.final = orjson.loads(body)


@dataclass(eq=False)
class BackgroundResponses:
    """Accepts, performs and shows responses in the background. One for the process."""

    store: Store
    chat: Chat
    dialect: ResponsesDialect
    # Seconds since the epoch.
    now: Callable[[], float]
    receipts: Receipts
    # Counts an attempt of a job, by its kind and outcome.
    count: Callable[[str, str], None]
    limiter: Limiter
    # The logs of the responses that are being made here, by the rows of their runs.
    _logs: dict[int, _ResponseLog] = field(default_factory=dict)
    # The callers of the responses that were accepted here and have not ended, as far as it is known here, and what
    # their requests have reserved; by the same rows.
    _callers: dict[int, RequestContext] = field(default_factory=dict)
    _held: dict[int, LimitReservation] = field(default_factory=dict)
    # The time and the tag of each response that was accepted last, by the hash of its request.
    _accepted: dict[bytes, tuple[float, str]] = field(default_factory=dict)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Returns the tasks that perform responses until they are cancelled."""
        limits = WorkerLimits(
            concurrency=AT_ONCE, tries=_UNLIMITED_TRIES, backoff_first_s=1.0, backoff_most_s=10.0
        )
        return [Worker(self.store.jobs, {KIND: self._perform}, limits, self.count).run()]

    # -- requests

    async def accept(
        self,
        response: NewResponse,
        agent: Agent,
        identity: Identity,
        context: RequestContext,
        receipt: Receipt,
    ) -> tuple[Run, bool]:
        """Accepts a response: it is on disk when this returns.

        Those of one conversation are made in the order in which they were accepted.

        agent: the memory that will have it.
        identity: of the request.
        context: of the caller; it is not stored.
        receipt: of the request. What it has reserved of tokens and cost stays so until the response has ended.

        Returns its run, and whether it is a new one: there may be one with this tag.
        Raises: MemoryUnavailable.
        """
        draft = Run(0, response.tag, agent.id, 0, RunState.CREATED, response.created, background=True)
        name = identity.conversation
        key = response.tag if name is None else lock_name(agent.uid, name)
        with map_store_errors():
            run, is_new = await self.store.responses.accept(
                draft, agent.scope.project, KIND, key, response.request, orjson.dumps(response.shown)
            )
        if is_new and (held := self.limiter.hold(receipt)).amounts:  # else no limit holds for it
            self._held[run.id] = held
        # Bounded, since other processes may perform the response.
        _put_bounded(self._callers, run.id, context)
        _put_bounded(self._accepted, response.digest, (response.created, response.tag))
        return run, is_new

    def find_accepted(self, digest: bytes) -> str | None:
        """Returns the tag of the response that this process accepted lately for the same request; None: none."""
        at, tag = self._accepted.get(digest, (0.0, None))
        return tag if self.now() - at < _RETRY_WINDOW_S else None

    async def find(self, owner: ResponseOwner, tag: str) -> Run | None:
        """Returns the run of a response in the background; None: there is none that this owner may read."""
        with map_store_errors():
            found = await self.store.responses.find(owner.project, tag)
        return None if found is None or not owner.may_read(found[0]) else found[1]

    async def shown(self, run: Run) -> Json | None:
        """Returns a response as it is shown before its turn is stored; None: it was forgotten."""
        with map_store_errors():
            texts = await self.store.runs.texts(run.agent, run.id, _RESPONSE_TEXT)
        if not texts or not texts[0].data:
            return None
        shown: Json = orjson.loads(texts[0].data)
        return await self._as_cancelled(run, shown) if run.state is RunState.CANCELLED else shown

    async def _as_cancelled(self, run: Run, shown: Json) -> Json:
        """Returns a response as it is shown after its client has cancelled it, with what its last attempt has made.

        shown: as it was shown before. Raises: MemoryUnavailable.
        """
        with map_store_errors():
            turns = await self._read_turns(run)
        made = self.dialect.rebuild(run.uid, turns[-1].reply) if turns else None
        return self.dialect.as_cancelled(shown, [] if made is None else made["output"])

    async def _read_turns(self, run: Run) -> list[NamedTurn]:
        """Returns the stored turns that attempts at a response have begun, oldest first. Raises: StoreError.

        It waits for one that is being written, since an attempt that is cancelled does not.
        """
        names = [*map(TurnName.decode, await self.store.responses.turns(run.agent, run.id))]
        agent = await self.store.agents.load(run.agent) if names else None
        if agent is None:
            return []
        await self.chat.turns.wait_written(agent.scope)
        project, find = agent.scope.project, self.store.messages.find_begun
        found = [(name, await find(project, name.conversation, turn_begun(name.turn))) for name in names]
        return [NamedTurn(name, listed[1].exchange) for name, listed in found if listed is not None]

    async def request(self, run: Run) -> BackgroundRequest | None:
        """Returns the request of a response; None: it is no longer stored. Raises: MemoryUnavailable."""
        with map_store_errors():
            texts = await self.store.runs.texts(run.agent, run.id, "request")
        if not texts or not texts[0].data:
            return None
        return self.dialect.restore(texts[0].data, run.uid, run.created)

    async def cancel(self, run: Run) -> None:
        """Cancels a response that has not ended. Raises: MemoryUnavailable."""
        with map_store_errors(), suppress(NotFound):
            await self.store.runs.end(run.agent, run.id, RunState.CANCELLED, "cancelled", self.now())
        if (log := self._logs.get(run.id)) is not None:
            log.leave()

    async def remove(self, owner: ResponseOwner, run: Run, rows: Collection[int]) -> None:
        """Cancels a response, forgets the turns that its attempts have begun, and deletes its run.

        rows: of the turn that has it. Raises: MemoryUnavailable.
        """
        await self.cancel(run)
        with map_store_errors():
            forget = self.store.forgetting.forget
            names = [*map(TurnName.decode, await self.store.responses.turns(run.agent, run.id))]
            if names and run.state not in (RunState.COMPLETED, RunState.FAILED):
                # It raises the memory's epoch, so that an attempt under way commits no turn any more.
                await forget(run.agent, ForgetTarget())
            begun = [
                await self.store.messages.find_begun(owner.project, name.conversation, turn_begun(name.turn))
                for name in names
            ]
            rows = {*rows, *(found[1].exchange.id for found in begun if found is not None)}
            if rows:
                await forget(run.agent, ForgetTarget(exchanges=[*rows]))
            # The last step, so that a client can ask again after an error.
            await self.store.responses.remove(run.agent, run.id)

    async def events(self, run: Run, after: int, seen: Json) -> AsyncGenerator[bytes, None]:
        """Yields the events of a response after a number, the last of which has its end.

        seen: the response as it was shown. Raises: MemoryUnavailable.
        """
        with map_store_errors():
            while True:
                log = self._logs.get(run.id)
                if log is not None and not log.is_over:
                    async for event in log.after(after):
                        yield event
                        if self.dialect.end_in(event) is not None:
                            return
                    # The attempt may have failed, and another one follows.
                    after = max(after, log.next_number - 1)
                now = await self.store.runs.load(run.agent, run.id)
                async for number, event in stored_events(self.store, run, after):
                    after = number
                    yield event
                    if self.dialect.end_in(event) is not None:
                        return
                if now is None or now.is_over:
                    break
                await asyncio.sleep(_EVENTS_POLL_S)
            # No attempt has written its end, or its events are not stored any more.
            ended = await self._ended(now, seen)
            yield (
                self.dialect.whole_events(ended) if after < 0 else self.dialect.last_events(ended, after + 1)
            )

    async def _ended(self, run: Run | None, seen: Json) -> Json:
        """Returns a response that has ended. run: None: it was deleted. seen: as it was shown before."""
        if seen["status"] not in _UNDER_WAY:
            return seen
        shown = None if run is None else await self.shown(run)
        if shown is not None and shown["status"] not in _UNDER_WAY:
            return shown
        if run is not None and run.state is RunState.FAILED:
            return self.dialect.as_failed(seen, None, FORGOTTEN)
        return self.dialect.as_cancelled(seen)

    # -- the job

    async def _perform(self, job: JobContext) -> None:
        """Makes the first response of a job. The others have a new one, which counts its own attempts."""
        payload = orjson.loads(job.payload)
        agent, later = payload["agent"], payload.get("later")
        await self._make(job, agent, payload["run"])
        if later:
            add = self.store.responses.enqueue
            await job.finish(lambda connection: add(connection, KIND, job.job.key, agent, later))

    async def _make(self, job: JobContext, agent: int, number: int) -> None:
        """Makes a response. agent, number: the rows of its memory and of its run."""
        run = await self.store.runs.load(agent, number)
        if run is None or run.is_over:
            self._drop(number)
            return
        # A request that cannot be read, as after an upgrade, fails each attempt, and is given up like any other.
        is_given_up = job.job.tries > MAX_TRIES
        request, shown = None if is_given_up else await self.request(run), await self.shown(run)
        if shown is None or (request is None and not is_given_up):
            await self.store.runs.end(run.agent, run.id, RunState.FAILED, "error", self.now(), job=job.job)
            return
        log = await self._open_log(run, job.job)
        self._logs[run.id] = log
        watch = (
            asyncio.create_task(self._leave_when_over(run, log)) if self.store.database.is_shared else None
        )
        try:
            is_begun = bool(await self.store.responses.turns(run.agent, run.id))
            if is_begun and (made := await self._find_made(run)) is not None:
                await self._end(run, log, *made)
            elif request is None:
                await self._end(run, log, self.dialect.as_failed(shown, None, GIVEN_UP))
            else:
                await self._begin(run, log, request, shown, is_begun=is_begun)
        finally:
            if watch is not None:
                watch.cancel()
            await log.close()
            del self._logs[run.id]
            now = await self.store.runs.load(run.agent, run.id)
            if now is None or now.is_over:
                self._drop(run.id)

    def _drop(self, number: int) -> None:
        """Drops what is in memory of a response that has ended. number: the row of its run."""
        self._callers.pop(number, None)
        if (held := self._held.pop(number, None)) is not None:
            self.limiter.release(held)

    async def drop_ended(self) -> None:
        """Drops what is in memory of responses that were cancelled, or that other processes have made.

        Raises: StoreError.
        """
        if self._held:
            known = [*self._held]
            for number in {*known} - await self.store.responses.open_among(known):
                self._drop(number)

    async def _open_log(self, run: Run, job: Job) -> _ResponseLog:
        epoch = await self.store.responses.epoch(run.agent)
        log = _ResponseLog(self.store, run, epoch, self.dialect, job=job, _next=0)
        if job.attempt > 1 and await log.resume(epoch, job.attempt):
            log.has_events = True
            await self.store.responses.drop_events(run.agent, run.id, job)
        log.first_number = log.next_number
        return log

    async def _leave_when_over(self, run: Run, log: _ResponseLog) -> None:
        """Cancels an attempt when another process has cancelled or deleted its response."""
        while True:
            await asyncio.sleep(_STATE_POLL_S)
            with suppress(StoreError):
                now = await self.store.runs.load(run.agent, run.id)
                if now is None or now.is_over:
                    log.leave()
                    return

    async def _begin(
        self, run: Run, log: _ResponseLog, request: BackgroundRequest, shown: Json, *, is_begun: bool
    ) -> None:
        """Shows a response as one in progress, and makes it. is_begun: an earlier attempt has begun a turn."""
        begun = await self.store.runs.begin(run.agent, run.id, self.now())
        if begun.is_over:
            await self._end(run, log, self.dialect.as_cancelled(shown))
            return
        shown = {**shown, "status": "in_progress"}
        await self.store.responses.show(run.agent, run.id, orjson.dumps(shown), log.job)
        identity = request.chat.identity
        assert identity is not None
        record = await self._record_of(run, log.job, is_begun=is_begun)
        if record is None:
            await self._end(run, log, self.dialect.as_failed(shown, None, FORGOTTEN))
            return
        with self.receipts.work(identity.project, kind="response", key=request.key) as receipt:
            if (held := self._held.pop(run.id, None)) is not None:
                self.limiter.give(receipt, held)
            await self._answer(run, log, request, shown, identity, receipt, record)

    async def _find_made(self, run: Run) -> tuple[Json, TurnName] | None:
        """Returns the response that an earlier attempt has made without ending the run, and the name of its turn."""
        for turn in await self._read_turns(run):
            if turn.exchange.state is State.FINISHED:
                response = self.dialect.rebuild(run.uid, turn.reply)
                if response is not None:
                    return response, turn.name
        return None

    async def _note_turn(self, run: Run, job: Job, name: TurnName) -> None:
        """Notes a turn that an attempt begins. Raises: ClientGone: the response has ended, or is gone; StoreError."""
        if not await self.store.responses.note_turn(run.agent, run.id, name.encode(), job):
            raise ClientGone

    async def _record_of(self, run: Run, job: Job, *, is_begun: bool) -> TurnRecord | None:
        """Returns the record of a response's turn, with what earlier attempts have done.

        None: that was erased, since something of the memory was forgotten.

        is_begun: an earlier attempt has begun a turn.
        """

        async def read(kind: str) -> list[tuple[int, bytes]]:
            return [(each.seq, each.data) for each in await runs.texts(run.agent, run.id, kind)]

        runs = self.store.runs
        journal = CallJournal(partial(runs.add_attempt_text, run.agent, run.id, job=job))
        record = TurnRecord(partial(self._note_turn, run, job), journal)
        if not is_begun:
            return record
        if not journal.take_calls(await read(call_journal.CALL), await read(call_journal.RESULT)):
            return None
        replies = await read(call_journal.REPLY)
        journal.stored_replies.update(number for number, _ in replies)
        return replace(record, replies=[reply for _, reply in replies])

    async def _answer(
        self,
        run: Run,
        log: _ResponseLog,
        request: BackgroundRequest,
        shown: Json,
        identity: Identity,
        receipt: Receipt,
        record: TurnRecord,
    ) -> None:
        """Makes a response, and ends its run. shown: the response as it is shown while it is in progress."""
        try:
            with QueueTicket() as ticket:
                continued = await self._reserve(identity.project, request, ticket)
                if continued is not None:
                    # The others are in a turn already: another response's, or that of an earlier attempt.
                    request = request.with_waiting({item["id"] for item in continued.items})
                view = request.view(
                    receipt.begun_turn, receipt.count_usage, receipt.answering_model, log.next_number,
                    has_begun=log.has_events,
                )  # fmt: skip
                context = self._callers.get(run.id) or RequestContext((), identity.project)
                await self.chat.answer(request.chat, context, log, receipt, view, continued, record)
        except ClientGone:
            await self._end(run, log, await self._as_cancelled(run, shown))
            return
        except MemoryUnavailable:
            raise  # for the next attempt
        except GatewayError as error:
            code = error.code if isinstance(error, CallerError) else None
            await self._end(run, log, self.dialect.as_failed(shown, code, error.message))
            return
        if log.error_reply is not None:
            status, body = log.error_reply
            code, message = _error_in(body)
            if run.id not in self._callers and status in _KEY_REFUSED:
                message = KEY_IS_GONE
            await self._end(run, log, self.dialect.as_failed(shown, code or str(status), message))
            return
        final = log.final or self.dialect.as_failed(shown, None, "The upstream's answer has no end.")
        name = receipt.begun_turn()
        if final["status"] in ("completed", "incomplete") and (
            name is None or not await self._is_stored(identity, receipt, name)
        ):
            if name is not None and await self.store.responses.epoch(run.agent) == log.epoch:
                # Nothing was forgotten: the database has failed meanwhile, and another attempt is made.
                raise MemoryUnavailable("The turn of a response could not be stored.")
            final, name = self.dialect.as_failed(shown, None, NOT_STORED), None
        await self._end(run, log, final, name)

    async def _is_stored(self, identity: Identity, receipt: Receipt, name: TurnName) -> bool:
        """Returns whether the turn of an answer is on disk."""
        if receipt.headers.get("x-mnemogate-durable") != "false":
            return True
        if identity.scope is not None:
            await self.chat.turns.pending.wait_written(identity.scope, _DISK_WAIT_S)
        return (
            await self.store.messages.find_begun(identity.project, name.conversation, turn_begun(name.turn))
            is not None
        )

    async def _end(self, run: Run, log: _ResponseLog, final: Json, name: TurnName | None = None) -> None:
        """Ends a run and its log. name: of the turn that has the response; None: no turn has it."""
        status = final["status"]
        state = {"failed": RunState.FAILED, "cancelled": RunState.CANCELLED}.get(status, RunState.COMPLETED)
        turn = name.encode() if name is not None and state is RunState.COMPLETED else None
        number = log.next_number
        if final is log.final and log.last_events:
            last = log.last_events
        elif number > log.first_number:
            last = self.dialect.last_events(final, number)
        else:  # those of earlier attempts are not stored any more
            last = self.dialect.whole_events(final, number)
        # A reader in another process takes a run that has ended for one of which no event follows.
        await log.flush()
        last_number = number + len(self.dialect.number_events(last, number)) - 1
        end = ResponseEnd(state, self.now(), orjson.dumps(final), turn, last, last_number, log.epoch)
        try:
            now = await self.store.responses.finish(run, end, log.job)
        except NotFound:
            return
        # Else it was cancelled, or another attempt has ended it: `events` reads how.
        if (now.state, now.otid) == (state, turn):
            log.add_stored(last)

    async def _reserve(
        self, project: str, request: BackgroundRequest, ticket: QueueTicket
    ) -> ContinuedConversation | None:
        """Returns a request's conversation, with those of its items that the request has and that still wait.

        None: the request names none.
        """
        id = request.conversation
        if id is None:
            return None
        with suppress(UnknownId):
            conversations = self.chat.conversations
            conversation = await conversations.reserve(ResponseOwner(project, None), id, ticket)
            asked = request.waiting_ids  # what was added since waits for the next response
            return ContinuedConversation(
                conversation, [item for item in conversation.items if item["id"] in asked]
            )
        if id.startswith("conv_"):
            raise Conflict("The conversation was deleted before its response was made.")
        return None


def _put_bounded(cache: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Puts a value into a cache, which loses its oldest above a bound."""
    cache[key] = value
    if len(cache) > _MAX_ACCEPTED:
        del cache[next(iter(cache))]


def _error_in(body: bytes) -> tuple[str | None, str]:
    """Returns the code and the message of an upstream's error."""
    try:
        error = orjson.loads(body)["error"]
        return error.get("code"), str(error.get("message") or "")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None, "The upstream has answered with an error."
