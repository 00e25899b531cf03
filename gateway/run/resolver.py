"""Finds the user of a request, the agent that answers, and the kind of the conversation."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.agent import AgentSpec
from gateway.core.applications import APPLICATIONS
from gateway.core.conversation.kind import ConversationKind, QueueName
from gateway.core.request.chat_request import ChatRequest, MemoryChoice
from gateway.core.request.identity import Identity, IdentityRules, identify
from gateway.core.request.memory_mode import STORING_MODES, MemoryState, Mode
from gateway.core.request.native_body import MessageThread, NativeBody
from gateway.core.request.request_ids import CONVERSATION_ORDER, USER_ORDER
from gateway.errors import MemoryUnavailable, NotAllowed, ThreadNotFound, ThreadUnsupported
from gateway.run.directory import Directory, make_unknown_agent_error
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.named_turns import find_paths_by_id
from gateway.run.memory.queue import QueueTicket
from gateway.run.memory.references import fill_references
from gateway.run.request_context import RequestContext
from gateway.run.store_errors import map_store_errors
from gateway.run.stored_agents import StoredAgents
from gateway.run.stored_responses import UNNAMED_PREFIX
from gateway.run.turn_services import TurnServices
from gateway.settings import Settings
from storage.errors import StoreError, is_known
from storage.records import Scope

_log = logging.getLogger("mnemogate")
# The `side_request` of a task that a model has delegated.
SUB_AGENT = "sub-agent"


class ResolvedRequest(Struct, frozen=True):
    """A request with everything that decides how it is answered."""

    # The request with the sampling settings of its agent.
    request: ChatRequest
    # The user, the memory and its mode.
    identity: Identity
    # The agent that answers.
    spec: AgentSpec
    # The kind of the conversation.
    kind: ConversationKind


class _AgentOfRequest(NamedTuple):
    """An agent of the agents API that a request asks for."""

    # The agent as a turn needs it.
    spec: AgentSpec
    # The identity of the request, with the memory of the agent.
    identity: Identity


class Resolver:
    """Resolves requests to users, agents and conversations. One for the process."""

    def __init__(
        self,
        settings: Settings,
        keeper: MemoryKeeper,
        turn_services: TurnServices,
        directory: Directory,
        agents: StoredAgents,
    ) -> None:
        self._keeper = keeper
        self._turn_services = turn_services
        self._directory = directory
        self._agents = agents
        # The most bytes of a request with the messages that its ids name.
        self._max_body_bytes = settings.server.max_body_bytes
        # The rules by which a project's requests are read. Parameters: the project, and the memory mode of the key.
        self.rules = lru_cache(maxsize=256)(partial(make_identity_rules, settings))
        # The rules hold the last system prompt of the project.
        keeper.store.forgetting.add_forget_listener(self.rules.cache_clear)
        # True: the log has the line about requests that name no user.
        self._has_warned_of_no_user = False

    def identify_names(self, names: Mapping[str, Any], request_context: RequestContext) -> Identity:
        """Returns the identity of a request by the rules of its project.

        names: the fields of its body that name a user, an agent or a conversation.

        Raises: BadRequest.
        """
        rules = self.rules(request_context.project, request_context.memory_mode)
        return identify(request_context.headers, names, rules, request_context.project, time.time())

    def identify(self, request: ChatRequest, request_context: RequestContext) -> Identity:
        """Returns the identity of a request: its user, agent, memory and mode. Raises: BadRequest."""
        if request.identity is not None:
            return request.identity
        identity = self.identify_names(request.identity_fields, request_context)
        if request.side_request is None:
            return self._with_unnamed_memory(identity, request)
        return replace(
            identity,
            scope=None,
            conversation_key=None,
            sends_new_only=False,
            mode=Mode.OFF,
            side_request=request.side_request,
            leaves_nothing=True,
        )

    async def resolve(
        self,
        request: ChatRequest,
        request_context: RequestContext,
        arrival: QueueTicket | None = None,
    ) -> ResolvedRequest:
        """Returns a request with its user, its agent and the kind of its conversation.

        Messages, responses and threads that the request names by their ids are read, and take the place of the ids.

        arrival: the ticket with which a request in append mode waits for the requests that came before it, as they
            could be overtaken by what is read here; None: the request does not wait.

        Raises: BadRequest, NotAllowed, UnknownModel, MemoryUnavailable, ThreadUnsupported, ThreadNotFound.
        """
        request = await self.resolve_references(request, request_context)
        if request.native_body is not None and request.native_body.thread is not None:
            request = await self._with_thread(
                request, request.native_body, request.native_body.thread, request_context
            )
        identity = self.identify(request, request_context)
        profile = self._directory.find_requested_spec(identity)
        spec = profile
        if arrival is not None and identity.uses_append_mode(None if spec is None else spec.history):
            name = QueueName.for_chat_arrival(identity.scope, identity.conversation_key)
            await self._keeper.queues.enter_here(name, arrival)
        if spec is None:
            spec, identity = await self._get_stored_agent(identity, request.model, request_context)
        kind = await self._choose_conversation_kind(identity, spec)
        if kind is ConversationKind.CLIENT:
            identity = self.with_delegated_task(identity, request)
            identity = _with_turn_apart(identity, request.memory_choice)
        else:
            identity = identity.with_history()
        is_stored = kind is ConversationKind.AGENT
        if profile is None:
            spec, request = await self._agents.with_conversation_settings(
                spec, identity, request, is_stored=is_stored
            )
        if is_stored and identity.scope is not None and await self.is_paused(identity.scope):
            identity = replace(identity, mode=Mode.OFF)
        if is_stored and identity.mode not in STORING_MODES:
            # An application's own request, or a request off the record, is answered outside of the conversation.
            identity = replace(identity, scope=None, conversation_key=None)
            kind = ConversationKind.CLIENT
        return ResolvedRequest(request, identity, spec, kind)

    async def resolve_references(self, request: ChatRequest, request_context: RequestContext) -> ChatRequest:
        """Returns a request in which the messages and responses take the place of the ids that name them.

        Call it first, since the whole list decides the kind of the request.

        Raises: BadRequest, NotAllowed, UnknownModel, MemoryUnavailable.
        """
        if not request.references:
            return request
        # Without `memory_choice`, which comes from the ids: the ids must not decide from which memory they are read.
        identity = self.identify(replace(request, memory_choice=None), request_context)
        if self._directory.find_requested_spec(identity) is None:
            identity = (await self._get_stored_agent(identity, request.model, request_context)).identity
        if identity.user is None and (identity.conversation_key or "").startswith(UNNAMED_PREFIX):
            # The conversation was made for a response in the background, which may continue another conversation.
            identity = replace(identity, scope=None)
        if identity.scope is not None:
            await self._turn_services.wait_written(identity.scope)
        else:
            await self._turn_services.wait_project_written(request_context.project, only_unnamed=True)
        with map_store_errors():
            return await fill_references(self._keeper.store, identity, request, self._max_body_bytes)

    def is_for_agent(self, model: str, request_context: RequestContext) -> bool:
        """Returns whether a header names an agent that no profile declares. Raises: BadRequest."""
        return (
            self._directory.find_requested_spec(self.identify_names({"model": model}, request_context))
            is None
        )

    def choose_memory_state(self, request: ChatRequest, request_context: RequestContext) -> MemoryState:
        """Returns the state of memory by the request alone.

        The state is also on for a request off the record, since memory stores its hashes, and for a profile with a
        system prompt, which goes upstream whoever the user is.

        Raises: BadRequest.
        """
        identity = self.identify(request, request_context)
        spec = self._directory.find_requested_spec(identity)
        if spec is None:
            return "off"
        if identity.scope is not None or spec.system:
            return "on"
        if identity.mode is Mode.OFF:
            return "off"
        self.warn_of_no_user()
        return "none"

    def with_delegated_task(self, identity: Identity, request: ChatRequest) -> Identity:
        """Returns a copy of the identity that only reads memory, if the request is a task for a sub-agent."""
        if identity.scope is None:
            return identity
        is_task = self._keeper.delegated_tasks.is_task(
            identity.scope, request.messages, self._keeper.now(), offered_tools=request.tool_names
        )
        if not is_task or identity.mode not in STORING_MODES:
            return identity
        return replace(identity, mode=Mode.READ, side_request=SUB_AGENT, leaves_nothing=True)

    async def is_paused(self, scope: Scope) -> bool:
        """Returns whether a memory is paused, by any process. Returns False if the store cannot be read."""
        # Only a person pauses a memory.
        if not scope.is_person:
            return False
        try:
            agent = await self._keeper.store.agents.find_current(scope)
        except StoreError:
            # Without the store nothing of the memory is read or written.
            return False
        return agent is not None and agent.paused_at is not None

    def warn_of_no_user(self) -> None:
        """Logs once that a request named no user: it has no memory, and nothing else shows that."""
        if self._has_warned_of_no_user:
            return
        self._has_warned_of_no_user = True
        _log.warning(
            "Requests that name no user have no memory: let the application send `user` or x-mnemogate-user, or set "
            "memory.default_user or memory.single_user. (This line comes once.)"
        )

    async def _choose_conversation_kind(self, identity: Identity, spec: AgentSpec) -> ConversationKind:
        """Returns the kind of the conversation that a request names, or CLIENT if it names no conversation."""
        if identity.conversation_key is None:
            return ConversationKind.CLIENT
        if await self._agents.has_conversation(identity, spec):
            return ConversationKind.AGENT
        if identity.uses_append_mode(spec.history):
            return ConversationKind.APPENDED
        return ConversationKind.CLIENT

    def _with_unnamed_memory(self, identity: Identity, request: ChatRequest) -> Identity:
        """Returns a copy of the identity with the memory that the request chose by the ids of its messages.

        An identity that names a user stays as it is, unless the request asks to be stored.
        """
        choice = request.memory_choice
        if choice is None or self._directory.find_requested_spec(identity) is None:
            return identity
        if identity.scope is not None and (identity.user is not None or choice.scope is None):
            return identity.with_history() if choice.asks_to_be_stored else identity
        return identity.with_memory(choice.conversation_key, choice.scope)

    async def _with_thread(
        self, request: ChatRequest, native: NativeBody, thread: MessageThread, request_context: RequestContext
    ) -> ChatRequest:
        """Returns a request of a message thread with the thread's earlier messages, as memory has them.

        Raises:
            ThreadUnsupported: the client then sends all messages each time.
            ThreadNotFound: the client then sends all messages once, in a new thread.
        """
        scope = self.identify(request, request_context).stored_scope
        if scope is None:
            raise ThreadUnsupported("nothing is remembered of this request.")
        if thread.previous is None:
            return request
        await self._turn_services.wait_written(scope)
        try:
            paths = await find_paths_by_id(self._keeper.store, scope, {thread.previous})
        except StoreError as error:
            _log.warning(
                "A message thread could not be looked up, so it counts as unknown: %s", error.message
            )
            paths = {}
        path = paths.get(thread.previous)
        if not path:
            raise ThreadNotFound("the user has no reply with this id.")
        edit = request.begin_edit()
        edit.insert_messages(0, path)
        messages = [*path, *request.messages]
        return replace(
            request,
            raw=edit.render(),
            json={**request.json, "messages": messages},
            messages=messages,
            native_body=native.with_messages_before(len(path)),
        )

    async def _get_stored_agent(
        self, identity: Identity, model: str, request_context: RequestContext
    ) -> _AgentOfRequest:
        """Returns an agent of the agents API, and the identity with the agent's memory, which all users share.

        Raises:
            UnknownModel, BadRequest: there is no such agent.
            NotAllowed: the key is one user's.
            MemoryUnavailable.
        """
        assert identity.agent is not None  # an identity without an agent has a spec
        try:
            agent = await self._agents.find(identity.project, identity.agent)
        except StoreError as error:
            if not is_known(error):
                _log.warning("A request was refused, since the database could not be used: %s", error.message)
            raise MemoryUnavailable.for_status(error.status) from error
        if agent is None:
            raise make_unknown_agent_error(identity, model)
        if request_context.bound_user is not None:
            raise NotAllowed(
                "This key is bound to a user, and all who ask this agent share its memory.",
                code="user_not_allowed",
            )
        identity = replace(identity, profile=agent.scope.profile, scope=agent.scope)
        return _AgentOfRequest(agent.spec, identity)


def _with_turn_apart(identity: Identity, choice: MemoryChoice | None) -> Identity:
    """Returns the identity, with a turn apart if the client may continue a request that leaves nothing.

    Such a turn is stored for its id alone. No client continues an application's own request, such as that for a title.
    """
    is_turn = identity.mode_with_history in STORING_MODES or identity.side_request == SUB_AGENT
    if choice is None or choice.scope is not None or not (is_turn and identity.leaves_nothing):
        return identity
    return identity.with_turn_apart(choice.conversation_key)


def make_identity_rules(settings: Settings, project: str, key_mode: str | None = None) -> IdentityRules:
    """Returns the rules by which a project's requests are read.

    key_mode: the memory mode of the caller's key; None: the key has no mode.
    """
    memory = settings.memory
    project_settings = settings.projects.get(project)
    return IdentityRules(
        # With `single_user` there is one person, whoever a request names.
        user_order=() if memory.single_user else memory.user_order or USER_ORDER,
        default_user=settings.default_user,
        default_profile=settings.choose_default_profile(project),
        default_mode=Mode(key_mode or (project_settings and project_settings.memory) or memory.default),
        profile_modes={
            profile.name: Mode(profile.memory)
            for profile in settings.profiles
            if profile.memory and key_mode is None
        },
        conversation_order=memory.conversation_order or CONVERSATION_ORDER,
        jwt_secret=None if memory.single_user else memory.openwebui_jwt_secret,
        side_rules=(*APPLICATIONS.side_requests, *memory.side_requests),
    )
