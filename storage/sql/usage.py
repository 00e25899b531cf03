"""Stores the counters of usage, to which all processes add. usage_sums.py reads their sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import orjson

from storage.database import USAGE, Connection, Database, Row
from storage.sql.group import StoreGroup, bulk_writes, long_reads, reads
from storage.sql.statements import load
from storage.sql.usage_sums import read_sums
from storage.usage_records import (
    COUNTERS,
    FORGOTTEN_USER,
    ROWS_AT_ONCE,
    UsageKey,
    UsagePart,
    UsageQuery,
    UsageSum,
    sum_rows,
)

SQL = load("usage.sql")
# The columns of a row that are its key.
_KEY_COLUMNS = len(UsageKey._fields)
# The seconds for which the last part of a process is known. An outage is shorter.
_MAX_PART_AGE_S = 30 * 86_400.0


class Usage(StoreGroup):
    """Reads and writes the counters of usage."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._listeners: list[Callable[[str, str], None]] = []
        database.add_listener(USAGE, self._receive_forgotten)

    @bulk_writes
    async def add(self, connection: Connection, part: UsagePart) -> None:
        """Adds a part's counters to the stored sums, unless the part was added before: so a call may be repeated."""
        if await connection.fetch_value(SQL["part"], (part.process, part.number, part.at)) is None:
            return
        if part.number == 1:
            await connection.run(SQL["parts_age"], (part.at - _MAX_PART_AGE_S,))
        for key, counters in part.rows:
            await connection.run(SQL["add"], (*key, *counters))

    async def load_sums(self, query: UsageQuery, *, deadline_ms: float | None = None) -> list[UsageSum]:
        """Returns the sums that a query asks for, in the order of its `by`. Raises: StoreTimeout past the deadline."""
        return await self._database.long_read(partial(read_sums, query=query), deadline_ms=deadline_ms)

    @long_reads
    async def count_background_tokens(self, connection: Connection, project: str | None, day: int) -> int:
        """Returns the tokens that a project's background calls used on a day, as far as it is written.

        project: the project; None: all projects.
        day: the day, in days since the epoch, as `UsageKey.day`.
        """
        return int(await connection.fetch_value(SQL["background"], (day, project)))

    @reads
    async def count_batch_tokens(self, connection: Connection, project: str, day: int) -> int:
        """Returns the tokens that a project's batches used on a day. day: as `UsageKey.day`."""
        return int(await connection.fetch_value(SQL["batches"], (day, project)))

    @reads
    async def find_oldest_day_of_users(self, connection: Connection, before: int) -> int | None:
        """Returns the oldest day before `before` on which counters have a user; None: there is no such day."""
        return await connection.fetch_value(SQL["oldest_of_users"], (before, FORGOTTEN_USER))

    @bulk_writes
    async def anonymize_day(self, connection: Connection, day: int) -> int:
        """Removes users' names from up to `ROWS_AT_ONCE` rows of a day. day: as `UsageKey.day`.

        Returns the number of these rows; 0: no row of the day has a name any more.
        """
        return await _add_anonymously(
            connection, await connection.fetch_rows(SQL["take_users"], (day, FORGOTTEN_USER, ROWS_AT_ONCE))
        )

    @bulk_writes
    async def anonymize_user(self, connection: Connection, project: str, user: str) -> int:
        """Removes a user's name from the counters on disk. Returns the number of rows that had it."""
        return await anonymize_user_rows(connection, project, user)

    async def forget_user(self, project: str, user: str) -> int:
        """Removes a user's name from the counters, on disk and in the memory of all processes.

        Returns the number of rows on disk that had it.
        """
        count = await self.anonymize_user(project, user)
        self.notify_forgotten(project, user)
        return count

    def notify_forgotten(self, project: str, user: str) -> None:
        """Has all processes remove a user's name from what they have in memory."""
        self._call_listeners(project, user)
        self._database.notify(USAGE, orjson.dumps([project, user]).decode())

    def add_forget_listener(self, listener: Callable[[str, str], None]) -> None:
        """Calls a function with the project and the name of each user that this or another process forgets."""
        self._listeners.append(listener)

    def _call_listeners(self, project: str, user: str) -> None:
        for listener in self._listeners:
            listener(project, user)

    def _receive_forgotten(self, payload: str | None) -> None:
        if payload:
            project, user = orjson.loads(payload)
            self._call_listeners(project, user)

    @bulk_writes
    async def record_writer(
        self, connection: Connection, process: str | None, now: float, since: float
    ) -> int:
        """Records that a process writes now. Returns the number of processes that have written since a time.

        process: the process that writes now, which is recorded; None: no process is recorded.
        now, since: times in seconds since the epoch.
        """
        await connection.run(SQL["writers_age"], (since,))
        if process is not None:
            await connection.run(SQL["wrote"], (process, now))
        return int(await connection.fetch_value(SQL["writers"], (since,)))

    @bulk_writes
    async def drop_writer(self, connection: Connection, process: str) -> None:
        """Removes the record of a process that writes no more."""
        await connection.run(SQL["left"], (process,))


async def add_batch(
    connection: Connection, project: str, day: int, total_tokens: int, output_tokens: int
) -> None:
    """Adds the tokens of a project's batches, in the transaction that writes their results."""
    counters = dict.fromkeys(COUNTERS, 0)
    counters["batch_input_tokens"] = total_tokens - output_tokens
    counters["batch_output_tokens"] = output_tokens
    key = UsageKey(day, project, user="", key=0, upstream="", model="")
    await connection.run(SQL["add"], (*key, *counters.values()))


async def anonymize_user_rows(connection: Connection, project: str, user: str) -> int:
    """Removes a user's name from the counters. Returns the number of rows that had it."""
    return await _add_anonymously(connection, await connection.fetch_rows(SQL["take_user"], (project, user)))


async def _add_anonymously(connection: Connection, rows: Sequence[Row]) -> int:
    """Adds the counters of removed rows to the counters of forgotten users. Returns the number of rows."""
    anonymous = (
        (UsageKey(*row[:_KEY_COLUMNS])._replace(user=FORGOTTEN_USER), row[_KEY_COLUMNS:]) for row in rows
    )
    for key, counters in sum_rows(anonymous):
        await connection.run(SQL["add"], (*key, *counters))
    return len(rows)
