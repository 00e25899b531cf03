"""The schema: the same tables and columns as SQLite's, migrated once, and refused where it is somebody else's."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from hashlib import sha256
from importlib import resources
from typing import Any

import asyncpg
import pytest

from storage.errors import ForeignDatabase, SchemaTooNew, SchemaTooOld, ServerRefused
from storage.listing import PassageDraft
from storage.postgres import migration
from storage.postgres.migration import PostgresMigration, get_latest_version, load_migrations, migrate
from storage.sqlite.migration import migrate as migrate_sqlite
from tests.patience import PATIENCE_S
from tests.storage.api import make_agent
from tests.storage.conftest import OpenStore, PostgresServer

# The SHA-256 of each migration. Databases out there were made by these files, so a file that is here never changes:
# a change of the schema is a new file, with a line here.
PINNED = {
    "0000-0008_begin.sql": "b42865e948d87b9c4d80e4cd48e4e04c3fd80eea0972f84aa6f660c81d63259a",
    "0004-0007_forks.sql": "2f0a69cde99812c802970d786dccf4e9fed903bb3d7268448885acc7296bd258",
    "0007-0008_names.sql": "bdc8dd7997a440659b1f222f991f4fde6f791426ce1196ba219e1ee6ccafb189",
    "0008-0009_page.sql": "bfb08a33d4d806f816d59f5256403635a4b64777c067a996ebdca5d6c3a64fc1",
    "0009-0010_responses.sql": "8be1719eb7c39d6f3a2aa894ecd1a25181f546cabd2897e4b0dd214b00652e35",
    "0010-0011_begun.sql": "b724cdcc95e789c8956c60c3132f073c9c5f91775add46c77d3793b6d36db15d",
    "0011-0012_usage.sql": "3d9f9aa2aee07b58b8be019c450d731130a999b53976afc0df750bad313ecdd8",
    "0012-0013_standing.sql": "17f0af582f4d4dc166167ae4ab76e18aaac01e3887a518bcbef4780fc6de32db",
    "0013-0014_secrets.sql": "ddf3b2e31f7b6c7177a1873a976b4bd95298d8cece66a1ee08d8b7d761d058f5",
    "0014-0015_imports.sql": "ff0c99a58d3e7792210be0247aeb4532b96614c88b87ae3c0f63e7c96f63a472",
    "0015-0016_segments.sql": "450f368f5b0948b1ccef1469112dcafbbcae8be39ed70fc312309bb0499a303f",
    "0016-0017_answered.sql": "77e16113ce2ab3e60fe46a1ab8a0bf6f410cc180356ce5552f38433a1d00660d",
    "0017-0018_people.sql": "3106ce94e1a32c8d8cfb1ac9f9daa1d459814d5225bc5a7755b21870812cf2ca",
    "0018-0019_installed.sql": "1d3cb207fa1ed35828cf6d325c3ff815bc41885967277d43d32c4cbbbdf66ac7",
    "0019-0020_seen.sql": "345b313e7c090937b176e552d644a350ed3dd4fc76e76b1be5c4918e623931d8",
    "0020-0021_questions.sql": "4950978fa1c76a7413221292b39052e6809ec16c0a6f38fe0ab1b596319a1281",
    "0021-0022_parts.sql": "77d40948b38ba9286d1c4ab70db2e88cc45e0b0f67fe1315da7e0c975f2e7d50",
    "0022-0023_rows.sql": "4a5b78781c8e2a0fbea5fae650108818792237e5ac2daa86a1ff4ab8920f6629",
    "0023-0024_user_usage.sql": "aa32ed037b635d4d9b29419dcf6e75081179433505f387f5879bc10dff80e2e9",
    "0024-0025_evicted.sql": "df91356c89657cd367c0f0c504c9ace1d9d11a40a9b649f2f15d18992b185d76",
    "0025-0026_counted.sql": "4ad9ce9ad1bd3a99c0acfa3d1a073ed5ec1ca591440315763cba1196b0207013",
    "0026-0027_project_runs.sql": "28a5a9356e5706dcb247ffd9ab9240699e5b511d27dff640f7af0b74653060e0",
    "0027-0028_project_conversations.sql": "33ea77005b530d38598d5fe0f7e1fe9359641ccc2586b73cfa3b53fa5391cc7d",
}
SCHEMAS = resources.files("tests.storage.schemas")
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


def steps_of_a_new_schema() -> list[int]:
    """Returns the versions to which the steps of an empty database lead, one after the other."""
    after = {step.from_version: step.to_version for step in load_migrations()}
    versions = [after[0]]
    while versions[-1] in after:
        versions.append(after[versions[-1]])
    return versions


async def test_gateways_that_start_side_by_side_migrate_once(database: PostgresServer) -> None:
    admin = await asyncpg.connect(database.url)
    await admin.execute("CREATE SCHEMA beside")
    opened = [
        await asyncpg.connect(database.url, server_settings={"search_path": "beside"}) for _ in range(4)
    ]
    try:
        versions = await asyncio.gather(*(migrate(each, "beside") for each in opened))
        assert set(versions) == {get_latest_version(load_migrations())}
        assert await opened[0].fetchval("SELECT count(*) FROM schema_versions") == len(
            steps_of_a_new_schema()
        )
    finally:
        for each in opened:
            await each.close()
        await admin.execute("DROP SCHEMA beside CASCADE")
        await admin.close()


async def test_turns_go_on_while_a_migration_waits_for_a_backup(
    database: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migration, "_PAUSE_S", 0.01)
    first = PostgresMigration(0, 1, "CREATE TABLE a (x BIGINT)", 1)
    steps = (first, PostgresMigration(1, 2, "ALTER TABLE a ADD COLUMN y BIGINT", 1))
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


async def test_a_migration_that_waits_for_a_turn_that_waits_for_it_is_tried_again(
    database: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_PAUSE_S", 0.01)
    tables = PostgresMigration(0, 1, "CREATE TABLE a (x BIGINT); CREATE TABLE b (x BIGINT)", 1)
    columns = "ALTER TABLE a ADD COLUMN y BIGINT; ALTER TABLE b ADD COLUMN y BIGINT"
    admin = await asyncpg.connect(database.url)
    await admin.execute("CREATE SCHEMA crossed")
    upgrade, turn = [
        await asyncpg.connect(
            database.url, server_settings={"search_path": "crossed", "deadlock_timeout": wait}
        )
        for wait in ("1s", "60s")
    ]
    try:
        await migrate(upgrade, "crossed", (tables,))
        await turn.execute("BEGIN; INSERT INTO b VALUES (1)")
        steps = (tables, PostgresMigration(1, 2, columns, 1))
        task = asyncio.create_task(migrate(upgrade, "crossed", steps))
        async with asyncio.timeout(PATIENCE_S):
            while not await admin.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await admin.execute("SELECT pg_sleep(0.01)")
            # The migration is ended: by the server as one of a deadlock, or since it has waited for too long.
            await turn.execute("INSERT INTO a VALUES (1); COMMIT")
            assert await task == 2
    finally:
        for each in (upgrade, turn):
            each.terminate()
        await admin.execute("DROP SCHEMA crossed CASCADE")
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
        task = asyncio.create_task(
            migrate(second, "turns", (PostgresMigration(0, 1, "CREATE TABLE a (x BIGINT)", 1),))
        )
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


async def test_a_step_takes_longer_than_the_statements_of_its_role_may(database: PostgresServer) -> None:
    """Managed servers bound them by some seconds, and an index of many turns takes longer."""
    admin = await asyncpg.connect(database.url)
    await admin.execute("CREATE SCHEMA bounded")
    raw = await asyncpg.connect(
        database.url, server_settings={"search_path": "bounded", "statement_timeout": "200ms"}
    )
    try:
        step = PostgresMigration(0, 1, "CREATE TABLE a (x BIGINT); SELECT pg_sleep(0.4)", 1)
        assert await migrate(raw, "bounded", (step,)) == 1
        assert await raw.fetchval("SHOW statement_timeout") == "200ms"
    finally:
        raw.terminate()
        await admin.execute("DROP SCHEMA bounded CASCADE")
        await admin.close()


class _Stopped:
    """A connection whose process is stopped, as by SIGSTOP, before the last statement of a migration."""

    def __init__(self, raw: asyncpg.Connection) -> None:
        self._raw = raw
        self.is_stopped = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    async def execute(self, statement: str, *values: object) -> str:
        if statement.startswith("INSERT INTO schema_versions"):
            self.is_stopped.set()
            await asyncio.Event().wait()
        return str(await self._raw.execute(statement, *values))


async def test_a_process_that_is_stopped_while_it_migrates_blocks_no_other(
    database: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_IDLE_MS", 100, raising=False)
    admin = await asyncpg.connect(database.url)
    await admin.execute("CREATE SCHEMA stopped")
    settings = {"search_path": "stopped"}
    first, second = [await asyncpg.connect(database.url, server_settings=settings) for _ in range(2)]
    stopped = _Stopped(first)
    steps = (PostgresMigration(0, 1, "CREATE TABLE a (x BIGINT)", 1),)
    migrating = asyncio.create_task(migrate(stopped, "stopped", steps))  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(PATIENCE_S):
            await stopped.is_stopped.wait()
            assert await migrate(second, "stopped", steps) == 1
    finally:
        migrating.cancel()
        await asyncio.gather(migrating, return_exceptions=True)
        for each in (first, second):
            each.terminate()
        await admin.execute("DROP SCHEMA stopped CASCADE")
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
            with pytest.raises(SchemaTooNew):
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


async def lay(connection: asyncpg.Connection, schema: str, level: int) -> None:
    """Makes the tables as the program of an older schema did, with the rows of a file of SQLite's of that time."""
    await connection.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}")
    await connection.execute(SCHEMAS.joinpath("postgres_4.sql").read_text(encoding="utf-8"))
    await connection.execute("CREATE TABLE schema_versions (version BIGINT PRIMARY KEY, oldest BIGINT)")
    await connection.execute("INSERT INTO schema_versions VALUES (4, 3)")
    if level == 7:
        (step,) = (step for step in load_migrations() if step.from_version == 4)
        await connection.execute(step.script)
        await connection.execute("INSERT INTO schema_versions VALUES (7, 7)")
    file = sqlite3.connect(":memory:")
    file.executescript(SCHEMAS.joinpath(f"sqlite_{16 if level == 4 else 19}.sql").read_text(encoding="utf-8"))
    tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    # Triggers count new exchanges in the rows of these two, so they come last.
    for table in sorted(tables, key=lambda name: name in ("agents", "conversations")):
        columns = [
            row[1] for row in file.execute(f"PRAGMA table_info({table})") if (table, row[1]) not in PADDING
        ]
        if not table.startswith("sqlite_"):
            names = ", ".join(f'"{name}"' for name in columns)
            numbers = ", ".join(f"${n + 1}" for n in range(len(columns)))
            found = file.execute(f"SELECT {names} FROM {table}").fetchall()
            await connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({numbers})", found)
    file.close()


