"""The registry of agents that are made over REST, with their blocks, tools and tags; users' memories are agents too.

The blocks, passages and messages of a user's memory are its own; its configuration is the profile's, which the settings
file declares.

`resolve` gives a turn its `AgentSpec`. Results are cached until something changes here; a memory that is gone is
not found whatever is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.kinds import (
    DEFAULT_KIND,
    MULTI_AGENT_TOOLS,
    AgentKind,
    base_rules,
    kind_of,
)
from gateway.agents.core.sleeper import SLEEP
from gateway.agents.core.tool_rules import in_words
from gateway.agents.registry.resolved_agents import ResolvedAgent, ResolvedAgentCache
from gateway.agents.registry.sleepers import SleeperRegistry, sleeptime_of
from gateway.agents.registry.tool_registry import (
    ToolRegistry,
    ToolView,
    attachment_number,
    built_in_tool,
    file_tool_numbers,
)
from gateway.core import ids
from gateway.core.agent import AgentSpec, AgentTool, filler_of, filler_written
from gateway.core.definition import AgentDefinition, ConversationDefinition, ToolDefinition
from gateway.core.memory.memory_tools import MEMORY_TOOLS
from gateway.core.request.identity import AGENT_PREFIX
from gateway.core.tool_rule import read_rules
from gateway.errors import BadRequest, Conflict, UnknownModel
from gateway.run.store_errors import retry_overtaken
from gateway.run.upstream.route import resolve_route, route_for_agent_model, split_model
from gateway.settings import Settings
from storage.commands import ForgetTarget
from storage.database import POLL_S
from storage.errors import Unavailable
from storage.listing import (
    AgentChange,
    AgentDraft,
    AgentEntry,
    AgentFilter,
    BlockEntry,
    NamedAgent,
    ReaderEntry,
)
from storage.records import (
    API_PROFILE,
    DEFAULT_CONVERSATION,
    Agent,
    Block,
    Definition,
    DefinitionKind,
    Run,
    Scope,
)
from storage.sql.store import Store

_RULES = "Rules for your tools:"


def api_scope(project: str, uid: str) -> Scope:
    """Returns the scope of an agent that was made over REST."""
    return Scope(project, API_PROFILE, f"agent:{uid}")


class AgentParts(Struct, frozen=True, kw_only=True):
    """The name of an agent and what is attached to it, by public names.

    None leaves a part of an agent as it is; a new agent begins without it.
    """

    # A new agent without one gets a name of its uid.
    name: str | None = None
    # The blocks that are attached; each list replaces the one that the agent has.
    blocks: Sequence[str] | None = None
    tools: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    folders: Sequence[str] | None = None
    identities: Sequence[str] | None = None
    # The agent has the tools that speak to other agents.
    multi_agent_tools: bool | None = None
    # A sleeptime agent reads its messages.
    sleeptime: bool | None = None


class NewAgent(AgentParts, frozen=True):
    """An agent to be made."""

    definition: AgentDefinition
    # New blocks, each with the body of its definition.
    own: Sequence[tuple[Block, dict[str, Any]]] = ()
    # Tools by their names, before those by public names.
    tool_names: Sequence[str] = ()
    # It has the built-in tools with which its kind begins.
    base_tools: bool = True
    # It has the rules for its built-in tools; None: as its kind has it.
    base_rules: bool | None = None


class AgentEdit(AgentParts, frozen=True):
    """A change of an agent."""

    # Returns the changed definition; it is called again if another change comes first.
    edit: Callable[[AgentDefinition], AgentDefinition] | None = None


class AgentView(Struct, frozen=True):
    """An agent as the agents API shows it."""

    agent: Agent
    # The stored definition; for a user's memory one that is made of its profile.
    definition: Definition
    blocks: Sequence[BlockEntry]
    tools: Sequence[ToolView]
    tags: Sequence[str]
    # The newest run; None: there was none.
    last_run: Run | None
    # The sleeptime agents that read its messages.
    readers: Sequence[ReaderEntry] = ()
    folders: Sequence[Definition] = ()
    identities: Sequence[Definition] = ()


class Registry:
    """Agents and tools of all projects. project: the caller's, everywhere; what another one has is not found.

    Raises besides what the methods name: NotFound, WriteConflict, OverLimit, Unavailable, as the store does.
    """

    def __init__(
        self, store: Store, settings: Settings, specs: Iterable[AgentSpec], now: Callable[[], float]
    ) -> None:
        """specs: the profiles of the settings."""
        self._store = store
        self._settings = settings
        self._profiles = {spec.name: spec for spec in specs}
        self._now = now
        self._cache = ResolvedAgentCache(POLL_S if store.database.is_shared else inf)
        self.tools = ToolRegistry(store, self._cache, now)
        self.sleepers = SleeperRegistry(store, settings.background_model, now)
        store.database.when_recovered(self._cache.clear)

    def clear_cache(self) -> None:
        """Clears the cache of resolved names. To be called after a definition was changed."""
        self._cache.clear()

    # -- a turn's agent

    async def resolve(self, project: str, name: str) -> ResolvedAgent | None:
        """Returns the agent with this id or name; None if there is none. Names of profiles are not found.

        Raises: BadRequest: two agents have the name.
        """
        resolved = self._cache.get(project, name)
        if resolved is None or not await self._is_present(resolved):
            generation = self._cache.generation
            resolved = await self._resolve(project, name)
            if resolved is None:
                return None
            self._cache.add(project, name, resolved, generation)
        # Forgetting a memory drops it from the store's cache, so this check takes no statement for a memory in use.
        return resolved if await self._store.agents.find(resolved.scope) is not None else None

    async def _is_present(self, cached: ResolvedAgent) -> bool:
        """Returns whether an agent is still as it was read. A file with one writer takes no read."""
        if not self._store.database.is_shared:
            return True
        try:
            return await self._store.definitions.are_current(cached.made_of)
        except Unavailable:
            return True  # without the store a chat goes on by what was read last

    async def resolve_uid(self, project: str, uid: str) -> ResolvedAgent:
        """Returns the agent of this public name, a user's memory as well. Raises: NotFound."""
        found = await self.resolve(project, ids.id_of("agent", uid))
        if found is not None:
            return found
        agent = (await self.get_entry(project, uid)).agent
        return ResolvedAgent(self._profile_spec(agent), agent.scope)

    async def resolve_for_send(
        self, project: str, uid: str, conversation: str, *, model: str | None, system: str | None
    ) -> ResolvedAgent:
        """Returns an agent with what a send and its conversation set. Raises: NotFound.

        uid: the agent's.
        conversation: `default`, or the uid of a conversation.
        model: the model that the send names; None: the agent's.
        system: the system prompt of the send; None: the agent's.
        """
        found = await self.resolve_uid(project, uid)
        spec = found.spec
        if conversation != DEFAULT_CONVERSATION:
            spec = await self.in_conversation(project, ids.id_of("conv", conversation), spec)
        if model is not None:
            spec = self.with_model(spec, model)
        if system is not None:
            spec = replace(spec, system=system)
        return replace(found, spec=spec)

    def with_model(self, spec: AgentSpec, model: str) -> AgentSpec:
        """Returns the spec with another model. model: `<upstream>/<model>` or `<model>`."""
        upstream, name = split_model(self._settings, model)
        return replace(spec, model=name, upstream=upstream, has_callers_model=True)

    async def in_conversation(self, project: str, name: str | None, spec: AgentSpec) -> AgentSpec:
        """Returns an agent as it is in a conversation. name: the caller's; only public ones are looked for."""
        uid = None if name is None else ids.uid_of("conv", name)
        if uid is None:
            return spec
        found = await self._store.definitions.find(project, DefinitionKind.CONVERSATION, uid)
        return spec if found is None else self.with_conversation(spec, ConversationDefinition.of(found.body))

    def with_conversation(self, spec: AgentSpec, described: ConversationDefinition) -> AgentSpec:
        """Returns an agent with what a conversation has of its own: another model, window or sampling."""
        if described.model is not None:
            spec = self.with_model(spec, described.model)
        if described.context_window is not None:
            spec = replace(spec, context_window=described.context_window)
        if described.sampling and not spec.is_profile:
            sampling = {**spec.definition.sampling, **described.sampling}
            spec = replace(spec, definition=replace(spec.definition, sampling=sampling))
        return spec

    async def _resolve(self, project: str, name: str) -> ResolvedAgent | None:
        definitions = self._store.definitions
        uid = ids.uid_of("agent", name)
        if uid is not None:
            found = await definitions.find(project, DefinitionKind.AGENT, uid)
        else:
            named = await definitions.find_by_name(project, DefinitionKind.AGENT, name)
            if len(named) > 1:
                both = " and ".join(ids.id_of("agent", each.uid) for each in named)
                raise BadRequest(f"Two agents are named {name!r}: {both}. Name one by its id.", param="model")
            found = named[0] if named else None
        if found is None:
            return None
        targets = await self._store.attached.targets(found.memory, DefinitionKind.TOOL)
        tools = (await self.tools.of({found.memory: targets}))[found.memory]
        defined = [found, *(tool.definition for tool in tools if tool.definition is not None)]
        made_of = frozenset((each.id, each.version) for each in defined)
        return ResolvedAgent(self._spec(found, tools), api_scope(project, found.uid), made_of)

    def _spec(self, definition: Definition, tools: Sequence[ToolView]) -> AgentSpec:
        defined = AgentDefinition.of(definition.body)
        upstream, model = split_model(self._settings, defined.model)
        kind = kind_of(defined.kind)
        return AgentSpec(
            name=definition.name,
            system=_system_prompt(defined, tools),
            model=model,
            upstream=upstream,
            has_callers_model=True,
            context_window=defined.context_window,
            offers_tools=bool(tools),
            rebuilds_section=defined.rebuilds,
            filler=filler_of(defined.filler or kind.filler),
            uid=definition.uid,
            style=kind.style,
            tools=tuple(_agent_tool(tool) for tool in tools),
            definition=defined,
            sleeptime=sleeptime_of(defined),
        )

    def context_window(self, definition: Definition) -> int | None:
        """Returns the tokens of the window that an agent's model has; None where they are not known."""
        own = definition.body.get("context_window")
        return own if isinstance(own, int) else self.model_window(definition.body.get("model"))

    def model_window(self, model: str | None) -> int | None:
        """Returns the tokens of a model's window, as far as the settings say. model: as an agent names it."""
        try:
            return None if model is None else route_for_agent_model(self._settings, model).context_window
        except UnknownModel:
            return None

    def model_handle(self, model: str) -> str:
        """Returns the handle of a model of the gateway's list: `<upstream or its kind>/<model>`."""
        settings = self._settings
        if any(alias.alias == model for alias in settings.models):
            return model
        try:
            route = resolve_route(settings, model)
        except UnknownModel:
            return model
        kinds = [each.kind for each in settings.upstreams]
        upstream = next(each for each in settings.upstreams if each.name == route.upstream)
        first = upstream.kind if kinds.count(upstream.kind) == 1 else upstream.name
        return f"{first}/{route.model}"

    async def names(self, project: str, limit: int = 1000) -> Sequence[NamedAgent]:
        """Returns the newest agents."""
        return await self._store.defined_agents.newest(project, limit)

    # -- agents

    async def create(self, project: str, new: NewAgent) -> AgentView:
        """Makes an agent.

        Raises: Conflict: the name of a profile; NotFound: a tool or block that is not there; BadRequest: nor a tool of
        a name; UnknownModel.
        """
        uid, now = ids.new_uid(), self._now()
        self.check_model(new.definition.model)
        name = new.name or f"agent {uid[:8]}"
        self.check_name(name)
        tools = await self._tools_of_new(project, new)
        definition = _with_kind_defaults(new, tools)
        draft = replace(self._store.agents.draft(api_scope(project, uid)), uid=uid)
        folders = await self._attachment_rows(project, DefinitionKind.FOLDER, new.folders or ())
        identities = await self._attachment_rows(project, DefinitionKind.IDENTITY, new.identities or ())
        numbers = [attachment_number(tool) for tool in tools]
        if folders:
            numbers += [each for each in file_tool_numbers() if each not in numbers]
        made = AgentDraft(
            agent=draft, name=name, body=definition.body(), own=new.own, blocks=new.blocks, tools=numbers,
            tags=new.tags, folders=folders, identities=identities,
        )  # fmt: skip
        entry = await self._store.defined_agents.create(made, at=now)
        self._store.agents.cache(entry.agent)
        if new.sleeptime:
            await self.sleepers.turn_on(entry)
        self._cache.clear()
        return await self.get(project, uid)

    async def _tools_of_new(self, project: str, new: NewAgent) -> Sequence[ToolView]:
        """Returns the tools that a new agent begins with, each once. Raises: NotFound, BadRequest."""
        names = [
            *new.tool_names,
            *(kind_of(new.definition.kind).tools if new.base_tools else ()),
            *(MULTI_AGENT_TOOLS if new.multi_agent_tools else ()),
        ]
        tools = [*await self.tools.all_named(project, names)]
        tools += [await self.tools.get(project, each) for each in new.tools or ()]
        return tuple({tool.uid: tool for tool in tools}.values())

    async def get(self, project: str, uid: str) -> AgentView:
        """Returns an agent with all that belongs to it."""
        (view,) = await self._views([await self._store.defined_agents.get(project, uid)])
        return view

    async def get_entry(self, project: str, uid: str) -> AgentEntry:
        """Returns an agent's memory and definition alone."""
        return await self._store.defined_agents.get(project, uid)

    async def list(
        self,
        project: str,
        wanted: AgentFilter,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 50,
        newest_first: bool = True,
    ) -> Sequence[AgentView]:
        """Returns a page of agents. after, before: uids, in the order asked for."""
        entries = await self._store.defined_agents.list(
            project, wanted, after=after, before=before, limit=limit, newest_first=newest_first
        )
        return await self._views(entries)

    async def get_several(self, project: str, agents: Sequence[int]) -> Sequence[AgentView]:
        """Returns agents by the rows of their memories, in the order in which they were made."""
        entries = await self._store.defined_agents.among(agents)
        return await self._views([e for e in entries if e.agent.scope.project == project])

    async def count(self, project: str, wanted: AgentFilter) -> int:
        """Returns how many agents a list of all pages would have."""
        return await self._store.defined_agents.count(project, wanted)

    async def change(self, project: str, uid: str, edit: AgentEdit) -> AgentView:
        """Changes an agent; if another change comes first, the edit is applied to its result.

        Raises: Conflict: a profile's memory, or a profile's name; UnknownModel.
        """
        if edit.name is not None:
            self.check_name(edit.name)
        tools: Sequence[int] | None = None
        if edit.tools is not None:
            tools = [attachment_number(await self.tools.get(project, each)) for each in edit.tools]
        folders, identities = [
            None if uids is None else await self._attachment_rows(project, kind, uids)
            for kind, uids in (
                (DefinitionKind.FOLDER, edit.folders),
                (DefinitionKind.IDENTITY, edit.identities),
            )
        ]

        async def change() -> AgentEntry:
            entry = await self._store.defined_agents.get(project, uid)
            definition = self.require_definition(entry)
            attached = tools
            if edit.multi_agent_tools is not None:
                attached = await self._with_multi_agent_tools(entry.agent.id, edit, tools)
            change = AgentChange(
                name=edit.name, body=self._edited_body(definition, edit), blocks=edit.blocks, tools=attached,
                tags=edit.tags, folders=folders, folder_tools=file_tool_numbers(), identities=identities,
            )  # fmt: skip
            return await self._store.defined_agents.change(entry, change, at=self._now())

        changed = await retry_overtaken(change)
        if edit.sleeptime is not None:
            await self._turn_sleeptime(changed, is_on=edit.sleeptime)
        self._cache.clear()
        return await self.get(project, uid)

    def _edited_body(self, definition: Definition, edit: AgentEdit) -> dict[str, Any] | None:
        """Returns an agent's definition after an edit; None: it stays as it is. Raises: UnknownModel."""
        if edit.edit is None:
            return None
        before = AgentDefinition.of(definition.body)
        after = edit.edit(before)
        # One that was moved here may have a model that the settings are still to name.
        if after.model != before.model:
            self.check_model(after.model)
        return after.body()

    async def _turn_sleeptime(self, entry: AgentEntry, *, is_on: bool) -> None:
        """Gives an agent a sleeptime agent, or takes it away."""
        if not is_on:
            await self.sleepers.turn_off(entry)
            return
        await self.sleepers.turn_on(entry)
        # No further turn may come that would make the reading of earlier messages due.
        due = self._now() + self._settings.memory.idle_s
        await self._store.jobs.enqueue(SLEEP, entry.agent.id, SLEEP, due=due)

    def check_model(self, model: str | None) -> None:
        """Raises: UnknownModel: no upstream would be asked for it."""
        if model is not None:
            route_for_agent_model(self._settings, model)

    async def _with_multi_agent_tools(
        self, agent: int, edit: AgentEdit, tools: Sequence[int] | None
    ) -> Sequence[int]:
        """Returns an agent's tools with or without those that speak to other agents, as the edit has it.

        tools: the tools that the edit sets; None: those that the agent has.
        """
        attached = await self._store.attached.targets(agent, DefinitionKind.TOOL) if tools is None else tools
        own = [attachment_number(built_in_tool(name)) for name in MULTI_AGENT_TOOLS]
        if not edit.multi_agent_tools:
            return [each for each in attached if each not in own]
        return list(dict.fromkeys([*attached, *own]))

    async def delete(self, project: str, uid: str) -> None:
        """Deletes an agent: it is not found any more at once, and all that it knew is forgotten."""
        entry = await self._store.defined_agents.get(project, uid)
        for primary in await self._store.defined_agents.among(
            await self._store.readers.read_by(entry.agent.id)
        ):
            await self.sleepers.detach(primary, uid)
        begun = await self._store.forgetting.begin(entry.agent.id, ForgetTarget(is_all=True))
        self._cache.clear()
        await self._store.forgetting.finish(begun)

    def check_name(self, name: str) -> None:
        if name in self._profiles:
            raise Conflict(
                f"{name!r} is a profile of the settings: {AGENT_PREFIX}{name} means that one.", param="name"
            )

    def require_definition(self, entry: AgentEntry) -> Definition:
        """Returns the definition of an agent that may be changed. Raises: Conflict."""
        if entry.definition is None:
            profile = entry.agent.scope.profile
            raise Conflict(
                f"This is the memory of a user of profile {profile!r}, which the settings file configures. Its blocks, "
                "passages and messages can be changed here."
            )
        return entry.definition

    async def _views(self, entries: Sequence[AgentEntry]) -> Sequence[AgentView]:
        agents = [entry.agent.id for entry in entries]
        tags = await self._store.defined_agents.tags_of(agents)
        tools = await self.tools.of(await self._store.attached.targets_of(agents, DefinitionKind.TOOL))
        blocks = await self._store.named_blocks.visible_to(agents)
        runs = await self._store.runs.last(agents)
        readers = await self._store.readers.of_memories(agents)
        folders = await self._attached_definitions(agents, DefinitionKind.FOLDER)
        identities = await self._attached_definitions(agents, DefinitionKind.IDENTITY)
        views = []
        for entry in entries:
            row = entry.agent.id
            definition = entry.definition or self._profile_definition(entry)
            view = AgentView(
                entry.agent, definition, blocks[row], tools[row], tags[row], runs.get(row), readers[row], folders[row],
                identities[row],
            )  # fmt: skip
            views.append(view if entry.definition else self._with_profile_parts(view))
        return views

    async def _attachment_rows(
        self, project: str, kind: DefinitionKind, uids: Sequence[str]
    ) -> Sequence[int]:
        """Returns what has these public names by the rows under which it is attached. Raises: NotFound."""
        found = [await self._store.definitions.get(project, kind, uid) for uid in dict.fromkeys(uids)]
        return [each.memory or each.id for each in found]

    async def _attached_definitions(
        self, agents: Sequence[int], kind: DefinitionKind
    ) -> dict[int, Sequence[Definition]]:
        """Returns the folders or the identities of each of these agents."""
        targets = await self._store.attached.targets_of(agents, kind)
        rows = sorted({row for each in targets.values() for row in each})
        definitions, known = self._store.definitions, dict[int, Definition]()
        if rows and kind is DefinitionKind.IDENTITY:
            known = await definitions.find_by_ids(rows)
        elif rows:
            known = await definitions.find_by_memories(kind, rows)
        return {agent: [known[row] for row in each if row in known] for agent, each in targets.items()}

    def _profile_definition(self, entry: AgentEntry) -> Definition:
        """Returns the definition that shows a user's memory: that of its profile."""
        agent, spec = entry.agent, self._profile_spec(entry.agent)
        model = "/".join(part for part in (spec.upstream, spec.model) if part) or None
        definition = AgentDefinition(
            DEFAULT_KIND, spec.system, model=model, context_window=spec.context_window, rebuilds=spec.rebuilds_section,
            learns=spec.sleeptime is None, sleeptime=spec.sleeptime, filler=filler_written(spec.filler),
        )  # fmt: skip
        return Definition(
            0, agent.uid, agent.scope.project, DefinitionKind.AGENT, agent.id, entry.name, 1, agent.created,
            agent.created, definition.body(),
        )  # fmt: skip

    def _with_profile_parts(self, view: AgentView) -> AgentView:
        """Returns the view of a user's memory with the tools and tags that its profile implies."""
        scope = view.agent.scope
        names = MEMORY_TOOLS if self._profile_spec(view.agent).offers_tools else ()
        return replace(
            view,
            tools=[*view.tools, *map(built_in_tool, names)],
            tags=[f"profile:{scope.profile}", scope.subject, *view.tags],
        )

    def _profile_spec(self, agent: Agent) -> AgentSpec:
        """Returns the spec of a user's memory."""
        profile = agent.scope.profile
        return self._profiles.get(profile, AgentSpec(profile))

    async def attach_tool(self, project: str, uid: str, tool_uid: str) -> AgentView:
        """Attaches a tool; if it is attached already, its position stays. Raises: Conflict: a profile's memory."""
        entry, tool = await self.get_entry(project, uid), await self.tools.get(project, tool_uid)
        self.require_definition(entry)
        await self._store.attached.attach(
            entry.agent.id, DefinitionKind.TOOL, attachment_number(tool), at=self._now()
        )
        self._cache.clear()
        return await self.get(project, uid)

    async def detach_tool(self, project: str, uid: str, tool_uid: str) -> AgentView:
        """Takes a tool from an agent, if it has it. Raises: Conflict: a profile's memory."""
        entry, tool = await self.get_entry(project, uid), await self.tools.get(project, tool_uid)
        self.require_definition(entry)
        await self._store.attached.detach(
            entry.agent.id, DefinitionKind.TOOL, attachment_number(tool), at=self._now()
        )
        self._cache.clear()
        return await self.get(project, uid)


