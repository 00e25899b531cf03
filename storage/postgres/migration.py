"""Migration of a database to the schema that this program knows. Each step is a transaction of its own.

The table `schema_versions` has the steps that were taken. Its column `oldest` names the oldest program that may run on
the schema, by the schema version that the program knows: a program runs on a newer schema if its version is at least
that. Released files never change.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import NamedTuple

import asyncpg

from storage.errors import ForeignDatabase, SchemaTooNew, SchemaTooOld, ServerRefused
from storage.postgres.connection import RawConnection

_log = logging.getLogger("mnemogate")

# Any number that other users of the server are unlikely to lock: "Mnemogat" in ASCII.
_LOCK = 0x4D6E656D6F676174

# The time that a step waits for a table in use by other sessions, while turns wait for the step. Then the turns go on,
# and the step is tried again after a pause. The server makes a vacuum give way after one second, and a dump never.
_WAIT_MS = 1_500
_PAUSE_S = 10.0
# The time between two statements of a step after which the server ends the session: a stopped process holds the locks.
_IDLE_MS = 10_000

_VERSIONS = """CREATE TABLE IF NOT EXISTS schema_versions (
    version BIGINT PRIMARY KEY, oldest BIGINT NOT NULL, applied TIMESTAMPTZ NOT NULL DEFAULT now())"""


class PostgresMigration(NamedTuple):
    """A step from one version of the schema to a later one."""

    # The version from which the step begins; 0: there are no tables.
    from_version: int
    # The version of the schema after the step.
    to_version: int
    # The SQL of the step.
    script: str
    # The oldest program that may run on the schema after the step, by the schema version that it knows.
    oldest_program: int


class SchemaVersion(NamedTuple):
    """The version of a database's schema, and the programs that may run on it."""

    # The version of the schema; 0: the database has no schema.
    version: int
    # The oldest program that may run on the schema, by the schema version that it knows.
    oldest_program: int


NO_SCHEMA = SchemaVersion(version=0, oldest_program=0)


def load_migrations() -> tuple[PostgresMigration, ...]:
    """Returns the steps in order. The name of a file has the versions before and after its step.

    A script names the oldest program on a line `-- oldest: n`. An empty database begins with a step of its own.
    """
    migrations = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})-(\d{4})_\w+\.sql", file.name):
            script = file.read_text(encoding="utf-8")
            oldest = re.search(r"^-- oldest: (\d+)$", script, re.MULTILINE)
            from_version = int(match[1])
            to_version = int(match[2])
            oldest_program = int(oldest[1]) if oldest else to_version
            migrations.append(PostgresMigration(from_version, to_version, script, oldest_program))
    return tuple(sorted(migrations))


def get_latest_version(migrations: Iterable[PostgresMigration]) -> int:
    """Returns the version to which the steps lead."""
    return max(step.to_version for step in migrations)


async def migrate(
    raw: RawConnection, name: str, migrations: Sequence[PostgresMigration] | None = None
) -> int:
    """Applies the missing steps. Returns the version of the schema.

    Raises: SchemaTooNew, SchemaTooOld, ForeignDatabase; ServerRefused if the role may not change tables; asyncpg's
        errors.
    """
    steps = load_migrations() if migrations is None else migrations
    latest_version = get_latest_version(steps)
    earlier_schema = await read_version(raw)
    schema = earlier_schema
    while schema.version < latest_version:
        await _apply_steps(raw, name, steps)
        schema = await read_version(raw)
    if 0 < earlier_schema.version < latest_version:
        _log.warning(
            "%s was upgraded from schema version %d to %d.", name, earlier_schema.version, schema.version
        )
    if schema.oldest_program > latest_version:
        raise SchemaTooNew(name, schema.version, latest_version)
    return schema.version


async def read_version(raw: RawConnection) -> SchemaVersion:
    """Returns the version of the schema; `NO_SCHEMA` if there is none."""
    if await raw.fetchval("SELECT to_regclass('schema_versions')") is None:
        return NO_SCHEMA
    row = await raw.fetchrow("SELECT version, oldest FROM schema_versions ORDER BY version DESC LIMIT 1")
    return NO_SCHEMA if row is None else SchemaVersion(row[0], row[1])


async def _apply_steps(raw: RawConnection, name: str, steps: Sequence[PostgresMigration]) -> None:
    """Applies the next step, unless another session has done so meanwhile."""
    while True:
        try:
            async with raw.transaction():
                return await _apply_next_step(raw, name, steps)
        except asyncpg.InsufficientPrivilegeError as error:
            raise ServerRefused(
                f"{name}: {error}. Bring the schema to version {get_latest_version(steps)} as another role: "
                "mnemogate migrate."
            ) from error
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            # A turn may hold one table and wait for another, which the step has locked.
            _log.warning("The upgrade of %s waits for another session, such as a backup.", name)
        await asyncio.sleep(_PAUSE_S)


async def _apply_next_step(raw: RawConnection, name: str, steps: Sequence[PostgresMigration]) -> None:
    """Applies the next step, in the transaction of a connection; a database at the latest version stays as it is.

    Raises: SchemaTooOld, ForeignDatabase.
    """
    # Gateways that start at the same time wait for each other, however long a step takes. The later ones find it done.
    await raw.execute(
        "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0;"
        f" SET LOCAL idle_in_transaction_session_timeout = {_IDLE_MS}"
    )
    await raw.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
    await raw.execute(f"SET LOCAL lock_timeout = {_WAIT_MS}")
    await raw.execute(_VERSIONS)
    version = (await read_version(raw)).version
    if version >= get_latest_version(steps):
        return
    step = next((step for step in steps if step.from_version == version), None)
    if step is None:
        raise SchemaTooOld(name, version)
    try:
        await raw.execute(step.script)
    except (
        asyncpg.DuplicateTableError,
        asyncpg.DuplicateObjectError,
        asyncpg.DuplicateFunctionError,
    ) as error:
        raise ForeignDatabase(
            f"{name} has tables that are not ours ({error}). Give Mnemogate a database, or a schema, of its own."
        ) from error
    await raw.execute(
        "INSERT INTO schema_versions (version, oldest) VALUES ($1, $2)", step.to_version, step.oldest_program
    )
