"""Usage: counters that processes add up. Sums of them are read by whatever columns are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import orjson

from storage.database import USAGE, Connection, Database, Row, Statement
from storage.sql.group import StoreGroup, bulk_writes, long_reads, reads
from storage.sql.statements import load, make_statement
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
_KEY_COLUMNS = len(UsageKey._fields)
# The key's columns that the table user_usage has, where triggers of the database add up the table usage.
_USER_COLUMNS = frozenset({"day", "project", "user"})
# For a query of more days the end of the page is looked up first, which reads up to two days. Not measured: for a query
# of few days that look-up reads nearly as much as it saves.
_LONG_DAYS = 6
_SUMS = ", ".join(f"CAST(sum({name}) AS BIGINT)" for name in COUNTERS)
# The most days that a query lists one by one: a monthly limit and the usage page ask for so many.
_LISTED_DAYS = 31

# Seconds for which the last part of a process is known. An outage is shorter.
_MAX_PART_AGE_S = 30 * 86_400.0


class Usage(StoreGroup):
    """The table of usage."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._listeners: list[Callable[[str, str], None]] = []
        database.add_listener(USAGE, self._receive_forgotten)

    @bulk_writes
    async def add(self, connection: Connection, part: UsagePart) -> None:
        """Adds counters to those of their keys, unless that was done before: it may be called again after an error."""
        if await connection.value(SQL["part"], (part.process, part.number, part.at)) is None:
            return
        if part.number == 1:
            await connection.run(SQL["parts_age"], (part.at - _MAX_PART_AGE_S,))
        for key, counters in part.rows:
            await connection.run(SQL["add"], (*key, *counters))

    async def load_sums(self, query: UsageQuery, *, deadline_ms: float | None = None) -> list[UsageSum]:
        """Returns the sums that a query asks for, in the order of its `by`. Raises: TooSlow past the deadline."""
        return await self._database.long_read(partial(_read_sums, query=query), deadline_ms=deadline_ms)

    @long_reads
    async def count_background_tokens(self, connection: Connection, project: str | None, day: int) -> int:
        """Returns the tokens that a project's background calls used on a day, as far as it is written.

        project: the project; None: all projects.
        """
        return int(await connection.value(SQL["background"], (day, project)))

    @reads
    async def count_batch_tokens(self, connection: Connection, project: str, day: int) -> int:
        """Returns the tokens that a project's batches used on a day."""
        return int(await connection.value(SQL["batches"], (day, project)))

    @reads
    async def find_oldest_day_of_users(self, connection: Connection, before: int) -> int | None:
        """Returns the oldest day before one on which counters have a user."""
        return await connection.value(SQL["oldest_of_users"], (before, FORGOTTEN_USER))

    @bulk_writes
    async def anonymize_day(self, connection: Connection, day: int) -> int:
        """Removes the names from up to ROWS_AT_ONCE rows of a day's users. Returns how many; 0: none are left."""
        return await _add_anonymously(
            connection, await connection.rows(SQL["take_users"], (day, FORGOTTEN_USER, ROWS_AT_ONCE))
        )

    @bulk_writes
    async def anonymize_user(self, connection: Connection, project: str, user: str) -> int:
        """Removes a user's name from the counters on disk. Returns how many rows they had."""
        return await anonymize_user_rows(connection, project, user)

    async def forget_user(self, project: str, user: str) -> int:
        """Removes a user's name from the counters, on disk and in the memory of all processes.

        Returns how many rows they had on disk.
        """
        count = await self.anonymize_user(project, user)
        self.notify_forgotten(project, user)
        return count

    def notify_forgotten(self, project: str, user: str) -> None:
        """Has all processes take a user's name off what they have in memory."""
        self._call_listeners(project, user)
        self._database.notify(USAGE, orjson.dumps([project, user]).decode())

    def add_forget_listener(self, listener: Callable[[str, str], None]) -> None:
        """Has a function called with project and name of each user that is forgotten, by this process or another."""
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
        """Records that a process writes. Returns how many have written since a time. process: None: none."""
        await connection.run(SQL["writers_age"], (since,))
        if process is not None:
            await connection.run(SQL["wrote"], (process, now))
        return int(await connection.value(SQL["writers"], (since,)))

    @bulk_writes
    async def drop_writer(self, connection: Connection, process: str) -> None:
        """Drops a process that writes no more."""
        await connection.run(SQL["left"], (process,))


async def add_batch(
    connection: Connection, project: str, day: int, total_tokens: int, output_tokens: int
) -> None:
    """Adds the tokens of a project's batches, in the transaction that takes their results."""
    counters = dict.fromkeys(COUNTERS, 0)
    counters["batch_input_tokens"] = total_tokens - output_tokens
    counters["batch_output_tokens"] = output_tokens
    key = UsageKey(day, project, user="", key=0, upstream="", model="")
    await connection.run(SQL["add"], (*key, *counters.values()))


async def anonymize_user_rows(connection: Connection, project: str, user: str) -> int:
    """Removes a user's name from the counters. Returns how many rows they had."""
    return await _add_anonymously(connection, await connection.rows(SQL["take_user"], (project, user)))