SHAPE = """SELECT 'index', indexname, replace(indexdef, current_schema() || '.', '') FROM pg_indexes
    WHERE schemaname = current_schema()
UNION ALL SELECT 'trigger', tgname, replace(pg_get_triggerdef(oid), current_schema() || '.', '') FROM pg_trigger
    WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace) AND NOT tgisinternal
UNION ALL SELECT 'function', proname, prosrc FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
UNION ALL SELECT table_name, column_name, data_type || is_nullable || coalesce(column_default, '')
    FROM information_schema.columns WHERE table_schema = current_schema() AND table_name <> 'schema_versions'"""


@pytest.mark.parametrize("level", [4, 7])
async def test_an_older_database_has_the_schema_of_a_new_one_and_its_rows(
    database: PostgresServer, level: int
) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute("CREATE SCHEMA fresh; SET search_path = fresh")
        await migrate(connection, "fresh")
        new = {shaped(row) for row in await connection.fetch(SHAPE)}
        await lay(connection, "older", level)
        assert await migrate(connection, "older") == get_latest_version(load_migrations())
        assert {shaped(row) for row in await connection.fetch(SHAPE)} == new
        found = await connection.fetch(
            "SELECT id, active, continued, shown_reply, redactions FROM exchanges ORDER BY id"
        )
        assert [tuple(row)[:3] for row in found] == [(1, 1, 1), (2, 1, 0), (3, 1, 0)]
        assert found[1]["shown_reply"] == b'{"role":"assistant","content":"Noted."}'
        assert found[2]["redactions"] == b"[0]"
        counts = (
            "SELECT messages FROM agents UNION ALL SELECT CAST(sum(e.messages) AS BIGINT) FROM exchanges e"
        )
        assert [tuple(row) for row in await connection.fetch(counts)] == [(5,), (5,)]
        assert await connection.fetchval("SELECT known FROM sections WHERE text = 'Section.'") == b"{}"
        rev = "SELECT rev FROM agents"
        before = await connection.fetchval(rev)
        await connection.execute("UPDATE exchanges SET active = 0 WHERE id = 3")
        assert await connection.fetchval(rev) == before + 1
    finally:
        await connection.execute("DROP SCHEMA IF EXISTS fresh CASCADE; DROP SCHEMA IF EXISTS older CASCADE")
        await connection.close()


