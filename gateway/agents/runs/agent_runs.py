"""Runs: sends to stored conversations, each from its message to its stop reason.

The sends of a conversation queue. What came in is on disk before the model is asked, each reply before its tools run,
their results before it is asked again. An error before the first reply is the status of the reply; a client that
leaves cancels the run, and what was finished of it stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from weakref import WeakValueDictionary
from zlib import crc32

from msgspec.structs import replace

from gateway.agents.core.tool_rules import RuleGuide
from gateway.agents.core.waits import Wait, Waiter
from gateway.agents.registry.registry import Registry
from gateway.agents.runs.agent_messaging import AgentMessaging, Speaker
from gateway.agents.runs.background.ends import RunEnds
from gateway.agents.runs.begin import BeginsRuns, RunBeginning
from gateway.agents.runs.calls.pauses import called_before
from gateway.agents.runs.calls.toolboxes import Toolboxes
from gateway.agents.runs.message_listing import last_counts
from gateway.agents.runs.replay import replay
from gateway.agents.runs.resend import (
    EarlierSend,
    SendMarks,
    conversation_end,
    find_earlier_send,
    otid_digest,
)
from gateway.agents.runs.run import (
    AcceptedRun,
    RunRequest,
    RunResult,
    RunStart,
    Sending,
    identity_of,
    of_client,
    request_of,
)
from gateway.agents.runs.steps import MakesToolbox, RunMemory
from gateway.agents.runs.turn_guide import guide_of, is_overfull, terms_of
from gateway.agents.tools.foreign import ForeignTools
from gateway.core.agent import AgentSpec
from gateway.core.conversation.canonical import Canon, first_spoken
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.listed import called_tools
from gateway.core.conversation.repeated import asks_again, heard_before, repeated
from gateway.core.ids import uid_of
from gateway.core.request.identity import Identity
from gateway.core.turn.client_view import MakesView
from gateway.core.turn.guide import StopReason
from gateway.errors import BadRequest, Conflict, MemoryUnavailable, UnknownId, UnknownModel, sentence
from gateway.run.call import ChatCall, form_for
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.leases import lock_name
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.prompt import EndpointForm, Prompt
from gateway.run.memory.queue import QueueTicket
from gateway.run.memory.record import BlockEdits
from gateway.run.memory.stored_conversation import read_stored_context, without_spoken_messages
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.turn import TurnRun
from gateway.run.turn_saving import TurnServices
from gateway.run.upstream.failover import Attempts, Failover
from gateway.run.upstream.route import Route, agent_route
from gateway.run.usage.accounting import Accounting
from gateway.settings import Settings
from storage.errors import NotFound, RunOver, StoreError, is_known
from storage.records import DEFAULT, Agent, Counts, Run, RunState, Summary

_log = logging.getLogger("mnemogate")
# The sends that may be in one conversation's queue, the one that is answered among them.
MOST_SENDS = 32
# The error of a run without a process that performs it.
LEFT = "The gateway was stopped while it performed this run."
# A run in the background waits so long for a commit: no client waits for it.
DISK_WAIT_S = 3600.0


class AgentRuns:
    """Answers sends to stored conversations. One for the process."""

    def __init__(
        self,
        settings: Settings,
        keeper: MemoryKeeper,
        failover: Failover,
        background: Failover,
        turns: TurnServices,
        registry: Registry,
        answer_wait_s: float,
        accounting: Accounting,
    ) -> None:
        """background: has connections of its own, for the runs that no client waits for.
        answer_wait_s: how long an agent waits for another one's answer.
        """
        self._settings = settings
        self._accounts, self._limiter = accounting.accounts, accounting.limiter
        self.keeper = keeper
        self.registry = registry
        self._failover = failover
        self._turns = turns
        self._background = background
        # Of runs without a client.
        self._background_turns = replace(
            turns, limits=replace(turns.limits, commit_wait_s=DISK_WAIT_S, beat_s=0.0)
        )
        self._begins = BeginsRuns(keeper, turns.pending, self._tools_of)
        # The tools that were defined over REST.
        self.foreign = ForeignTools(settings.tools, keeper.store, keeper.now)
        self.ends = RunEnds(keeper.store)
        self._arriving: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        # By the run's row: the agent's row, and the turn.
        self._live: dict[int, tuple[int, TurnRun]] = {}
        # How agents speak to each other.
        self.peers = AgentMessaging(
            registry, keeper.store, self, turns.pending, answer_wait_s, accounting.accounts
        )
        # Of all turns, of agents or not.
        self.toolboxes = Toolboxes(keeper, self.foreign, self.peers)

    async def send(
        self,
        run_request: RunRequest,
        view: Callable[[RunStart], MakesView],
        sink: Sink,
        receipt: Receipt,
        above: Wait | None = None,
    ) -> RunResult:
        """Answers a send of the agents API; its events go to the sink.

        view: makes the dialect's, once a step is open.
        above: of the agent that waits for its answer.

        Raises: GatewayError while nothing was sent, NotFound: there is no such conversation; StoreError; ClientGone.
        """
        sending = replace(self._sending(run_request), above=above)
        await self._admit(sending, receipt)
        return await self._send(sending, view, sink, receipt)

    async def admit(self, run_request: RunRequest, receipt: Receipt) -> None:
        """Asks the limits for a send that goes on without its client. Raises: LimitReached; UnknownModel."""
        await self._admit(self._sending(run_request), receipt)

    async def _admit(self, sending: Sending, receipt: Receipt) -> None:
        request, model = sending.request, (sending.route.upstream, sending.route.model)
        await self._limiter.admit(receipt, len(request.raw), request.max_tokens, model)

    async def perform(
        self,
        run_request: RunRequest,
        accepted: AcceptedRun,
        ticket: QueueTicket,
        view: Callable[[RunStart], MakesView],
        sink: Sink,
    ) -> None:
        """Performs a run that was accepted, or goes on with it where an earlier attempt was broken off.

        One that was ended before it begins stays ended.

        ticket: in the queue of its conversation, which is free now.
        run_request: its conversation is `default`, or a uid.

        Raises: GatewayError: it cannot begin; StoreError, CancelledError: it stays as it is, and can be taken
            up again.
        """
        sending = replace(self._sending(run_request), accepted=accepted, depth=accepted.run.depth)
        if accepted.run.state is RunState.CREATED:
            await self._spare_pause(sending)
        reading = run_request.reading
        memory = 0 if reading is None else reading.memory
        kind = "sleeptime" if memory else "run"
        with suppress(RunOver), self._accounts.work(run_request.scope.project, memory, kind) as receipt:
            await self._answer(sending, ticket, view, sink, receipt)

    def check_background(self, run_request: RunRequest, callback: str | None) -> None:
        """Refuses what could not run later either. Raises: BadRequest, UnknownModel."""
        agent_route(self._settings, run_request.spec)
        if callback is not None and (why := self.foreign.unreachable(callback)) is not None:
            raise BadRequest(f"The URL cannot be called: {why}.", param="callback_url")

    def _sending(self, run_request: RunRequest, route: Route | None = None) -> Sending:
        """Returns a send. route: in place of the one of its agent's model. Raises: UnknownModel."""
        return Sending(
            request_of(run_request),
            run_request.messages,
            identity_of(run_request),
            run_request.spec,
            route or agent_route(self._settings, run_request.spec),
            run_request.passes,
            shows_steps=True,
            max_steps=run_request.max_steps,
            otid=run_request.otid,
            decisions=run_request.decisions,
            parent=run_request.parent,
            depth=run_request.depth,
            spares_pauses=run_request.spares_pauses,
            reading=run_request.reading,
        )

    async def preview(self, run_request: RunRequest) -> Prompt:
        """Returns the prompt that a send goes on from, as it would be now. Raises: StoreError, UnknownModel."""
        return await self._preview(self._sending(run_request))

    async def system_text(self, run_request: RunRequest) -> str:
        """Returns the system prompt with memory, as it would go to the model now. Raises: StoreError.

        It can be read where no upstream has the agent's model, too: then the window of that is unknown.
        """
        try:
            route = agent_route(self._settings, run_request.spec)
        except UnknownModel:
            route = Route("", run_request.spec.model or "")
        return (await self._preview(self._sending(run_request, route))).system

    async def _preview(self, sending: Sending) -> Prompt:
        keeper = self.keeper
        seen = self._seen(sending, QueueTicket())
        context = await read_stored_context(keeper.store, seen, sending.messages, keeper.settings.idle_s)
        toolbox = self.toolboxes.make(context, BlockEdits(list(context.blocks)))
        return await keeper.composer.make(context, EndpointForm(), toolbox.definitions())

    def _seen(self, sending: Sending, ticket: QueueTicket) -> MemoryRequest:
        """Returns what memory is asked for a send that is not answered. ticket: in the queue of its conversation."""
        target = self._failover.context_windows.on(sending.route.first)
        return MemoryRequest(
            sending.request,
            sending.identity,
            sending.spec,
            self.keeper.now(),
            target,
            ConversationKind.AGENT,
            ticket,
        )

    async def owns(self, identity: Identity, spec: AgentSpec) -> bool:
        """Returns whether a chat completion names a stored conversation: `default`, or one used so before."""
        name, scope = identity.conversation, identity.scope
        if name is None or scope is None:
            return False
        uid = uid_of("conv", name)
        if name != DEFAULT and uid is None:
            return False
        if name == DEFAULT and spec.uid:
            return True
        store = self.keeper.store
        try:
            agent = await store.agents.find(scope)
            found = None if agent is None else await store.stored_paths.conversation(agent, uid or DEFAULT)
        except StoreError:
            return False
        return found is not None and bool(found.last_exchange)

    async def complete(self, call: ChatCall) -> None:
        """Answers a chat completion that names a stored conversation; messages that its list repeats are left out.

        Raises: as `send`.
        """
        request, view, receipt = call.request, call.view, call.receipt
        if request.n > 1:
            raise BadRequest("A conversation of an agent goes on with one reply.", param="n")
        left_out = set(repeated(request.messages))
        first = first_spoken(request.messages)
        # A system message after the stored messages is new ("ask whether they are still there"), before them it is not.
        new = [m for i, m in enumerate(request.messages) if i >= first and i not in left_out]
        messages = [of_client(m) for m in new]
        receipt.headers["x-mnemogate-appended"] = f"{len(messages)} of {len(request.messages) - first}"
        if not messages:
            raise BadRequest(
                "There is nothing new in `messages`: what follows the last assistant message is appended.",
                param="messages",
            )
        sending = Sending(
            without_spoken_messages(request),
            messages,
            call.identity,
            call.spec,
            call.route,
            call.passes,
            shows_steps=False,
            heard=heard_before(request.messages),
        )
        result = await self._send(sending, lambda _: view, call.sink, receipt)
        if result.is_repeat:
            await replay(request, result, view, call.sink, receipt)

    async def recover(self) -> None:
        """Fails the live runs of a process that is gone: an earlier one, or another with expired leases."""
        try:
            for each in await self._abandoned():
                await self._end(each, RunState.FAILED, StopReason.ERROR, LEFT)
        except StoreError as error:
            if not is_known(error):
                _log.error("Runs that a stopped gateway left could not be ended yet: %s", error.message)

    async def _abandoned(self, own_lock: str | None = None) -> list[Run]:
        """Returns live runs that no process performs. own_lock: one that this process holds for another run."""
        store = self.keeper.store
        found = await store.runs.live()
        if not store.conversation_locks.is_needed:
            return [each.run for each in found]
        locks = [lock_name(each.agent_uid, each.conversation) for each in found]
        held = await store.conversation_locks.held(locks) - {own_lock}
        return [each.run for each, lock in zip(found, locks, strict=True) if lock not in held]

    async def cancel(self, run: Run) -> Run:
        """Ends a run that has not ended. Returns it as it is now: another end was perhaps faster."""
        self.stop(run.id)
        ended = await self._end(run, RunState.CANCELLED, StopReason.CANCELLED)
        self.ends.notify(run)
        return ended

    async def cancel_paused(self, run_request: RunRequest, run: Run) -> Run:
        """Denies the calls with which a run waits for answers, and cancels it. Returns it as it is now.

        It stays as it is where nothing of it waits any more. run_request: names its conversation. Raises: StoreError.
        """
        runs = self.keeper.store.runs
        with QueueTicket() as ticket:
            sending = await self._enter(self._sending(run_request), ticket)
            await self._turns.wait_written(sending.scope)
            if await self._begins.deny(sending, self._seen(sending, ticket), run):
                return await runs.cancel_paused(run.agent, run.id, self.keeper.now())
        return await runs.load(run.agent, run.id) or run

    def stop(self, run: int) -> None:
        """Stops a run that is performed here, if it is, since it was ended. run: its row."""
        if run in self._live:
            self._live[run][1].stop(StopReason.CANCELLED)

    def stop_deleted(self, agent: int) -> None:
        """Stops the runs of an agent that is deleted; their clients get an error, since nothing can be stored."""
        for owner, turn in self._live.values():
            if owner == agent:
                turn.stop(StopReason.CANCELLED)

    # -- one send

    async def _send(
        self, sending: Sending, view: Callable[[RunStart], MakesView], sink: Sink, receipt: Receipt
    ) -> RunResult:
        # A run awaits each of its writes, so it loses nothing where these take long.
        if not (health := self.keeper.store.health).is_up:
            raise MemoryUnavailable.since(health.status)
        with QueueTicket() as ticket:
            try:
                with sink.while_here():
                    sending = await self._enter(sending, ticket)
                    await self._spare_pause(sending)
                    earlier = await self._find_earlier(sending)
                    if earlier is not None and earlier.is_answered:
                        return await self._repeated_result(sending, earlier)
            except StoreError as error:
                raise _error_for(error) from error
            if earlier is not None:
                sending = replace(sending, replaces=earlier.run)
                if not earlier.needs_messages:
                    sending = replace(sending, messages=(), decisions=())
            return await self._answer(sending, ticket, view, sink, receipt)

    async def _repeated_result(self, sending: Sending, earlier: EarlierSend) -> RunResult:
        last = await last_counts(self.keeper.store, earlier.run)
        return RunResult(earlier.run, await self._agent(sending), earlier.steps, is_repeat=True, last=last)

    async def _find_earlier(self, sending: Sending) -> EarlierSend | None:
        agent, identity = await self._agent(sending), sending.identity
        if not agent.id or not (sending.otid or identity.retry):
            return None
        # The end of a run is perhaps not on disk yet if its client has left.
        await self._turns.wait_written(sending.scope)
        name = identity.conversation or DEFAULT
        digest = otid_digest(agent, name, sending.otid)
        initial = () if sending.spec.defined is None else sending.spec.defined.initial_messages
        end_abandoned = partial(self._end_abandoned, lock_name(agent.uid, name))
        messages = sending.messages
        if sending.heard is not None and any(m.get("role") == "user" for m in messages):
            # A list shows what its client has heard: the same words after their answer are another send.
            end = await conversation_end(self.keeper.store, agent, name)
            path = () if end is None else end.path
            count = asks_again(path, Canon(agent.secret), messages, sending.heard, initial)
            if not count:
                return None
            messages = messages[-count:]
        marks = SendMarks(agent, name, messages, sending.decisions, digest, initial)
        return await find_earlier_send(self.keeper.store, marks, end_abandoned)

    async def _end_abandoned(self, own_lock: str, run: Run) -> Run:
        """Ends a run of a process that has died, with a lock that is free or held here by now."""
        is_left = self.keeper.store.conversation_locks.is_needed and run.id in {
            each.id for each in await self._abandoned(own_lock)
        }
        return await self._end(run, RunState.FAILED, StopReason.ERROR, LEFT) if is_left else run

    async def _enter(self, sending: Sending, ticket: QueueTicket) -> Sending:
        """Waits for the sends before this one. Returns it with the name of its conversation that all of them use."""
        identity, queues = sending.identity, self.keeper.queues
        if not self.ends.is_shared:
            agent, name = await self._queue_of(sending)
            await queues.enter((agent.uid, name), ticket, MOST_SENDS)
            return replace(sending, identity=replace(identity, conversation=name))
        # Sends that wait for a server's answers queue in the order in which they came.
        asked = (identity.scope, identity.conversation)
        async with self._arriving.setdefault(asked, asyncio.Lock()):
            agent, name = await self._queue_of(sending)
            await self.ends.of_accepted(agent, name)
            entering = asyncio.ensure_future(queues.enter((agent.uid, name), ticket, MOST_SENDS))
            try:
                await asyncio.sleep(0)  # it stands in the queue then
            except BaseException:
                entering.cancel()
                raise
        await entering
        return replace(sending, identity=replace(identity, conversation=name))

    async def _queue_of(self, sending: Sending) -> tuple[Agent, str]:
        """Returns the agent, and the name of the conversation that all sends to it use. Raises: NotFound."""
        agent = await self._agent(sending)
        name = sending.identity.conversation or DEFAULT
        if name == DEFAULT:
            return agent, name
        uid = uid_of("conv", name) or name
        found = await self.keeper.store.stored_paths.conversation(agent, uid) if agent.id else None
        if found is None:
            raise NotFound(f"there is no conversation {name!r}")
        return agent, found.name

    async def _spare_pause(self, sending: Sending) -> None:
        """Raises: Conflict: the send is not to disturb calls of its conversation that wait for answers."""
        if not sending.spares_pauses:
            return
        store, agent = self.keeper.store, await self._agent(sending)
        name = sending.identity.conversation or DEFAULT
        found = await store.stored_paths.conversation(agent, name) if agent.id else None
        if found is not None and await store.runs.waiting(agent.id, found.id) is not None:
            raise Conflict("This conversation waits for answers to calls.")

    async def _agent(self, sending: Sending) -> Agent:
        return await self.keeper.store.agents.find_or_draft(sending.scope)

    async def _answer(
        self,
        sending: Sending,
        ticket: QueueTicket,
        view: Callable[[RunStart], MakesView],
        sink: Sink,
        receipt: Receipt,
    ) -> RunResult:
        """Answers a send that is first in the queue of its conversation. Raises: as `send`, or as `perform`."""
        receipt.begin_agent(sending.spec.uid)
        key = partial(crc32, repr(sending.identity.scope).encode())
        failover = self._failover if sending.accepted is None else self._background
        attempts = failover.attempts(sending.route, key, sink, receipt)
        form = form_for(sending.request, attempts.endpoint, attempts.target.model)
        request = MemoryRequest(
            sending.request,
            sending.identity,
            sending.spec,
            self.keeper.now(),
            attempts.target,
            ConversationKind.AGENT,
            ticket,
        )
        accepted = sending.accepted
        await self._turns.wait_written(sending.scope)
        try:
            begun = await self._begins.begin(sending, request, form, sink)
        except StoreError as error:
            if accepted is not None:
                raise
            raise _error_for(error) from error
        memory, prompt, resumed = begun.memory, begun.prompt, begun.resumed
        if resumed is not None and resumed.waiting is not None:
            if accepted is not None:
                await self._end(accepted.run, RunState.COMPLETED, StopReason.REQUIRES_APPROVAL)
            # The usage of the calls' own reply was reported with it.
            return RunResult(replace(memory.run, steps=0, counts=Counts()), memory.context.agent, ())
        memory.receipt, receipt.scope = receipt, memory.context.agent.scope
        recall = prompt.recall
        receipt.searched(recall.begun, recall.ms, recall.count, recall.tokens, is_late=recall.is_late)
        with attempts:
            call = ChatCall(
                sending.request, sending.passes, sending.identity, sending.spec, sending.route,
                ConversationKind.AGENT, view(_started(memory, prompt, accepted)), sink, receipt, "on",
            )  # fmt: skip
            ends = StopReason.SYSTEM_OVERFLOW if sending.shows_steps and await is_overfull(prompt) else None
            turn = self._turn(sending, begun, call, attempts, ends)
            try:
                status = await self._live_turn(turn, memory.run)
            finally:
                self._turns.metrics.added_s.observe(receipt.added_ms / 1000)
                self._turns.metrics.memory.inc("on")
        steps, due = tuple(memory.steps), tuple(memory.begun)
        return RunResult(memory.run, memory.context.agent, steps, status=status, begun=due, last=memory.last)

    def _turn(
        self,
        sending: Sending,
        begun: RunBeginning,
        call: ChatCall,
        attempts: Attempts,
        ends: StopReason | None,
    ) -> TurnRun:
        """Returns the turn that a run is. ends: as in `TurnRun`."""
        memory, prompt, is_accepted = begun.memory, begun.prompt, sending.accepted is not None
        return TurnRun(
            call,
            attempts,
            prompt,
            memory,
            self._background_turns if is_accepted else self._turns,
            _guide(sending, memory, prompt),
            terms_of(sending, prompt),
            None if begun.resumed is None else begun.resumed.calls,
            ends,
            partial(self._admit_step, sending, call.receipt),
            is_taken_up=is_accepted,
        )

    async def _admit_step(self, sending: Sending, receipt: Receipt) -> None:
        """Asks the limits before a step. Raises: LimitReached."""
        request, model = sending.request, (sending.route.upstream, sending.route.model)
        await self._limiter.admit_step(receipt, len(request.raw), request.max_tokens, model)

    async def _live_turn(self, turn: TurnRun, run: Run) -> int:
        """Runs a turn that can be stopped meanwhile. Returns the status."""
        if run.id:
            self._live[run.id] = (run.agent, turn)
        try:
            if run.background:
                now = await self.keeper.store.runs.load(run.agent, run.id)
                if now is None or now.is_over:
                    # It was cancelled before it could be stopped.
                    return 200
            return await turn.run()
        finally:
            self._live.pop(run.id, None)

    async def _end(self, run: Run, state: RunState, stop: StopReason, error_message: str = "") -> Run:
        return await self.keeper.store.runs.end(
            run.agent, run.id, state, stop, self.keeper.now(), error_message
        )

    def _tools_of(self, sending: Sending, context: MemoryContext) -> MakesToolbox:
        return partial(self.toolboxes.make, speaker=_speaker(sending, context))


