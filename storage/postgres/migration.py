"""Migration of a database to the schema this program knows; each step is a transaction of its own.

The steps taken are in the table `schema_versions`. `oldest` is the oldest program that may run on that schema, by the
last step it knows: a program that finds a newer schema runs where that allows it. Files are append-only once released.
"""

from __future__ import annotations

import asyncio
import logging
import re
from importlib import resources

import asyncpg

from storage.errors import Foreign, TooNew
from storage.postgres.connection import RawConnection

_log = logging.getLogger("mnemogate")

# Any number that other users of the server are unlikely to lock: "Mnemogat" in ASCII.
_LOCK = 0x4D6E656D6F676174

# A step waits so long for a table that others use, and all turns wait for it; then they go on, and the step is tried
# again. The server has a vacuum make way after one second, and a dump never.
_WAIT_MS, _PAUSE_S = 1_500, 10.0

_VERSIONS = """CREATE TABLE IF NOT EXISTS schema_versions (
    version BIGINT PRIMARY KEY, oldest BIGINT NOT NULL, applied TIMESTAMPTZ NOT NULL DEFAULT now())"""

_Migration = tuple[int, int, str]


def load_migrations() -> tuple[_Migration, ...]:
    """Returns (number, oldest, script) in order. A script names the oldest program on a line `-- oldest: n`.

    Raises: ValueError when a number is missing.
    """
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name):
            script = file.read_text(encoding="utf-8")
            oldest = re.search(r"^-- oldest: (\d+)$", script, re.MULTILINE)
            found.append((int(match[1]), int(oldest[1]) if oldest else int(match[1]), script))
    found.sort()
    if [number for number, _, _ in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations must be numbered from 1 without gaps: {[n for n, _, _ in found]}")
    return tuple(found)


async def migrate(raw: RawConnection, name: str, migrations: tuple[_Migration, ...] | None = None) -> int:
    """Applies what is missing and returns the version. Raises: TooNew, Foreign; asyncpg's errors."""
    steps = load_migrations() if migrations is None else migrations
    found, oldest = await find_version(raw)
    if found < steps[-1][0]:
        before = found
        for number, allowed, script in steps:
            await _apply(raw, name, number, allowed, script)
        found, oldest = await find_version(raw)
        if before:
            _log.warning("%s was upgraded from schema version %d to %d.", name, before, found)
    if oldest > steps[-1][0]:
        raise TooNew(name, found, steps[-1][0])
    return found


async def find_version(raw: RawConnection) -> tuple[int, int]:
    """Returns the version of the schema, and the oldest program that may run on it; (0, 0): there is none."""
    if await raw.fetchval("SELECT to_regclass('schema_versions')") is None:
        return 0, 0
    row = await raw.fetchrow("SELECT version, oldest FROM schema_versions ORDER BY version DESC LIMIT 1")
    return (0, 0) if row is None else (row[0], row[1])


async def _apply(raw: RawConnection, name: str, number: int, oldest: int, script: str) -> None:
    while True:
        try:
            async with raw.transaction():
                return await _try_to_apply(raw, name, number, oldest, script)
        except asyncpg.LockNotAvailableError:
            _log.warning("The upgrade of %s waits for another session, such as a backup.", name)
        await asyncio.sleep(_PAUSE_S)


async def _try_to_apply(raw: RawConnection, name: str, number: int, oldest: int, script: str) -> None:
    # Gateways that start side by side take turns, however long one takes; the second one finds the work done.
    await raw.execute("SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
    await raw.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
    await raw.execute(f"SET LOCAL lock_timeout = {_WAIT_MS}")
    await raw.execute(_VERSIONS)
    if await raw.fetchval("SELECT count(*) FROM schema_versions WHERE version >= $1", number):
        return
    try:
        await raw.execute(script)
    except (
        asyncpg.DuplicateTableError,
        asyncpg.DuplicateObjectError,
        asyncpg.DuplicateFunctionError,
    ) as error:
        raise Foreign(
            f"{name} has tables that are not ours ({error}). Give Mnemogate a database, or a schema, of its own."
        ) from error
    await raw.execute("INSERT INTO schema_versions (version, oldest) VALUES ($1, $2)", number, oldest)
