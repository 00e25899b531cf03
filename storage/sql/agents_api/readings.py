"""Readings: the transcripts, thoughts and calls that sleeptime agents hold of the memory that they read.

A run that reads is a conversation of its own, under a name that begins with READING. When the run ends its words are
emptied, and it is not found any more: they are another memory's. Counts, and what was written into blocks, stay.
"""

from __future__ import annotations

from storage.commands import ReadSpan, RunAccept
from storage.database import Connection
from storage.records import READING, Run
from storage.sql import exchanges
from storage.sql.agents_api.runs import accept_run
from storage.sql.jobs import Jobs
from storage.sql.readers import SQL, load_sleepers
from storage.sql.vectors import forget_indexed

# Below this are all names that begin with READING.
_END = READING[:-1] + chr(ord(READING[-1]) + 1)
_PARTS = ("request", "call", "result", "event")


async def accept_reading(connection: Connection, jobs: Jobs, wanted: RunAccept) -> Run | None:
    """Accepts a run that reads a memory. Returns None where its agent reads already: that one will find it due."""
    if await find_reading(connection, wanted.run.agent) is not None:
        return None
    return await accept_run(connection, jobs, wanted)


async def find_reading(connection: Connection, sleeper: int) -> tuple[int, str] | None:
    """Returns a sleeptime agent's run that reads and has not ended, and the public name of its conversation."""
    row = await connection.row(SQL["reading_open"], (sleeper, READING, _END))
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
        if await connection.run(SQL["readings_end"], (at, sleeper, READING, _END)):
            # A step that is under way is not written any more.
            await connection.run(SQL["readings_stale"], (sleeper,))


async def empty_readings(connection: Connection, memory: int, limit: int) -> bool:
    """Empties what runs that have ended hold of a memory, so many of them at most. True: there may be more."""
    for sleeper in await load_sleepers(connection, memory):
        rows = await connection.rows(SQL["readings"], (sleeper, READING, _END, limit))
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
        await exchanges.update_exchange(connection, sleeper, exchanges.emptied(e), is_whole=True)
    if (run := await connection.value(SQL["reading_run"], (conversation, sleeper))) is not None:
        for kind in _PARTS:
            await connection.run(SQL["reading_texts"], (sleeper, run, kind))
    await connection.run(SQL["reading_done"], (conversation, sleeper))
