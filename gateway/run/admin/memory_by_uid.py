"""Gets a memory by its uid, within the project that the caller may see, its other profiles, and memories' names."""

from __future__ import annotations

from collections.abc import Collection

from gateway.errors import MemoryNotFound
from gateway.run.admin.memory_names import make_memory_label
from storage.operator_records import FoundMemory
from storage.records import Agent, Scope
from storage.sql.store import Store


async def get_agent(store: Store, project: str | None, uid: str, *, param: str | None = None) -> Agent:
    """Returns the stored record of a memory, for an operation that changes it.

    project: the only project that the caller sees; None: all projects.
    param: the field of the request that names the memory, for the error.

    Raises: MemoryNotFound: there is no such memory, or it is of another project.
    """
    agent = await store.agents.find_by_uid(uid)
    if agent is None or project not in (None, agent.scope.project):
        raise MemoryNotFound(param=param)
    return agent


async def get_memory(store: Store, project: str | None, uid: str) -> FoundMemory:
    """Returns a memory, for an operation that shows it.

    project: the only project that the caller sees; None: all projects.

    Raises: MemoryNotFound: there is no such memory, or it is of another project.
    """
    memory = await store.memory_pages.find_memory(uid, project)
    if memory is None:
        raise MemoryNotFound
    return memory


async def load_labels(store: Store, uids: Collection[str]) -> dict[str, str]:
    """Returns the names of memories by their uids, without those that are gone; of agents with their ids."""
    scopes = await store.overview.load_scopes(uids) if uids else {}
    return {uid: make_memory_label(scope) for uid, scope in scopes.items()}


async def load_other_profiles(store: Store, scope: Scope) -> list[str]:
    """Returns the other profiles in which a user has a memory."""
    return [each.scope.profile for each in await load_other_memories(store, scope)]


async def load_other_memories(store: Store, scope: Scope) -> list[Agent]:
    """Returns the memories that a user has in other profiles."""
    memories = await store.forget_targets.list_memories(scope.project, None, scope.subject)
    agents = [await store.agents.find_by_id(row) for row in memories]
    return [each for each in agents if each is not None and each.scope != scope]