async def _add_anonymously(connection: Connection, rows: Sequence[Row]) -> int:
    """Adds the counters of removed rows to those of forgotten users. Returns how many rows there were."""
    anonymous = (
        (UsageKey(*row[:_KEY_COLUMNS])._replace(user=FORGOTTEN_USER), row[_KEY_COLUMNS:]) for row in rows
    )
    for key, counters in sum_rows(anonymous):
        await connection.run(SQL["add"], (*key, *counters))
    return len(rows)


async def _read_sums(connection: Connection, query: UsageQuery) -> list[UsageSum]:
    end = await _find_page_end(connection, query)
    names, days = _list_condition_names(query), range(query.first_day, query.last_day + 1)
    # The counters of one user are looked up day by day, instead of among those of all.
    lists_days = {"project", "user"} <= {*names} and len(days) <= _LISTED_DAYS
    statement = _make_sums_statement(
        query.by,
        names,
        has_start=query.after is not None,
        has_end=end is not None,
        listed_days=len(days) if lists_days else 0,
    )
    day_values = days if lists_days else (query.first_day, query.last_day)
    values = (*day_values, *_list_condition_values(query), *(end or ()), query.limit)
    columns = len(query.by)
    return [
        UsageSum(tuple(row[:columns]), tuple(row[columns:]))
        for row in await connection.rows(statement, values)
    ]


async def _find_page_end(connection: Connection, query: UsageQuery) -> Row | None:
    """Returns values of `by` up to which a page of a long query is full; None if they are not known.

    Most of the time of a long query goes into sums that the page does not show. Where a single day has a page of groups
    up to some values, all days together have at least as many, so the page ends at these values or before.
    """
    if query.last_day - query.first_day < _LONG_DAYS or not query.by:
        return None
    for day in (query.last_day - 1, query.first_day):  # the last day may have only begun
        statement = _page_end_statement(
            query.by, _list_condition_names(query), has_start=query.after is not None
        )
        values = (day, *_list_condition_values(query), query.limit - 1)
        if (row := await connection.row(statement, values)) is not None:
            return row
    return None


def _list_condition_names(query: UsageQuery) -> tuple[str, ...]:
    return tuple(name for name, _ in query.only)


def _list_condition_values(query: UsageQuery) -> list[object]:
    """Returns the values of a query's conditions, but for its days."""
    return [*(value for _, value in query.only), *(query.after or ())]


@lru_cache(maxsize=256)
def _make_sums_statement(
    by: tuple[str, ...], only: tuple[str, ...], *, has_start: bool, has_end: bool, listed_days: int
) -> Statement:
    """Returns the statement for sums by some columns. The names are those of `UsageKey`'s fields.

    has_start: the page begins after some values of `by`.
    has_end: it ends with some values of `by`.
    listed_days: how many days are listed, each as a value; 0: the first and the last one are values.
    """
    columns = ", ".join(f'"{name}"' for name in by)
    days = f"IN ({', '.join('?' * listed_days)})" if listed_days else "BETWEEN ? AND ?"
    where = f"WHERE day {days}{_render_conditions(by, only, has_start=has_start)}"
    if has_end:
        where += f" AND ({columns}) <= ({_render_placeholders(by)})"
    grouped = f" GROUP BY {columns} ORDER BY {columns}" if by else " HAVING count(*) > 0"
    shown = f"{columns}, {_SUMS}" if by else _SUMS
    return make_statement(
        "usage.sql: sums", f"SELECT {shown} FROM {_choose_table(by, only)} {where}{grouped} LIMIT ?"
    )


@lru_cache(maxsize=64)
def _page_end_statement(by: tuple[str, ...], only: tuple[str, ...], *, has_start: bool) -> Statement:
    """Returns the statement that finds the last values of `by` of a page of one day's sums."""
    columns = ", ".join(f'"{name}"' for name in by)
    where = _render_conditions(by, only, has_start=has_start)
    table = _choose_table(by, only)
    text = f"SELECT DISTINCT {columns} FROM {table} WHERE day = ?{where} ORDER BY {columns} LIMIT 1 OFFSET ?"
    return make_statement("usage.sql: ends", text)


def _choose_table(by: tuple[str, ...], only: tuple[str, ...]) -> str:
    """Returns the table with the fewest rows that has some columns."""
    return "user_usage" if {*by, *only} <= _USER_COLUMNS else "usage"


def _render_conditions(by: tuple[str, ...], only: tuple[str, ...], *, has_start: bool) -> str:
    """Returns the conditions after the one on days, in SQL. Raises: ValueError if a name is not a column."""
    if unknown := {*by, *only} - {*UsageKey._fields}:
        # The names are put into the statement as they are.
        raise ValueError(f"usage has no columns {sorted(unknown)}")
    where = [f' AND "{name}" = ?' for name in only]
    if has_start:
        columns = ", ".join(f'"{name}"' for name in by)
        where.append(f" AND ({columns}) > ({_render_placeholders(by)})")
    return "".join(where)


def _render_placeholders(by: tuple[str, ...]) -> str:
    return ", ".join("?" * len(by))
