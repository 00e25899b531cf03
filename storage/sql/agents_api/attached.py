"""The tags of an agent, and what is attached to it: blocks, tools, archives, folders, identities."""

from __future__ import annotations

from collections.abc import Sequence

from storage.database import Connection
from storage.errors import OverLimit
from storage.records import Agent, DefinitionKind
from storage.sql.agents_api.definitions import touch_agent
from storage.sql.group import Group, alone, reads, writes
from storage.sql.patterns import part_of
from storage.sql.statements import load, rows_of

SQL = load("agents_api/attached.sql")

_MEMORIES = (DefinitionKind.ARCHIVE, DefinitionKind.FOLDER)
MOST_MEMORIES = 7  # besides the agent's own, so that a search asks eight


async def attach(connection: Connection, agent: int, kind: str, target: int) -> bool:
    """Attaches something after what is there. False: it is attached already, and stays in its place.

    Raises: OverLimit: a search would have to ask too many memories.
    """
    await connection.lock(agent)
    if await connection.row(SQL["attach"], (agent, kind, target)) is None:
        return False
    if kind in _MEMORIES and await connection.value(SQL["memories"], (agent,)) > MOST_MEMORIES:
        raise OverLimit(f"an agent has at most {MOST_MEMORIES} archives and folders attached")
    return True


async def detach(connection: Connection, agent: int, kind: str, target: int) -> bool:
    """Ends that. False: it was not attached."""
    await connection.lock(agent)
    return bool(await connection.run(SQL["detach"], (agent, kind, target)))


async def detach_all(connection: Connection, kind: str, target: int) -> None:
    """Takes something from all agents."""
    await connection.run(SQL["detach_all"], (kind, target))


async def load_targets(connection: Connection, agent: int, kind: str) -> list[int]:
    """Returns what an agent has attached of a kind, in order."""
    return [row[0] for row in await connection.rows(SQL["targets"], (agent, kind))]


async def load_agents_with(connection: Connection, project: str, kind: str, target: int) -> list[int]:
    """Returns the agents of a project that have something attached."""
    return [row[0] for row in await connection.rows(SQL["agents_with"], (kind, target, project))]


async def set_tags(connection: Connection, agent: Agent, tags: Sequence[str]) -> None:
    """Gives an agent these tags and no others."""
    await connection.lock(agent.id)
    await connection.run(SQL["untag"], (agent.id,))
    for tag in tags:
        await connection.run(SQL["tag"], (agent.scope.project, tag, agent.id))


class Attached(Group):
    """Attachments and tags. A change of them raises the version of the agent's definition, from which a turn knows."""

    targets = reads(alone(load_targets))
    agents_with = reads(alone(load_agents_with))

    @writes
    async def attach(self, connection: Connection, agent: int, kind: str, target: int, *, at: float) -> bool:
        """Attaches something. False: it was attached already."""
        is_new = await attach(connection, agent, kind, target)
        if is_new:
            await touch_agent(connection, agent, at)
        return is_new

    @writes
    async def detach(self, connection: Connection, agent: int, kind: str, target: int, *, at: float) -> bool:
        """Takes it off. False: it was not attached."""
        was_there = await detach(connection, agent, kind, target)
        if was_there:
            await touch_agent(connection, agent, at)
        return was_there

    @reads
    async def targets_of(
        self, connection: Connection, agents: Sequence[int], kind: str
    ) -> dict[int, list[int]]:
        """Returns what each of these agents has attached of a kind, in order."""
        found: dict[int, list[int]] = {agent: [] for agent in agents}
        for agent, target in await rows_of(connection, SQL["of_agents"], agents, kind):
            found[agent].append(target)
        return found

    @reads
    async def tags_of(self, connection: Connection, agents: Sequence[int]) -> dict[int, list[str]]:
        """Returns the tags of each of these agents, by name."""
        found: dict[int, list[str]] = {agent: [] for agent in agents}
        for agent, tag in await rows_of(connection, SQL["tags_of"], agents):
            found[agent].append(tag)
        return found

    @reads
    async def tags(
        self,
        connection: Connection,
        project: str,
        *,
        after: str | None = None,
        before: str | None = None,
        text: str | None = None,
        limit: int = 50,
        descending: bool = False,
    ) -> list[str]:
        """Returns a page of a project's tags by name.

        text: a part of them.
        after, before: in the order asked for.
        """
        low, high = (before, after) if descending else (after, before)
        way = "tags_down" if descending else "tags_up"
        rows = await connection.rows(SQL[way], (project, low or "", high, part_of(text), limit))
        return [row[0] for row in rows]
