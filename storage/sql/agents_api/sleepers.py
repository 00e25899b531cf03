"""Sleeptime agents: each reads a memory after the fact, and sees the blocks that the memory's own agent sees.

A run that reads is a conversation of its own, under a name that begins with READING. When the run ends its words are
emptied, and it is not found any more: they are another memory's. Counts, and what was written into blocks, stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.commands import ReadSpan, RunAccept
from storage.database import Connection, Database
from storage.errors import Overtaken
from storage.listing import AgentDraft, AgentEntry
from storage.records import LEARNER, READING, Run, RunState, make_tombstone
from storage.sql import exchanges
from storage.sql.agents_api.agents import make_agent
from storage.sql.agents_api.blocks import drop_copies, share_blocks
from storage.sql.agents_api.definitions import change_definition
from storage.sql.agents_api.runs import accept_run, get_run
from storage.sql.group import Group, as_method, bulk_writes, effect, reads, writes
from storage.sql.jobs import Jobs, drop_jobs
from storage.sql.readers import SQL, advance, cursor_of, load_sleepers
from storage.sql.vectors import forget_indexed

# Below this are all names that begin with READING.
_READING_END = READING[:-1] + chr(ord(READING[-1]) + 1)
# The kinds of texts that a run has besides its exchanges.
_RUN_TEXTS = ("request", "call", "result", "event")


async def add_sleeper(
    connection: Connection, entry: AgentEntry, draft: AgentDraft, body: dict[str, Any] | None, *, at: float
) -> int:
    """Makes an agent that reads a memory, from where it has been read. Returns the row of the new one's memory.

    body: of the definition of the memory's agent, from now on; None: a profile's has none.
    Raises: Overtaken: that was changed since it was found, or another agent reads it already.
    """
    memory = entry.agent.id
    await connection.lock_sharers(memory)
    if await load_sleepers(connection, memory):
        raise Overtaken(f"{entry.name!r} has a sleeptime agent already")
    made = await make_agent(connection, draft, at=at)
    await _add_reader(connection, memory, made.agent.id, at=at)
    if body is not None and entry.definition is not None:
        await change_definition(connection, entry.definition, body, at=at)
    return made.agent.id


async def adopt_sleeper(
    connection: Connection, project: str, memory: int, sleeper: int, *, at: float
) -> None:
    """Has an agent read a memory that has come with it from elsewhere, from where that has been read."""
    await drop_copies(connection, project, memory, sleeper)
    await _add_reader(connection, memory, sleeper, at=at)


async def _add_reader(connection: Connection, memory: int, sleeper: int, *, at: float) -> None:
    begins = await cursor_of(connection, memory, LEARNER)
    await connection.run(SQL["read_from"], (memory, sleeper, begins, at))
    await share_blocks(connection, memory)


async def remove_sleepers(
    connection: Connection,
    entry: AgentEntry,
    sleepers: Sequence[int],
    body: dict[str, Any] | None,
    job: str,
    *,
    at: float,
) -> None:
    """Has these read a memory no more; they stay agents. Up to where it was read stays known.

    body, and raises: as `add_sleeper`. job: the kind of the jobs in which they read; without readers there is none.
    """
    memory = entry.agent.id
    await advance(connection, memory, LEARNER, await cursor_of(connection, memory, LEARNER), at)
    for sleeper in sleepers:
        await connection.run(SQL["read_no_more"], (memory, sleeper))
    if not await load_sleepers(connection, memory):
        await drop_jobs(connection, memory, job)
    if body is not None and entry.definition is not None:
        await change_definition(connection, entry.definition, body, at=at)


async def accept_reading(connection: Connection, jobs: Jobs, wanted: RunAccept) -> Run | None:
    """Accepts a run that reads a memory. Returns None where its agent reads already: that one will find it due."""
    if await find_reading(connection, wanted.run.agent) is not None:
        return None
    return await accept_run(connection, jobs, wanted)


async def find_reading(connection: Connection, sleeper: int) -> tuple[int, str] | None:
    """Returns a sleeptime agent's run that reads and has not ended, and the public name of its conversation."""
    row = await connection.row(SQL["reading_open"], (sleeper, READING, _READING_END))
    return None if row is None else (row[0], row[1])


async def advance_over(connection: Connection, reading: ReadSpan, at: float) -> None:
    """Moves a reader's cursor past what it has read, unless the cursor has moved meanwhile."""
    await connection.run(
        SQL["read_up_to"], (reading.upto, at, reading.memory, reading.reader, reading.cursor)
    )


async def end_readings(connection: Connection, memory: int, at: float) -> None:
    """Ends the runs that read a memory, in the transaction that begins to forget something of it."""
    for sleeper in await load_sleepers(connection, memory):
        await connection.lock(sleeper)
        if await connection.run(SQL["readings_end"], (at, sleeper, READING, _READING_END)):
            # A step that is under way is not written any more.
            await connection.run(SQL["readings_stale"], (sleeper,))


async def empty_readings(connection: Connection, memory: int, limit: int) -> bool:
    """Empties what runs that have ended hold of a memory, so many of them at most. True: there may be more."""
    for sleeper in await load_sleepers(connection, memory):
        rows = await connection.rows(SQL["readings"], (sleeper, READING, _READING_END, limit))
        for (conversation,) in rows:
            await empty_reading(connection, sleeper, conversation)
        if len(rows) == limit:
            return True
    return False


async def empty_reading(connection: Connection, sleeper: int, conversation: int) -> None:
    """Empties the words of one conversation, which has no name from now on. A second time it does nothing."""
    await connection.lock(sleeper)
    for (id,) in await connection.rows(SQL["reading_exchanges"], (conversation, sleeper)):
        e = await exchanges.load_exchange(connection, sleeper, id)
        assert e is not None
        await forget_indexed(connection, sleeper, range(e.seq, e.seq + len(e.inputs) + 1))
        await exchanges.update_exchange(connection, sleeper, make_tombstone(e), is_whole=True)
    if (run := await connection.value(SQL["reading_run"], (conversation, sleeper))) is not None:
        for kind in _RUN_TEXTS:
            await connection.run(SQL["reading_texts"], (sleeper, run, kind))
    await connection.run(SQL["reading_done"], (conversation, sleeper))


class Sleepers(Group):
    """Sleeptime agents, for those who have no transaction of their own."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        super().__init__(database)
        self._jobs = jobs

    add = writes(as_method(add_sleeper))
    remove = writes(as_method(remove_sleepers))
    adopt = writes(as_method(adopt_sleeper))
    share_blocks = writes(as_method(share_blocks))
    empty = bulk_writes(as_method(empty_reading))
    empty_ended = bulk_writes(as_method(empty_readings))

    @effect
    async def accept_effect(self, connection: Connection, wanted: RunAccept) -> None:
        """Returns the effect that accepts a run that reads, unless its agent reads already."""
        await accept_reading(connection, self._jobs, wanted)

    @effect
    async def advance_effect(self, connection: Connection, span: ReadSpan, at: float) -> None:
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
