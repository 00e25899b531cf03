"""A fresh database is given statistics; what was forgotten leaves the tables, at most once a minute."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from msgspec.structs import replace

from storage.forget_commands import ForgetTarget
from tests.core.conversations import assistant, user
from tests.patience import PATIENCE_S, comes
from tests.postgres import empty_database, query
from tests.storage.conftest import OpenStore, PostgresServer
from tests.stored import ALICE, PATIENT, Clock, Speaker

ROWS = "SELECT reltuples FROM pg_class WHERE oid = 'exchanges'::regclass"


async def test_a_database_that_has_grown_is_analyzed_without_autovacuum(
    open_store: OpenStore, database: PostgresServer
) -> None:
    admin = await asyncpg.connect(database.url)
    await admin.execute(
        "TRUNCATE exchanges; ANALYZE exchanges; ALTER TABLE exchanges SET (autovacuum_enabled = off)"
    )
    try:
        alice = Speaker(await open_store(), ALICE, Clock())
        for n in range(60):
            # The server hears of what is written about once a second.
            await alice.say([user(f"question {n}")], assistant("Yes."))
            if n == 45:
                await asyncio.sleep(1.2)
        async with asyncio.timeout(PATIENCE_S):
            while await admin.fetchval(ROWS) < 40:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await admin.execute("ALTER TABLE exchanges RESET (autovacuum_enabled)")
        await admin.close()


async def test_a_forgotten_message_has_no_row_and_no_dead_row(
    open_store: OpenStore, database: PostgresServer
) -> None:
    store = await open_store()
    alice = Speaker(store, ALICE, Clock())
    await alice.say([user("zqsecretx")], assistant("Noted."))
    (e,) = await alice.rows()
    forgetting = store.forgetting
    await forgetting.run(await forgetting.begin(alice.agent.id, ForgetTarget(exchange_rows=[e.id])))
    assert b"zqsecretx" not in database.content()
    reader = await asyncpg.connect(database.url)
    await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await reader.fetch("SELECT 1 FROM exchanges")
    await alice.say([user("another")], assistant("Yes."))
    before = await vacuums(reader)
    assert not await forgetting.sweep(wait_ms=0), "somebody still sees the old versions"
    assert await vacuums(reader) == before
    await reader.execute("COMMIT")
    async with asyncio.timeout(PATIENCE_S):
        while await vacuums(reader) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await forgetting.sweep()
    await reader.close()


async def vacuums(connection: asyncpg.Connection) -> int:
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    return int(await connection.fetchval("SELECT pg_stat_get_vacuum_count('exchanges'::regclass)"))


@pytest.mark.parametrize(
    ("number", "before", "is_held"),
    [
        (0, ["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"], True),  # it may read what was forgotten
        (0, ["BEGIN", "SELECT pg_current_xact_id()"], True),  # it sees nothing now, but VACUUM leaves it
        (1, ["BEGIN", "SELECT pg_current_xact_id()"], True),  # snapshots taken meanwhile reach back to it
        (1, ["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"], False),  # it cannot read these tables
    ],
)
async def test_only_a_transaction_that_holds_vacuum_back_is_waited_for(
    open_store: OpenStore,
    postgres: str,
    database: PostgresServer,
    number: int,
    before: list[str],
    is_held: bool,
) -> None:
    other = database.url if number == 0 else empty_database(postgres, number).url
    store = await open_store()
    holder = await asyncpg.connect(other)
    for statement in before:
        await holder.execute(statement)
    await Speaker(store, ALICE, Clock()).say([user("Hello.")], assistant("Yes."))
    assert await store.database.sweep(0) is not is_held
    sweeping = asyncio.ensure_future(store.database.sweep(20_000))
    await holder.execute("COMMIT")
    assert await sweeping
    await holder.close()


async def test_a_role_that_may_not_vacuum_says_so(
    open_store: OpenStore, database: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = urlsplit(database.url)
    role = f"lodger_{url.path[1:]}"
    url = url._replace(netloc=f"{role}:secret@{url.netloc.rpartition('@')[2]}")
    admin = await asyncpg.connect(database.url)
    may = "SELECT, INSERT, UPDATE, DELETE"
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    await admin.execute(f"GRANT {may} ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        store = await open_store(path=urlunsplit(url))
        assert store.health.ok
        assert not await store.database.sweep(1000)
        assert "Make the role their owner" in caplog.text
        await store.close()
    finally:
        await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await admin.close()


async def test_other_messages_of_the_server_are_no_lack_of_rights(
    open_store: OpenStore, database: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store()
    name = urlsplit(database.url).path[1:]
    admin = await asyncpg.connect(database.url)
    await admin.execute(f"ALTER DATABASE {name} SET client_min_messages = debug5")
    try:
        assert await store.database.sweep(1000)
    finally:
        await admin.execute(f"ALTER DATABASE {name} RESET client_min_messages")
        await admin.close()
    assert not caplog.records


async def test_a_table_in_use_is_swept_later(
    open_store: OpenStore, database: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store()
    other = await asyncpg.connect(database.url)
    before = await vacuums(other)
    await other.execute("BEGIN; LOCK TABLE exchanges IN SHARE UPDATE EXCLUSIVE MODE")  # as VACUUM does itself
    assert not await store.forgetting.sweep()
    assert "lock timeout" in caplog.text
    await other.execute("COMMIT")
    async with asyncio.timeout(PATIENCE_S):
        while await vacuums(other) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await other.close()


@pytest.mark.usefixtures("own_sessions")
async def test_closing_does_not_wait_for_who_holds_vacuum_back(
    open_store: OpenStore, database: PostgresServer
) -> None:
    store = await open_store()
    reader = await asyncpg.connect(database.url)
    await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    await Speaker(store, ALICE, Clock()).say([user("Hello.")], assistant("Yes."))
    assert not await store.database.sweep(0)
    held = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_prepared_xacts%' AND pid <> pg_backend_pid()"
    async with asyncio.timeout(PATIENCE_S):
        while query(database.url, held) == [(0,)]:  # noqa: ASYNC110
            await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        await store.close()
    await comes(lambda: not [task for task in asyncio.all_tasks() if "_sweep" in str(task.get_coro())])
    await reader.close()


class Hands:
    """A clock that a test moves."""

    now = 0.0

    def time(self) -> float:
        return self.now


async def test_the_tables_are_swept_at_most_once_in_a_while_and_in_the_end(
    open_store: OpenStore, database: PostgresServer
) -> None:
    store = await open_store(limits=replace(PATIENT, vacuum_interval_s=0.1))
    clock = store.database._maintenance._loop = Hands()  # type: ignore[attr-defined]
    admin = await asyncpg.connect(database.url)
    assert await store.database.sweep(0)
    before = await vacuums(admin)
    assert not await store.database.sweep(0)
    clock.now = 0.1
    async with asyncio.timeout(PATIENCE_S):
        while await vacuums(admin) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not await store.database.sweep(0), "the one that was put off has just been done"
    await admin.close()
