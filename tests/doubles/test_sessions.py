"""What PostgreSQL has from one test to the next: the processes of sessions, and nothing in a database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from tests import sessions
from tests.postgres import empty_database, execute, query

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
async def test_a_session_is_pooled_without_what_was_made_in_it(
    postgres: str, leave: Callable[..., Any]
) -> None:
    url = empty_database(postgres).url
    sessions.close_idle()
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
    sessions.close_idle()
    first = await asyncpg.connect(url)
    process = await process_of(first)
    await first.execute("BEGIN")
    await leave(first)
    second = await asyncpg.connect(url)
    assert await process_of(second) != process
    await second.close()


async def test_a_session_that_the_server_has_ended_is_not_given_again(postgres: str) -> None:
    url = empty_database(postgres).url
    sessions.close_idle()
    first, second = [await asyncpg.connect(url) for _ in range(2)]
    process = await process_of(first)
    await first.close()
    # The server waits until it has ended.
    assert await second.fetchval("SELECT pg_terminate_backend($1, 10000)", process)
    third = await asyncpg.connect(url)
    assert await process_of(third) != process
    await second.close()
    await third.close()


async def test_the_servers_own_types_are_asked_for_once(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = [], sessions._plain_introspect

    async def introspect(connection: Any, oids: Any, timeout: Any) -> Any:
        asked.append(oids)
        return await ask(connection, oids, timeout)

    monkeypatch.setattr(sessions, "_plain_introspect", introspect)
    monkeypatch.setattr(sessions, "_types", {})
    for _ in range(2):
        connection = await asyncpg.connect(empty_database(postgres).url)
        assert await connection.fetchval("SELECT $1::bytea[]", [b"a"]) == [b"a"]
        assert await connection.fetchval("SELECT $1::int[]", [1, 2]) == [1, 2]
        await connection.close()
    assert len(asked) == 2


async def test_a_type_that_was_created_is_asked_for_by_each_connection(postgres: str) -> None:
    url = empty_database(postgres).url
    first = await asyncpg.connect(url)
    await first.execute("CREATE TYPE pair AS (a int)")
    try:
        assert tuple(await first.fetchval("SELECT ROW(1)::pair")) == (1,)
        await first.execute("ALTER TYPE pair ADD ATTRIBUTE b int")
        second = await asyncpg.connect(url)
        assert tuple(await second.fetchval("SELECT ROW(1, 2)::pair")) == (1, 2)
        await second.close()
    finally:
        await first.execute("DROP TYPE pair")
        await first.close()


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_database_is_empty_again_whatever_a_test_has_left(postgres: str, rows: int) -> None:
    database = empty_database(postgres)
    execute(database.url, f"CREATE TABLE leavings AS SELECT 'some of ' || generate_series(1, {rows})")
    try:
        assert b"some of 1" in database.content()
        assert empty_database(postgres) == database
        assert (query(database.url, "SELECT * FROM leavings"), database.content()) == ([], b"")
    finally:
        execute(database.url, "DROP TABLE leavings")