async def test_counters_of_usage_are_added_up_for_each_user(database: PostgresServer) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute("CREATE SCHEMA counted; SET search_path = counted")
        await migrate(connection, "counted", [step for step in load_migrations() if step.to_version <= 23])
        add = """INSERT INTO usage (day, project, "user", key, upstream, model, requests)
            VALUES (1, 'p', $1, 0, 'up', $2, $3)"""
        await connection.executemany(add, [("alice", "m", 2), ("alice", "n", 3), ("bob", "m", 4)])
        await migrate(connection, "counted")
        found = await connection.fetch('SELECT "user", requests FROM user_usage ORDER BY "user"')
        assert [tuple(row) for row in found] == [("alice", 5), ("bob", 4)]
    finally:
        await connection.execute("DROP SCHEMA counted CASCADE")
        await connection.close()


def shaped(row: asyncpg.Record) -> tuple[str, ...]:
    """Returns a part of the schema without what its name or its comments say alone."""
    kind, name, text = row
    return kind, name, " ".join(re.sub(r"--.*", "", text).split())


async def test_a_database_that_is_too_old_is_refused_with_the_way(database: PostgresServer) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await lay(connection, "older", 4)
        await connection.execute("UPDATE schema_versions SET version = 2")
        with pytest.raises(SchemaTooOld, match=r"version 2, from which .* no upgrade\. .*memory export"):
            await migrate(connection, "older")
    finally:
        await connection.execute("DROP SCHEMA older CASCADE")
        await connection.close()


