"""A chat completion from the parsed request to the last byte: who asks, what is remembered, which upstream answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import Any
from urllib.parse import quote
from zlib import crc32

import orjson
from msgspec import Struct
from msgspec.structs import replace

from adapters.types import COUNT_TOKENS, ModelRequest
from gateway.core.agent import AgentSpec
from gateway.core.applications import APPLICATIONS
from gateway.core.conversation.canonical import is_system
from gateway.core.conversation.kind import ConversationKind
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import (
    CONVERSATION_ORDER,
    KEEPS,
    USER_ORDER,
    Identity,
    IdentityRules,
    Mode,
    asks_agent,
    identify,
)
from gateway.core.request.native_body import MessageThread, NativeBody
from gateway.core.request.request_headers import forwardable
from gateway.core.turn.asides import fillers_in
from gateway.core.turn.client_view import MakesUnseen, MakesView
from gateway.core.turn.commands import FINISHED, TurnOutcome
from gateway.core.turn.native_form import Memory, NativeReader, ReplyChange
from gateway.core.turn.native_turn import NativeTurn
from gateway.core.turn.spec import TurnSpec
from gateway.core.upstream.policy import Target
from gateway.errors import BadRequest, GatewayError, MemoryUnavailable, ThreadNotFound, ThreadUnsupported
from gateway.run.call import ChatCall, Passes, form_for, native_call
from gateway.run.directory import Directory, StoredAgents, unknown
from gateway.run.later_replies import LaterReplies, LaterReply, NotedReply
from gateway.run.memory.fit import fit, prompt_tokens
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.queue import QueueTicket
from gateway.run.memory.record import BlockEdits
from gateway.run.memory.stored_turns import paths_to, with_references
from gateway.run.native_memory import BoundedReader, EarlierReplies, FoundReplies, NativeMemory
from gateway.run.native_request import NativeRequest
from gateway.run.receipt import Receipt
from gateway.run.request_context import RequestContext
from gateway.run.response_conversations import ConversationHead, ResponseConversations
from gateway.run.sink import Sink, UnseenSink
from gateway.run.turn import TreeMemory, TurnRun
from gateway.run.turn_saving import TurnSaving, TurnServices
from gateway.run.upstream.failover import Attempts, Endpoint, Failover
from gateway.run.upstream.forward import with_codex_headers
from gateway.run.upstream.relay import relay
from gateway.run.upstream.route import Route, agent_route, check_models, resolve_route
from gateway.run.usage.limiter import Limiter
from gateway.settings import Settings
from storage.errors import StoreError, is_known
from storage.records import Agent, Scope

_log = logging.getLogger("mnemogate")
_MOST_ROUTES = 256  # cached; bounded, since callers choose the names of models
_, _READ, _OFF, _STRICT = Mode  # by their names Python 3.11 finds them five times as slowly
_AGENT = b"x-mnemogate-agent"
SUB_AGENT = "sub-agent"  # the name of a task that a model has delegated, as the names of rules are
_context_window = attrgetter("context_window")
_terms = lru_cache(maxsize=256)(TurnSpec)  # nearly all turns share a few


class _Resolved(Struct, frozen=True):
    """A request with everything that decides how it is answered."""

    # With the sampling of its agent.
    request: ChatRequest
    identity: Identity
    spec: AgentSpec
    kind: ConversationKind


class Chat:
    """One for the process."""

    def __init__(
        self,
        settings: Settings,
        keeper: MemoryKeeper,
        failover: Failover,
        turns: TurnServices,
        directory: Directory,
        agents: StoredAgents,
        limiter: Limiter,
    ) -> None:
        check_models(settings)
        self._limiter = limiter
        self._settings = settings
        self.turns = turns
        self.failover = failover
        self.keeper = keeper
        self.directory = directory
        self._agents = agents
        self.conversations = ResponseConversations(keeper.store, keeper.now)
        self._rules_of = cache(partial(rules_of, settings))
        self._route_of = lru_cache(maxsize=_MOST_ROUTES)(partial(resolve_route, settings))
        self._has_named_missing = False
        self._earlier = EarlierReplies()
        self.later = LaterReplies(keeper.store, keeper.now)
        keeper.store.forgetting.when_gone(self._earlier.clear)

    def rules(self, project: str, key_mode: str | None = None) -> IdentityRules:
        """Returns the rules by which a project's requests are read. key_mode: of their key."""
        return self._rules_of(project, key_mode)

    async def answer(
        self,
        request: ChatRequest,
        context: RequestContext,
        sink: Sink,
        receipt: Receipt,
        view: MakesView,
        head: ConversationHead | None = None,
    ) -> str:
        """Answers a request, and returns the state of memory for it: on, read, off, none or unavailable.

        view: the dialect's.
        head: the conversation that the request goes on with; its first response has it belong to a memory.

        Raises: GatewayError while nothing was sent; ClientGone.
        """
        call = await self._call(request, context, sink, receipt, view)
        if self._limiter.holds_for(receipt.project):
            await self._admit(call)
        if head is not None and call.identity.scope is not None and call.identity.mode in KEEPS:
            await self.conversations.bind(head, call.identity.scope, call.spec)
        if call.kind is ConversationKind.AGENT:
            await self._agents.complete(call)
            return "on"
        return await self._complete(call, head)

    async def _admit(self, call: ChatCall) -> None:
        """Holds a request to the limits; another model may answer it. Raises: LimitReached, UnknownModel."""
        request, route = call.request, call.route
        other = await self._limiter.admit(
            call.receipt,
            len(request.raw),
            request.max_tokens,
            (route.upstream, route.model),
            may_answer=partial(self._may_answer, call),
        )
        if other is not None:
            call.route = self._route_of(other)

    def _may_answer(self, call: ChatCall, model: str) -> bool:
        """Returns whether another model may answer a request: no agent's, and one that is passed on goes on so."""
        if call.native is not None:
            return self._is_passed_on(self._route_of(model))
        return call.kind is not ConversationKind.AGENT

    def _is_passed_on(self, route: Route) -> bool:
        """Returns whether an upstream takes requests for responses as they are."""
        endpoints = self.failover.endpoints[route.upstream]
        return bool(endpoints) and endpoints[0].provider.has_endpoint("/responses")

    async def begin_later(
        self,
        request: ChatRequest,
        context: RequestContext,
        head: ConversationHead | None,
        receipt: Receipt,
    ) -> tuple[Identity, Agent]:
        """Returns who asks for a response in the background, and the memory in which it will lie.

        Raises: BadRequest: nothing would be stored of it; UnknownModel, MemoryUnavailable.
        """
        whole = await self.resolve_references(request, context)
        found = await self._resolve(whole, context)
        identity, spec = found.identity, found.spec
        receipt.user = identity.user or ""
        if identity.scope is None or identity.mode not in KEEPS or identity.leaves_nothing:
            raise BadRequest(
                "A response in the background has to be stored, and memory is off.", param="background"
            )
        if found.kind is ConversationKind.AGENT:
            raise BadRequest(
                "An agent's stored conversation has no responses in the background. Use its agent's runs.",
                param="background",
            )
        is_agents = asks_agent(whole.model)
        route = agent_route(self._settings, spec) if is_agents else self._route_of(whole.model)
        model = route.upstream, route.model
        await self._limiter.admit(receipt, len(whole.raw), whole.max_tokens, model)
        agents = self.keeper.store.agents
        try:
            if spec.uid:
                agent = await agents.find_or_draft(identity.scope, is_made=True)
            else:
                agent = await agents.find_or_begin(
                    identity.scope, spec.own_blocks, spec.shared_blocks, self.keeper.now()
                )
        except StoreError as error:
            raise MemoryUnavailable.since(error.status) from error
        if head is not None:
            await self.conversations.bind(head, identity.scope, spec)
        return identity, agent

    async def resolve_references(self, request: ChatRequest, context: RequestContext) -> ChatRequest:
        """Returns a request with the messages and responses that it names by their ids in place of the ids.

        They are looked up in the caller's memory, before the whole list decides what kind of request it is.
        Raises: BadRequest, UnknownModel, MemoryUnavailable.
        """
        if not request.references:
            return request
        named = replace(request, unnamed=None)  # else its ids say whose memory it has
        identity = self._identify(named, context)
        if self.directory.profile(identity) is None:
            _, identity = await self._defined(identity, request.model)
        if identity.scope is not None:
            await self.turns.written(identity.scope)
        try:
            most_bytes = self._settings.server.max_body_bytes
            store = self.keeper.store
            return await with_references(store, context.project, identity.scope, request, most_bytes)
        except StoreError as error:
            raise MemoryUnavailable.since(error.status) from error

    def window(self, model: str) -> int | None:
        """Returns the tokens of a model's window; None: they are not known. Raises: UnknownModel."""
        return self._route_of(model).context_window

    async def _call(
        self,
        request: ChatRequest,
        context: RequestContext,
        sink: Sink,
        receipt: Receipt,
        view: MakesView,
    ) -> ChatCall:
        """Returns a request with everything that decides how it is answered."""
        whole = await self.resolve_references(request, context)
        if request.native is not None and request.native.thread is not None:
            whole = await self._in_thread(request, request.native, context)
        found = await self._resolve(whole, context)
        identity = found.identity
        receipt.user = identity.user or ""
        if identity.side_request is not None:
            # A name of the settings may have any letters.
            receipt.headers["x-mnemogate-side-request"] = quote(identity.side_request, safe=" ")
        if identity.agent is not None and asks_agent(found.request.model):
            route = agent_route(self._settings, found.spec)
        else:
            route = self._route_of(found.request.model)
        passes = Passes(forwardable(context.headers), context.credential)
        return ChatCall(found.request, passes, identity, found.spec, route, found.kind, view, sink, receipt)

    async def count(
        self,
        request: ChatRequest,
        context: RequestContext,
        sink: Sink,
        receipt: Receipt,
        counted: ReplyChange | None = None,
    ) -> int | None:
        """Returns the tokens of the prompt that a request would have, by our count. It leaves nothing in memory.

        An upstream that speaks the client's dialect counts itself: None, it has answered the client.

        counted: has an upstream that counts chat completions answer as well, in the client's form.

        Raises: GatewayError.
        """
        call = await self._call(request, context, sink, receipt, MakesUnseen())
        if call.kind is ConversationKind.AGENT:
            identity = replace(call.identity, scope=None, conversation=None)
            call.identity, call.kind = identity, ConversationKind.CLIENT
        # A fallback may have no such endpoint, and would be asked for a reply.
        attempts = self.failover.at_first_key(call.route, sink, receipt)
        with QueueTicket() as ticket:
            begun, call.memory = await self._begin_memory(call, attempts, ticket, opens=False)
            prompt = await _bare(call.request, attempts, call.spec) if begun is None else begun[1]
            receipt.headers["x-mnemogate-memory"] = call.memory
            counts = attempts.endpoint.provider.capabilities.counts_tokens and call.request.messages
            if request.native is not None or (counted is not None and counts):
                with attempts:
                    make = partial(_counting, call, prompt)
                    await relay(attempts, make, sink, receipt, self.turns.limits.beat_s, change=counted)
                return None
        receipt.headers["x-mnemogate-memory"] = call.memory
        return await prompt_tokens(prompt)

    def speaks_messages(self, names: Mapping[str, Any], context: RequestContext) -> bool:
        """Returns whether requests in Anthropic's dialect go to their upstream as they are.

        Requests for agents that were made over REST never do: they become runs. names: the request's fields that name
        model, user and conversation. Raises: BadRequest, UnknownModel.
        """
        model = str(names.get("model") or "")
        if asks_agent(model) or any(name == _AGENT for name, _ in context.headers):
            identity = self._identified(names, context)
            spec = self.directory.profile(identity)
            if spec is None:
                return False
            route = agent_route(self._settings, spec) if asks_agent(model) else self._route_of(model)
        else:
            route = self._route_of(model)
        endpoints = self.failover.endpoints[route.upstream]
        return bool(endpoints) and endpoints[0].provider.capabilities.messages

    def is_for_agent(self, model: str, context: RequestContext) -> bool:
        """Returns whether a header names an agent that no profile declares. Raises: BadRequest."""
        return self.directory.profile(self._identified({"model": model}, context)) is None

    def memory_state(
        self,
        request: ChatRequest,
        context: RequestContext,
    ) -> str:
        """Returns the state of memory by the request alone: on, off, or none where no user is named.

        It is on for what is off the record, too: memory knows such words again in a later list, and does not keep them.
        And where a profile has a system prompt, which goes upstream whoever asks.
        Raises: BadRequest.
        """
        identity = self._identify(request, context)
        spec = self.directory.profile(identity)
        if spec is None:
            return "off"
        if identity.scope is not None or spec.system:
            return "on"
        if identity.mode is _OFF:
            return "off"
        self._warn_of_no_user()
        return "none"

    async def answer_native(
        self,
        native: NativeRequest,
        route: Route,
        context: RequestContext,
        sink: Sink,
        receipt: Receipt,
    ) -> str:
        """Answers a request in its own dialect, and returns the state of memory for it, as `answer` does.

        Its `memory_state` is on. route: to the upstream that answers.
        Raises: GatewayError while nothing was sent; ClientGone.
        """
        identity = self._identify(native.chat, context)
        spec = self.directory.profile(identity)
        assert spec is not None
        read_by: Memory | None = None
        if identity.scope is not None:
            await self.turns.written(identity.scope)
            if native.named:
                read_by = await self._memory_of(identity.scope)
                native = await self._with_earlier(native, identity.scope, read_by)
        request = native.chat
        # Once more: what kind of request it is, its whole list decides.
        identity = self._of_sub_agent(self._identify(request, context), request)
        receipt.user = identity.user or ""
        if identity.side_request is not None:
            receipt.headers["x-mnemogate-side-request"] = quote(identity.side_request, safe=" ")
        if native.conversation is None and native.previous is None:
            is_named = identity.conversation is not None
            if identity.append or (is_named and spec.history == "append"):
                raise BadRequest(
                    "The gateway does not prepend history to a request for a response that it passes on. Send all of "
                    "the input, `previous_response_id` or `conversation`, or have `takes = { responses = false }` set.",
                    param="x-mnemogate-history",
                )
        passes = Passes(with_codex_headers(context.headers), context.credential)
        call = native_call(native, passes, identity, spec, route, sink, receipt)
        if self._limiter.holds_for(receipt.project):
            await self._admit(call)
        return await self._complete_native(call, read_by)

    async def save_later(
        self, project: str, id: str, response: bytes, read: Callable[[LaterReply], NativeRequest | None]
    ) -> None:
        """Writes the turn of a native request whose reply its upstream has made since. A fault is logged.

        id: the upstream's, of the reply.
        read: reads the request again; None: memory cannot.
        """
        try:
            noted = await self.later.find(project, id)
            if noted is not None and (native := read(noted.reply)) is not None:
                await self._save_later(native, noted, response)
        except (StoreError, GatewayError) as error:
            _log.warning("A response that was made in the background was not stored: %s", error.message)
        except Exception:
            # Memory never breaks chat: an error in its code must not either.
            _log.exception(
                "A response that was made in the background was not stored, by a fault in the gateway."
            )

    async def _save_later(self, native: NativeRequest, noted: NotedReply, response: bytes) -> None:
        scope, reader = noted.agent.scope, native.reader()
        reader.take_whole(response)
        await self.turns.written(scope)
        if native.named:
            native = await self._with_earlier(native, scope, await self._memory_of(scope))
        await self._save_noted(native, noted, reader)

    async def _save_noted(self, native: NativeRequest, noted: NotedReply, reader: NativeReader) -> None:
        """Writes the turn of a noted reply that has ended, and drops the note. reader: has read the reply."""
        identity, reply = noted.reply.identity, reader.reply()
        spec, scope = self.directory.profile(identity), identity.scope
        if spec is None or scope is None or reply.end is not FINISHED:
            await self.later.remove(noted)
            return
        route = self._route_of(native.chat.model)
        receipt = Receipt(time.perf_counter(), project=scope.project)
        call = native_call(native, Passes(()), identity, spec, route, UnseenSink(), receipt)
        attempts = self.failover.at_first_key(route, call.sink, receipt)
        with QueueTicket() as ticket:
            ticket.timeout_s = self.turns.limits.commit_wait_s
            begun, call.memory = await self._begin_memory(call, attempts, ticket)
            if begun is None:
                return  # the next GET finds the note
            memory, prompt = begun
            assert isinstance(memory, NativeMemory)
            memory.reader = reader
            saving = TurnSaving(call, memory, self.turns)
            with saving:
                await saving.save(prompt, TurnOutcome(FINISHED, shown_reply=reply.shown_reply))
        await self.later.remove(noted)

    async def _complete_native(self, call: ChatCall, read_by: Memory | None) -> str:
        """Answers a native request, as `_complete` does. read_by: the memory in which its ids were looked up."""
        native, sink, receipt = call.native, call.sink, call.receipt
        assert native is not None
        attempts = self.failover.at_first_key(call.route, sink, receipt)
        # What the upstream keeps of a reply lies in the account of one key, and a second one would be another.
        attempts.is_once = True
        # Requests side by side in one conversation are the upstream's to refuse, and none waits for another here.
        with QueueTicket() as ticket:
            ticket.timeout_s = self.turns.limits.commit_wait_s
            begun, call.memory = None, "unavailable"  # where the request refers to what is unknown here
            if not all(map(is_system, call.request.messages)):
                begun, call.memory = await self._begin_memory(call, attempts, ticket)
            if begun is not None and read_by not in (None, _as_memory(begun[0].context.agent)):
                # Another process has forgotten something since, which may be just what is known here by its id.
                begun, call.memory = None, "unavailable"
            if begun is None and call.identity.mode is _STRICT:
                raise MemoryUnavailable("The conversation is not known here by its ids.", retry_after_s=1.0)
            return await self._reply(call, attempts, begun, is_bare=begun is None)

    async def _reply(
        self,
        call: ChatCall,
        attempts: Attempts,
        begun: tuple[TreeMemory, Prompt] | None,
        *,
        is_bare: bool,
    ) -> str:
        """Answers a request once memory has begun. Returns the state of memory for it.

        is_bare: there is nothing to add, so a reply is handed on as it comes.
        """
        native, receipt, beat_s = call.native, call.receipt, self.turns.limits.beat_s
        try:
            with attempts:
                if is_bare:
                    change = None if native is None else native.change()
                    await relay(attempts, call.request_for, call.sink, receipt, beat_s, change=change)
                else:
                    memory, prompt = begun or (None, await _bare(call.request, attempts, call.spec))
                    await self._turn(call, attempts, prompt, memory).run()
            return call.memory
        finally:
            self.turns.metrics.added_ms.observe(receipt.added_ms)
            self.turns.metrics.memory.inc(call.memory)

    async def _with_earlier(self, native: NativeRequest, scope: Scope, memory: Memory) -> NativeRequest:
        """Returns it with what it only refers to; what this process has not answered itself, the store may know."""
        if unknown := self._earlier.unknown(memory, native.named):
            try:
                found = await paths_to(self.keeper.store, scope, unknown)
            except StoreError as error:
                _log.warning(
                    "Earlier responses could not be looked up, so they count as unknown: %s", error.message
                )
                found = {}
            for id, path in found.items():
                self._earlier.add(memory, (id,), None, path[:-1], path[-1])
            return native.with_history(FoundReplies(found, self._earlier), memory)
        return native.with_history(self._earlier, memory)

    async def _memory_of(self, scope: Scope) -> Memory:
        """Returns the memory of a scope as it is now, as far as this process knows."""
        try:
            return _as_memory(await self.keeper.store.agents.find_or_draft(scope))
        except StoreError:
            return "", 0

    async def _resolve(self, request: ChatRequest, context: RequestContext) -> _Resolved:
        """Returns a request with its user, its agent and the kind of its conversation.

        Raises: BadRequest, UnknownModel, MemoryUnavailable.
        """
        named = self._identify(request, context)
        profile = self.directory.profile(named)
        spec, owner = (profile, named) if profile is not None else await self._defined(named, request.model)
        kind = await self._kind_of(owner, spec)
        is_clients, is_agents = kind is ConversationKind.CLIENT, kind is ConversationKind.AGENT
        identity = self._of_sub_agent(owner, request) if is_clients else owner.with_history()
        if profile is None:
            spec, request = await self._agents.in_conversation(spec, identity, request, is_stored=is_agents)
        if is_agents and identity.mode not in KEEPS:
            # A request of the application's own, or one off the record, is answered outside of the conversation.
            outside = replace(identity, scope=None, conversation=None)
            return _Resolved(request, outside, spec, ConversationKind.CLIENT)
        return _Resolved(request, identity, spec, kind)

    async def _kind_of(self, identity: Identity, spec: AgentSpec) -> ConversationKind:
        """Returns the kind of the conversation that a request names. One without a name is the client's."""
        if identity.conversation is None:
            return ConversationKind.CLIENT
        if await self._agents.owns(identity, spec):
            return ConversationKind.AGENT
        is_appended = identity.append or spec.history == "append"
        return ConversationKind.APPENDED if is_appended else ConversationKind.CLIENT

    async def _in_thread(
        self, request: ChatRequest, native: NativeBody, context: RequestContext
    ) -> ChatRequest:
        """Returns a request of a message thread with the messages that its upstream holds, as memory has them.

        Raises: ThreadUnsupported, after which its client sends all messages each time; ThreadNotFound, after which it
        sends them once, in a thread that begins.
        """
        identity = self._identify(request, context)
        if identity.scope is None or identity.mode not in KEEPS or identity.leaves_nothing:
            raise ThreadUnsupported("nothing is remembered of this request.")
        assert native.thread is not None
        previous = native.thread.previous
        if previous is None:
            return request
        await self.turns.written(identity.scope)
        try:
            path = (await paths_to(self.keeper.store, identity.scope, {previous})).get(previous)
        except StoreError as error:
            _log.warning("A message thread could not be looked up: %s", error.message)
            path = None
        if not path:
            raise ThreadNotFound("the user has no reply with this id.")
        edit = request.edit()
        edit.insert_messages(0, path)
        messages = [*path, *request.messages]
        return replace(
            request,
            raw=edit.render(),
            json={**request.json, "messages": messages},
            messages=messages,
            native=native.after(len(path)),
        )

    def _check_thread(self, thread: MessageThread, call: ChatCall, prompt: Prompt | None) -> None:
        """Refuses a message thread that the gateway could not go on with. Raises: ThreadUnsupported, ThreadNotFound."""
        route = call.route
        if route.others or len(self.failover.endpoints[route.upstream]) > 1:
            raise ThreadUnsupported("one key of one upstream has it, and this model has several.")
        if prompt is None:
            return
        if prompt.tools:
            raise ThreadUnsupported("the gateway's tools are offered, whose rounds it would not have.")
        if thread.previous is not None and prompt.changes_prefix:
            raise ThreadNotFound("what stood before the conversation has changed since.")

    def _identified(self, names: Mapping[str, Any], context: RequestContext) -> Identity:
        """Returns who asks, by the rules of the project. names: the fields of the body that name something."""
        rules = self._rules_of(context.project, context.memory)
        return identify(context.headers, names, rules, context.project, time.time())

    def _identify(self, request: ChatRequest, context: RequestContext) -> Identity:
        """Returns who asks, and for which memory."""
        if request.identity is not None:
            return request.identity
        identity = self._identified(request.names, context)
        if request.side_request is None:
            return self._with_chosen(identity, request)
        return replace(
            identity,
            scope=None,
            conversation=None,
            append=False,
            mode=_OFF,
            side_request=request.side_request,
            leaves_nothing=True,
        )

    def _with_chosen(self, identity: Identity, request: ChatRequest) -> Identity:
        """Returns it with the memory that the request has where it names nobody."""
        chosen = request.unnamed
        if chosen is None or self.directory.profile(identity) is None:
            return identity
        if identity.scope is not None and (identity.user is not None or chosen.scope is None):
            return identity
        return identity.with_memory(chosen.conversation, chosen.scope)

    def _of_sub_agent(self, identity: Identity, request: ChatRequest) -> Identity:
        """Returns it with memory to be read only, if the request is a task that a model has written to a sub-agent."""
        scope, keeper = identity.scope, self.keeper
        if scope is None:
            return identity
        is_task = keeper.delegated.is_task(scope, request.messages, keeper.now(), offered=request.tools)
        if not is_task or identity.mode not in KEEPS:
            return identity
        return replace(identity, mode=_READ, side_request=SUB_AGENT, leaves_nothing=True)

    async def _complete(self, call: ChatCall, head: ConversationHead | None = None) -> str:
        """Answers a request in a client conversation. Returns the state of memory for it."""
        request, spec, route, receipt = call.request, call.spec, call.route, call.receipt
        attempts = self.failover.attempts(route, lambda: _conversation_key(request), call.sink, receipt)
        # Whatever happens here, the next request of the conversation does not wait for ever.
        with QueueTicket() as ticket:
            begun, call.memory = await self._begin_memory(call, attempts, ticket)
            if head is not None and head.items and begun is not None and begun[0].context.row >= 0:
                # They are on disk with the turn that was opened.
                await self.conversations.remove_answered(head)
            if request.native is not None and (thread := request.native.thread) is not None:
                self._check_thread(thread, call, None if begun is None else begun[1])
            # With nothing to add, and no window to cut it to, a reply is handed on as it comes.
            is_bare = begun is None and not spec.system and attempts.target.context_window is None
            is_bare = is_bare and not any(map(_context_window, route.others))
            is_bare = is_bare and (call.view.speaks_chat or self._is_native(call))
            return await self._reply(call, attempts, begun, is_bare=is_bare)

    def _is_native(self, call: ChatCall) -> bool:
        """Returns whether all that may answer a request speak its client's dialect."""
        return call.request.native is not None and all(
            endpoint.provider.capabilities.messages
            for target in call.route.targets
            for endpoint in self.failover.endpoints[target.upstream]
        )

    def _turn(
        self,
        call: ChatCall,
        attempts: Attempts,
        prompt: Prompt,
        memory: TreeMemory | None,
    ) -> TurnRun:
        request, spec, tools = call.request, call.spec, prompt.tools
        make = partial(TurnRun, call, attempts, prompt)
        if isinstance(memory, NativeMemory):
            machine = NativeTurn(memory.reader, memory.native.change(), memory.native.path)
            return make(memory, self.turns, machine=machine)
        terms = _terms(
            request.wants_usage,
            prompt.adds_usage or (request.stream and not request.wants_usage and attempts.may_ask_usage),
            frozenset([tool["function"]["name"] for tool in tools]) if tools else frozenset(),
            request.max_tokens,
            memory is not None,
            request.n,
            spec.fixed_filler,
        )
        guide = None
        if spec.uid:
            terms, guide = self._agents.terms(spec, request, prompt, terms)
        elif spec.filler == "model":
            terms = replace(terms, asides=fillers_in(tools))
        return make(memory, self.turns, guide, terms)

    async def _defined(self, identity: Identity, model: str) -> tuple[AgentSpec, Identity]:
        """Returns an agent that was made over REST, and who asks it: its memory is one, whoever speaks.

        Raises: UnknownModel, BadRequest: there is no such agent; MemoryUnavailable.
        """
        assert identity.agent is not None
        try:
            found = await self._agents.find(identity.project, identity.agent)
        except StoreError as error:
            if not is_known(error):
                _log.warning("A request was refused, since the database could not be used: %s", error.message)
            raise MemoryUnavailable.since(error.status) from error
        if found is None:
            raise unknown(identity, model)
        spec, scope = found
        return spec, replace(identity, profile=scope.profile, scope=scope)

    async def _begin_memory(
        self, call: ChatCall, attempts: Attempts, ticket: QueueTicket, *, opens: bool = True
    ) -> tuple[tuple[TreeMemory, Prompt] | None, str]:
        """Returns memory's part with its prompt, None where it has none, and the state of memory.

        opens: a turn follows, before which the user's message is written in append mode.

        A store that fails takes memory away, not the answer.
        """
        identity = call.identity
        if identity.scope is None:
            if identity.mode is _OFF:
                return None, "off"
            self._warn_of_no_user()
            if identity.mode is _STRICT:
                raise BadRequest(
                    "x-mnemogate-memory: strict needs a user or a conversation to remember: send `user` or "
                    "`x-mnemogate-conversation`.",
                    param="x-mnemogate-memory",
                )
            return None, "none"
        is_strict = identity.mode is _STRICT
        # Without memory the upstream would get the new messages of such a conversation, and none before them.
        strict = is_strict or (call.kind is ConversationKind.APPENDED and call.native is None)
        # Reading may still work; but `strict` asks for no answer rather than one that is not stored.
        why = None if not strict or (health := self.keeper.store.health).ok else health.status
        if why is None:
            await self.turns.written(identity.scope)
            try:
                begun = await self._read_memory(call, attempts, ticket, opens=opens)
                mode = call.identity.mode
                return begun, "on" if mode is _STRICT else str(mode)
            except StoreError as error:
                if not is_known(error):
                    _log.warning("A request was answered without memory: %s", error.message)
                why = error.status
            except Exception:
                # Memory never breaks chat: an error in its code must not either.
                _log.exception("A request was answered without memory, by a fault in the gateway.")
                why = StoreError.status
        if strict:
            raise MemoryUnavailable.since(why)
        return None, "unavailable"

    def _warn_of_no_user(self) -> None:
        """Logs once that a request named no user, since memory is off then and nothing else shows it."""
        if self._has_named_missing:
            return
        self._has_named_missing = True
        _log.warning(
            "Requests that name no user have no memory: let the application send `user` or x-mnemogate-user, or set "
            "memory.default_user or memory.single_user. (This line comes once.)"
        )

    async def _read_memory(
        self, call: ChatCall, attempts: Attempts, ticket: QueueTicket, *, opens: bool
    ) -> tuple[TreeMemory, Prompt]:
        """Reads what memory knows and makes the prompt. Raises: StoreError."""
        keeper, request, spec = self.keeper, call.request, call.spec
        memory_context = await keeper.begin(
            MemoryRequest(request, call.identity, spec, keeper.now(), attempts.target, call.kind, ticket)
        )
        call.identity = memory_context.request.identity
        changes = BlockEdits(list(memory_context.blocks))
        toolbox = self._agents.toolbox(memory_context, changes, call.passes)
        form = form_for(request, attempts.endpoint, attempts.target.model)
        prompt = await keeper.composer.make(memory_context, form, toolbox.definitions())
        changes.shown = prompt.section.shown
        if memory_context.plan.follows_head and opens:
            memory_context = await keeper.open(memory_context, prompt)
        if request.native is not None:
            prompt = replace(prompt, changes_prefix=_changes_prefix(memory_context, prompt))
        if prompt.composition.breaks:
            self.turns.metrics.prefix_breaks.inc()
        receipt, recall = call.receipt, prompt.recall
        if recall.ms:
            self.turns.metrics.recall_ms.observe(recall.ms)
            receipt.searched(recall.begun, recall.ms, recall.count, recall.tokens, is_late=recall.is_late)
        receipt.scope, receipt.mode = call.identity.scope, str(call.identity.mode)
        parts = keeper, memory_context, changes, toolbox, receipt
        if (native := call.native) is None:
            return TreeMemory(*parts), prompt
        reader = BoundedReader(native.reader(), self.turns.limits.streamed_bytes)
        memory = NativeMemory(*parts, native, reader, self._earlier, self.later, self._save_noted)
        return memory, prompt


