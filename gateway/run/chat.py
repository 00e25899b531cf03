"""Answers chat completions, from the parsed request to the last byte: limits, memory, upstream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple
from zlib import crc32

import orjson
from msgspec.structs import replace

from adapters.types import COUNT_TOKENS_PATH, ModelRequest
from gateway.core.agent import AgentSpec
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.wire_message import count_leading_system
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import STORING_MODES, MemoryState
from gateway.core.request.native_body import MessageThread
from gateway.core.request.request_headers import list_headers_for_upstream
from gateway.core.request.requested_agent import AGENT_HEADER, asks_agent
from gateway.core.turn.asides import make_filler_asides
from gateway.core.turn.client_view import UnseenView, ViewFactory
from gateway.core.turn.reply_change import ReplyChange
from gateway.core.turn.terms import TurnTerms
from gateway.core.upstream.policy import Target
from gateway.errors import BadRequest, ContextExceeded, ThreadNotFound, ThreadUnsupported
from gateway.run.call import ChatCall, Forwarded, TurnRecord, note_identity
from gateway.run.chat_memory import ChatMemory
from gateway.run.directory import Directory
from gateway.run.memory.fit import fit_prompt
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_tokens import count_prompt_tokens
from gateway.run.memory.queue import QueueTicket
from gateway.run.model_routes import ModelRoutes
from gateway.run.receipt import Receipt
from gateway.run.request_context import RequestContext
from gateway.run.resolver import Resolver
from gateway.run.response_conversations import (
    ContinuedConversation,
    ResponseConversation,
    ResponseConversations,
)
from gateway.run.sink import Sink
from gateway.run.store_errors import map_store_errors
from gateway.run.stored_agents import StoredAgents
from gateway.run.tree_memory import TreeMemory
from gateway.run.turn import TurnRun
from gateway.run.turn_services import TurnServices
from gateway.run.upstream.attempts import Attempts
from gateway.run.upstream.endpoint import Endpoint
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.form_choice import choose_endpoint_form
from gateway.run.upstream.model_source import ModelSource
from gateway.run.upstream.relay import relay
from gateway.run.upstream.replayed_replies import ReplayedReplies
from gateway.run.upstream.route import check_models, make_agent_route
from gateway.run.usage.limiter import Limiter
from gateway.run.usage.planned_call import PlannedCall
from gateway.settings import Settings
from storage.records import Agent, Scope

_log = logging.getLogger("mnemogate")
# Returns the terms with these fields. They are cached, since nearly all turns share a few terms.
_make_terms = lru_cache(maxsize=256)(TurnTerms)


class AdmittedResponse(NamedTuple):
    """A response in the background that the limits have admitted."""

    # The user, the memory and its mode.
    identity: Identity
    # The memory in which it will be stored.
    agent: Agent


class Chat:
    """Answers the chat completions of a process."""

    def __init__(
        self,
        *,
        settings: Settings,
        keeper: MemoryKeeper,
        failover: Failover,
        turn_services: TurnServices,
        directory: Directory,
        agents: StoredAgents,
        limiter: Limiter,
    ) -> None:
        check_models(settings)
        self._limiter = limiter
        self._settings = settings
        self.turn_services = turn_services
        self.failover = failover
        # The routes to models.
        self.model_routes = ModelRoutes(settings, failover)
        self.keeper = keeper
        self.directory = directory
        self._agents = agents
        # The conversations of the Responses API.
        self.conversations = ResponseConversations(keeper.store, keeper.now, keeper.queues)
        # Finds the user, the agent and the kind of the conversation.
        self.resolver = Resolver(
            settings=settings, keeper=keeper, turn_services=turn_services, directory=directory, agents=agents
        )
        # Begins the memory of turns.
        self.memory = ChatMemory(keeper, turn_services, agents, self.resolver.warn_of_no_user)

    async def answer(
        self,
        request: ChatRequest,
        request_context: RequestContext,
        sink: Sink,
        receipt: Receipt,
        make_view: ViewFactory,
        continued: ContinuedConversation | None = None,
        record: TurnRecord | None = None,
    ) -> MemoryState | Literal[""]:
        """Answers a request, and returns the state of memory for it.

        make_view: returns the client view of the dialect.
        continued: the conversation with items that the request continues; its first response binds it to a memory.
            None: the request names no such conversation.
        record: the value of `ChatCall.record`.

        Raises: GatewayError while nothing was sent; ClientGone.
        """
        with QueueTicket() as arrival_ticket:
            call = await self._make_call(request, request_context, sink, receipt, make_view, arrival_ticket)
            call.record = record
            await self.admit(call)
            scope = call.identity.scope
            if continued is not None and scope is not None and call.identity.mode in STORING_MODES:
                await self.conversations.bind(continued.conversation, scope, call.spec)
            if call.kind is not ConversationKind.APPENDED or scope is None:
                arrival_ticket.leave()
            if call.kind is ConversationKind.AGENT:
                await self._agents.complete(call)
                return "on"
            await self._complete(call, continued)
            return call.memory_state

    async def admit(self, call: ChatCall) -> None:
        """Checks a request against the limits, which may route it to another model.

        Raises: LimitReached, UnknownModel.
        """
        other_model = await self._limiter.admit(
            call.receipt,
            PlannedCall.for_request(call.request, call.route.first),
            may_answer=partial(self.model_routes.may_answer, call),
        )
        if other_model is not None:
            route = self.model_routes.get_route(other_model)
            if asks_agent(call.request.model):
                route = route.with_window(call.spec.context_window)
            call.route = route.in_place_of(call.route)

    async def admit_background(
        self,
        request: ChatRequest,
        request_context: RequestContext,
        conversation: ResponseConversation | None,
        receipt: Receipt,
    ) -> AdmittedResponse:
        """Admits a response in the background.

        Raises: BadRequest: the response would not be stored; LimitReached, UnknownModel, MemoryUnavailable.
        """
        resolved = await self.resolver.resolve(request, request_context)
        request = resolved.request
        identity = resolved.identity
        spec = resolved.spec
        receipt.user = identity.user or ""
        scope = identity.stored_scope
        if scope is None or await self.resolver.is_paused(scope):
            raise BadRequest(
                "A response in the background has to be stored, and memory is off.", param="background"
            )
        if resolved.kind is ConversationKind.AGENT:
            raise BadRequest(
                "An agent's stored conversation has no responses in the background. Use its agent's runs.",
                param="background",
            )
        target = self.model_routes.get_requested_route(resolved).first
        await self._limiter.admit(receipt, PlannedCall.for_request(request, target))
        agent = await self._find_or_create_agent(scope, spec)
        if conversation is not None:
            await self.conversations.bind(conversation, scope, spec)
        return AdmittedResponse(identity, agent)

    async def _find_or_create_agent(self, scope: Scope, spec: AgentSpec) -> Agent:
        """Returns the owner of a memory as it is stored. Raises: MemoryUnavailable."""
        agents = self.keeper.store.agents
        with map_store_errors():
            if not spec.is_profile:
                return await agents.find_or_draft(scope, must_exist=True)
            return await agents.find_or_create(scope, spec.own_blocks, spec.shared_blocks, self.keeper.now())

    async def find_context_window(self, request: ChatRequest, request_context: RequestContext) -> int | None:
        """Returns the tokens of the context window in which a request is answered, or None if they are not known.

        Raises: as `Resolver.resolve`.
        """
        return self.model_routes.get_requested_route(
            await self.resolver.resolve(request, request_context)
        ).context_window

    async def _make_call(
        self,
        request: ChatRequest,
        request_context: RequestContext,
        sink: Sink,
        receipt: Receipt,
        make_view: ViewFactory,
        arrival_ticket: QueueTicket | None = None,
    ) -> ChatCall:
        """Resolves a request, and returns its call. arrival_ticket: the value of `ChatCall.arrival_ticket`."""
        arrived_at = self.keeper.now()
        resolved = await self.resolver.resolve(request, request_context, arrival_ticket)
        identity = resolved.identity
        note_identity(receipt, identity)
        route = self.model_routes.get_requested_route(resolved)
        forwarded = Forwarded(
            headers=list_headers_for_upstream(request_context.headers),
            credential=request_context.credential,
            models=request_context.models,
            key_id=request_context.key_id,
            upstream=route.upstream,
        )
        return ChatCall(
            request=resolved.request,
            forwarded=forwarded,
            identity=identity,
            spec=resolved.spec,
            route=route,
            kind=resolved.kind,
            make_view=make_view,
            sink=sink,
            receipt=receipt,
            arrived_at=arrived_at,
            arrival_ticket=arrival_ticket,
        )

    async def count_prompt(
        self,
        request: ChatRequest,
        request_context: RequestContext,
        sink: Sink,
        receipt: Receipt,
        change: ReplyChange | None = None,
    ) -> int | None:
        """Returns the tokens of the prompt that a request would have, by the gateway's count. Nothing is stored.

        Returns None if an upstream that speaks the client's dialect has counted them. Its reply went to the client.

        change: changes the reply of an upstream that counts chat completions to the client's form. None: no such
            upstream is asked.

        Raises: GatewayError.
        """
        call = await self._make_call(request, request_context, sink, receipt, UnseenView)
        call.identity = replace(call.identity, leaves_nothing=True)
        if call.kind is ConversationKind.AGENT:
            call.identity = replace(call.identity, scope=None, conversation_key=None)
            call.kind = ConversationKind.CLIENT
        # A fallback may have no such endpoint, and would be asked for a reply.
        attempts = self.failover.make_attempts_at_first_key(call.route, receipt)
        with QueueTicket() as ticket:
            beginning = await self.memory.begin(call, attempts, ticket, TreeMemory, opens=False)
            prompt = (
                await _make_prompt_without_memory(call, attempts) if beginning is None else beginning.prompt
            )
            receipt.headers["x-mnemogate-memory"] = call.memory_state
            counts_chat = attempts.endpoint.provider.capabilities.counts_tokens and call.request.messages
            if request.native_body is not None or (change is not None and counts_chat):
                with attempts:
                    make = partial(_make_counting_request, call, prompt)
                    await relay(
                        attempts, make, sink, receipt, self.turn_services.limits.keep_alive_s, change=change
                    )
                return None
        return await count_prompt_tokens(prompt)

    def is_for_native_upstream(self, names: Mapping[str, Any], request_context: RequestContext) -> bool:
        """Returns whether a request in Anthropic's dialect goes to its upstream in that dialect.

        A request for an agent of the agents API does not: it becomes a run.

        names: the request's fields that name model, user and conversation.

        Raises: BadRequest, UnknownModel.
        """
        model = str(names.get("model") or "")
        if asks_agent(model) or AGENT_HEADER in dict(request_context.headers):
            identity = self.resolver.identify_names(names, request_context)
            spec = self.directory.find_requested_spec(identity)
            if spec is None:
                return False
            if asks_agent(model):
                return self.model_routes.takes_messages(make_agent_route(self._settings, spec))
        return self.model_routes.takes_messages(self.model_routes.get_route(model))

    async def await_reply(self, call: ChatCall, attempts: Attempts, reply: Awaitable[object]) -> None:
        """Waits for a reply, and measures the time that the gateway has added."""
        try:
            with attempts:
                await reply
        finally:
            if call.receipt.clock.added_ms is not None:
                self.turn_services.metrics.added_s.observe(call.receipt.clock.added_ms / 1000)
            self.turn_services.metrics.memory.inc(call.memory_state)

    async def _complete(self, call: ChatCall, continued: ContinuedConversation | None) -> None:
        """Answers a request in a client conversation. Sets the call's `memory_state`."""
        attempts = await self._begin_attempts(call)
        # When the block ends, even with an error, the next request of the conversation may begin.
        with QueueTicket() as ticket:
            beginning = await self.memory.begin(call, attempts, ticket, TreeMemory)
            memory, prompt = beginning or (None, None)
            if call.kind is ConversationKind.APPENDED:
                # The request may have waited for minutes: other endpoints may be passed over now.
                attempts = await self._begin_attempts(call)
            if continued is not None and memory is not None and call.identity.mode in STORING_MODES:
                await self.conversations.remove_answered(continued, memory.context.agent)
                call.when_refused = partial(self._put_back, continued, memory.context.agent.scope)
            if call.request.thread is not None:
                self._check_thread(call.request.thread, call, prompt)
            if memory is None and self._needs_no_turn(call, attempts):
                reply = relay(
                    attempts,
                    call.make_request_without_memory,
                    call.sink,
                    call.receipt,
                    self.turn_services.limits.keep_alive_s,
                )
            else:
                reply = self._run_turn(call, attempts, memory, prompt)
            await self.await_reply(call, attempts, reply)

    async def _begin_attempts(self, call: ChatCall) -> Attempts:
        """Returns the attempts of a request.

        If nothing of the request may be left out, fallbacks with too small a window are skipped (see `skip_fallback`).
        """
        attempts = self.failover.make_attempts(call.route, lambda: _hash_conversation(call), call.receipt)
        while attempts.target.rank and not call.request.may_evict:
            try:
                await _make_prompt_without_memory(call, attempts)
                break
            except ContextExceeded:
                if not attempts.skip_fallback():
                    raise
        return attempts

    async def _put_back(self, continued: ContinuedConversation, scope: Scope) -> None:
        """Puts back the items of a request with refused messages: they wait for the next request again.

        The write goes on if the client leaves.
        """
        write = asyncio.ensure_future(self.conversations.put_back(continued))
        self.turn_services.pending.add(write, "Items of a conversation", turn_scope=scope)
        await asyncio.wait([write])

    def _needs_no_turn(self, call: ChatCall, attempts: Attempts) -> bool:
        """Returns whether a request without memory is relayed: nothing is added, cut or changed."""
        if call.spec.system or attempts.target.context_window is not None:
            return False
        if any(target.context_window for target in call.route.others):
            return False
        return call.make_view.speaks_chat or self.model_routes.all_take_native_body(call)

    def _check_thread(self, thread: MessageThread, call: ChatCall, prompt: Prompt | None) -> None:
        """Checks that the upstream of a request can continue its message thread.

        Raises: ThreadUnsupported, ThreadNotFound.
        """
        route = call.route
        if route.others or len(self.failover.endpoints[route.upstream]) > 1:
            raise ThreadUnsupported("one key of one upstream has it, and this model has several.")
        if prompt is None:
            return
        if prompt.tools:
            raise ThreadUnsupported("the gateway's tools are offered, whose rounds it would not have.")
        if thread.previous is not None and prompt.changes_prefix:
            raise ThreadNotFound("what stood before the conversation has changed since.")

    async def _run_turn(
        self, call: ChatCall, attempts: Attempts, memory: TreeMemory | None, prompt: Prompt | None
    ) -> None:
        """Answers a request by the turn machine. memory, prompt: as `ChatMemory.begin` returns them."""
        spec = call.spec
        prompt = prompt or await _make_prompt_without_memory(call, attempts)
        terms = _make_turn_terms(call, attempts, prompt, has_memory=memory is not None)
        guide = None
        if not spec.is_profile:
            terms, guide = self._agents.make_terms(spec, call.request, prompt, terms)
        elif spec.filler == "model":
            terms = replace(terms, asides=make_filler_asides(prompt.tools))
        source: ModelSource = attempts
        if call.record is not None and call.record.replies:
            source = ReplayedReplies(attempts, [*call.record.replies])
        turn = TurnRun(
            call=call,
            attempts=source,
            prompt=prompt,
            memory=memory,
            services=self.turn_services,
            guide=guide,
            terms=terms,
        )
        await turn.run()