def _speaker(sending: Sending, context: MemoryContext) -> Speaker:
    uid = context.agent.uid
    waiter = Waiter(uid, (uid, sending.identity.conversation or DEFAULT), sending.depth, sending.above)
    return Speaker.of(context, waiter, sending.passes, holds_slot=sending.accepted is not None)


def _guide(sending: Sending, memory: RunMemory, prompt: Prompt) -> RuleGuide:
    left, goes_on = sending.max_steps, False
    if sending.accepted is not None:
        goes_on = sending.accepted.run.state is RunState.RUNNING
        # The reply of a step that is taken up with its calls counts once more.
        left -= memory.run.steps - (goes_on and memory.opened is None)
    called = called_before(memory.context, goes_on=goes_on)
    more = bool(sending.decisions and sending.messages)
    return guide_of(sending.spec, prompt, left, called, can_ask=sending.shows_steps, has_later_message=more)


def _started(memory: RunMemory, prompt: Prompt, accepted: AcceptedRun | None) -> RunStart:
    e = memory.opened or memory.context.path[-1]
    is_resumed, run = memory.opened is None, memory.run
    return RunStart(
        run.uid,
        memory.context.agent,
        e.seq,
        e.seq + len(e.inputs),
        is_resumed,
        called_tools(e) if is_resumed else {},
        run.steps,
        run.counts,
        1 if accepted is None else accepted.attempt,
        _new_summary(memory.context, prompt),
        memory.begun,
    )


def _new_summary(context: MemoryContext, prompt: Prompt) -> Summary | None:
    """Returns the summary that a prompt begins with, if the one before did not."""
    id = prompt.window.summary_id
    if id in (0, prompt.beginning.in_use):
        return None
    return next((each for each in context.summaries or () if each.id == id), None)


def _error_for(error: StoreError) -> Exception:
    """Returns the error for the caller: NotFound as it is, else that memory is not available."""
    if isinstance(error, NotFound):
        return UnknownId(sentence(error.message), param="conversation_id")
    if not is_known(error):
        _log.warning("A run was refused, since the database could not be used: %s", error.message)
    return MemoryUnavailable.since(error.status)
