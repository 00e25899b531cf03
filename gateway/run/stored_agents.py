"""The seam to the agents of the agents API, as chat completions use them.

`gateway.agents` implements `StoredAgents`. With `NoAgents` the gateway has the profiles of its settings alone.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from msgspec import Struct

from gateway.core.agent import AgentSpec
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity
from gateway.core.turn.guide import Guide
from gateway.core.turn.terms import TurnTerms
from gateway.run.call import ChatCall
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.tools.memory import make_memory_tools
from gateway.run.tools.toolbox import NO_TOOLS, Toolbox
from storage.records import Scope


class StoredAgent(NamedTuple):
    """An agent of the agents API."""

    # The agent as a turn needs it.
    spec: AgentSpec
    # The scope of the agent's memory, which all its users share.
    scope: Scope


class ConfiguredRequest(NamedTuple):
    """An agent and a request with the settings of a conversation."""

    # The agent with the conversation's model.
    spec: AgentSpec
    # The request with the agent's sampling settings.
    request: ChatRequest


class GuidedTerms(NamedTuple):
    """The terms and the guide of a turn that a stored agent answers."""

    # The terms of the turn.
    terms: TurnTerms
    # The guide of the turn, which applies the rules of the agent.
    guide: Guide


class StoredAgents(Protocol):
    """The agents of the agents API, as chat completions use them."""

    async def find(self, project: str, name: str) -> StoredAgent | None:
        """Returns the agent with this id or name, if there is one.

        Raises: BadRequest: two agents have the name; StoreError.
        """

    async def has_conversation(self, identity: Identity, spec: AgentSpec) -> bool:
        """Returns whether a request names a stored conversation. `complete` answers such a request."""

    async def with_conversation_settings(
        self, spec: AgentSpec, identity: Identity, request: ChatRequest, *, is_stored: bool
    ) -> ConfiguredRequest:
        """Returns an agent with the settings of its conversation, and the request with the agent's sampling settings.

        is_stored: True if the conversation is a stored one.
        """

    async def complete(self, call: ChatCall) -> None:
        """Answers a chat completion in a stored conversation.

        Raises: GatewayError while nothing was sent; ClientGone.
        """

    def make_terms(
        self, spec: AgentSpec, request: ChatRequest, prompt: Prompt, terms: TurnTerms
    ) -> GuidedTerms:
        """Returns the terms and the guide of a turn that a stored agent answers."""

    def make_toolbox(self, call: ChatCall, context: MemoryContext, edits: BlockEdits) -> Toolbox:
        """Returns the tools that the gateway runs in a turn, whether a stored agent answers it or not."""


class NoAgents(Struct, frozen=True):
    """Implements `StoredAgents`, which documents the methods, for a gateway without the agents API."""

    keeper: MemoryKeeper

    async def find(self, project: str, name: str) -> StoredAgent | None:
        return None

    async def has_conversation(self, identity: Identity, spec: AgentSpec) -> bool:
        return False

    async def with_conversation_settings(
        self, spec: AgentSpec, identity: Identity, request: ChatRequest, *, is_stored: bool
    ) -> ConfiguredRequest:
        raise AssertionError("no agent is found here")

    async def complete(self, call: ChatCall) -> None:
        raise AssertionError("no conversation is stored here")

    def make_terms(
        self, spec: AgentSpec, request: ChatRequest, prompt: Prompt, terms: TurnTerms
    ) -> GuidedTerms:
        raise AssertionError("no agent is found here")

    def make_toolbox(self, call: ChatCall, context: MemoryContext, edits: BlockEdits) -> Toolbox:
        return make_memory_tools(self.keeper, context, edits) if context.offered_tools else NO_TOOLS
