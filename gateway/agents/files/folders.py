"""Folders: memories with the texts of files. Agents search the folders that are attached to them by special tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.agents.core.kinds import FILE_TOOL_NUMBERS
from gateway.agents.registry.memory_scope import draft_memory
from gateway.agents.registry.registry import Registry
from gateway.errors import Conflict
from storage.definition_records import Definition, DefinitionKind
from storage.errors import NotFound
from storage.forget_commands import ForgetTarget
from storage.listing import AgentEntry
from storage.records import Agent
from storage.sql.store import Store

_KIND = DefinitionKind.FOLDER


class Folders:
    """Makes, changes, attaches and deletes folders. `FolderContents` has their files.

    Besides the errors that a method names, it raises NotFound, WriteConflict, LimitExceeded and StoreUnavailable.
    """

    def __init__(self, store: Store, registry: Registry, now: Callable[[], float]) -> None:
        self._store = store
        self._attached = store.attached_folders
        self._registry = registry
        self._now = now

    async def create(self, project: str, name: str, body: dict[str, Any]) -> Definition:
        """Makes a folder. Raises: Conflict if a folder has that name."""
        await self._check_name_is_free(project, name)
        memory = draft_memory(self._store, project, _KIND)
        _, folder = await self._store.definitions.create_memory(memory, _KIND, name, body, at=self._now())
        return folder

    async def change(self, folder: Definition, name: str | None, body: dict[str, Any]) -> Definition:
        """Changes a folder. Raises: Conflict if another folder has the name.

        name: the new name; None: the name stays.
        body: the new body of the definition.
        """
        if name is not None and name != folder.name:
            await self._check_name_is_free(folder.project, name)
        return await self._store.definitions.change(folder, body, at=self._now(), name=name)

    async def _check_name_is_free(self, project: str, name: str) -> None:
        if await self._store.definitions.find_by_name(project, _KIND, name):
            raise Conflict(f"There is a folder named {name!r} already.", param="name")

    async def delete(self, folder: Definition) -> None:
        """Deletes a folder with its files, and detaches it from all agents."""
        agents = await self.list_agent_rows(folder)
        await self._attached.detach(agents, folder.memory_row, FILE_TOOL_NUMBERS, at=self._now())
        self._registry.clear_cache()
        await self._store.forgetting.forget(folder.memory_row, ForgetTarget(is_all=True))

    async def load_memory(self, folder: Definition) -> Agent:
        """Returns the memory with the texts of a folder's files. Raises: NotFound if the folder is deleted."""
        memories = await self._store.defined_agents.load_memories(folder.project, [folder.memory_row])
        if not memories:  # deleted meanwhile
            raise NotFound(f"there is no folder {folder.uid!r}")
        return memories[0]

    async def list_agent_rows(self, folder: Definition) -> Sequence[int]:
        """Returns the rows of the agents to which a folder is attached."""
        return await self._store.attached.load_agents_with(folder.project, _KIND, folder.memory_row)

    async def attach(self, entry: AgentEntry, folder: Definition) -> None:
        """Attaches a folder to an agent, and the tools that read files.

        Raises: LimitExceeded if the agent has too many folders; Conflict for a profile's memory.
        """
        self._registry.require_definition(entry)
        await self._attached.attach(entry.agent.id, folder.memory_row, FILE_TOOL_NUMBERS, at=self._now())
        self._registry.clear_cache()

    async def detach(self, entry: AgentEntry, folder: Definition) -> None:
        """Detaches a folder from an agent, and with the last folder the tools that read files."""
        await self._attached.detach([entry.agent.id], folder.memory_row, FILE_TOOL_NUMBERS, at=self._now())
        self._registry.clear_cache()

    async def load_attached(self, agent: Agent) -> Sequence[Definition]:
        """Returns the folders that are attached to an agent, in the order of their attachment."""
        rows = await self._store.attached.load_targets(agent.id, _KIND)
        folders = await self._store.definitions.find_by_memories(_KIND, rows)
        return [folders[row] for row in rows if row in folders]
