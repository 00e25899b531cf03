"""Gets a memory that a caller names, within the project that the caller may see, and lists its other profiles."""

from __future__ import annotations

from gateway.errors import MemoryNotFound
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


async def load_other_profiles(store: Store, scope: Scope) -> list[str]:
    """Returns the other profiles in which a user has a memory."""
    memories = await store.forget_targets.list_memories(scope.project, None, scope.subject)
    agents = [await store.agents.find_by_id(row) for row in memories]
    return [each.scope.profile for each in agents if each is not None and each.scope != scope]
