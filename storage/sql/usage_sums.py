"""Sums of the counters of usage, by whatever columns a query asks for."""

from __future__ import annotations

from functools import lru_cache

from storage.database import Connection, Row, Statement
from storage.sql.statements import make_statement
from storage.usage_records import COUNTERS, UsageKey, UsageQuery, UsageSum

# The key's columns that the table user_usage has, where triggers of the database add up the table usage.
_USER_COLUMNS = frozenset({"day", "project", "user"})
# For a query of more days the end of the page is looked up first, which reads up to two days. Not measured: for a query
# of few days that look-up reads nearly as much as it saves.
_LONG_DAYS = 6
_SUMS = ", ".join(f"CAST(sum({name}) AS BIGINT)" for name in COUNTERS)
# The most days that a query lists one by one: a monthly limit and the usage page ask for so many.
_LISTED_DAYS = 31


async def read_sums(connection: Connection, query: UsageQuery) -> list[UsageSum]:
    """Returns the sums that a query asks for, in the order of its `by`."""
    end = await _find_page_end(connection, query)
    names = _list_condition_names(query)
    days = range(query.first_day, query.last_day + 1)
    # The counters of one user are looked up day by day, instead of among the counters of all users.
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
    width = len(query.by)
    return [
        UsageSum(tuple(row[:width]), tuple(row[width:]))
        for row in await connection.fetch_rows(statement, values)
    ]


async def _find_page_end(connection: Connection, query: UsageQuery) -> Row | None:
    """Returns values of `by` up to which a page of a long query is full; None: such values are not known.

    Most of the time of a long query goes into sums that the page does not show. Where a single day has a page of groups
    up to some values, all days together have at least as many, so the page ends at these values or before.
    """
    if query.last_day - query.first_day < _LONG_DAYS or not query.by:
        return None
    # The last day may have only begun, so the day before it is counted.
    for day in (query.last_day - 1, query.first_day):
        statement = _make_page_end_statement(
            query.by, _list_condition_names(query), has_start=query.after is not None
        )
        values = (day, *_list_condition_values(query), query.limit - 1)
        if (row := await connection.fetch_row(statement, values)) is not None:
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
    """Returns the statement for sums by some columns, which have the names of `UsageKey`'s fields.

    has_start: True if the page begins after some values of `by`.
    has_end: True if the page ends with some values of `by`.
    listed_days: the number of days that are listed, each as a value; 0: the values are the first and the last day.
    """
    columns = ", ".join(f'"{name}"' for name in by)
    days = f"IN ({', '.join('?' * listed_days)})" if listed_days else "BETWEEN ? AND ?"
    where = f"WHERE day {days}{_render_conditions(by, only, has_start=has_start)}"
    if has_end:
        where += f" AND ({columns}) <= ({_render_placeholders(by)})"
    grouped = f" GROUP BY {columns} ORDER BY {columns}" if by else " HAVING count(*) > 0"
    selected = f"{columns}, {_SUMS}" if by else _SUMS
    return make_statement(
        "usage.sql: sums", f"SELECT {selected} FROM {_choose_table(by, only)} {where}{grouped} LIMIT ?"
    )


@lru_cache(maxsize=64)
def _make_page_end_statement(by: tuple[str, ...], only: tuple[str, ...], *, has_start: bool) -> Statement:
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
