"""The schema: the same tables and columns as SQLite's, migrated once, and refused where it is somebody else's."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from hashlib import sha256
from importlib import resources

import asyncpg
import pytest

from storage.errors import Foreign, TooNew
from storage.listing import PassageDraft
from storage.postgres import migration
from storage.postgres.migration import load_migrations, migrate
from storage.sqlite.migration import migrate as migrate_sqlite
from tests.patience import PATIENCE_S
from tests.storage.api import make_agent
from tests.storage.conftest import OpenStore, PostgresServer
from tests.storage.lanes import FIRST, JOBS, JOBS_BEFORE_LANES

# The SHA-256 of each migration. Databases out there were made by these files, so a file that is here never changes:
# a change of the schema is a new file, with a line here.
PINNED = {
    "0001_begin.sql": "e46d26453f20f72e1744498bcb8264bf27ac11f093f438101a3367f54f7a34ca",
    "0002_identities.sql": "3276cc0594a8dface22df6bf70b4657d0664f250cefc0356c4d99a58bfdfe55d",
    "0003_passage_metadata.sql": "1169375ceed250e2cb140efa16e4399eaf3ae11c05ed0e2a3975c66c3718b299",
    "0004_lanes.sql": "648631f63f9240f389bb900a07e5d87cb1778ed14b4ed942dcd7fc6a02040639",
    "0005_key_use.sql": "71f0f5b48d8fa765511c62c469163806e41c1dc550816aae31c98593cc1acaab",
    "0006_deflated_notes.sql": "b3c5908a39d4e83a60a7f6520abc362aa0da0b5e986a602e209a58b561650e6e",
    "0007_forks.sql": "78c632c371dd3ff89870fafbecb07267959ce7ee4ed6c526cb7f0d6df80dda04",
}
TYPES = {"INTEGER": "bigint", "REAL": "double precision", "TEXT": "text", "BLOB": "bytea"}
# SQLite keeps rows in their places with these.
PADDING = {("exchanges", "room"), ("exchanges", "pad"), ("vectors", "pad")}
COLUMNS = (
    "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
)


def sqlite_columns() -> set[tuple[str, str, str]]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate_sqlite(connection, "memory.db")
    rows = connection.execute(
        "SELECT m.name, c.name, c.type FROM sqlite_master m JOIN pragma_table_info(m.name) c"
        " WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
    ).fetchall()
    connection.close()
    return {(table, column, TYPES[type_]) for table, column, type_ in rows if (table, column) not in PADDING}


async def test_both_databases_have_the_same_tables_and_columns(database: PostgresServer) -> None:
    connection = await asyncpg.connect(database.url)
    found = {tuple(row) for row in await connection.fetch(COLUMNS) if row[0] != "schema_versions"}
    await connection.close()
    assert found == sqlite_columns()


async def test_texts_are_compared_byte_by_byte(database: PostgresServer) -> None:
    connection = await asyncpg.connect(database.url)
    others = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    found = await connection.fetch(
        others
        + " AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C' AND collation_name IS NOT NULL"
    )
    unnamed = await connection.fetch(others + " AND data_type = 'text' AND collation_name IS NULL")
    await connection.close()
    assert [tuple(row) for row in (*found, *unnamed)] == []


def test_a_migration_never_changes() -> None:
    folder = resources.files("storage.postgres.migrations")
    files = [each for each in folder.iterdir() if each.name.endswith(".sql")]
    found = {each.name: sha256(each.read_bytes()).hexdigest() for each in files}
    assert found == PINNED, "append a migration and pin it in PINNED; one that is pinned stays as it is"


async def test_gateways_that_start_side_by_side_migrate_once(database: PostgresServer) -> None:
    admin = await asyncpg.connect(database.url)
    await admin.execute("CREATE SCHEMA beside")
    opened = [
        await asyncpg.connect(database.url, server_settings={"search_path": "beside"}) for _ in range(4)
    ]
    try:
        versions = await asyncio.gather(*(migrate(each, "beside") for each in opened))
        assert set(versions) == {len(load_migrations())}
        assert await opened[0].fetchval("SELECT count(*) FROM schema_versions") == len(load_migrations())
    finally:
        for each in opened:
            await each.close()
        await admin.execute("DROP SCHEMA beside CASCADE")
        await admin.close()


async def test_turns_go_on_while_a_migration_waits_for_a_backup(
    database: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migration, "_PAUSE_S", 0.01)
    first = (1, 1, "CREATE TABLE a (x BIGINT)")
    steps = (first, (2, 1, "ALTER TABLE a ADD COLUMN y BIGINT"))
    admin = await asyncpg.connect(database.url)
    await admin.execute("CREATE SCHEMA waits")
    opened = [await asyncpg.connect(database.url, server_settings={"search_path": "waits"}) for _ in range(3)]
    upgrade, dump, turn = opened
    try:
        await migrate(upgrade, "waits", (first,))
        await dump.execute("BEGIN; SELECT x FROM a")
        task = asyncio.create_task(migrate(upgrade, "waits", steps))
        async with asyncio.timeout(PATIENCE_S):
            while not await admin.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await admin.execute("SELECT pg_sleep(0.01)")
            assert await turn.fetch("SELECT x FROM a") == []
            assert not task.done()
            await dump.execute("COMMIT")
            assert await task == 2
        assert "such as a backup" in caplog.text
        assert "from schema version 1 to 2" in caplog.text
    finally:
        for each in opened:
            each.terminate()
        await admin.execute("DROP SCHEMA waits CASCADE")
        await admin.close()


async def test_whoever_migrates_is_waited_for_however_long_it_takes(
    database: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migration, "_WAIT_MS", 1)
    admin = await asyncpg.connect(database.url)
    await admin.execute("CREATE SCHEMA turns")
    second = await asyncpg.connect(database.url, server_settings={"search_path": "turns"})
    try:
        await admin.execute(f"BEGIN; SELECT pg_advisory_xact_lock({migration._LOCK})")
        task = asyncio.create_task(migrate(second, "turns", ((1, 1, "CREATE TABLE a (x BIGINT)"),)))
        async with asyncio.timeout(PATIENCE_S):
            while not await admin.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await admin.execute("SELECT pg_sleep(0.01)")
            await admin.execute("SELECT pg_sleep(0.05); COMMIT")
            assert await task == 1
        assert caplog.messages == []
    finally:
        second.terminate()
        await admin.execute("DROP SCHEMA turns CASCADE")
        await admin.close()


@pytest.mark.parametrize(("oldest", "runs"), [(1, True), (99, False)], ids=["added to", "changed"])
async def test_a_newer_schema_is_used_where_it_only_adds(
    open_store: OpenStore, database: PostgresServer, oldest: int, runs: bool
) -> None:
    connection = await asyncpg.connect(database.url)
    await connection.execute("INSERT INTO schema_versions (version, oldest) VALUES (99, $1)", oldest)
    try:
        if runs:
            assert await (await open_store()).keys.list() == ()
        else:
            with pytest.raises(TooNew):
                await open_store()
    finally:
        await connection.execute("DELETE FROM schema_versions WHERE version = 99")
        await connection.close()


async def test_a_gateway_of_the_version_before_forgets_the_metadata_of_a_passage(
    open_store: OpenStore, database: PostgresServer
) -> None:
    store = await open_store()
    agent = (await make_agent(store, "ann")).agent
    await store.passages.add(agent.id, [PassageDraft("text", 1.0, metadata={"url": "x"})])
    connection = await asyncpg.connect(database.url)
    try:
        for text, left in (("other", '{"url":"x"}'), ("", None)):
            await connection.execute("UPDATE passages SET text = $1", text)
            assert await connection.fetchval("SELECT metadata FROM passages") == left
    finally:
        await connection.close()


async def test_jobs_of_an_older_schema_stand_in_their_lanes(database: PostgresServer) -> None:
    connection = await asyncpg.connect(database.url)
    await connection.execute("CREATE SCHEMA older; SET search_path = older")
    try:
        await migrate(connection, "older", load_migrations()[:3])
        numbers = iter(range(1, 10))
        add = re.sub(r"\?", lambda _: f"${next(numbers)}", JOBS_BEFORE_LANES)
        await connection.executemany(add, JOBS)
        await migrate(connection, "older")
        found = await connection.fetch("SELECT key FROM jobs WHERE first = 1 ORDER BY id")
        assert [tuple(row) for row in found] == FIRST
        # A gateway of the version before does not know of lanes.
        await connection.execute("DELETE FROM jobs WHERE key = 'running'")
        await connection.execute("UPDATE jobs SET state = 'dead' WHERE key = 'waits'")
        await connection.execute(add, 1, "learn", "new", "pending", 1.0, b"{}")
        found = await connection.fetch("SELECT agent, key FROM jobs WHERE first = 1 AND agent IN (1, 2)")
        assert sorted(tuple(row) for row in found) == [(1, "behind"), (2, "behind")]
    finally:
        await connection.execute("DROP SCHEMA older CASCADE")
        await connection.close()


async def test_tables_of_somebody_else_are_left_alone(database: PostgresServer) -> None:
    connection = await asyncpg.connect(database.url)
    await connection.execute("CREATE SCHEMA theirs; SET search_path = theirs; CREATE TABLE jobs (id BIGINT)")
    try:
        with pytest.raises(Foreign, match="jobs"):
            await migrate(connection, "theirs")
        assert await connection.fetchval("SELECT to_regclass('theirs.agents')") is None
    finally:
        await connection.execute("DROP SCHEMA theirs CASCADE")
        await connection.close()


def test_rows_that_change_with_every_turn_stay_in_their_pages() -> None:
    """An index on what a turn changes would have each change rewritten in all of them."""
    script = load_migrations()[0][2]
    for table in ("exchanges", "agents", "conversations"):
        assert re.search(rf"CREATE TABLE {table} \(.*?\) WITH \(fillfactor = \d\d\);", script, re.DOTALL)
    indexes = re.findall(
        r"^CREATE (?:UNIQUE )?INDEX \w+ ON (?:exchanges|agents|conversations) [^;]*;", script, re.M
    )
    assert len(indexes) > 5
    assert not [each for each in indexes if re.search(r"\b(carried|rev|next_seq|last_at|tip)\b", each)]
