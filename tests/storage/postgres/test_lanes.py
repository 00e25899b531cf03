"""Two sessions change a serial group at once, and neither sees what the other does: it has a first job all the same."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.patience import PATIENCE_S
from tests.storage.conftest import PostgresServer

ADD = (
    "INSERT INTO jobs (agent, kind, key, state, epoch, due, asked, created, payload)"
    " VALUES (1, 'learn', '{}', 'pending', 0, 1, 1, 1, '')"
)
DROP = "DELETE FROM jobs WHERE key = '{}'"
BURY = "UPDATE jobs SET state = 'dead' WHERE key = '{}'"


@pytest.mark.parametrize(
    ("before", "one", "other", "first"),
    [
        # One comes while the first ends; whoever is first of the two.
        ("a", DROP.format("a"), ADD.format("b"), "b"),
        ("a", ADD.format("b"), DROP.format("a"), "b"),
        ("a", BURY.format("a"), ADD.format("b"), "b"),
        ("a", ADD.format("b"), BURY.format("a"), "b"),
        # So with one after it.
        ("ab", DROP.format("a"), ADD.format("c"), "b"),
        ("ab", ADD.format("c"), DROP.format("a"), "b"),
        # The next one is taken away while the first ends.
        ("abc", DROP.format("b"), DROP.format("a"), "c"),
        ("abc", DROP.format("a"), DROP.format("b"), "c"),
    ],
)
async def test_a_lane_has_a_first_job_whatever_two_do_at_once(
    database: PostgresServer, before: str, one: str, other: str, first: str
) -> None:
    sessions = [await asyncpg.connect(database.url) for _ in range(3)]
    begun, second, looking = sessions
    try:
        for key in before:
            await looking.execute(ADD.format(key))
        await begun.execute(f"BEGIN; {one}")
        task = asyncio.create_task(second.execute(other))
        async with asyncio.timeout(PATIENCE_S):
            while not await looking.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await looking.execute("SELECT pg_sleep(0.01)")
        await begun.execute("COMMIT")
        await task
        assert await looking.fetchval("SELECT string_agg(key, '') FROM jobs WHERE first = 1") == first
    finally:
        for each in sessions:
            each.terminate()
