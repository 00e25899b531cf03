"""Runs: sends to stored conversations, each from its message to its stop reason.

The sends of a conversation queue. A message is on disk before the model is asked, each reply before its tools run, and
the results before the model is asked again. An error before the first reply is the status of the HTTP reply. A client
that leaves cancels its run; the run's finished steps stay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from zlib import crc32

from msgspec import Struct
from msgspec.structs import asdict, replace

from gateway.agents.core.rule_guide import RuleGuide
from gateway.agents.core.waits import Wait, Waiter
from gateway.agents.registry.agent_resolver import AgentResolver
from gateway.agents.runs.abandoned_runs import AbandonedRuns
from gateway.agents.runs.agent_messaging import AgentMessaging, Sender
from gateway.agents.runs.background.run_ends import RunEnds
from gateway.agents.runs.calls.call_record import is_awaiting_answers
from gateway.agents.runs.calls.called_tools import list_path_calls
from gateway.agents.runs.calls.toolboxes import Toolboxes
from gateway.agents.runs.live_runs import LiveRuns
from gateway.agents.runs.resend import EarlierSend, SendMatcher, find_earlier_send
from gateway.agents.runs.run import (
    AcceptedRun,
    RoutedSend,
    RunOutput,
    RunRequest,
    RunResult,
    RunStart,
    make_chat_request,
    make_identity,
)
from gateway.agents.runs.run_memory import RunMemory, ToolboxFactory
from gateway.agents.runs.run_starter import RunBeginning, RunStarter
from gateway.agents.runs.send_queue import SendQueue
from gateway.agents.runs.stored_conversation import read_stored_context
from gateway.agents.runs.stored_run import load_last_counts
from gateway.agents.runs.turn_guide import is_overfull, make_guide, make_terms
from gateway.agents.tools.defined_tools import DefinedTools
from gateway.core.conversation.kind import ConversationKind, QueueName
from gateway.core.conversation.stored_messages import map_calls_to_tool_names
from gateway.core.turn.client_view import ViewFactory
from gateway.core.turn.stop_reason import StopReason
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.errors import Conflict, MemoryUnavailable, UnknownId, UnknownModel, make_sentence
from gateway.run.call import ChatCall
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.queue import QueueTicket
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.turn import RunTerms, TurnRun
from gateway.run.turn_services import TurnServices
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.form_choice import choose_endpoint_form
from gateway.run.upstream.route import Route, make_agent_route
from gateway.run.usage.accounting import Accounting
from gateway.run.usage.gen_ai_metrics import classify_call_failure
from gateway.run.usage.planned_call import PlannedCall
from gateway.settings import Settings
from storage.errors import NotFound, RunEnded, StoreError, is_known
from storage.records import Agent, Summary
from storage.run_records import Run, RunState, TokenCounts

_log = logging.getLogger("mnemogate")
# How long a run in the background waits for a commit: no client waits for it.
_DISK_WAIT_S = 3600.0


class _RunServices(Struct, frozen=True):
    """The services of runs in the foreground, for which a client waits, or of runs in the background."""

    # The upstreams.
    failover: Failover
    # The services of turns, with their limits.
    turn_services: TurnServices


class AgentRuns:
    """Answers sends to stored conversations. One for the process."""

    def __init__(
        self,
        settings: Settings,
        keeper: MemoryKeeper,
        failover: Failover,
        *,
        background_failover: Failover,
        turn_services: TurnServices,
        resolver: AgentResolver,
        answer_wait_s: float,
        accounting: Accounting,
    ) -> None:
        """Makes the runs of a process.

        background_failover: the upstreams for runs that no client waits for, with connections of their own.
        answer_wait_s: the longest wait of an agent for the answer of another agent, in seconds.
        """
        self._settings = settings
        self._receipts, self._limiter = accounting.receipts, accounting.limiter
        self.keeper = keeper
        self._foreground = _RunServices(failover, turn_services)
        patient_limits = replace(turn_services.limits, commit_wait_s=_DISK_WAIT_S, keep_alive_s=0.0)
        patient_services = replace(turn_services, limits=patient_limits)
        self._background = _RunServices(background_failover, patient_services)
        pending = turn_services.pending
        self._run_starter = RunStarter(keeper, pending, self._make_toolbox_factory)
        # The tools that callers have defined.
        self.defined_tools = DefinedTools(settings.tools, keeper.store, keeper.now)
        self.ends = RunEnds(keeper.store)
        self._queue = SendQueue(keeper, self.ends)
        self.abandoned = AbandonedRuns(keeper)
        self.live = LiveRuns(keeper.store, self.ends, keeper.now)
        # Delivers messages between agents.
        self.messaging = AgentMessaging(
            resolver, keeper.store, self.send, pending, wait_s=answer_wait_s, receipts=accounting.receipts
        )
        # The tools of agents, for chat completions as well.
        self.toolboxes = Toolboxes(keeper, self.defined_tools, self.messaging)

    async def send(
        self, run_request: RunRequest, output: RunOutput, awaited_by: Wait | None = None
    ) -> RunResult:
        """Answers a send of the agents API, with its events in the sink of the output.

        awaited_by: the wait of another agent for the answer; None: no agent waits.

        Raises: GatewayError while nothing was sent; NotFound if there is no such conversation; StoreError; ClientGone.
        """
        send = replace(self._route_send(run_request), awaited_by=awaited_by)
        await self._admit(send, output.receipt)
        return await self.answer_in_queue(send, output)

    async def answer_in_queue(self, send: RoutedSend, output: RunOutput) -> RunResult:
        """Answers a send when it is first in its queue, or returns the answer of the earlier send that it repeats.

        Raises: the errors of `send`.
        """
        # A slow database is no reason to refuse a send, since a run awaits each of its writes.
        if not (health := self.keeper.store.health).is_up:
            raise MemoryUnavailable.for_status(health.status)
        with QueueTicket() as ticket:
            try:
                with output.sink.cancel_on_leave():
                    send = await self._queue.enter(send, ticket)
                    await self._refuse_if_waiting(send)
                    earlier_send = await self._find_earlier_send(send)
                    if earlier_send is not None and earlier_send.is_answered:
                        return await self._repeat_result(send, earlier_send)
            except StoreError as error:
                raise _make_error(error) from error
            return await self._answer(_replace_earlier_send(send, earlier_send), ticket, output)

    async def admit(self, run_request: RunRequest, receipt: Receipt) -> None:
        """Asks the limits for a send that goes on without its client. Raises: LimitReached; UnknownModel."""
        await self._admit(self._route_send(run_request), receipt)

    async def admit_call(self, receipt: Receipt, call: PlannedCall) -> None:
        """Asks the limits for a call of a model outside of runs. Raises: LimitReached."""
        await self._limiter.admit(receipt, call)
        await self._limiter.admit_step(receipt, call)

    async def _admit(self, send: RoutedSend, receipt: Receipt) -> None:
        await self._limiter.admit(receipt, PlannedCall.for_request(send.request, send.route.first))

    async def perform_accepted(
        self,
        run_request: RunRequest,
        accepted: AcceptedRun,
        ticket: QueueTicket,
        make_view_factory: Callable[[RunStart], ViewFactory],
        sink: Sink,
    ) -> str:
        """Performs an accepted run, from its beginning or from the step where an earlier attempt was broken off.

        A run that has ended stays as it is.

        Returns the kind of error of its last call of a model, of a closed list; "": the call had no error.

        run_request: the send of the run, to `default` or to the uid of a conversation.
        ticket: the first ticket in the queue of the conversation.

        Raises: GatewayError if the run cannot begin; StoreError or CancelledError if the attempt was broken off:
            another attempt can go on with the run.
        """
        send = replace(self._route_send(run_request), accepted=accepted, depth=accepted.run.depth)
        if accepted.run.state is RunState.CREATED:
            await self._refuse_if_waiting(send)
            if accepted.replaced_run is not None:
                agent = await self._load_agent(send)
                matcher = SendMatcher(
                    self.keeper.store, agent, send.conversation_name, send, accepted.run.otid
                )
                send = _replace_earlier_send(send, await matcher.match(accepted.replaced_run))
        reading = run_request.reading
        memory_row, kind = (0, "run") if reading is None else (reading.memory_row, "sleeptime")
        project, key_id = run_request.scope.project, run_request.forwarded.key_id
        with suppress(RunEnded), self._receipts.work(project, memory_row, kind, key_id=key_id) as receipt:
            await self._answer(send, ticket, RunOutput(make_view_factory, sink, receipt))
        return "" if receipt.last_call is None else classify_call_failure(receipt.last_call, receipt)

    def check_background(self, run_request: RunRequest, callback: str | None) -> None:
        """Checks that a send can run in the background. Raises: BadRequest, UnknownModel.

        callback: the URL that is called when the run has ended; None: no URL is called.
        """
        make_agent_route(self._settings, run_request.spec)
        self.defined_tools.check_callback(callback)

    def _route_send(self, run_request: RunRequest, *, is_answered: bool = True) -> RoutedSend:
        """Returns a send with its route. Raises: UnknownModel.

        is_answered: a model is to answer the send. If False, the agent's model may be unknown: then the route has no
            upstream, and the context window is unknown.
        """
        try:
            route = make_agent_route(self._settings, run_request.spec)
        except UnknownModel:
            if is_answered:
                raise
            route = Route("", run_request.spec.model or "")
        if not run_request.forwarded.upstream:
            run_request = replace(
                run_request, forwarded=replace(run_request.forwarded, upstream=route.upstream)
            )
        return RoutedSend(
            **asdict(run_request),
            request=make_chat_request(run_request),
            identity=make_identity(run_request),
            route=route,
            shows_steps=True,
        )

    async def preview(self, run_request: RunRequest) -> Prompt:
        """Returns the prompt that the model would get now for a send. Raises: NotFound, StoreError."""
        keeper = self.keeper
        send = self._route_send(run_request, is_answered=False)
        request = self._make_request(send, QueueTicket())
        context = await read_stored_context(keeper.store, request, send.messages, keeper.settings.idle_s)
        toolbox = self.toolboxes.make(context, BlockEdits(list(context.blocks)))
        return await keeper.composer.make_prompt(context, EndpointForm(), toolbox.list_definitions())

    def _make_request(
        self, send: RoutedSend, ticket: QueueTicket, target: Target | None = None
    ) -> MemoryRequest:
        """Returns a send's request to memory.

        ticket: the send's ticket in the queue of its conversation.
        target: the upstream and model that answer the send; None: the first of its route.
        """
        windows = self._foreground.failover.context_windows
        return MemoryRequest(
            chat=send.request,
            identity=send.identity,
            spec=send.spec,
            now=self.keeper.now(),
            target=target or windows.with_known_window(send.route.first),
            kind=ConversationKind.AGENT,
            ticket=ticket,
        )

    async def cancel_waiting(self, run_request: RunRequest, run: Run) -> Run:
        """Denies the calls with which a run waits for answers, and cancels it. Returns the run as it is now.

        A run that does not wait any more stays as it is.

        run_request: a send without messages to the run's conversation.

        Raises: StoreError.
        """
        runs = self.keeper.store.runs
        with QueueTicket() as ticket:
            send = await self._queue.enter(self._route_send(run_request, is_answered=False), ticket)
            await self._foreground.turn_services.wait_written(send.scope)
            if await self._run_starter.deny_waiting_calls(send, self._make_request(send, ticket), run):
                return await runs.cancel_waiting_run(run.agent_row, run.id, self.keeper.now())
        return await runs.find_run(run.agent_row, run.id) or run

    # -- one send

    async def _repeat_result(self, send: RoutedSend, earlier_send: EarlierSend) -> RunResult:
        """Returns the result of an earlier send, for the send that repeats it."""
        counts = await load_last_counts(self.keeper.store, earlier_send.run)
        agent = await self._load_agent(send)
        return RunResult(earlier_send.run, agent, earlier_send.steps, is_repeat=True, last_counts=counts)

    async def _find_earlier_send(self, send: RoutedSend) -> EarlierSend | None:
        """Returns the earlier send that this send repeats, or None."""
        agent = await self._load_agent(send)
        if not agent.is_stored or not (send.otid or send.is_retry):
            return None
        # If the client of a run has left, the end of the run may not be on disk yet.
        await self._foreground.turn_services.wait_written(send.scope)
        return await find_earlier_send(self.keeper, self.abandoned, agent, send)

    async def _refuse_if_waiting(self, send: RoutedSend) -> None:
        """Raises: Conflict if calls of the conversation wait for answers, and the send must not deny these calls."""
        if not send.spares_pauses:
            return
        agent = await self._load_agent(send)
        if agent.is_stored and await is_awaiting_answers(self.keeper.store, agent, send.conversation_name):
            raise Conflict("This conversation waits for answers to calls.")

    async def _load_agent(self, send: RoutedSend) -> Agent:
        return await self.keeper.store.agents.find_or_draft(send.scope)

    async def _answer(self, send: RoutedSend, ticket: QueueTicket, output: RunOutput) -> RunResult:
        """Answers a send that is first in the queue of its conversation. Raises: as `send` or `perform_accepted`."""
        output.receipt.note_agent_run(send.spec.uid)
        key = partial(crc32, repr(send.scope).encode())
        services = self._choose_services(send)
        attempts = services.failover.make_attempts(send.route, key, output.receipt)
        form = choose_endpoint_form(send.request, attempts.endpoint, attempts.target.model)
        request = self._make_request(send, ticket, attempts.target)
        await services.turn_services.wait_written(send.scope)
        try:
            beginning = await self._run_starter.begin(send, request, form, output.sink)
        except StoreError as error:
            if send.accepted is not None:
                raise
            raise _make_error(error) from error
        if beginning.resumption is not None and beginning.resumption.waiting_run is not None:
            return await self._answer_waiting(send, beginning.memory)
        with attempts:
            return await self._answer_by_model(send, beginning, attempts, output)

    def _choose_services(self, send: RoutedSend) -> _RunServices:
        return self._foreground if send.accepted is None else self._background

    async def _answer_waiting(self, send: RoutedSend, memory: RunMemory) -> RunResult:
        """Returns the result of a send that answers some of a run's calls, while the run waits for the others.

        If the send is an accepted run, the accepted run ends.
        """
        if send.accepted is not None:
            run, keeper = send.accepted.run, self.keeper
            await keeper.store.runs.end_run(
                run.agent_row,
                run.id,
                RunState.COMPLETED,
                stop=StopReason.REQUIRES_APPROVAL,
                at=keeper.now(),
                job=send.accepted.job,
            )
        # The usage of the reply that made the calls was reported with that reply.
        return RunResult(replace(memory.run, steps=0, counts=TokenCounts()), memory.context.agent, ())

    async def _answer_by_model(
        self, send: RoutedSend, beginning: RunBeginning, attempts: Attempts, output: RunOutput
    ) -> RunResult:
        """Runs the turn of a run that has begun."""
        memory, prompt, recall = beginning.memory, beginning.prompt, beginning.prompt.recall
        receipt, metrics = output.receipt, self._choose_services(send).turn_services.metrics
        memory.receipt = receipt
        receipt.memory.scope = memory.context.agent.scope
        recall.note_search(receipt)
        make_view = output.make_view_factory(_make_run_start(memory, prompt, send.accepted))
        call = ChatCall(
            request=send.request, forwarded=send.forwarded, identity=send.identity, spec=send.spec,
            route=send.route, kind=ConversationKind.AGENT, make_view=make_view, sink=output.sink,
            receipt=receipt, memory_state="on",
        )  # fmt: skip
        stop = StopReason.SYSTEM_OVERFLOW if send.shows_steps and await is_overfull(prompt) else None
        turn = self._make_turn(send, beginning, call, attempts, stop)
        try:
            status = await self.live.perform(turn, memory)
        finally:
            if receipt.clock.added_ms is not None:
                metrics.added_s.observe(receipt.clock.added_ms / 1000)
            metrics.memory.inc("on")
        return RunResult(
            memory.run,
            memory.context.agent,
            tuple(memory.steps.exchanges),
            status=status,
            started_run_uids=tuple(memory.started_run_uids),
            last_counts=memory.steps.last_counts,
        )

    def _make_turn(
        self,
        send: RoutedSend,
        beginning: RunBeginning,
        call: ChatCall,
        attempts: Attempts,
        stop: StopReason | None,
    ) -> TurnRun:
        """Returns the turn of a run.

        stop: the reason for which the turn ends before the model is asked; None: the model is asked.
        """
        memory, prompt = beginning.memory, beginning.prompt
        planned_call = PlannedCall.for_request(send.request, send.route.first)
        run_terms = RunTerms(
            None if beginning.resumption is None else beginning.resumption.calls,
            stop,
            partial(self._limiter.admit_step, call.receipt, planned_call),
            is_resumable=send.accepted is not None,
        )
        return TurnRun(
            call,
            attempts,
            prompt,
            memory,
            services=self._choose_services(send).turn_services,
            guide=_make_guide(send, memory, prompt),
            terms=make_terms(send, prompt),
            run_terms=run_terms,
        )

    def _make_toolbox_factory(self, send: RoutedSend, context: MemoryContext) -> ToolboxFactory:
        return partial(self.toolboxes.make_for_step, sender=_make_sender(send, context))


def _replace_earlier_send(send: RoutedSend, earlier_send: EarlierSend | None) -> RoutedSend:
    """Returns a copy of a send that replaces an earlier send, without the messages that are stored already.

    earlier_send: the earlier send; None: the send replaces none, and is returned as it is.
    """
    if earlier_send is None:
        return send
    send = replace(send, replaced_run=earlier_send.run)
    return send if earlier_send.needs_messages else replace(send, messages=(), decisions=())


def _make_sender(send: RoutedSend, context: MemoryContext) -> Sender:
    """Returns an agent as the sender of messages to other agents while it answers a send."""
    uid = context.agent.uid
    waiter = Waiter(uid, QueueName(uid, send.conversation_name), send.depth, send.awaited_by)
    return Sender.of(context, waiter, send.forwarded, holds_slot=send.accepted is not None)


def _make_guide(send: RoutedSend, memory: RunMemory, prompt: Prompt) -> RuleGuide:
    """Returns the guide of a run's turn, with the steps that earlier attempts have left."""
    steps_left = send.max_steps
    if send.accepted is not None:
        is_continued = send.accepted.run.state is RunState.RUNNING
        # The reply of a step that is resumed with its calls counts once more.
        steps_left -= memory.run.steps - (is_continued and memory.open_exchange is None)
    calls = list_path_calls(memory.context)
    has_later_message = bool(send.decisions and send.messages)
    return make_guide(
        send.spec, prompt, steps_left, calls, can_ask=send.shows_steps, has_later_message=has_later_message
    )


