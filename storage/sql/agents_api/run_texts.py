"""Texts of runs that are not, or not yet, in an exchange, such as requests and events."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from storage.database import Connection
from storage.job_records import Job
from storage.run_records import RunTextKind
from storage.sql.epochs import find_epoch
from storage.sql.group import StoreGroup, as_locking_method, as_method, bulk_writes, reads, writes
from storage.sql.job_rows import is_attempt
from storage.sql.statements import load, load_rows

SQL = load("agents_api/run_texts.sql")

# The longest message of an error: some upstreams repeat the whole request in it.
_MAX_MESSAGE_CHARS = 4_000


class RunText(Struct, frozen=True):
    """A text of a run."""

    # The text's position among the run's texts of its kind.
    seq: int
    # The text.
    data: bytes


async def add_text(
    connection: Connection,
    agent_row: int,
    run_row: int,
    kind: RunTextKind,
    seq: int,
    data: bytes,
    *,
    job: Job | None = None,
) -> bool:
    """Adds a text to a run. Returns False if the run has a text with this kind and seq, or is gone.

    job: the attempt that adds the text. Returns False, too, if another attempt performs the run now.
    """
    if job is not None and not await is_attempt(connection, job):
        return False
    return await connection.fetch_row(SQL["text_insert"], (agent_row, run_row, seq, kind, data)) is not None


async def add_events(
    connection: Connection,
    agent_row: int,
    run_row: int,
    seq: int,
    data: bytes,
    *,
    epoch: int,
    job: Job | None = None,
) -> bool:
    """Adds events to a run. Returns False, and adds none, if the memory's epoch has risen or the attempt was replaced.

    epoch: the memory's epoch when the events were made. They may quote content that was forgotten since.
    job: the attempt that made the events, which must not come between the events of a later attempt; None: no job.
    """
    if await find_epoch(connection, agent_row) != epoch:
        return False
    return await add_text(connection, agent_row, run_row, RunTextKind.EVENT, seq=seq, data=data, job=job)


async def add_error_message(
    connection: Connection, agent_row: int, run_row: int, error_message: str, error_status: int = 0
) -> None:
    """Adds the message of the error that ended a run; "" adds nothing.

    error_status: the HTTP status of that error; 0: the error has none.
    """
    if error_message:
        message = error_message[:_MAX_MESSAGE_CHARS].encode("utf-8", "replace")
        await add_text(connection, agent_row, run_row, RunTextKind.ERROR, seq=0, data=message)
        if error_status:
            await add_text(
                connection, agent_row, run_row, RunTextKind.ERROR, seq=1, data=b"%d" % error_status
            )


async def load_texts(
    connection: Connection,
    agent_row: int,
    run_row: int,
    kind: RunTextKind,
    *,
    after: int = -1,
    limit: int = 1000,
) -> tuple[RunText, ...]:
    """Returns a page of a run's texts of a kind, by `seq`. after: the last `seq` of the page before."""
    return tuple(
        RunText(*row)
        for row in await connection.fetch_rows(SQL["texts"], (agent_row, run_row, kind, after, limit))
    )


async def replace_text(
    connection: Connection, agent_row: int, run_row: int, kind: RunTextKind, seq: int, data: bytes
) -> None:
    """Replaces the content of a text: once the messages of a request are in exchanges, only its options are left.

    The old content must not have a person's words unless it is longer than the new one: SQLite would not overwrite all.
    """
    await connection.run(SQL["text_replace"], (agent_row, run_row, kind, seq, data))


async def erase_texts(connection: Connection, agent_row: int, after: int, limit: int) -> int | None:
    """Erases a page of the texts of an agent's runs. Returns `after` for the next page; None: this was the last page.

    A run that has not ended keeps its request. A call stays without its content, so that it is not made twice.

    after: the row of the last text of the page before.
    """
    rows = await connection.fetch_rows(SQL["texts_of"], (agent_row, after, limit))
    for text_row, is_call in rows:
        if is_call:
            await connection.run(SQL["call_empty"], (text_row, agent_row, b"{}"))
        else:
            await connection.run(SQL["text_erase"], (text_row, agent_row))
    return rows[-1][0] if len(rows) == limit else None


class RunTexts(StoreGroup):
    """Texts of runs, each read or written in a transaction of its own."""

    add_text = writes(as_locking_method(add_text))
    add_events = bulk_writes(as_locking_method(add_events))
    load_texts = reads(as_method(load_texts))

    @reads
    async def load_error_messages(self, connection: Connection, run_rows: Sequence[int]) -> dict[int, str]:
        """Returns the messages of the errors that ended runs, by run."""
        return {
            run_row: data.decode()
            for run_row, data in await load_rows(connection, SQL["error_messages"], run_rows)
        }

    @bulk_writes
    async def drop_texts(self, connection: Connection, before: float, limit: int) -> int:
        """Drops the texts of runs that ended before a time, but for calls and results that may still be asked for.

        Returns the number of these runs.
        """
        rows = await connection.fetch_rows(SQL["texts_left"], (before, limit))
        await connection.lock(*(agent_row for _, agent_row in rows))
        for run_row, agent_row in rows:
            await connection.run(SQL["texts_drop"], (agent_row, run_row))
        return len(rows)

    @reads
    async def find_first_end(self, connection: Connection) -> float | None:
        """Returns when the first run ended that has texts for `drop_texts`; None: no run has such texts."""
        return await connection.fetch_value(SQL["texts_left_next"])
