"""Measures how long operators wait for usage: a page of `GET /v1/manage/usage` of 30 days over a table with many rows.

There are two tables: one of many users with a row a day, one of few users who each ask many models. Each question is
asked several times, and the best time counts. The last question is that of a user's limit: one sum of a month. With
`--postgres` the tables are in PostgreSQL, which the tests' packages bring.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from gateway.core.dates import DAY_S
from gateway.core.memory.rules import RULES
from gateway.run.admin.usage.usage_operations import UsageOperations
from storage.open import open_store
from storage.usage_records import COUNTERS, UsageKey, UsageQuery
from tests.postgres import server

DAYS = 30
TODAY = 20_400
# Of a row with a day's chats of one user.
COUNTS = {"requests": 12, "calls": 14, "input_tokens": 18_000, "output_tokens": 4_200, "cached_tokens": 9_000,
          "injected_tokens": 3_000, "cost": 7_140_000}  # fmt: skip
QUESTIONS = ({"by": "user"}, {"by": "user", "project": "default"}, {"by": "day,user"}, {"by": "day"})


def make_rows(users: int, models: int) -> Iterator[tuple[object, ...]]:
    counters = [COUNTS.get(name, 0) for name in COUNTERS]
    for day in range(TODAY - DAYS + 1, TODAY + 1):
        for user in range(users):
            for model in range(models):
                yield (*UsageKey(day, "default", f"user-{user:07d}", 3, "up", f"model-{model}"), *counters)


async def fill(target: Path | str, users: int, models: int) -> None:
    """Writes rows of usage into a database. target: the SQLite file, or the URL of a PostgreSQL."""
    columns = [*UsageKey._fields, *COUNTERS]
    if isinstance(target, Path):
        insert = f"INSERT INTO usage ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        with closing(sqlite3.connect(target)) as database, database:
            database.executemany(insert, make_rows(users, models))
        return
    import asyncpg

    connection = await asyncpg.connect(target)
    await connection.copy_records_to_table("usage", records=make_rows(users, models), columns=columns)
    await connection.execute("ANALYZE usage")
    await connection.close()


async def measure(target: Path | str, count: int, users: int) -> dict[str, Any]:
    """Returns the best time of each question, in milliseconds. count: the approximate number of rows."""
    models = max(1, count // DAYS // users)
    store = await open_store(target, rules=RULES)  # makes the tables
    await store.close()
    await fill(target, users, models)
    store = await open_store(target, rules=RULES)
    operations = UsageOperations(store.usage, lambda: float(TODAY * DAY_S + 1))
    figures: dict[str, Any] = {"rows": DAYS * users * models, "users": users}
    for question in QUESTIONS:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            page = await operations.show(question)
            times.append((time.perf_counter() - started) * 1000)
            assert page["data"]
        figures[" ".join(question.values())] = round(min(times))
    month = UsageQuery((), TODAY - DAYS + 1, TODAY, (("project", "default"), ("user", "user-0000000")))
    started = time.perf_counter()
    assert await store.usage.load_sums(month)
    figures["of one user"] = round((time.perf_counter() - started) * 1000, 1)
    await store.close()
    return figures


def main() -> None:
    """Prints the times of reads of usage, with many users and with few."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--postgres", action="store_true", help="over PostgreSQL instead of SQLite")
    options = parser.parse_args()
    results = []
    for users in (max(1, options.rows // DAYS), 1_000):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            target: Path | str = Path(folder) / "usage.db"
            if options.postgres:
                target, _ = stack.enter_context(server())
            results.append(asyncio.run(measure(target, options.rows, users)))
    if options.json:
        print(json.dumps(results))
        return
    for figures in results:
        print(f"{figures.pop('rows'):,} rows of {figures.pop('users'):,} users, a page of 30 days in ms:")
        for question, took in figures.items():
            print(f"  by {question:<14} {took:>6}")


if __name__ == "__main__":
    main()
