"""The inspection of a database that gateways may be serving. It changes nothing."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

from storage.database import ANY_KEY, ServerFindings
from storage.errors import StoreError, StoreReadOnly
from storage.postgres.connection import PostgresTarget, RawConnection, connect
from storage.postgres.database_server import TEST_READ
from storage.postgres.migration import get_latest_version, load_migrations, migrate, read_version
from storage.postgres.sqlstates import ASYNCPG_ERRORS, translate_error

# The time within which a session of a pooler answers.
_ANSWER_S = 2.0
_PROBE = "SELECT 1"


class _RollBack(Exception):
    """Leaves a transaction, which is then rolled back."""


async def inspect(target: PostgresTarget, listen_target: PostgresTarget) -> ServerFindings:
    """Inspects a database. listen_target: the target at which notifications arrive. Raises: StoreError."""
    raw = await connect(target)
    try:
        server = str(await raw.fetchval("SHOW server_version")).partition(" ")[0]
        version = (await read_version(raw)).version
        latest_version = get_latest_version(load_migrations())
        is_older = 0 < version < latest_version
        if not is_older:  # trying an upgrade would make other users of the database wait
            await _try_migrating(raw, target.name)
        if version == latest_version:
            await raw.execute(TEST_READ)
        if await raw.fetchval("SHOW transaction_read_only") == "on":
            raise StoreReadOnly(
                f"{target.name} is read-only: a replica, or default_transaction_read_only is on"
            )
        is_keyed = version > 0 and bool(await raw.fetchval(ANY_KEY))
        if target.is_pooled and target.pooler_prepares:
            await _check_prepared_statements(raw, target)
        listen_fault = await _find_listen_fault(raw, listen_target)
    except ASYNCPG_ERRORS as error:
        raise translate_error(error, target.name) from error
    finally:
        raw.terminate()
    return ServerFindings(server, version, latest_version, is_keyed, listen_fault)


async def _try_migrating(raw: RawConnection, name: str) -> None:
    """Makes the tables in a transaction that is rolled back. Raises: StoreError, asyncpg's errors."""
    with suppress(_RollBack):
        async with raw.transaction():
            await migrate(raw, name)
            raise _RollBack


async def _check_prepared_statements(raw: RawConnection, target: PostgresTarget) -> None:
    """Checks that a pooler runs a prepared statement in another session too. Raises: StoreError, asyncpg's errors."""
    other_raw = await connect(target)
    try:
        await raw.fetch(_PROBE)
        with suppress(TimeoutError):  # a pooler with one session has no other
            async with other_raw.transaction():
                # The pooler gives this connection the session that was used last, which it holds. So `raw` gets another
                # session, in which the statement was not prepared.
                await other_raw.fetch(_PROBE, timeout=_ANSWER_S)
                await raw.fetch(_PROBE, timeout=_ANSWER_S)
    finally:
        other_raw.terminate()


async def _find_listen_fault(raw: RawConnection, listen_target: PostgresTarget) -> str | None:
    """Returns why notifications do not arrive between connections; None: notifications arrive."""
    try:
        listener = await connect(listen_target)
    except StoreError as error:
        return error.message
    try:
        has_arrived = asyncio.Event()
        channel = f"mnemogate_{secrets.token_hex(6)}"
        await listener.add_listener(channel, lambda *_: has_arrived.set())
        await raw.fetch("SELECT pg_notify($1, '')", channel, timeout=_ANSWER_S)
        async with asyncio.timeout(_ANSWER_S):
            await has_arrived.wait()
    except TimeoutError:
        return "name the server itself in database.listen_url"
    finally:
        listener.terminate()
    return None