@pytest.mark.parametrize(
    "version", [0, get_latest_version(load_migrations()) - 1], ids=["no tables", "older"]
)
async def test_a_role_that_may_not_change_tables_is_told_what_to_do(
    database: PostgresServer, version: int
) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute("CREATE SCHEMA older; SET search_path = older")
        if version:
            await migrate(
                connection, "older", [step for step in load_migrations() if step.to_version <= version]
            )
        await connection.execute("""CREATE ROLE mnemogate_guest; GRANT USAGE ON SCHEMA older TO mnemogate_guest;
            GRANT ALL ON ALL TABLES IN SCHEMA older TO mnemogate_guest; SET ROLE mnemogate_guest""")
        with pytest.raises(
            ServerRefused, match=r"^older: permission denied .* as another role: mnemogate migrate"
        ):
            await migrate(connection, "older")
        await connection.execute("RESET ROLE")
        await migrate(connection, "older")
    finally:
        await connection.execute("RESET ROLE; DROP SCHEMA older CASCADE; DROP ROLE IF EXISTS mnemogate_guest")
        await connection.close()


async def test_tables_of_another_program_are_left_alone(database: PostgresServer) -> None:
    connection = await asyncpg.connect(database.url)
    await connection.execute("CREATE SCHEMA theirs; SET search_path = theirs; CREATE TABLE jobs (id BIGINT)")
    try:
        with pytest.raises(ForeignDatabase, match="jobs"):
            await migrate(connection, "theirs")
        assert await connection.fetchval("SELECT to_regclass('theirs.agents')") is None
    finally:
        await connection.execute("DROP SCHEMA theirs CASCADE")
        await connection.close()


def test_rows_that_change_with_every_turn_stay_in_their_pages() -> None:
    """An index on what a turn changes would have each change rewritten in all of them."""
    script = load_migrations()[0].script
    for table in ("exchanges", "agents", "conversations"):
        assert re.search(rf"CREATE TABLE {table} \(.*?\) WITH \(fillfactor = \d\d\);", script, re.DOTALL)
    indexes = re.findall(
        r"^CREATE (?:UNIQUE )?INDEX \w+ ON (?:exchanges|agents|conversations) [^;]*;", script, re.M
    )
    assert len(indexes) > 5
    assert not [each for each in indexes if re.search(r"\b(continued|rev|next_seq|last_at|tip)\b", each)]
