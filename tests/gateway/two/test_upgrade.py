"""Schema n serves programs of n and n-1: a new version brings the schema up while the old one serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from storage.errors import TooNew
from storage.postgres.migration import PostgresMigration, get_latest_version, load_migrations, migrate
from tests.gateway.process import command
from tests.gateway.two.people import Whole, messages_of
from tests.gateway.two.world import World

PRESENT = load_migrations()
LAST = get_latest_version(PRESENT)
# As a next version would: it only adds, and the present program may run on it.
NEXT = PostgresMigration(
    LAST,
    LAST + 1,
    "ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';"
    "ALTER TABLE exchanges ADD COLUMN weight BIGINT NOT NULL DEFAULT 0;"
    "CREATE TABLE moods (id BIGINT PRIMARY KEY)",
    oldest=LAST,
)
# The one after that takes away what the present program needs.
AFTER = PostgresMigration(
    LAST + 1, LAST + 2, "ALTER TABLE agents RENAME COLUMN indexed_seq TO gone_seq", oldest=LAST + 1
)


def upgrade(url: str, *more: PostgresMigration) -> int:
    """Does what a program with these migrations does at its start."""
    return asyncio.run(_upgrade(url, (*PRESENT, *more)))


async def _upgrade(url: str, steps: Sequence[PostgresMigration]) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await migrate(connection, "the database", tuple(steps))
    finally:
        await connection.close()


@pytest.fixture
def own(postgres: str, url: str) -> str:
    """A database that may have another schema in the end."""

    async def make() -> None:
        connection = await asyncpg.connect(postgres)
        await connection.execute("DROP DATABASE IF EXISTS upgraded WITH (FORCE)")
        await connection.execute("CREATE DATABASE upgraded")
        await connection.close()

    asyncio.run(make())
    before, _, after = url.partition("?")
    return f"{before.rpartition('/')[0]}/upgraded" + (f"?{after}" if after else "")


def test_an_old_gateway_serves_on_a_newer_schema(tmp_path: Path, own: str) -> None:
    with World(tmp_path, gateways=2, url=own) as world:
        person = Whole(world, "qupx", 0)
        past: list[tuple[str, str]] = []

        def talk() -> None:
            _, text = person.new()
            said, _ = person.send(messages_of(past, text))
            assert not said.unkept
            past.append((text, said.text))

        for _ in range(2):
            talk()
        assert upgrade(own, NEXT) == LAST + 1
        for _ in range(3):
            talk()
        # One that starts now finds the newer schema, and may run on it.
        world.gateways[0].kill()
        world.gateways[0].start()
        for _ in range(4):
            talk()
        # Two versions that start side by side leave the schema as it is.
        assert upgrade(own) == LAST + 1
        assert upgrade(own, NEXT) == LAST + 1


def test_a_program_that_is_too_old_does_not_start(tmp_path: Path, own: str) -> None:
    upgrade(own, NEXT, AFTER)
    with pytest.raises(TooNew, match=f"{LAST + 2}"):
        upgrade(own)
    # The version in between may still run.
    assert upgrade(own, NEXT) == LAST + 2
    found = command("migrate", where=tmp_path, environ={"MNEMOGATE_DATABASE_URL": own})
    assert found.returncode != 0
    assert f"schema version {LAST + 2}" in found.stderr


def test_check_config_says_that_a_start_brings_the_schema_up(tmp_path: Path, own: str) -> None:
    upgrade(own)

    async def rewind() -> None:
        connection = await asyncpg.connect(own)
        await connection.execute("UPDATE schema_versions SET version = version - 1")
        await connection.close()

    asyncio.run(rewind())
    found = command("check-config", where=tmp_path, environ={"MNEMOGATE_DATABASE_URL": own})
    assert found.returncode == 0
    assert f"schema version {LAST - 1}, which a start brings to {LAST};" in found.stderr


def test_a_migration_that_fails_leaves_nothing_of_itself(own: str) -> None:
    broken = PostgresMigration(LAST, LAST + 1, "CREATE TABLE half (id BIGINT); SELECT 1 / 0", oldest=LAST)
    with pytest.raises(asyncpg.DivisionByZeroError):
        upgrade(own, broken)
    assert upgrade(own) == LAST

    async def tables() -> bool:
        connection = await asyncpg.connect(own)
        try:
            return await connection.fetchval("SELECT to_regclass('half')") is None
        finally:
            await connection.close()

    assert asyncio.run(tables())
