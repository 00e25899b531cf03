"""Agents made over REST, as chat completions use them: implements `StoredAgents` of gateway.run.stored_agents."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.waits import Waiter
from gateway.agents.registry.registry import Registry
from gateway.agents.runs.agent_messaging import Sender
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.calls.called_tools import list_prompt_calls
from gateway.agents.runs.run import make_sampling
from gateway.agents.runs.turn_guide import make_guide
from gateway.agents.tools.agent_tools import find_serial_tools, read_asides
from gateway.core.agent import AgentSpec
from gateway.core.memory.offered_tools import allows_hidden_tools
from gateway.core.request.chat_request import ChatRequest, add_missing_fields
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import STORING_MODES
from gateway.core.turn.guide import Guide
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut
from gateway.run.call import ChatCall
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.stored_agents import FoundAgent
from gateway.run.tools.toolbox import Toolbox
from storage.listing import NamedAgent


class ChatAgents(Struct, frozen=True):
    """The agents of all projects, for chat completions."""

    registry: Registry
    agent_runs: AgentRuns

    # The methods are described in `StoredAgents`.

    async def names(self, project: str) -> Sequence[NamedAgent]:
        """Returns the newest agents. Raises: StoreError."""
        return await self.registry.names(project)

    async def find(self, project: str, name: str) -> FoundAgent | None:
        resolved = await self.registry.resolver.resolve(project, name)
        return None if resolved is None else FoundAgent(resolved.spec, resolved.scope)

    async def has_conversation(self, identity: Identity, spec: AgentSpec) -> bool:
        return await self.agent_runs.owns(identity, spec)

    async def with_conversation_settings(
        self, spec: AgentSpec, identity: Identity, request: ChatRequest, *, is_stored: bool
    ) -> tuple[AgentSpec, ChatRequest]:
        if is_stored:
            spec = await self.registry.resolver.in_conversation(
                identity.project, identity.conversation_key, spec
            )
        offers = bool(spec.tools) and identity.mode in STORING_MODES and allows_hidden_tools(request.json)
        return spec, add_missing_fields(request, make_sampling(spec, has_tools=request.has_tools or offers))

    async def complete(self, call: ChatCall) -> None:
        await self.agent_runs.complete(call)

    def make_terms(
        self, spec: AgentSpec, request: ChatRequest, prompt: Prompt, terms: TurnTerms
    ) -> tuple[TurnTerms, Guide]:
        # The client sees none of the agent's tools, so a call of an unknown name is not its either.
        gateway_tools = AllBut(request.tool_names) if prompt.offered_tools else ()
        terms = replace(
            terms,
            gateway_tools=gateway_tools,
            serial_tools=find_serial_tools(spec),
            asides=read_asides(spec, request.tool_names),
        )
        called = list_prompt_calls(prompt) if spec.definition.rules else ()
        return terms, make_guide(spec, prompt, called=called)

    def make_toolbox(self, call: ChatCall, context: MemoryContext, edits: BlockEdits) -> Toolbox:
        is_profile = context.request.spec.is_profile
        sender = None if is_profile else Sender.of(context, Waiter(context.agent.uid), call.forwarded)
        journal = None if call.record is None else call.record.journal
        return self.agent_runs.toolboxes.make(context, edits, sender=sender, call_record=journal)