def _make_turn_terms(call: ChatCall, attempts: Attempts, prompt: Prompt, *, has_memory: bool) -> TurnTerms:
    """Returns the terms of a turn, without the rules and the asides of its agent."""
    request = call.request
    tools = prompt.tools
    return _make_terms(
        wants_usage=request.wants_usage,
        adds_usage=prompt.adds_usage
        or (request.stream and not request.wants_usage and attempts.may_ask_usage),
        gateway_tools=frozenset([tool["function"]["name"] for tool in tools]) if tools else frozenset(),
        budget_tokens=request.max_tokens,
        holds_end=has_memory,
        choice_count=request.n,
        filler=call.spec.fixed_filler,
        notes_replies=call.record is not None,
        is_appended=call.kind is ConversationKind.APPENDED and not request.makes_response,
    )


async def _make_prompt_without_memory(call: ChatCall, attempts: Attempts) -> Prompt:
    """Returns the prompt of a request without memory."""
    target = attempts.target
    prompt = Prompt(
        call.request,
        target,
        choose_endpoint_form(call.request, attempts.endpoint, target.model),
        call.spec.system,
        changes_prefix=call.may_have_had_memory,
    )
    return replace(prompt, window=await fit_prompt(prompt))


async def _make_counting_request(
    call: ChatCall, prompt: Prompt, target: Target, endpoint: Endpoint
) -> ModelRequest:
    """Returns the request for the number of a prompt's tokens."""
    request = call.make_request_with_prompt(target, endpoint, prompt)
    return request._replace(
        native_first_block_index=None, path=request.path if call.request.native_body else COUNT_TOKENS_PATH
    )


def _hash_conversation(call: ChatCall) -> int:
    """Returns a hash that all turns of a conversation share.

    It is a hash of the conversation's key, or else of its messages up to the user's first. The system messages at the
    beginning do not count, since they may have the time in them, unless there are no other messages.
    """
    if call.identity.conversation_key is not None:
        return crc32(repr((call.identity.scope, call.identity.conversation_key)).encode())
    first_messages = []
    messages = call.request.messages
    for message in messages[count_leading_system(messages) :] or messages:
        first_messages.append(message)
        if message["role"] == "user":
            break
    return crc32(orjson.dumps(first_messages))
