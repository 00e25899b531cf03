"""Agents that are made over REST: a memory with a definition, its blocks, tools and tags, in one transaction.

They end by `Forgetting`, as every memory does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from storage.database import Connection
from storage.errors import WriteConflict
from storage.listing import AgentChange, AgentDraft, AgentEntry
from storage.records import Agent, Definition, DefinitionKind
from storage.sql.agents import create_agent
from storage.sql.agents_api.attached import (
    attach,
    detach,
    detach_all,
    load_agents_with,
    load_targets,
    set_tags,
)
from storage.sql.agents_api.blocks import add_block, attach_block, detach_block, find_block, seen_blocks
from storage.sql.agents_api.definitions import (
    add_definition,
    change_definition,
    find_agent_entry,
    remove_definition,
    touch_agent,
)
from storage.sql.group import Group, alone, writes

ORIGIN = "api"


async def make_agent(connection: Connection, draft: AgentDraft, *, at: float) -> AgentEntry:
    """Makes an agent. Raises: NotFound: a block that is not there; WriteConflict: a label twice; OverLimit."""
    project = draft.agent.scope.project
    agent = await create_agent(connection, draft.agent)
    await add_definition(
        connection, project, DefinitionKind.AGENT, agent.uid, draft.name, draft.body, at=at, memory=agent.id
    )
    for block, details in draft.own:
        await add_block(connection, project, block, details, at=at, origin=ORIGIN, owner=agent.id)
    for uid in dict.fromkeys(draft.blocks or ()):
        await attach_block(connection, agent.id, await find_block(connection, project, uid))
    await _attach_all(connection, agent.id, DefinitionKind.TOOL, draft.tools or ())
    await _attach_all(connection, agent.id, DefinitionKind.FOLDER, draft.folders or ())
    await _attach_all(connection, agent.id, DefinitionKind.IDENTITY, draft.identities or ())
    await set_tags(connection, agent, draft.tags or ())
    return await find_agent_entry(connection, project, agent.uid)


async def change_agent(
    connection: Connection, found: AgentEntry, change: AgentChange, *, at: float
) -> AgentEntry:
    """Changes an agent if its definition is still at the version that was found. What is None stays.

    Raises: WriteConflict, NotFound.
    """
    agent, definition = found.agent, found.definition
    if definition is None:
        raise WriteConflict(f"{found.name!r} is a profile's: the settings file configures it")
    if change.blocks is not None:
        await connection.lock_sharers(agent.id)
        await _see_blocks(connection, agent, change.blocks)
    if change.tools is not None:
        await _attach_only(connection, agent.id, DefinitionKind.TOOL, change.tools)
    if change.folders is not None:
        await _attach_only(connection, agent.id, DefinitionKind.FOLDER, change.folders)
        await _match_tools(connection, agent.id, change.folder_tools)
    if change.identities is not None:
        await _attach_only(connection, agent.id, DefinitionKind.IDENTITY, change.identities)
    if change.tags is not None:
        await set_tags(connection, agent, change.tags)
    body = definition.body if change.body is None else change.body
    await change_definition(connection, definition, body, at=at, name=change.name)
    return await find_agent_entry(connection, agent.scope.project, agent.uid)


async def make_memory(
    connection: Connection, draft: Agent, kind: DefinitionKind, name: str, body: dict[str, Any], *, at: float
) -> tuple[Agent, Definition]:
    """Makes a memory that never talks: an archive or a folder."""
    agent = await create_agent(connection, draft)
    made = await add_definition(
        connection, draft.scope.project, kind, agent.uid, name, body, at=at, memory=agent.id
    )
    return agent, made


class DefinedAgents(Group):
    """Agents that are made over REST."""

    create = writes(alone(make_agent))
    change = writes(alone(change_agent))
    create_memory = writes(alone(make_memory))

    @writes
    async def delete_attached(self, connection: Connection, found: Definition, *, at: float) -> None:
        """Deletes a tool or an identity, and takes it from all agents."""
        for agent in await load_agents_with(connection, found.project, found.kind, found.id):
            await touch_agent(connection, agent, at)
        await detach_all(connection, found.kind, found.id)
        await remove_definition(connection, found.id)

    @writes
    async def attach_folder(
        self, connection: Connection, agent: int, folder: int, tools: Sequence[int], *, at: float
    ) -> None:
        """Attaches a folder, and the tools that read files."""
        if await attach(connection, agent, DefinitionKind.FOLDER, folder):
            await _match_tools(connection, agent, tools)
            await touch_agent(connection, agent, at)

    @writes
    async def detach_folder(
        self, connection: Connection, agents: Sequence[int], folder: int, tools: Sequence[int], *, at: float
    ) -> None:
        """Takes a folder from agents, with the last one of an agent's the tools that read files."""
        for agent in agents:
            if await detach(connection, agent, DefinitionKind.FOLDER, folder):
                await _match_tools(connection, agent, tools)
                await touch_agent(connection, agent, at)


async def _match_tools(connection: Connection, agent: int, tools: Sequence[int]) -> None:
    """Gives an agent that has a folder these tools, and takes them from one that has none."""
    if await load_targets(connection, agent, DefinitionKind.FOLDER):
        await _attach_all(connection, agent, DefinitionKind.TOOL, tools)
    else:
        for tool in tools:
            await detach(connection, agent, DefinitionKind.TOOL, tool)


async def _attach_all(connection: Connection, agent: int, kind: str, targets: Iterable[int]) -> None:
    for target in dict.fromkeys(targets):
        await attach(connection, agent, kind, target)


async def _attach_only(connection: Connection, agent: int, kind: str, targets: Sequence[int]) -> None:
    for target in await load_targets(connection, agent, kind):
        await detach(connection, agent, kind, target)
    await _attach_all(connection, agent, kind, targets)


async def _see_blocks(connection: Connection, agent: Agent, uids: Sequence[str]) -> None:
    """Has an agent see these blocks and no others."""
    project = agent.scope.project
    wanted = [await find_block(connection, project, uid) for uid in dict.fromkeys(uids)]
    kept = {entry.block.id for entry in wanted}
    for entry in (await seen_blocks(connection, [agent.id]))[agent.id]:
        if entry.block.id not in kept:
            await detach_block(connection, agent, entry)
    for entry in wanted:
        await attach_block(connection, agent.id, entry)
