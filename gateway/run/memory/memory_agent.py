"""The agent of a memory, as a turn gets it."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.errors import NotAllowed
from gateway.run.memory.memory_context import MemoryRequest
from storage.commands import MemorySnapshot
from storage.records import Agent
from storage.sql.store import Store


async def find_or_draft_agent(store: Store, request: MemoryRequest) -> Agent:
    """Returns the agent of the memory as it is stored, or a draft of it.

    Gateways that share a database would make different drafts, so with them the agent is stored before it is cached.
    Raises: NotFound: the agent is one of the agents API, and is gone.
    """
    scope, spec = request.identity.scope, request.spec
    assert scope is not None
    # A turn off the record leaves hashes under the agent's secret, so it needs a stored agent as well.
    if store.database.is_shared and spec.is_profile and not request.identity.leaves_nothing:
        return await store.agents.find_or_create(scope, spec.own_blocks, spec.shared_blocks, request.now)
    return await store.agents.find_or_draft(scope, must_exist=not spec.is_profile)


async def refresh_agent(store: Store, agent: Agent, snapshot: MemorySnapshot) -> Agent:
    """Returns an agent as it is in a snapshot that was read after it. Raises: StoreError."""
    if not agent.is_stored or agent.epoch == snapshot.epoch:
        return agent
    # Something of this memory was forgotten since the agent was cached, or it was paused or resumed.
    agent = replace(await store.agents.find_by_id(agent.id) or agent, epoch=snapshot.epoch)
    store.agents.cache(agent)
    return agent


def check_not_paused(agent: Agent) -> None:
    """Raises: NotAllowed: the memory is paused."""
    if agent.paused_at is not None:
        raise NotAllowed(
            "This memory is paused: nothing is remembered or recalled until its person resumes it."
        )
