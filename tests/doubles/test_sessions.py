"""What a session that is kept between two connections still has: its process alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from tests import sessions
from tests.postgres import empty_database

LEFT = """SELECT current_setting('lock_timeout'), (SELECT count(*) FROM pg_prepared_statements WHERE name = 'own'),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'), (SELECT count(*) FROM pg_listening_channels())"""


async def end(connection: Any) -> None:
    await connection.close()


async def drop(connection: Any) -> None:
    connection.terminate()


async def process_of(connection: Any) -> int:
    number: int = await connection.fetchval("SELECT pg_backend_pid()")
    return number


@pytest.mark.parametrize("leave", [end, drop])
async def test_a_session_is_kept_without_what_was_made_in_it(
    postgres: str, leave: Callable[..., Any]
) -> None:
    url = empty_database(postgres).url
    sessions.end_kept()
    first = await asyncpg.connect(url)
    process, new = await process_of(first), list(await first.fetchrow(LEFT))
    await first.execute("SET lock_timeout = 1; PREPARE own AS SELECT 1; SELECT pg_advisory_lock(1); LISTEN a")
    assert list(await first.fetchrow(LEFT)) != new
    await leave(first)
    second = await asyncpg.connect(url)
    assert (await process_of(second), list(await second.fetchrow(LEFT))) == (process, new)
    await second.close()


@pytest.mark.parametrize("leave", [end, drop])
async def test_a_session_within_a_transaction_ends(postgres: str, leave: Callable[..., Any]) -> None:
    url = empty_database(postgres).url
    sessions.end_kept()
    first = await asyncpg.connect(url)
    process = await process_of(first)
    await first.execute("BEGIN")
    await leave(first)
    second = await asyncpg.connect(url)
    assert await process_of(second) != process
    await second.close()


async def test_a_session_that_the_server_has_ended_is_not_given_again(postgres: str) -> None:
    url = empty_database(postgres).url
    sessions.end_kept()
    first, second = [await asyncpg.connect(url) for _ in range(2)]
    process = await process_of(first)
    await first.close()
    # The server waits until it has ended.
    assert await second.fetchval("SELECT pg_terminate_backend($1, 10000)", process)
    third = await asyncpg.connect(url)
    assert await process_of(third) != process
    await second.close()
    await third.close()
