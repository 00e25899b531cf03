"""The registry of agents, with their blocks, tools and tags; users' memories are agents too.

A user's memory has blocks, passages and messages of its own. Its configuration is the profile's, which the settings
file declares.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from math import inf
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.kinds import FILE_TOOL_NUMBERS, MULTI_AGENT_TOOLS, choose_kind, make_base_rules
from gateway.agents.core.sleeptime_agent import SLEEP_JOB
from gateway.agents.registry.agent_models import check_model
from gateway.agents.registry.agent_resolver import AgentResolver
from gateway.agents.registry.agent_views import AgentView, AgentViews
from gateway.agents.registry.memory_scope import draft_memory
from gateway.agents.registry.resolved_agents import ResolvedAgentCache
from gateway.agents.registry.sleeptime_agents import SleeptimeAgentRegistry
from gateway.agents.registry.tool_registry import ToolRegistry, ToolView, make_built_in, number_tool
from gateway.core.agent import AgentSpec
from gateway.core.definition import AgentDefinition
from gateway.core.request.requested_agent import AGENT_PREFIX
from gateway.errors import Conflict
from gateway.run.store_errors import retry_changed_record
from gateway.settings import Settings
from storage.database import POLL_S
from storage.definition_records import Definition, DefinitionKind
from storage.forget_commands import ForgetTarget
from storage.listing import AgentChange, AgentDraft, AgentEntry, AgentFilter, BlockDraft, Page
from storage.sql.store import Store


class AgentParts(Struct, frozen=True, kw_only=True):
    """The name of an agent, and the uids of the parts to attach to it.

    None leaves a part of an agent as it is; a new agent begins without the part.
    """

    # The name; None: the name stays, or a new agent gets one that is made of its uid.
    name: str | None = None
    # The uids of the blocks. This list, as each list below, replaces the agent's present list.
    blocks: Sequence[str] | None = None
    # The uids of the tools.
    tools: Sequence[str] | None = None
    # The tags, as text.
    tags: Sequence[str] | None = None
    # The uids of the folders.
    folders: Sequence[str] | None = None
    # The uids of the identities to which the agent belongs.
    identities: Sequence[str] | None = None
    # The agent has the tools that speak to other agents.
    has_multi_agent_tools: bool | None = None
    # A sleeptime agent reads the agent's messages.
    has_sleeptime: bool | None = None


class NewAgent(AgentParts, frozen=True):
    """An agent to be made."""

    # The definition, without the defaults of the agent's kind.
    definition: AgentDefinition
    # The blocks that are made with the agent, and end with it.
    own_blocks: Sequence[BlockDraft] = ()
    # The names of further tools, which come before `tools`.
    tool_names: Sequence[str] = ()
    # True: the agent gets the built-in tools of its kind.
    has_base_tools: bool = True
    # The agent has rules for its built-in tools; None: it has them if its kind has.
    has_base_rules: bool | None = None


class AgentEdit(AgentParts, frozen=True):
    """A change of an agent."""

    # Returns the changed definition for the present one. It is called again if another change comes first.
    edit_definition: Callable[[AgentDefinition], AgentDefinition] | None = None


class Registry:
    """Makes, reads, changes and deletes agents.

    Each method takes the caller's project, and finds only agents of that project. Besides the errors that a method
    names, it raises NotFound, WriteConflict, LimitExceeded and StoreUnavailable.
    """

    def __init__(
        self, store: Store, settings: Settings, specs: Iterable[AgentSpec], now: Callable[[], float]
    ) -> None:
        """Makes the registry of one gateway. specs: the profiles of the settings."""
        self._store = store
        self._settings = settings
        self._profiles = {spec.name: spec for spec in specs}
        self._now = now
        self._cache = ResolvedAgentCache(POLL_S if store.database.is_shared else inf)
        self.tools = ToolRegistry(store, self._cache, now)
        self.resolver = AgentResolver(store, settings, self._profiles, self.tools, self._cache)
        self._views = AgentViews(store, self.tools, self._profiles)
        self.sleeptime_agents = SleeptimeAgentRegistry(store, settings.background_model, now)
        store.database.add_recovery_listener(self._cache.clear)

    def clear_cache(self) -> None:
        """Clears the cache of resolved names. Called after each change of a definition."""
        self._cache.clear()

    async def create(self, project: str, new: NewAgent) -> AgentView:
        """Makes an agent.

        Raises: Conflict for the name of a profile; NotFound for an unknown uid; BadRequest for an unknown name of a
            tool; UnknownModel.
        """
        now = self._now()
        check_model(self._settings, new.definition.model)
        memory = draft_memory(self._store, project, DefinitionKind.AGENT)
        name = new.name or f"agent {memory.uid[:8]}"
        self.check_name(name)
        tools = await self._load_tools(project, new)
        definition = _with_kind_defaults(new, tools)
        folders = await self._find_rows(project, DefinitionKind.FOLDER, new.folders)
        identities = await self._find_rows(project, DefinitionKind.IDENTITY, new.identities)
        numbers = [number_tool(tool) for tool in tools]
        if folders:
            numbers += [number for number in FILE_TOOL_NUMBERS if number not in numbers]
        agent_draft = AgentDraft(
            agent=memory,
            name=name,
            body=definition.dump(),
            own_blocks=new.own_blocks,
            blocks=new.blocks,
            tools=numbers,
            tags=new.tags,
            folders=folders,
            identities=identities,
        )
        entry = await self._store.defined_agents.create(agent_draft, at=now)
        self._store.agents.cache(entry.agent)
        if new.has_sleeptime:
            await self.sleeptime_agents.turn_on(entry)
        self._cache.clear()
        return await self.get(project, memory.uid)

    async def _load_tools(self, project: str, new: NewAgent) -> Sequence[ToolView]:
        """Returns the tools of a new agent, each once. Raises: NotFound, BadRequest."""
        names = [
            *new.tool_names,
            *(choose_kind(new.definition.kind).tools if new.has_base_tools else ()),
            *(MULTI_AGENT_TOOLS if new.has_multi_agent_tools else ()),
        ]
        tools = [*await self.tools.get_named(project, names)]
        tools += [await self.tools.get(project, uid) for uid in new.tools or ()]
        return tuple({tool.uid: tool for tool in tools}.values())

    async def get(self, project: str, uid: str) -> AgentView:
        """Returns an agent with all its parts."""
        (view,) = await self._views.load([await self._store.defined_agents.get(project, uid)])
        return view

    async def list_page(
        self, project: str, agent_filter: AgentFilter, page: Page[str]
    ) -> Sequence[AgentView]:
        """Returns a page of agents. page: the page, with uids as cursors."""
        return await self._views.load(await self._store.defined_agents.list_page(project, agent_filter, page))

    async def load_several(self, project: str, agent_rows: Sequence[int]) -> Sequence[AgentView]:
        """Returns agents by the rows of their memories, in the order in which they were made."""
        entries = await self._store.defined_agents.load_entries(agent_rows)
        return await self._views.load([entry for entry in entries if entry.agent.scope.project == project])

    async def change(self, project: str, uid: str, edit: AgentEdit) -> AgentView:
        """Changes an agent; if another change comes first, the edit is applied to its result.

        Raises: Conflict for a profile's memory, or a profile's name; UnknownModel.
        """
        if edit.name is not None:
            self.check_name(edit.name)
        tools: Sequence[int] | None = None
        if edit.tools is not None:
            tools = [number_tool(await self.tools.get(project, tool_uid)) for tool_uid in edit.tools]
        folders = await self._find_rows(project, DefinitionKind.FOLDER, edit.folders)
        identities = await self._find_rows(project, DefinitionKind.IDENTITY, edit.identities)

        async def write_change() -> AgentEntry:
            entry = await self._store.defined_agents.get(project, uid)
            definition = self.require_definition(entry)
            tool_numbers = tools
            if edit.has_multi_agent_tools is not None:
                tool_numbers = await self._with_multi_agent_tools(entry.agent.id, edit, tools)
            agent_change = AgentChange(
                name=edit.name, body=self._edit_body(definition, edit), blocks=edit.blocks, tools=tool_numbers,
                tags=edit.tags, folders=folders, folder_tools=FILE_TOOL_NUMBERS, identities=identities,
            )  # fmt: skip
            return await self._store.defined_agents.change(entry, agent_change, at=self._now())

        changed_entry = await retry_changed_record(write_change)
        if edit.has_sleeptime is not None:
            await self._set_sleeptime(changed_entry, is_on=edit.has_sleeptime)
        self._cache.clear()
        return await self.get(project, uid)

    def _edit_body(self, definition: Definition, edit: AgentEdit) -> dict[str, Any] | None:
        """Returns the body of an agent's definition after an edit; None if the edit leaves it. Raises: UnknownModel."""
        if edit.edit_definition is None:
            return None
        before = AgentDefinition.of(definition.body)
        after = edit.edit_definition(before)
        # An agent that was moved here may have a model that the settings do not name yet.
        if after.model != before.model:
            check_model(self._settings, after.model)
        return after.dump()

    async def _set_sleeptime(self, entry: AgentEntry, *, is_on: bool) -> None:
        """Gives an agent a sleeptime agent, or deletes its sleeptime agents."""
        if not is_on:
            await self.sleeptime_agents.turn_off(entry)
            return
        await self.sleeptime_agents.turn_on(entry)
        # Earlier messages are read even if no further turn comes.
        due = self._now() + self._settings.memory.idle_s
        await self._store.jobs.enqueue(SLEEP_JOB, entry.agent.id, SLEEP_JOB, due=due)

    async def _with_multi_agent_tools(
        self, agent_row: int, edit: AgentEdit, tools: Sequence[int] | None
    ) -> Sequence[int]:
        """Returns an agent's tools, with or without the tools that speak to other agents, as the edit says.

        tools: the tools that the edit sets; None: the agent's present tools.
        """
        if tools is None:
            tools = await self._store.attached.load_targets(agent_row, DefinitionKind.TOOL)
        numbers = [number_tool(make_built_in(name)) for name in MULTI_AGENT_TOOLS]
        if not edit.has_multi_agent_tools:
            return [number for number in tools if number not in numbers]
        return list(dict.fromkeys([*tools, *numbers]))

    async def delete(self, project: str, uid: str) -> None:
        """Deletes an agent. At once no caller finds it any more, and then its memory is forgotten."""
        entry = await self._store.defined_agents.get(project, uid)
        read_rows = await self._store.readers.load_read_by(entry.agent.id)
        for primary in await self._store.defined_agents.load_entries(read_rows):
            await self.sleeptime_agents.detach(primary, uid)
        forgetting = await self._store.forgetting.begin(entry.agent.id, ForgetTarget(is_all=True))
        self._cache.clear()
        await self._store.forgetting.finish(forgetting)

    def check_name(self, name: str) -> None:
        """Raises: Conflict if the name of an agent is the name of a profile."""
        if name in self._profiles:
            raise Conflict(
                f"{name!r} is a profile of the settings: {AGENT_PREFIX}{name} means that one.", param="name"
            )

    def require_definition(self, entry: AgentEntry) -> Definition:
        """Returns the definition of an agent that may be changed. Raises: Conflict."""
        if entry.definition is None:
            raise Conflict(
                f"This is the memory of a user of profile {entry.agent.scope.profile!r}, which the settings file "
                "configures. Its blocks, passages and messages can be changed here."
            )
        return entry.definition

    async def _find_rows(
        self, project: str, kind: DefinitionKind, uids: Sequence[str] | None
    ) -> Sequence[int] | None:
        """Returns the rows by which definitions with these uids are attached; None for None. Raises: NotFound."""
        if uids is None:
            return None
        definitions = [await self._store.definitions.get(project, kind, uid) for uid in dict.fromkeys(uids)]
        return [definition.memory_row or definition.id for definition in definitions]

    async def attach_tool(self, project: str, uid: str, tool_uid: str) -> AgentView:
        """Attaches a tool. An attached tool stays at its position. Raises: Conflict for a profile's memory."""
        return await self._change_tools(project, uid, tool_uid, self._store.attached.attach)

    async def detach_tool(self, project: str, uid: str, tool_uid: str) -> AgentView:
        """Detaches a tool from an agent, if it is attached. Raises: Conflict for a profile's memory."""
        return await self._change_tools(project, uid, tool_uid, self._store.attached.detach)

    async def _change_tools(
        self, project: str, uid: str, tool_uid: str, write: Callable[..., Awaitable[object]]
    ) -> AgentView:
        """Attaches or detaches a tool. write: the function that writes the attachment or the detachment."""
        entry = await self._store.defined_agents.get(project, uid)
        tool = await self.tools.get(project, tool_uid)
        self.require_definition(entry)
        await write(entry.agent.id, DefinitionKind.TOOL, number_tool(tool), at=self._now())
        self._cache.clear()
        return await self.get(project, uid)


def _with_kind_defaults(new: NewAgent, tools: Sequence[ToolView]) -> AgentDefinition:
    """Returns a copy of the definition of a new agent with the defaults of its kind. tools: the agent's tools."""
    definition, kind = new.definition, choose_kind(new.definition.kind)
    rules = definition.rules
    has_rules = kind.has_rules if new.has_base_rules is None else new.has_base_rules
    if has_rules:
        built_in_names = [tool.name for tool in tools if tool.definition is None]
        rules = (*rules, *make_base_rules(built_in_names, rules))
    least_messages = kind.least_messages
    if least_messages is not None and definition.most_messages is not None:
        # The window of the agent's own may be smaller than that of its kind.
        least_messages = min(least_messages, definition.most_messages // 2)
    return replace(
        definition,
        rules=rules,
        clears=definition.clears or kind.clears,
        most_messages=definition.most_messages or kind.most_messages,
        least_messages=definition.least_messages or least_messages,
    )
