"""Sleeptime agents: each reads another agent's memory later, and sees the blocks that this agent sees.

A reading is a run of a sleeptime agent in a conversation of its own, which has a key that begins with READING_PREFIX.
After the run its texts are emptied, since they are of another memory, and the conversation loses its key. The counts of
the run and its edits of blocks stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.database import Connection, Database
from storage.errors import RecordChanged
from storage.listing import AgentDraft, AgentEntry, OpenReading
from storage.records import LEARNER, READING_PREFIX, make_tombstone
from storage.run_commands import ReadSpan, RunAccept
from storage.run_records import Run, RunTextKind
from storage.sql import exchanges
from storage.sql.agents_api.agents import make_agent
from storage.sql.agents_api.blocks import detach_copies, share_blocks
from storage.sql.agents_api.definitions import change_definition
from storage.sql.agents_api.runs import accept_run, find_run
from storage.sql.group import StoreGroup, as_method, bulk_writes, makes_effect, reads, writes
from storage.sql.job_rows import drop_jobs, raise_epoch
from storage.sql.jobs import Jobs
from storage.sql.readers import advance, load_cursor, load_sleeptime_agents
from storage.sql.statements import load
from storage.sql.vector_chunks import forget_indexed

SQL = load("agents_api/sleeptime_agents.sql")

# The end of the range of keys that begin with READING_PREFIX.
_READING_END = READING_PREFIX[:-1] + chr(ord(READING_PREFIX[-1]) + 1)
# The kinds of the texts that a reading's run can have.
_TEXT_KINDS = (RunTextKind.REQUEST, RunTextKind.CALL, RunTextKind.RESULT, RunTextKind.EVENT)
# The most readings that are emptied at once.
_PAGE_READINGS = 16


async def _add_sleeptime_agent(
    connection: Connection, entry: AgentEntry, draft: AgentDraft, body: dict[str, Any] | None, *, at: float
) -> int:
    """Makes a sleeptime agent that reads a memory from where earlier readers have ended. Returns its own memory's row.

    entry: the agent of the memory that is read.
    body: the new body of that agent's definition; None: the definition stays, or it has none.

    Raises: RecordChanged if the definition was changed since it was found, or the memory has a sleeptime agent already.
    """
    memory_row = entry.agent.id
    await connection.lock_sharers(memory_row)
    if await load_sleeptime_agents(connection, memory_row):
        raise RecordChanged(f"{entry.name!r} has a sleeptime agent already")
    reader_row = (await make_agent(connection, draft, at=at)).agent.id
    await _add_reader(connection, memory_row, reader_row, at=at)
    if body is not None and entry.definition is not None:
        await change_definition(connection, entry.definition, body, at=at)
    return reader_row


async def _adopt_sleeptime_agent(
    connection: Connection, project: str, memory_row: int, reader_row: int, *, at: float
) -> None:
    """Makes an imported sleeptime agent a reader of the memory that was imported with it.

    It reads from where earlier readers have ended.
    """
    await detach_copies(connection, project, memory_row, reader_row)
    await _add_reader(connection, memory_row, reader_row, at=at)


async def _add_reader(connection: Connection, memory_row: int, reader_row: int, *, at: float) -> None:
    cursor = await load_cursor(connection, memory_row, LEARNER)
    await begin_reading(connection, memory_row, reader_row, cursor, at)
    await share_blocks(connection, memory_row)


async def begin_reading(
    connection: Connection, memory_row: int, reader_row: int, cursor: int, at: float
) -> None:
    """Makes a sleeptime agent a reader of a memory. It begins after the exchange with the number `cursor`."""
    await connection.run(SQL["read_from"], (memory_row, reader_row, cursor, at))


async def _remove_sleeptime_agents(
    connection: Connection,
    entry: AgentEntry,
    reader_rows: Sequence[int],
    body: dict[str, Any] | None,
    job_kind: str,
    *,
    at: float,
) -> None:
    """Removes sleeptime agents from the readers of a memory. They stay agents, without the texts that they have read.

    The memory's next reader begins where they have ended.

    entry: the agent of the memory that is read.
    body: the new body of that agent's definition; None: the definition stays, or there is none.
    job_kind: the kind of the jobs in which sleeptime agents read. The memory's job is dropped with its last one.

    Raises: RecordChanged if the definition was changed since it was found.
    """
    memory_row = entry.agent.id
    await connection.lock_sharers(memory_row)
    cursor = await load_cursor(connection, memory_row, LEARNER)
    await advance(connection, memory_row, LEARNER, cursor, at)
    for reader_row in reader_rows:
        # A later forgetting in the memory would not find these readings.
        await _end_readings_of(connection, reader_row, at)
        while await _empty_readings_of(connection, reader_row, _PAGE_READINGS):
            pass
        await connection.run(SQL["read_no_more"], (memory_row, reader_row))
    if not await load_sleeptime_agents(connection, memory_row):
        await drop_jobs(connection, memory_row, job_kind)
    if body is not None and entry.definition is not None:
        await change_definition(connection, entry.definition, body, at=at)


async def accept_reading(connection: Connection, jobs: Jobs, command: RunAccept) -> Run | None:
    """Accepts a reading. Returns None if the sleeptime agent has a reading under way, after which it reads again."""
    if await find_reading(connection, command.run.agent_row) is not None:
        return None
    return await accept_run(connection, jobs, command)


async def find_reading(connection: Connection, reader_row: int) -> OpenReading | None:
    """Returns a sleeptime agent's reading that has not ended."""
    row = await connection.fetch_row(SQL["reading_open"], (reader_row, READING_PREFIX, _READING_END))
    if row is None:
        return None
    run_row, conversation_name = row
    run = await find_run(connection, reader_row, run_row)
    return None if run is None else OpenReading(run, conversation_name)


