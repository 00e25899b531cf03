"""Resolves the names of agents: the name in a request becomes an `AgentSpec`, as a turn uses it.

Results are cached until a definition changes. An agent with a memory that is gone is not found, whatever is cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.kinds import choose_kind
from gateway.agents.core.rule_words import render_rules
from gateway.agents.registry.memory_scope import make_scope
from gateway.agents.registry.resolved_agents import ResolvedAgent, ResolvedAgentCache
from gateway.agents.registry.sleepers import find_sleeptime
from gateway.agents.registry.tool_registry import ToolRegistry, ToolView
from gateway.core import ids
from gateway.core.agent import AgentSpec, AgentTool, parse_filler
from gateway.core.definition import AgentDefinition, ConversationDefinition, ToolDefinition
from gateway.core.tool_rule import read_rules
from gateway.errors import BadRequest, UnknownModel
from gateway.run.upstream.route import resolve_route, route_for_agent_model, split_model
from gateway.settings import Settings
from storage.errors import Unavailable
from storage.records import DEFAULT_CONVERSATION, Agent, Definition, DefinitionKind
from storage.sql.store import Store

_RULES = "Rules for your tools:"


class AgentResolver(Struct, frozen=True):
    """Resolves the names of agents in a project. project: the caller's; nothing of another project is found.

    Methods raise, besides what they name, Unavailable, as the store does.
    """

    store: Store
    settings: Settings
    # The profiles of the settings, by name.
    profiles: Mapping[str, AgentSpec]
    tools: ToolRegistry
    cache: ResolvedAgentCache

    async def resolve(self, project: str, name: str) -> ResolvedAgent | None:
        """Returns the agent with this id or name; None if there is none. Names of profiles are not found.

        Raises: BadRequest if two agents have the name.
        """
        resolved = self.cache.get(project, name)
        if resolved is None or not await self._is_current(resolved):
            generation = self.cache.generation
            resolved = await self._resolve(project, name)
            if resolved is None:
                return None
            self.cache.add(project, name, resolved, generation)
        # Forgetting a memory drops it from the store's cache, so this check takes no statement for a memory in use.
        return resolved if await self.store.agents.find(resolved.scope) is not None else None

    async def _is_current(self, cached: ResolvedAgent) -> bool:
        """Returns whether an agent is still as it was read. A file with one writer takes no read."""
        if not self.store.database.is_shared:
            return True
        try:
            return await self.store.definitions.are_current(cached.made_of)
        except Unavailable:
            return True  # without the store a chat goes on by what was read last

    async def resolve_uid(self, project: str, uid: str) -> ResolvedAgent:
        """Returns the agent of this public id, a user's memory as well. Raises: NotFound."""
        resolved = await self.resolve(project, ids.make_id("agent", uid))
        if resolved is not None:
            return resolved
        agent = (await self.store.defined_agents.get(project, uid)).agent
        return ResolvedAgent(self.make_profile_spec(agent), agent.scope)

    async def resolve_for_send(
        self, project: str, uid: str, conversation_name: str, *, model: str | None, system: str | None
    ) -> ResolvedAgent:
        """Returns an agent with the settings of a send and of the send's conversation. Raises: NotFound.

        uid: the agent's.
        model: the model that the send names; None: the agent's.
        system: the system prompt of the send; None: the agent's.
        """
        resolved = await self.resolve_uid(project, uid)
        spec = resolved.spec
        if conversation_name != DEFAULT_CONVERSATION:
            spec = await self.in_conversation(project, ids.make_id("conv", conversation_name), spec)
        return replace(resolved, spec=self.with_overrides(spec, model, system))

    def with_overrides(self, spec: AgentSpec, model: str | None, system: str | None) -> AgentSpec:
        """Returns an agent with the model and the system prompt of a send; None: the agent's."""
        if model is not None:
            spec = self.with_model(spec, model)
        return spec if system is None else replace(spec, system=system)

    def with_model(self, spec: AgentSpec, model: str) -> AgentSpec:
        """Returns the spec with another model. model: `<upstream>/<model>` or `<model>`."""
        upstream, name = split_model(self.settings, model)
        return replace(spec, model=name, upstream=upstream, has_callers_model=True)

    async def in_conversation(self, project: str, name: str | None, spec: AgentSpec) -> AgentSpec:
        """Returns an agent as it is in a conversation. name: the caller's. Only a public id has a definition."""
        uid = None if name is None else ids.parse_uid("conv", name)
        if uid is None:
            return spec
        definition = await self.store.definitions.find(project, DefinitionKind.CONVERSATION, uid)
        conversation = None if definition is None else ConversationDefinition.of(definition.body)
        return self.with_conversation(spec, conversation)

    def with_conversation(self, spec: AgentSpec, conversation: ConversationDefinition | None) -> AgentSpec:
        """Returns an agent with the settings of a conversation, if it has any: another model, window or sampling."""
        if conversation is None:
            return spec
        if conversation.model is not None:
            spec = self.with_model(spec, conversation.model)
        if conversation.context_window is not None:
            spec = replace(spec, context_window=conversation.context_window)
        if conversation.sampling and not spec.is_profile:
            sampling = {**spec.definition.sampling, **conversation.sampling}
            spec = replace(spec, definition=replace(spec.definition, sampling=sampling))
        return spec

    async def _resolve(self, project: str, name: str) -> ResolvedAgent | None:
        """Reads the agent with this id or name. Raises: as `resolve` does."""
        definitions = self.store.definitions
        uid = ids.parse_uid("agent", name)
        if uid is not None:
            definition = await definitions.find(project, DefinitionKind.AGENT, uid)
        else:
            same_name = await definitions.find_by_name(project, DefinitionKind.AGENT, name)
            if len(same_name) > 1:
                both = " and ".join(ids.make_id("agent", namesake.uid) for namesake in same_name)
                raise BadRequest(f"Two agents are named {name!r}: {both}. Name one by its id.", param="model")
            definition = same_name[0] if same_name else None
        if definition is None:
            return None
        targets = await self.store.attached.load_targets(definition.memory_row, DefinitionKind.TOOL)
        tools = (await self.tools.of({definition.memory_row: targets}))[definition.memory_row]
        sources = [definition, *(tool.definition for tool in tools if tool.definition is not None)]
        made_of = frozenset((source.id, source.version) for source in sources)
        scope = make_scope(project, DefinitionKind.AGENT, definition.uid)
        return ResolvedAgent(self._make_spec(definition, tools), scope, made_of)

    def _make_spec(self, definition: Definition, tools: Sequence[ToolView]) -> AgentSpec:
        """Returns the spec of an agent that was made over REST."""
        defined = AgentDefinition.of(definition.body)
        upstream, model = split_model(self.settings, defined.model)
        kind = choose_kind(defined.kind)
        return AgentSpec(
            name=definition.name,
            system=_render_prompt(defined, tools),
            model=model,
            upstream=upstream,
            has_callers_model=True,
            context_window=defined.context_window,
            offers_tools=bool(tools),
            rebuilds_section=defined.rebuilds,
            filler=parse_filler(defined.filler or kind.filler),
            uid=definition.uid,
            style=kind.style,
            tools=tuple(_make_agent_tool(tool) for tool in tools),
            definition=defined,
            sleeptime=find_sleeptime(defined),
        )

    def make_profile_spec(self, agent: Agent) -> AgentSpec:
        """Returns the spec of a user's memory."""
        profile = agent.scope.profile
        return self.profiles.get(profile, AgentSpec(profile))

    def context_window(self, definition: Definition) -> int | None:
        """Returns the tokens of the window that an agent's model has; None where they are not known."""
        own = definition.body.get("context_window")
        return own if isinstance(own, int) else self.model_window(definition.body.get("model"))

    def model_window(self, model: str | None) -> int | None:
        """Returns the tokens of a model's window, as far as the settings say. model: as an agent names it."""
        try:
            return None if model is None else route_for_agent_model(self.settings, model).context_window
        except UnknownModel:
            return None

    def make_handle(self, model: str) -> str:
        """Returns the handle of a model of the gateway's list: `<upstream or its kind>/<model>`."""
        settings = self.settings
        if any(alias.alias == model for alias in settings.models):
            return model
        try:
            route = resolve_route(settings, model)
        except UnknownModel:
            return model
        kinds = [other.kind for other in settings.upstreams]
        upstream = next(other for other in settings.upstreams if other.name == route.upstream)
        provider = upstream.kind if kinds.count(upstream.kind) == 1 else upstream.name
        return f"{provider}/{route.model}"

    def check_model(self, model: str | None) -> None:
        """Raises: UnknownModel if no upstream would be asked for it."""
        if model is not None:
            route_for_agent_model(self.settings, model)


def _make_agent_tool(tool: ToolView) -> AgentTool:
    definition = None if tool.definition is None else ToolDefinition.of(tool.definition.body)
    return AgentTool(tool.name, definition)


def _render_prompt(defined: AgentDefinition, tools: Sequence[ToolView]) -> str:
    """Returns an agent's own prompt, followed by the rules of its tools."""
    rules = render_rules(read_rules(defined.rules), [tool.name for tool in tools])
    return "\n\n".join(part for part in (defined.system, rules and f"{_RULES}\n{rules}") if part)
