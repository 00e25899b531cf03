"""Archives of passages: the own archive of each agent, and shared archives, which can be attached to several agents.

A shared archive is a memory of its own, with its own index and its own forgetting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.agents.registry.memory_scope import draft_memory, make_scope
from gateway.errors import BadRequest, Conflict
from storage.definition_records import Definition, DefinitionKind
from storage.errors import NotFound
from storage.forget_commands import ForgetTarget
from storage.listing import make_unstored_definition
from storage.records import Agent
from storage.sql.store import Store

_KIND = DefinitionKind.ARCHIVE
_OWN_ARCHIVE = "This is an agent's own archive: it is called after its agent, and ends with it."


class Archives:
    """Makes, finds, attaches and deletes archives.

    A method that takes a project finds only archives of that project. Besides the errors that a method names, it raises
    NotFound, WriteConflict and StoreUnavailable.
    """

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    async def create(self, project: str, name: str, body: dict[str, Any]) -> Definition:
        """Makes an archive that agents can share."""
        memory = draft_memory(self._store, project, _KIND)
        _, archive = await self._store.definitions.create_memory(memory, _KIND, name, body, at=self._now())
        return archive

    async def get(self, project: str, uid: str) -> Definition:
        """Returns an archive. Raises: NotFound.

        The definition of an agent's own archive is not stored. It is made of the agent's fields.
        """
        archive = await self._store.definitions.find(project, _KIND, uid)
        if archive is not None:
            return archive
        try:
            entry = await self._store.defined_agents.get(project, uid)
        except NotFound:
            raise NotFound(f"there is no archive {uid!r}") from None
        return make_unstored_definition(_KIND, entry.agent, f"{entry.name}'s archive", {})

    async def get_shared(self, project: str, uid: str) -> Definition:
        """Returns a shared archive. Raises: NotFound; Conflict if the archive is an agent's own."""
        archive = await self.get(project, uid)
        if not archive.is_stored:
            raise Conflict(_OWN_ARCHIVE)
        return archive

    async def attach(self, agent: Agent, archive: Definition) -> None:
        """Attaches an archive to an agent. The agent's own archive needs no attachment.

        Raises: LimitExceeded; BadRequest if the archive is another agent's own.
        """
        if archive.is_stored:
            await self._store.attached.attach(agent.id, _KIND, archive.memory_row, at=self._now())
        elif archive.memory_row != agent.id:
            raise BadRequest(
                f"{archive.name!r} is the memory of one agent or user alone. Make an archive for what several share.",
                param="archive_id",
            )

    async def detach(self, agent: Agent, archive: Definition) -> None:
        """Detaches an archive from an agent, if it is attached. Raises: BadRequest for the agent's own archive.

        The own archive of another agent is never attached, so nothing happens.
        """
        if archive.memory_row == agent.id:
            raise BadRequest(_OWN_ARCHIVE, param="archive_id")
        await self._store.attached.detach(agent.id, _KIND, archive.memory_row, at=self._now())

    async def load_memory(self, project: str, uid: str) -> Agent:
        """Returns the memory with the passages of an archive. Raises: NotFound.

        The passages of an agent's own archive are in the agent's memory.
        """
        archive = await self._store.definitions.find(project, _KIND, uid)
        if archive is None:
            return (await self._store.defined_agents.get(project, uid)).agent
        agent = await self._store.agents.find(make_scope(project, _KIND, uid))
        if agent is None:
            raise NotFound(f"there is no archive {uid!r}")
        return agent

    async def delete(self, project: str, uid: str) -> None:
        """Deletes an archive with its passages, and detaches it from all agents.

        Raises: Conflict for an agent's own archive.
        """
        archive = await self.get_shared(project, uid)
        await self._store.forgetting.forget(archive.memory_row, ForgetTarget(is_all=True))
