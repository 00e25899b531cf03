"""Sleeptime agents: each reads a memory after the fact, and sees the blocks that the memory's own agent sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.database import Connection
from storage.errors import WriteConflict
from storage.listing import AgentDraft, AgentEntry
from storage.records import LEARNER
from storage.sql.defined_agents import make_agent
from storage.sql.definitions import change_definition
from storage.sql.group import Group, alone, writes
from storage.sql.named_blocks import share_blocks
from storage.sql.readers import SQL, advance, cursor_of, load_sleepers


async def add_sleeper(
    connection: Connection, found: AgentEntry, draft: AgentDraft, body: dict[str, Any] | None, *, at: float
) -> int:
    """Makes an agent that reads a memory, from where it has been read. Returns the row of the new one's memory.

    body: of the definition of the memory's agent, from now on; None: a profile's has none.
    Raises: WriteConflict: that was changed since it was found, or somebody reads it already.
    """
    memory = found.agent.id
    if await load_sleepers(connection, memory):
        raise WriteConflict(f"{found.name!r} has a sleeptime agent already")
    made = await make_agent(connection, draft, at=at)
    begins = await cursor_of(connection, memory, LEARNER)
    await connection.run(SQL["read_from"], (memory, made.agent.id, begins, at))
    await share_blocks(connection, memory)
    if body is not None and found.definition is not None:
        await change_definition(connection, found.definition, body, at=at)
    return made.agent.id


async def remove_sleepers(
    connection: Connection,
    found: AgentEntry,
    sleepers: Sequence[int],
    body: dict[str, Any] | None,
    *,
    at: float,
) -> None:
    """Has these read a memory no more; they stay agents. Up to where it was read stays known.

    body, and raises: as `add_sleeper`.
    """
    memory = found.agent.id
    await advance(connection, memory, LEARNER, await cursor_of(connection, memory, LEARNER), at)
    for sleeper in sleepers:
        await connection.run(SQL["read_no_more"], (memory, sleeper))
    if body is not None and found.definition is not None:
        await change_definition(connection, found.definition, body, at=at)


class Sleepers(Group):
    """Sleeptime agents, for those who have no transaction of their own."""

    add = writes(alone(add_sleeper))
    remove = writes(alone(remove_sleepers))
    share_blocks = writes(alone(share_blocks))
