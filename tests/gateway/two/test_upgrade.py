"""A schema serves its own version and the one before: a new version migrates it while the old version serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from storage.errors import SchemaTooNew
from storage.postgres.migration import PostgresMigration, get_latest_version, load_migrations, migrate
from tests.gateway.process import command
from tests.gateway.two.deployment import Deployment
from tests.gateway.two.simulated_users import HistoryUser, PastTurn, make_messages

MIGRATIONS = load_migrations()
LAST = get_latest_version(MIGRATIONS)
# A migration of the next version: it only adds columns and tables, so this version may run on its schema.
NEXT = PostgresMigration(
    LAST,
    LAST + 1,
    "ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';"
    "ALTER TABLE exchanges ADD COLUMN weight BIGINT NOT NULL DEFAULT 0;"
    "CREATE TABLE moods (id BIGINT PRIMARY KEY)",
    oldest_program=LAST,
)
# A migration of the version after that: it renames a column that this version needs.
AFTER = PostgresMigration(
    LAST + 1, LAST + 2, "ALTER TABLE agents RENAME COLUMN indexed_seq TO gone_seq", oldest_program=LAST + 1
)


def upgrade(url: str, *more: PostgresMigration) -> int:
    """Migrates a database as a version with `more` migrations does at its start. Returns the schema's version."""
    return asyncio.run(_upgrade(url, (*MIGRATIONS, *more)))


async def _upgrade(url: str, migrations: Sequence[PostgresMigration]) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await migrate(connection, "the database", tuple(migrations))
    finally:
        await connection.close()


@pytest.fixture
def own(postgres: str, url: str) -> str:
    """The URL of a database of the test's own, whose schema the test may change."""

    async def make() -> None:
        connection = await asyncpg.connect(postgres)
        await connection.execute("DROP DATABASE IF EXISTS upgraded WITH (FORCE)")
        await connection.execute("CREATE DATABASE upgraded")
        await connection.close()

    asyncio.run(make())
    before, _, after = url.partition("?")
    return f"{before.rpartition('/')[0]}/upgraded" + (f"?{after}" if after else "")


def test_an_old_gateway_serves_on_a_newer_schema(tmp_path: Path, own: str) -> None:
    with Deployment(tmp_path, gateways=2, url=own) as deployment:
        user = HistoryUser(deployment, "qupx", 0)
        past: list[PastTurn] = []

        def take_turn() -> None:
            _, text = user.make_message()
            reply, _ = user.send(make_messages(past, text))
            assert not reply.unstored_reason
            past.append(PastTurn(text, reply.text))

        for _ in range(2):
            take_turn()
        assert upgrade(own, NEXT) == LAST + 1
        for _ in range(3):
            take_turn()
        # A gateway that starts now finds the newer schema, and may run on it.
        deployment.gateways[0].kill()
        deployment.gateways[0].start()
        for _ in range(4):
            take_turn()
        # A start of either version leaves the schema as it is.
        assert upgrade(own) == LAST + 1
        assert upgrade(own, NEXT) == LAST + 1


def test_a_program_that_is_too_old_does_not_start(tmp_path: Path, own: str) -> None:
    upgrade(own, NEXT, AFTER)
    with pytest.raises(SchemaTooNew, match=f"{LAST + 2}"):
        upgrade(own)
    # The version between the two may still run.
    assert upgrade(own, NEXT) == LAST + 2
    process = command("migrate", where=tmp_path, environ={"MNEMOGATE_DATABASE_URL": own})
    assert process.returncode != 0
    assert f"schema version {LAST + 2}" in process.stderr


def test_check_config_reports_that_a_start_migrates_the_schema(tmp_path: Path, own: str) -> None:
    upgrade(own)

    async def rewind() -> None:
        connection = await asyncpg.connect(own)
        await connection.execute("UPDATE schema_versions SET version = version - 1")
        await connection.close()

    asyncio.run(rewind())
    process = command("check-config", where=tmp_path, environ={"MNEMOGATE_DATABASE_URL": own})
    assert process.returncode == 0
    assert f"schema version {LAST - 1}, which a start brings to {LAST};" in process.stderr


def test_a_migration_that_fails_leaves_no_change(own: str) -> None:
    broken = PostgresMigration(
        LAST, LAST + 1, "CREATE TABLE half (id BIGINT); SELECT 1 / 0", oldest_program=LAST
    )
    with pytest.raises(asyncpg.DivisionByZeroError):
        upgrade(own, broken)
    assert upgrade(own) == LAST

    async def has_no_table() -> bool:
        connection = await asyncpg.connect(own)
        try:
            return await connection.fetchval("SELECT to_regclass('half')") is None
        finally:
            await connection.close()

    assert asyncio.run(has_no_table())
