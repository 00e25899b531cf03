"""Resolves the names of agents: the name in a request becomes the `AgentSpec` of a turn.

Results are cached until a definition changes. An agent whose memory was deleted is not found, even if it is cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.kinds import choose_kind
from gateway.agents.core.rule_words import render_rules
from gateway.agents.registry.agent_models import with_conversation, with_overrides
from gateway.agents.registry.memory_scope import make_scope
from gateway.agents.registry.resolved_agents import ResolvedAgent, ResolvedAgentCache
from gateway.agents.registry.sleeptime_agents import find_sleeptime
from gateway.agents.registry.tool_registry import ToolRegistry, ToolView
from gateway.core import ids
from gateway.core.agent import AgentSpec, AgentTool
from gateway.core.definition import AgentDefinition, ConversationDefinition, ToolDefinition
from gateway.core.tool_rule import read_rules
from gateway.errors import BadRequest
from gateway.run.upstream.route import split_model
from gateway.settings import Settings
from storage.definition_records import Definition, DefinitionKind
from storage.errors import StoreUnavailable
from storage.records import DEFAULT_CONVERSATION, Agent
from storage.sql.store import Store

_RULES = "Rules for your tools:"


class AgentResolver(Struct, frozen=True):
    """Resolves the names of agents.

    Each method takes the caller's project, and finds only agents of that project. Besides the errors that a method
    names, it raises StoreUnavailable.
    """

    # The store with the definitions of agents.
    store: Store
    # The settings, which route models to upstreams.
    settings: Settings
    # The profiles of the settings, by name.
    profiles: Mapping[str, AgentSpec]
    # Reads the tools of agents.
    tools: ToolRegistry
    # The agents that were resolved last.
    cache: ResolvedAgentCache

    async def resolve(self, project: str, name_or_id: str) -> ResolvedAgent | None:
        """Returns the agent with this id or name; None if the project has no such agent. Profiles are not found.

        Raises: BadRequest if two agents have the name.
        """
        resolved = self.cache.get(project, name_or_id)
        if resolved is None or not await self._is_current(resolved):
            generation = self.cache.generation
            resolved = await self._resolve(project, name_or_id)
            if resolved is None:
                return None
            self.cache.add(project, name_or_id, resolved, generation)
        # Forgetting a memory drops it from the store's cache, so this check takes no statement for a memory in use.
        return resolved if await self.store.agents.find(resolved.scope) is not None else None

    async def _is_current(self, cached: ResolvedAgent) -> bool:
        """Returns whether a cached agent has not changed. Over SQLite, with a single process, this takes no read."""
        if not self.store.database.is_shared:
            return True
        try:
            return await self.store.definitions.are_current(cached.source_versions)
        except StoreUnavailable:
            return True  # without the store a chat goes on with the cached agent

    async def resolve_uid(self, project: str, uid: str) -> ResolvedAgent:
        """Returns the agent with this uid, even if it is a user's memory. Raises: NotFound."""
        resolved = await self.resolve(project, ids.make_id("agent", uid))
        if resolved is not None:
            return resolved
        agent = (await self.store.defined_agents.get(project, uid)).agent
        return ResolvedAgent(make_profile_spec(self.profiles, agent), agent.scope)

    async def resolve_for_send(
        self, project: str, uid: str, conversation_name: str, *, model: str | None, system: str | None
    ) -> ResolvedAgent:
        """Returns an agent with the settings of a send and of the send's conversation. Raises: NotFound.

        uid: the uid of the agent.
        conversation_name: the uid of the conversation, or `DEFAULT_CONVERSATION`.
        model: the model of the send; None: the agent's model.
        system: the system prompt of the send; None: the agent's system prompt.
        """
        resolved = await self.resolve_uid(project, uid)
        spec = resolved.spec
        if conversation_name != DEFAULT_CONVERSATION:
            spec = await self.with_conversation_settings(project, conversation_name, spec)
        return replace(resolved, spec=with_overrides(self.settings, spec, model, system))

    async def with_conversation_settings(self, project: str, uid: str, spec: AgentSpec) -> AgentSpec:
        """Returns a copy of an agent with the settings of a conversation. uid: the uid of the conversation."""
        definition = await self.store.definitions.find(project, DefinitionKind.CONVERSATION, uid)
        if definition is None:
            return spec
        return with_conversation(self.settings, spec, ConversationDefinition.of(definition.body))

    async def _resolve(self, project: str, name_or_id: str) -> ResolvedAgent | None:
        """Reads the agent with this id or name. Raises: the errors of `resolve`."""
        uid = ids.parse_uid("agent", name_or_id)
        definitions = await self.store.defined_agents.find_by_name_or_uid(project, name_or_id, uid)
        if not definitions:
            return None
        if len(definitions) > 1:  # the store returns at most two
            both_ids = " and ".join(ids.make_id("agent", definition.uid) for definition in definitions)
            raise BadRequest(
                f"Two agents are named {name_or_id!r}: {both_ids}. Name one by its id.", param="model"
            )
        definition = definitions[0]
        targets = await self.store.attached.load_targets(definition.memory_row, DefinitionKind.TOOL)
        tools = (await self.tools.load_of_agents({definition.memory_row: targets}))[definition.memory_row]
        sources = [definition, *(tool.definition for tool in tools if tool.definition is not None)]
        source_versions = frozenset((source.id, source.version) for source in sources)
        scope = make_scope(project, DefinitionKind.AGENT, definition.uid)
        return ResolvedAgent(self._make_spec(definition, tools), scope, source_versions)

    def _make_spec(self, record: Definition, tools: Sequence[ToolView]) -> AgentSpec:
        """Returns the spec of an agent of the agents API."""
        definition = AgentDefinition.of(record.body)
        upstream, model = split_model(self.settings, definition.model)
        kind = choose_kind(definition.kind)
        return AgentSpec(
            name=record.name, system=_render_prompt(definition, tools), model=model, upstream=upstream,
            has_callers_model=True, context_window=definition.context_window, offers_tools=bool(tools),
            rebuilds_section=definition.rebuilds, filler=definition.filler or kind.filler,
            uid=record.uid, style=kind.style, tools=tuple(_make_agent_tool(tool) for tool in tools),
            definition=definition, sleeptime=find_sleeptime(definition),
        )  # fmt: skip


def make_profile_spec(profiles: Mapping[str, AgentSpec], agent: Agent) -> AgentSpec:
    """Returns the spec of a user's memory: the spec of its profile, or one without settings if the profile is unknown.

    profiles: the profiles of the settings, by name.
    """
    return profiles.get(agent.scope.profile, AgentSpec(agent.scope.profile))


def _make_agent_tool(tool: ToolView) -> AgentTool:
    definition = None if tool.definition is None else ToolDefinition.of(tool.definition.body)
    return AgentTool(tool.name, definition)


def _render_prompt(definition: AgentDefinition, tools: Sequence[ToolView]) -> str:
    """Returns an agent's own prompt, followed by the rules of its tools."""
    rules = render_rules(read_rules(definition.rules), [tool.name for tool in tools])
    return "\n\n".join(part for part in (definition.system, rules and f"{_RULES}\n{rules}") if part)