def _as_memory(agent: Agent) -> Memory:
    return agent.uid, agent.epoch


def rules_of(settings: Settings, project: str, key_mode: str | None = None) -> IdentityRules:
    """Returns the rules by which a project's requests are read. key_mode: that of their key."""
    memory = settings.memory
    own = settings.projects.get(project)
    return IdentityRules(
        # One person, whoever a request names.
        user_order=() if memory.single_user else memory.user_order or USER_ORDER,
        default_user=settings.default_user,
        default_profile=settings.default_profile(project),
        default_mode=Mode(key_mode or (own and own.memory) or memory.default),
        profile_modes={p.name: Mode(p.memory) for p in settings.profiles if p.memory and key_mode is None},
        conversation_order=memory.conversation_order or CONVERSATION_ORDER,
        jwt_secret=None if memory.single_user else memory.openwebui_jwt_secret,
        side_rules=(*APPLICATIONS.side_requests, *memory.side_requests),
    )


async def _bare(request: ChatRequest, attempts: Attempts, spec: AgentSpec) -> Prompt:
    """Returns the prompt of a request without memory."""
    prompt = Prompt(
        request, attempts.target, form_for(request, attempts.endpoint, attempts.target.model), spec.system
    )
    return replace(prompt, window=await fit(prompt))


async def _counting(call: ChatCall, prompt: Prompt, target: Target, endpoint: Endpoint) -> ModelRequest:
    """Returns the request that has an upstream count the tokens of a prompt."""
    request = call.request_of(target, endpoint, prompt)
    return request._replace(first_block=None, path=request.path if call.request.native else COUNT_TOKENS)


def _changes_prefix(context: MemoryContext, prompt: Prompt) -> bool:
    """Returns whether something before the conversation's thoughts may be another one than it was."""
    pinned, plan, composition = context.pinned, context.plan, prompt.composition
    match_point = plan.match.match_point
    if match_point is None or composition.breaks or composition.moves_rounds:
        return True
    before = prompt.system if pinned is None else pinned.text
    if prompt.system != before or prompt.window.dropped:
        return True
    # The path has a reply at each depth. What the list has beyond these was answered elsewhere, or without memory.
    return plan.query.listing.reply_runs > match_point.depth + 1


def _conversation_key(request: ChatRequest) -> int:
    """Returns a number that all turns of a conversation share: it is made of the messages up to the user's first."""
    head = []
    for message in request.messages:
        head.append(message)
        if message["role"] == "user":
            break
    return crc32(orjson.dumps(head))