def _agent_tool(tool: ToolView) -> AgentTool:
    described = None if tool.definition is None else ToolDefinition.of(tool.definition.body)
    return AgentTool(tool.name, described)


def _with_kind_defaults(new: NewAgent, tools: Sequence[ToolView]) -> AgentDefinition:
    """Returns the definition of a new agent with the defaults of its kind. tools: those that it has."""
    definition, kind = new.definition, kind_of(new.definition.kind)
    rules = definition.rules
    if kind.has_rules if new.base_rules is None else new.base_rules:
        own = [tool.name for tool in tools if tool.definition is None]
        rules = (*rules, *base_rules(own, rules))
    return replace(
        definition,
        rules=rules,
        clears=definition.clears or kind.clears,
        most_messages=definition.most_messages or kind.most_messages,
        least_messages=definition.least_messages or _least_messages(kind, definition.most_messages),
    )


def _least_messages(kind: AgentKind, most: int | None) -> int | None:
    """Returns the least messages that a kind's window keeps. most: the limit that an agent has of its own."""
    least = kind.least_messages
    return least if least is None or most is None else min(least, most // 2)


def _system_prompt(defined: AgentDefinition, tools: Sequence[ToolView]) -> str:
    """Returns an agent's own prompt, followed by the rules of its tools."""
    rules = in_words(read_rules(defined.rules), [tool.name for tool in tools])
    return "\n\n".join(part for part in (defined.system, rules and f"{_RULES}\n{rules}") if part)
