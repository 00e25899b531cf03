"""The agents that a chat completion can name: agents of the settings, and stored agents.

`Directory` makes an `AgentSpec` of each profile of the settings. `StoredAgents` is the seam to agents made over REST,
which `gateway.agents` implements; with `NoAgents` the gateway has profiles alone.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from msgspec import Struct

from gateway.core.agent import AgentSpec, Filler, FixedFiller
from gateway.core.definition import Sleeptime
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity
from gateway.core.request.requested_agent import AGENT_PREFIX, asks_agent
from gateway.core.turn.guide import Guide
from gateway.core.turn.terms import TurnTerms
from gateway.errors import BadRequest, CallerError, UnknownModel
from gateway.run.call import ChatCall
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.tools.memory import MemoryTools, SearchesPassages
from gateway.run.tools.toolbox import NO_TOOLS, Toolbox
from gateway.settings import (
    DEFAULT_PROFILE,
    BlockSettings,
    FillerSettings,
    MemorySettings,
    ProfileSettings,
    Settings,
)
from storage.records import Block, Scope


class FoundAgent(NamedTuple):
    """An agent that was made over REST."""

    spec: AgentSpec
    # The scope of the agent's memory; all its users share it.
    scope: Scope


class StoredAgents(Protocol):
    """The agents that were made over REST, as chat completions use them."""

    async def find(self, project: str, name: str) -> FoundAgent | None:
        """Returns the agent with this id or name; None: there is none.

        Raises: BadRequest: two agents have the name; StoreError.
        """

    async def owns(self, identity: Identity, spec: AgentSpec) -> bool:
        """Returns whether a request names a stored conversation, which `complete` answers."""

    async def with_conversation_settings(
        self, spec: AgentSpec, identity: Identity, request: ChatRequest, *, is_stored: bool
    ) -> tuple[AgentSpec, ChatRequest]:
        """Returns an agent with the settings of its conversation, and the request with the agent's sampling settings.

        is_stored: the conversation is a stored one.
        """

    async def complete(self, call: ChatCall) -> None:
        """Answers a chat completion in a stored conversation.

        Raises: GatewayError while nothing was sent; ClientGone.
        """

    def terms(
        self, spec: AgentSpec, request: ChatRequest, prompt: Prompt, terms: TurnTerms
    ) -> tuple[TurnTerms, Guide]:
        """Returns the terms and the guide of a turn that a stored agent answers."""

    def toolbox(self, call: ChatCall, context: MemoryContext, edits: BlockEdits) -> Toolbox:
        """Returns the tools that the gateway runs in a turn, whether a stored agent answers it or not."""


class NoAgents(Struct, frozen=True):
    """Implements `StoredAgents`, which documents the methods, for a gateway without the agents API."""

    keeper: MemoryKeeper

    async def find(self, project: str, name: str) -> FoundAgent | None:
        return None

    async def owns(self, identity: Identity, spec: AgentSpec) -> bool:
        return False

    async def with_conversation_settings(
        self, spec: AgentSpec, identity: Identity, request: ChatRequest, *, is_stored: bool
    ) -> tuple[AgentSpec, ChatRequest]:
        raise AssertionError("no agent is found here")

    async def complete(self, call: ChatCall) -> None:
        raise AssertionError("no conversation is owned here")

    def terms(
        self, spec: AgentSpec, request: ChatRequest, prompt: Prompt, terms: TurnTerms
    ) -> tuple[TurnTerms, Guide]:
        raise AssertionError("no agent is found here")

    def toolbox(self, call: ChatCall, context: MemoryContext, edits: BlockEdits) -> Toolbox:
        return make_memory_tools(self.keeper, context, edits) if context.offered else NO_TOOLS


def make_memory_tools(
    keeper: MemoryKeeper, context: MemoryContext, edits: BlockEdits, archives: SearchesPassages | None = None
) -> MemoryTools:
    """Returns the memory tools of a turn. archives: those that a search reads besides the memory's own."""
    recall_tokens = keeper.settings.recall_tokens
    return MemoryTools(
        store=keeper.store,
        context=context,
        block_edits=edits,
        recall_tokens=recall_tokens,
        now=keeper.now,
        embed_query=keeper.embed_query,
        archives=archives,
    )


class Directory:
    """The agents of the settings."""

    def __init__(self, settings: Settings) -> None:
        # In the order in which the settings declare them.
        self.specs = tuple(_spec_of(profile, settings.memory) for profile in settings.profiles)
        self._by_name = {spec.name: spec for spec in self.specs}
        self._default = _spec_of(ProfileSettings(DEFAULT_PROFILE), settings.memory)

    def find_requested_spec(self, identity: Identity) -> AgentSpec | None:
        """Returns the agent that a request asks for; None: the settings declare no such agent."""
        spec = self._by_name.get(identity.profile)
        # The default need not be declared.
        return self._default if spec is None and identity.agent is None else spec

    def find_spec_by_name(self, name: str) -> AgentSpec | None:
        """Returns the agent of the profile with this name; None: the settings declare no such profile."""
        return self._by_name.get(name, self._default if name == self._default.name else None)


def unknown_agent_error(identity: Identity, model: str) -> CallerError:
    """Returns the error for an agent that does not exist, by the field in which the request names it."""
    if asks_agent(model):
        return UnknownModel.unlisted(model)
    return BadRequest(
        f"There is no agent {identity.agent!r} here. GET /v1/models lists the agents that there are, each as "
        f"`{AGENT_PREFIX}<name>`.",
        param="x-mnemogate-agent",
    )


def _spec_of(profile: ProfileSettings, memory: MemorySettings) -> AgentSpec:
    """Returns the agent of a profile. Where the profile has no value, `[memory]` has one."""
    return AgentSpec(
        name=profile.name,
        system=profile.system or "",
        model=profile.model,
        upstream=profile.upstream,
        context_window=profile.context_window,
        offers_tools=profile.memory_tools,
        history=profile.history or memory.history,
        rebuilds_section=profile.rebuild == "always",
        summarises=(profile.compaction or memory.compaction) == "summary",
        blocks=tuple(_block_of(block) for block in profile.blocks),
        filler=_filler_of(profile.filler),
        sleeptime=Sleeptime() if profile.sleeptime else None,
        shared_labels=frozenset(block.label for block in profile.blocks if block.shared),
    )


def _filler_of(filler: Literal["model"] | FillerSettings | None) -> Filler:
    return FixedFiller(filler.after_ms, filler.say) if isinstance(filler, FillerSettings) else filler


def _block_of(block: BlockSettings) -> Block:
    # Blocks that users share are read-only to models unless the operator decides otherwise.
    is_read_only = block.read_only or (block.shared and not block.writable)
    return Block(
        id=0,
        label=block.label,
        description=block.description,
        value=block.value,
        limit=block.limit,
        read_only=is_read_only,
    )
