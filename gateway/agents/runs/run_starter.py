"""The beginning of a run: its conversation is read, and the new messages are written before the model is asked.

A run that was accepted earlier may have been interrupted, since the process died. Its last step shows how far it came.
If the step is open, the model is asked. If it made calls, those without a result are performed, and the run goes on
with all results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.call_decision import CallDecision
from gateway.agents.core.repeated_messages import detect_barge_in
from gateway.agents.runs.calls.call_record import load_answers, load_results, number_call
from gateway.agents.runs.calls.pauses import (
    Resumption,
    deny_calls,
    list_unanswered,
    make_answers,
    resume_answered,
    resume_interrupted,
)
from gateway.agents.runs.resend import hash_otid
from gateway.agents.runs.run import AcceptedRun, RoutedSend, cut_to_window
from gateway.agents.runs.run_memory import CONFLICT_TRIES, RunLinks, RunMemory, ToolboxFactory
from gateway.agents.runs.stored_conversation import read_stored_context, resume_open_step
from gateway.agents.runs.stored_run import find_step
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.message_rewrite import cut_reply
from gateway.core.conversation.stored_messages import map_calls_to_tool_names
from gateway.core.conversation.wire_message import WireMessage, has_result_role, read_result_id
from gateway.core.ids import ObjectRef, make_id_with_seq, new_uid, parse_ref
from gateway.core.prompt.omitted_messages import is_resent
from gateway.core.turn.tool_result import ToolResult
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.errors import BadRequest
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_agent import check_not_paused
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.prompt import Prompt
from gateway.run.pending import PendingWrites
from gateway.run.sink import Sink
from storage.errors import NotFound, StaleWrite, StoreTimeout, WriteConflict
from storage.run_records import Run, RunState, RunStep, RunTextKind

# Returns the factory of a send's toolboxes, given the send and the context of its conversation.
SendToolboxFactory = Callable[[RoutedSend, MemoryContext], ToolboxFactory]


class MessageGone(Exception):
    """The message of an interrupted run is forgotten, so the run cannot go on."""


class RunBeginning(Struct, frozen=True):
    """A run that has begun."""

    # The memory of the run, with an open first step unless stored calls come first.
    memory: RunMemory
    # The prompt of its first call of the model.
    prompt: Prompt
    # The stored calls with which the run begins; None: the run begins with a call of the model.
    resumption: Resumption | None = None


class RunStarter:
    """Begins runs. One for the process."""

    def __init__(
        self, keeper: MemoryKeeper, pending: PendingWrites, make_toolbox_factory: SendToolboxFactory
    ) -> None:
        self._keeper = keeper
        self._pending = pending
        self._make_toolbox_factory = make_toolbox_factory

    async def begin(
        self, send: RoutedSend, request: MemoryRequest, form: EndpointForm, sink: Sink
    ) -> RunBeginning:
        """Reads the conversation that a send goes on with, and writes the messages of the send.

        Raises: BadRequest, NotAllowed if the memory is paused; StoreError, ClientGone, MessageGone.
        """
        accepted = send.accepted
        if accepted is not None and accepted.run.state is RunState.RUNNING:
            return await self._resume_interrupted_run(send, accepted, request, form)
        run = await self._choose_run(send)
        for _ in range(CONFLICT_TRIES):
            # Messages that come with decisions are put after the results of the calls (`after_results`).
            first_messages = () if send.decisions else send.messages
            with sink.cancel_on_leave():
                context = await self._read(request, first_messages)
                check_not_paused(context.agent)
                if (shortened := await self._shorten(context, send)) is not None:
                    # The cut may have changed the conversation, so the whole context is read again.
                    send = shortened
                    continue
                resumption = await self._find_resumption(context, send)
                memory = self._make_memory(send, context, form, run, resumption)
                prompt = await memory.make_prompt()
            if resumption is not None:
                if resumption.waiting_run is None:
                    await memory.store_run(None if send.decisions else context.path[-1].begun)
                return RunBeginning(memory, prompt, resumption)
            # If another writer has changed the conversation meanwhile, it is read again.
            with suppress(WriteConflict, StaleWrite):
                if not await self._write_missing_results(context, send, form):
                    await self._open(memory, prompt, request, accepted)
                    return RunBeginning(memory, prompt)
        raise WriteConflict("this conversation changes too fast")

    async def _open(
        self, memory: RunMemory, prompt: Prompt, request: MemoryRequest, accepted: AcceptedRun | None
    ) -> None:
        """Writes the first step, even if the client leaves meanwhile, since a run on disk has to come to its end."""
        try:
            await memory.open(prompt, None if accepted is None else accepted.request)
        except StoreTimeout:
            request.ticket.transfer()
            self._pending.add(memory.give_up(prompt), "A run that began too late")
            raise

    async def _shorten(self, context: MemoryContext, send: RoutedSend) -> RoutedSend | None:
        """Returns a send without messages that say how much of a reply was heard, or without results that are stored.

        Replies of which less was heard are cut. Returns None if the send has no such message and no such result.

        Raises: StoreError.
        """
        if (shortened := await self._cut_to_heard(context, send)) is not None:
            return shortened
        messages = _without_stored_results(context, send.messages)
        return replace(send, messages=messages) if len(messages) < len(send.messages) else None

    async def deny_waiting_calls(self, send: RoutedSend, request: MemoryRequest, run: Run) -> bool:
        """Denies the calls without a result for which a run waits.

        Returns False, and denies nothing, if the run does not wait.

        Raises: StoreError.
        """
        store = self._keeper.store
        context = await self._read(request)
        step = await self._find_last_step(context)
        if step is None or not step.waiting:
            return False
        newest = await store.runs.find_newest_waiting_run(
            step.agent_row, context.path[-1].conversation_row, step.run_row
        )
        # A send that answered some of the calls has made another run, which waits for the other answers.
        if run.id != step.run_row and (newest is None or run.id != newest.id):
            return False
        known_results = await load_results(store, step, context.path[-1], ())
        order = [*map_calls_to_tool_names(context.path[-1])]
        results = [*known_results, *deny_calls(step, {result.call_id for result in known_results})]
        results.sort(key=lambda result: order.index(result.call_id))
        return await self._write_results(context, send, EndpointForm(), step, results)

    async def _read(self, request: MemoryRequest, messages: Sequence[WireMessage] = ()) -> MemoryContext:
        return await read_stored_context(self._keeper.store, request, messages, self._keeper.settings.idle_s)

    def _make_memory(
        self,
        send: RoutedSend,
        context: MemoryContext,
        form: EndpointForm,
        run: Run,
        resumption: Resumption | None,
    ) -> RunMemory:
        """Returns the memory of a run that begins.

        resumption: the stored calls with which the run begins; None: it begins with a call of the model.
        """
        return RunMemory(
            self._keeper,
            context,
            form,
            run if resumption is None or resumption.waiting_run is None else resumption.waiting_run,
            self._make_toolbox_factory(send, context),
            client_call_ids=frozenset() if resumption is None else resumption.client_call_ids,
            calling_run_row=0 if resumption is None else resumption.calling_run_row,
            links=_make_links(send),
            after_results=send.messages if send.decisions else (),
        )

    async def _cut_to_heard(self, context: MemoryContext, send: RoutedSend) -> RoutedSend | None:
        """Cuts the newest replies to the part that the user has heard, as the client reports it.

        Returns the send without the messages that report the heard part; None if nothing was to be cut.

        Raises: StoreError.
        """
        if send.heard_texts is None:
            return None
        # Exchanges that a fork shares with its conversation do not change.
        conversation_row = context.path[-1].conversation_row if context.path else 0
        exchanges = [exchange for exchange in context.path if exchange.conversation_row == conversation_row]
        barge_in = detect_barge_in(
            exchanges, MessageHasher(context.agent.secret), send.messages, send.heard_texts
        )
        if not barge_in.cut_steps and not barge_in.stored_count:
            return None
        # The newest reply first: if the process is killed in between, the next request cuts the others.
        for step in reversed(barge_in.cut_steps):
            edit = partial(cut_reply, heard_text=step.heard)
            try:
                await self._keeper.store.messages.rewrite(context.agent, step.exchange.reply_seq, edit)
            except (NotFound, StaleWrite):
                break
        return replace(send, messages=send.messages[barge_in.stored_count :], heard_texts=None)

    async def _choose_run(self, send: RoutedSend) -> Run:
        """Returns the run of a send: its accepted run, or a new run that is not stored yet."""
        if send.accepted is not None:
            return send.accepted.run
        agent = await self._keeper.store.agents.find_or_draft(send.scope)
        otid = hash_otid(agent, send.conversation_name, send.otid)
        now = self._keeper.now()
        return Run.make_draft(new_uid(), now, parent=send.parent_run_row, depth=send.depth, otid=otid)

    # -- a run that was interrupted

    async def _resume_interrupted_run(
        self, send: RoutedSend, accepted: AcceptedRun, request: MemoryRequest, form: EndpointForm
    ) -> RunBeginning:
        """Returns a run that an earlier attempt has begun, with its open step or the calls of its last step.

        Raises: NotAllowed if the memory is paused; MessageGone; StoreError.
        """
        keeper, run = self._keeper, accepted.run
        context = await self._read(request)
        check_not_paused(context.agent)
        open_exchange = context.abandoned_exchange
        if open_exchange is not None:
            context = resume_open_step(context)
        memory = RunMemory(
            keeper,
            context,
            form,
            run,
            self._make_toolbox_factory(send, context),
            calling_run_row=run.id,
            links=_make_links(send),
        )
        prompt = await memory.make_prompt()
        if open_exchange is not None:
            await memory.resume_step(open_exchange)
            return RunBeginning(memory, prompt)
        step = await keeper.store.runs.find_newest_step(run.agent_row, run.id)
        last = context.last_exchange
        if step is None or last is None or last.id != step.exchange_row or last.is_forgotten:
            raise MessageGone
        return RunBeginning(memory, prompt, resume_interrupted(context, step))

    # -- calls of an earlier run

    async def _find_resumption(self, context: MemoryContext, send: RoutedSend) -> Resumption | None:
        """Returns the stored calls with which a run begins; None: it begins with a call of the model.

        A resent send goes on with the calls of its earlier run. If that run ended with a reply without calls, the turn
        machine decides again what follows the reply.
        """
        if send.decisions:
            return await self._resume_with_answers(context, send)
        if send.replaced_run is None or send.messages:
            return None
        step = await self._find_last_step(context)
        if step is None or step.stop is not None:  # a step with a stop reason is the last of its run
            return None
        return resume_interrupted(context, step)

    async def _write_missing_results(
        self, context: MemoryContext, send: RoutedSend, form: EndpointForm
    ) -> bool:
        """Writes the known results of an earlier run's last calls, if that run was broken off before it wrote them.

        Returns False if there are no such results. Raises: StoreError.
        """
        if not context.path or not map_calls_to_tool_names(context.path[-1]):
            return False
        if (step := await self._find_last_step(context)) is None:
            return False
        sent_ids = {read_result_id(message) for message in send.messages}
        results = await load_results(self._keeper.store, step, context.path[-1], sent_ids)
        return bool(results) and await self._write_results(context, send, form, step, results)

    async def _write_results(
        self,
        context: MemoryContext,
        send: RoutedSend,
        form: EndpointForm,
        step: RunStep,
        results: Sequence[ToolResult],
    ) -> bool:
        """Writes results after the step that made their calls. Returns False if its run is gone. Raises: StoreError."""
        run = await self._keeper.store.runs.find_run(step.agent_row, step.run_row)
        if run is None:
            return False
        client_ids = frozenset(call_id for call_id, kind in step.waiting.items() if kind == "client")
        make_toolbox = self._make_toolbox_factory(send, context)
        memory = RunMemory(
            self._keeper, context, form, run, make_toolbox, client_call_ids=client_ids, calling_run_row=run.id
        )
        await memory.write_results(results)
        return True

    async def _find_last_step(self, context: MemoryContext) -> RunStep | None:
        """Returns the step with which a conversation ends; None if it ends with no step."""
        if context.last_exchange is None or context.last_exchange.is_forgotten:
            return None
        return await find_step(self._keeper.store, context.agent, context.last_exchange)

    # -- answers to calls that wait

    async def _get_waiting_step(self, context: MemoryContext, send: RoutedSend) -> RunStep:
        """Returns the last step of the path, if the send answers its calls. Raises: BadRequest, StoreError."""
        conversation = context.snapshot.conversation
        step = None
        if conversation is not None:
            step = await self._keeper.store.runs.find_waiting_step(context.agent.id, conversation.id)
        last_exchange = context.last_exchange
        if step is None or last_exchange is None or last_exchange.id != step.exchange_row:
            error = "No tool call is currently awaiting approval in this conversation, nor a result."
            raise BadRequest(error, param="messages")
        if not is_resent(context.plan, last_exchange):
            error = "No tool call is currently awaiting approval: what these were made for is forgotten."
            raise BadRequest(error, param="messages")
        open_ref = ObjectRef(context.agent.uid, last_exchange.reply_seq)
        for decision in send.decisions:
            if decision.request is not None and parse_ref("message", decision.request) != open_ref:
                error = f"does not wait for an answer; {make_id_with_seq('message', open_ref.uid, open_ref.seq)} does."
                raise BadRequest(f"{decision.request!r} {error}", param="messages")
        return step

    async def _resume_with_answers(self, context: MemoryContext, send: RoutedSend) -> Resumption:
        """Writes a send's answers to calls. Returns these calls with all their answers so far.

        Raises: BadRequest, StoreError.
        """
        step = await self._get_waiting_step(context, send)
        store, exchange = self._keeper.store, context.path[-1]
        earlier_answers = await load_answers(store, step, exchange)
        may_repeat = send.accepted is not None or send.is_retry or bool(send.otid)
        earlier_ids = [message["tool_call_id"] for message in earlier_answers]
        window = context.request.target.context_window
        decisions = [_cut_result(decision, window) for decision in send.decisions]
        answers = make_answers(step, earlier_ids, decisions, may_repeat=may_repeat)
        answered = {*earlier_ids, *(message["tool_call_id"] for message in answers)}
        if send.messages and list_unanswered(step, answered):
            error = "A message comes with answers to all calls that wait, or alone."
            raise BadRequest(error, param="messages")
        for message in answers:
            number, data = number_call(exchange, message["tool_call_id"]), orjson.dumps(message)
            await store.run_texts.add_text(context.agent.id, step.run_row, RunTextKind.RESULT, number, data)
        run = await store.runs.find_newest_waiting_run(
            step.agent_row, exchange.conversation_row, step.run_row
        )
        if run is None:
            raise NotFound("the run that waits is gone")
        return resume_answered(context, step, [*earlier_answers, *answers], run)


def _make_links(send: RoutedSend) -> RunLinks:
    replaced_run_row = None if send.replaced_run is None else send.replaced_run.id
    return RunLinks(replaced_run_row, send.reading, None if send.accepted is None else send.accepted.job)


def _cut_result(decision: CallDecision, window: int | None) -> CallDecision:
    """Returns a copy of a decision with its result cut to the window, as `cut_to_window` does."""
    if decision.result is None:
        return decision
    return replace(decision, result=cut_to_window(decision.result, window))


def _without_stored_results(
    context: MemoryContext, messages: Sequence[WireMessage]
) -> tuple[WireMessage, ...]:
    """Returns the messages of a send without results that are stored already and wait for a reply.

    An application sends results again after an error, and no provider takes two results of one call.
    """
    stored_ids: set[str] = set()
    for exchange in reversed(context.path):
        if exchange.reply is not None:
            break
        stored_ids.update(map(read_result_id, context.tree.contents.get(exchange).messages or ()))
    return tuple(
        each for each in messages if not has_result_role(each) or read_result_id(each) not in stored_ids
    )
