"""Sleeptime agents: each reads a memory after the fact, and sees the blocks that the memory's own agent sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.commands import ReadSpan, RunAccept
from storage.database import Connection, Database
from storage.errors import Overtaken
from storage.listing import AgentDraft, AgentEntry
from storage.records import LEARNER, Run, RunState
from storage.sql.agents_api.agents import make_agent
from storage.sql.agents_api.blocks import drop_copies, share_blocks
from storage.sql.agents_api.definitions import change_definition
from storage.sql.agents_api.readings import (
    accept_reading,
    advance_over,
    empty_reading,
    empty_readings,
    find_reading,
)
from storage.sql.agents_api.runs import get_run
from storage.sql.group import Group, alone, bulk_writes, effect, reads, writes
from storage.sql.jobs import Jobs, drop_jobs
from storage.sql.readers import SQL, advance, cursor_of, load_sleepers


async def add_sleeper(
    connection: Connection, found: AgentEntry, draft: AgentDraft, body: dict[str, Any] | None, *, at: float
) -> int:
    """Makes an agent that reads a memory, from where it has been read. Returns the row of the new one's memory.

    body: of the definition of the memory's agent, from now on; None: a profile's has none.
    Raises: Overtaken: that was changed since it was found, or another agent reads it already.
    """
    memory = found.agent.id
    await connection.lock_sharers(memory)
    if await load_sleepers(connection, memory):
        raise Overtaken(f"{found.name!r} has a sleeptime agent already")
    made = await make_agent(connection, draft, at=at)
    await _read_from(connection, memory, made.agent.id, at=at)
    if body is not None and found.definition is not None:
        await change_definition(connection, found.definition, body, at=at)
    return made.agent.id


async def adopt_sleeper(
    connection: Connection, project: str, memory: int, sleeper: int, *, at: float
) -> None:
    """Has an agent read a memory that has come with it from elsewhere, from where that has been read."""
    await drop_copies(connection, project, memory, sleeper)
    await _read_from(connection, memory, sleeper, at=at)


async def _read_from(connection: Connection, memory: int, sleeper: int, *, at: float) -> None:
    begins = await cursor_of(connection, memory, LEARNER)
    await connection.run(SQL["read_from"], (memory, sleeper, begins, at))
    await share_blocks(connection, memory)


async def remove_sleepers(
    connection: Connection,
    found: AgentEntry,
    sleepers: Sequence[int],
    body: dict[str, Any] | None,
    job: str,
    *,
    at: float,
) -> None:
    """Has these read a memory no more; they stay agents. Up to where it was read stays known.

    body, and raises: as `add_sleeper`. job: the kind of the jobs in which they read; without readers there is none.
    """
    memory = found.agent.id
    await advance(connection, memory, LEARNER, await cursor_of(connection, memory, LEARNER), at)
    for sleeper in sleepers:
        await connection.run(SQL["read_no_more"], (memory, sleeper))
    if not await load_sleepers(connection, memory):
        await drop_jobs(connection, memory, job)
    if body is not None and found.definition is not None:
        await change_definition(connection, found.definition, body, at=at)


class Sleepers(Group):
    """Sleeptime agents, for those who have no transaction of their own."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        super().__init__(database)
        self._jobs = jobs

    add = writes(alone(add_sleeper))
    remove = writes(alone(remove_sleepers))
    adopt = writes(alone(adopt_sleeper))
    share_blocks = writes(alone(share_blocks))
    empty = bulk_writes(alone(empty_reading))
    empty_ended = bulk_writes(alone(empty_readings))

    @effect
    async def accepting(self, connection: Connection, wanted: RunAccept) -> None:
        """Returns the effect that accepts a run that reads, unless its agent reads already."""
        await accept_reading(connection, self._jobs, wanted)

    @effect
    async def passing(self, connection: Connection, span: ReadSpan, at: float) -> None:
        """Returns the effect that counts a part of a memory as read."""
        await advance_over(connection, span, at)

    @reads
    async def has_answered(self, connection: Connection, run: Run) -> bool:
        """Returns whether the model that a run has asked has ever answered its agent."""
        return bool(await connection.value(SQL["has_answered"], (run.agent, run.conversation)))

    @reads
    async def failed(self, connection: Connection, run: Run, most: int) -> int:
        """Returns how many of the runs of its agent in front of a run have failed in a row, so many at most."""
        states = [row[0] for row in await connection.rows(SQL["states_before"], (run.agent, run.id, most))]
        return next((n for n, state in enumerate(states) if state != RunState.FAILED), len(states))

    @reads
    async def reading(self, connection: Connection, sleeper: int) -> tuple[Run, str] | None:
        """Returns a sleeptime agent's run that reads and has not ended, and the public name of its conversation."""
        found = await find_reading(connection, sleeper)
        run = None if found is None else await get_run(connection, sleeper, found[0])
        return None if found is None or run is None else (run, found[1])
