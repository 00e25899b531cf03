"""Agents as the agents API shows them: agents with definitions, and memories of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.kinds import DEFAULT_KIND
from gateway.agents.registry.agent_resolver import make_profile_spec
from gateway.agents.registry.tool_registry import ToolRegistry, ToolView, make_built_in
from gateway.core.agent import AgentSpec
from gateway.core.definition import AgentDefinition
from gateway.core.memory.memory_tools import MEMORY_TOOLS
from storage.definition_records import Definition, DefinitionKind
from storage.listing import AgentEntry, BlockEntry, ReaderEntry, make_unstored_definition
from storage.records import Agent
from storage.run_records import Run
from storage.sql.store import Store


class AgentView(Struct, frozen=True):
    """An agent as the agents API shows it."""

    # The memory of the agent.
    agent: Agent
    # The stored definition; for a user's memory, a definition made of its profile.
    definition: Definition
    # The blocks that the agent sees, shared ones among them.
    blocks: Sequence[BlockEntry]
    # The tools that are attached to the agent.
    tools: Sequence[ToolView]
    # The tags of the agent, by name.
    tags: Sequence[str]
    # The newest run; None: the agent has no run.
    last_run: Run | None
    # The sleeptime agents that read the agent's messages.
    readers: Sequence[ReaderEntry] = ()
    # The folders that are attached to the agent.
    folders: Sequence[Definition] = ()
    # The identities to which the agent belongs.
    identities: Sequence[Definition] = ()


class AgentViews(Struct, frozen=True):
    """Loads the parts of agents, for all agents of a list at once. Raises: StoreUnavailable."""

    # The store with the parts of agents.
    store: Store
    # Reads the tools of agents.
    tools: ToolRegistry
    # The profiles of the settings, by name.
    profiles: Mapping[str, AgentSpec]

    async def load(self, entries: Sequence[AgentEntry]) -> Sequence[AgentView]:
        """Returns agents with all their parts, in the order of `entries`."""
        agent_rows = [entry.agent.id for entry in entries]
        tags = await self.store.defined_agents.load_tags(agent_rows)
        tool_targets = await self.store.attached.load_targets_of_agents(agent_rows, DefinitionKind.TOOL)
        tools = await self.tools.load_of_agents(tool_targets)
        blocks = await self.store.named_blocks.load_visible(agent_rows)
        runs = await self.store.runs.load_newest_runs(agent_rows)
        readers = await self.store.readers.load_by_memory(agent_rows)
        folders = await self._load_attached(agent_rows, DefinitionKind.FOLDER)
        identities = await self._load_attached(agent_rows, DefinitionKind.IDENTITY)
        views = []
        for entry in entries:
            row = entry.agent.id
            definition = entry.definition or self._make_profile_definition(entry)
            view = AgentView(
                agent=entry.agent, definition=definition, blocks=blocks[row], tools=tools[row], tags=tags[row],
                last_run=runs.get(row), readers=readers[row], folders=folders[row], identities=identities[row],
            )  # fmt: skip
            views.append(view if entry.definition else self._with_profile_parts(view))
        return views

    async def _load_attached(
        self, agent_rows: Sequence[int], kind: DefinitionKind
    ) -> dict[int, Sequence[Definition]]:
        """Returns the folders or the identities of each of these agents."""
        targets = await self.store.attached.load_targets_of_agents(agent_rows, kind)
        rows = sorted({row for attached_rows in targets.values() for row in attached_rows})
        if kind is DefinitionKind.IDENTITY:
            by_row = await self.store.definitions.load_by_rows(rows)
        else:
            by_row = await self.store.definitions.find_by_memories(kind, rows)
        return {
            agent_row: [by_row[row] for row in attached_rows if row in by_row]
            for agent_row, attached_rows in targets.items()
        }

    def _make_profile_definition(self, entry: AgentEntry) -> Definition:
        """Returns a definition that shows a user's memory, made of the settings of its profile."""
        agent = entry.agent
        spec = make_profile_spec(self.profiles, agent)
        model = "/".join(part for part in (spec.upstream, spec.model) if part) or None
        definition = AgentDefinition(
            DEFAULT_KIND, spec.system, model=model, context_window=spec.context_window, rebuilds=spec.rebuilds_section,
            learns=spec.sleeptime is None, sleeptime=spec.sleeptime, filler=spec.filler,
        )  # fmt: skip
        return make_unstored_definition(DefinitionKind.AGENT, agent, entry.name, definition.dump())

    def _with_profile_parts(self, view: AgentView) -> AgentView:
        """Returns a copy of the view of a user's memory with the tools and tags that its profile implies."""
        scope = view.agent.scope
        names = MEMORY_TOOLS if make_profile_spec(self.profiles, view.agent).offers_tools else ()
        return replace(
            view,
            tools=[*view.tools, *map(make_built_in, names)],
            tags=[f"profile:{scope.profile}", scope.subject, *view.tags],
        )