async def advance_over(connection: Connection, span: ReadSpan, at: float) -> None:
    """Moves a reader's cursor past the messages that it has read, unless the cursor has moved meanwhile."""
    await connection.run(SQL["read_up_to"], (span.upto, at, span.memory_row, span.reader_row, span.cursor))


async def end_readings(connection: Connection, memory_row: int, at: float) -> None:
    """Ends the readings of a memory, in the transaction that begins to forget something of it."""
    for reader_row in await load_sleeptime_agents(connection, memory_row):
        await _end_readings_of(connection, reader_row, at)


async def _end_readings_of(connection: Connection, reader_row: int, at: float) -> None:
    await connection.lock(reader_row)
    if await connection.run(SQL["readings_end"], (at, reader_row, READING_PREFIX, _READING_END)):
        # A step that is under way is written on an older epoch, and so refused.
        await raise_epoch(connection, reader_row)


async def empty_readings(connection: Connection, memory_row: int, limit: int) -> bool:
    """Empties ended readings of a memory, at most `limit` of each reader. Returns whether there may be more."""
    for reader_row in await load_sleeptime_agents(connection, memory_row):
        if await _empty_readings_of(connection, reader_row, limit):
            return True
    return False


async def _empty_readings_of(connection: Connection, reader_row: int, limit: int) -> bool:
    rows = await connection.fetch_rows(SQL["readings"], (reader_row, READING_PREFIX, _READING_END, limit))
    for (conversation_row,) in rows:
        await empty_reading(connection, reader_row, conversation_row)
    return len(rows) == limit


async def empty_reading(connection: Connection, reader_row: int, conversation_row: int) -> None:
    """Empties the texts of one reading and takes the key from its conversation. Idempotent."""
    await connection.lock(reader_row)
    rows = await connection.fetch_rows(SQL["reading_exchanges"], (conversation_row, reader_row))
    for (exchange_row,) in rows:
        exchange = await exchanges.find_exchange(connection, reader_row, exchange_row)
        assert exchange is not None  # it was found in this transaction
        await forget_indexed(connection, reader_row, range(exchange.seq, exchange.next_seq))
        await exchanges.update_exchange(connection, reader_row, make_tombstone(exchange), is_whole=True)
    run_row = await connection.fetch_value(SQL["reading_run"], (conversation_row, reader_row))
    if run_row is not None:
        for kind in _TEXT_KINDS:
            await connection.run(SQL["reading_texts"], (reader_row, run_row, kind))
    await connection.run(SQL["reading_done"], (conversation_row, reader_row))


class SleeptimeAgents(StoreGroup):
    """Reads and writes sleeptime agents, each call in a transaction of its own."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        super().__init__(database)
        self._jobs = jobs

    add = writes(as_method(_add_sleeptime_agent))
    remove = writes(as_method(_remove_sleeptime_agents))
    adopt = writes(as_method(_adopt_sleeptime_agent))
    share_blocks = writes(as_method(share_blocks))
    find_reading = reads(as_method(find_reading))
    empty_reading = bulk_writes(as_method(empty_reading))
    empty_readings = bulk_writes(as_method(empty_readings))

    @makes_effect
    async def make_accept_effect(self, connection: Connection, command: RunAccept) -> None:
        """Returns the effect that accepts a reading, unless the sleeptime agent has one under way."""
        await accept_reading(connection, self._jobs, command)

    @makes_effect
    async def make_advance_effect(self, connection: Connection, span: ReadSpan, at: float) -> None:
        """Returns the effect that moves a reader's cursor past a part of a memory."""
        await advance_over(connection, span, at)