def _make_run_start(memory: RunMemory, prompt: Prompt, accepted: AcceptedRun | None) -> RunStart:
    """Returns the start of a run as dialects show it.

    accepted: the background run; None: a client waits for the run.
    """
    exchange = memory.open_exchange or memory.context.path[-1]
    is_resumed = memory.open_exchange is None
    run, agent = memory.run, memory.context.agent
    return RunStart(
        run.uid, agent, first_seq=exchange.seq, reply_seq=exchange.reply_seq, is_resumed=is_resumed,
        tool_names=map_calls_to_tool_names(exchange) if is_resumed else {}, steps=run.steps, counts=run.counts,
        attempt=1 if accepted is None else accepted.job.attempt, summary=_find_new_summary(memory.context, prompt),
        started_run_uids=memory.started_run_uids,
    )  # fmt: skip


def _find_new_summary(context: MemoryContext, prompt: Prompt) -> Summary | None:
    """Returns the summary with which a prompt begins; None if the previous prompt began with it as well."""
    summary_id = prompt.window.summary_id
    if summary_id in (0, prompt.eviction.used_summary_id):
        return None
    return next((summary for summary in context.summaries or () if summary.id == summary_id), None)


def _make_error(error: StoreError) -> Exception:
    """Returns the error for the caller: UnknownId for NotFound, MemoryUnavailable for any other."""
    if isinstance(error, NotFound):
        return UnknownId(make_sentence(error.message), param="conversation_id")
    if not is_known(error):
        _log.warning("A run was refused, since the database could not be used: %s", error.message)
    return MemoryUnavailable.for_status(error.status)
