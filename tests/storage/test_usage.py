"""The table of usage, and that of its users, which triggers of the database add up."""

from __future__ import annotations

import random
from typing import Any

import pytest

from storage.sql.statements import make_statement
from storage.sql.store import Store
from storage.sql.usage import add_batch
from storage.usage_records import COUNTERS, FORGOTTEN_USER, UsageKey, UsagePart, UsageQuery, sum_rows


async def sums(store: Store, table: str) -> list[tuple[Any, ...]]:
    shown = ", ".join(f"CAST(sum({name}) AS BIGINT)" for name in COUNTERS)
    text = (
        'SELECT day, project, "user", {} FROM {} GROUP BY day, project, "user" ORDER BY day, project, "user"'
    )
    statement = make_statement("a test's", text.format(shown, table))
    return [tuple(row) for row in await store.database.read(lambda c: c.fetch_rows(statement, ()))]


async def users(store: Store) -> list[str]:
    """Returns the users of the smaller table, whose counters are the sums of those of the other one."""
    found = await sums(store, "user_usage")
    assert found == await sums(store, "usage")
    return sorted({row[2] for row in found})


async def test_the_counters_of_users_are_the_sums_of_all_rows_whatever_writes_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sql.usage.ROWS_AT_ONCE", 5)
    draw, usage = random.Random(44), store.usage

    def part(number: int) -> UsagePart:
        rows = (
            (UsageKey(day, project, user, 0, "up", f"m{draw.randrange(3)}"), [draw.randrange(9) for _ in COUNTERS])
            for day in (1, 2)
            for project in ("default", "shop")
            for user in ("", "alice", "bob")
            for _ in range(4)
        )  # fmt: skip
        return UsagePart("a test", number, 0.0, sum_rows(rows))

    parts = [part(1), part(2)]
    for each in (parts[0], parts[0], parts[1]):  # one is written again
        await usage.add(each)
        assert await users(store) == ["", "alice", "bob"]
    await store.database.bulk_write(lambda connection: add_batch(connection, "default", 2, 30, 10))
    moved = [(key._replace(day=3), counters) for key, counters in parts[0].rows]
    await store.move_target.put_usage(moved, {})
    assert await users(store) == ["", "alice", "bob"]
    await usage.forget_user("shop", "alice")
    await usage.forget_user("default", "alice")
    assert await users(store) == ["", FORGOTTEN_USER, "bob"]
    assert await usage.anonymize_day(1) == 5
    assert await users(store) == ["", FORGOTTEN_USER, "bob"]
    while (day := await usage.find_oldest_day_of_users(9)) is not None:
        await usage.anonymize_day(day)
        await users(store)
    assert await users(store) == ["", FORGOTTEN_USER]


@pytest.mark.parametrize(
    "fields", [{"by": ("day", 'day" FROM keys --')}, {"by": ("day",), "only": (("secret", "x"),)}]
)
async def test_a_name_that_is_no_column_reaches_no_statement(store: Store, fields: dict[str, Any]) -> None:
    query = UsageQuery(first_day=1, last_day=2, **fields)
    with pytest.raises(ValueError, match="usage has no columns"):
        await store.usage.load_sums(query)
