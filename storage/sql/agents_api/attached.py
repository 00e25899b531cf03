"""Attachments of agents: their blocks, tools, archives, folders and identities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storage.database import Connection
from storage.definition_records import Definition, DefinitionKind
from storage.errors import LimitExceeded
from storage.sql.agents_api.definitions import remove_definition, touch_agent
from storage.sql.group import StoreGroup, as_method, reads, writes
from storage.sql.statements import load, load_column, load_rows

SQL = load("agents_api/attached.sql")

# The kinds of definitions that are memories, which a search of the agent reads as well.
_MEMORY_KINDS = (DefinitionKind.ARCHIVE, DefinitionKind.FOLDER)
# The most such memories of an agent. With its own memory, a search asks eight.
_MAX_MEMORIES = 7


async def attach(connection: Connection, agent_row: int, kind: str, target: int) -> bool:
    """Attaches something to an agent, as the last of its kind. Returns False if it was attached: its place stays.

    target: the row of the definition or block that is attached.

    Raises: LimitExceeded if a search would have to ask too many memories.
    """
    await connection.lock(agent_row)
    if await connection.fetch_row(SQL["attach"], (agent_row, kind, target)) is None:
        return False
    if kind in _MEMORY_KINDS and await connection.fetch_value(SQL["memories"], (agent_row,)) > _MAX_MEMORIES:
        raise LimitExceeded(f"an agent has at most {_MAX_MEMORIES} archives and folders attached")
    return True


async def detach(connection: Connection, agent_row: int, kind: str, target: int) -> bool:
    """Detaches something. Returns False if it was not attached."""
    await connection.lock(agent_row)
    return bool(await connection.run(SQL["detach"], (agent_row, kind, target)))


async def detach_all(connection: Connection, kind: str, target: int) -> None:
    """Detaches something from all agents."""
    await connection.run(SQL["detach_all"], (kind, target))


async def load_targets(connection: Connection, agent_row: int, kind: str) -> list[int]:
    """Returns the objects of a kind that are attached to an agent, in order."""
    return await load_column(connection, SQL["targets"], (agent_row, kind))


async def load_agents_with(connection: Connection, project: str, kind: str, target: int) -> list[int]:
    """Returns the agents of a project that have something attached."""
    return await load_column(connection, SQL["agents_with"], (kind, target, project))


async def attach_all(connection: Connection, agent_row: int, kind: str, targets: Iterable[int]) -> None:
    """Attaches several things, in order."""
    for target in dict.fromkeys(targets):
        await attach(connection, agent_row, kind, target)


async def attach_only(connection: Connection, agent_row: int, kind: str, targets: Sequence[int]) -> None:
    """Attaches these things of a kind to an agent, and takes all others of the kind from it."""
    for target in await load_targets(connection, agent_row, kind):
        await detach(connection, agent_row, kind, target)
    await attach_all(connection, agent_row, kind, targets)


class Attached(StoreGroup):
    """Attachments. A change of them raises the version of the agent's definition, by which turns notice the change."""

    load_targets = reads(as_method(load_targets))
    load_agents_with = reads(as_method(load_agents_with))

    @writes
    async def attach(
        self, connection: Connection, agent_row: int, kind: str, target: int, *, at: float
    ) -> bool:
        """Attaches something. Returns False if it was attached already."""
        is_new = await attach(connection, agent_row, kind, target)
        if is_new:
            await touch_agent(connection, agent_row, at)
        return is_new

    @writes
    async def detach(
        self, connection: Connection, agent_row: int, kind: str, target: int, *, at: float
    ) -> bool:
        """Detaches something. Returns False if it was not attached."""
        was_there = await detach(connection, agent_row, kind, target)
        if was_there:
            await touch_agent(connection, agent_row, at)
        return was_there

    @writes
    async def delete(self, connection: Connection, definition: Definition, *, at: float) -> None:
        """Deletes a tool or an identity, and takes it from all agents."""
        for agent_row in await load_agents_with(
            connection, definition.project, definition.kind, definition.id
        ):
            await touch_agent(connection, agent_row, at)
        await detach_all(connection, definition.kind, definition.id)
        await remove_definition(connection, definition.id)

    @reads
    async def load_targets_of_agents(
        self, connection: Connection, agent_rows: Sequence[int], kind: str
    ) -> dict[int, list[int]]:
        """Returns the objects of a kind that are attached to each of these agents, in order."""
        targets: dict[int, list[int]] = {agent_row: [] for agent_row in agent_rows}
        for agent_row, target in await load_rows(connection, SQL["of_agents"], agent_rows, kind):
            targets[agent_row].append(target)
        return targets
