"""A look at a database that gateways may be serving: it leaves nothing and changes nothing."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

from storage.database import ServerFindings
from storage.postgres.connection import FAULTS, PostgresPlace, RawConnection, connect, translate
from storage.postgres.migration import find_version, load_migrations, migrate

_ANSWER_S = 2.0


class _Undone(Exception):
    """Ends a transaction that is not to be kept."""


async def inspect(place: PostgresPlace, ear: PostgresPlace) -> ServerFindings:
    """Says what is there. ear: where notifications are to arrive. Raises: StoreError."""
    raw = await connect(place)
    try:
        server = str(await raw.fetchval("SHOW server_version")).partition(" ")[0]
        version, _ = await find_version(raw)
        if not 0 < version < len(load_migrations()):
            await _try_migrating(raw, place.name)
        is_keyed = version > 0 and bool(await raw.fetchval("SELECT EXISTS (SELECT 1 FROM keys)"))
        hears = await _hears(raw, ear)
    except FAULTS as error:
        raise translate(error, place.name) from error
    finally:
        raw.terminate()
    return ServerFindings(server, version, is_keyed, hears)


async def _try_migrating(raw: RawConnection, name: str) -> None:
    """Makes the tables and takes them back. Raises: what keeps a start from it. (An upgrade would hold others up.)"""
    with suppress(_Undone):
        async with raw.transaction():
            await migrate(raw, name)
            raise _Undone


async def _hears(raw: RawConnection, ear: PostgresPlace) -> bool:
    """Returns whether what is told on one connection arrives on another."""
    other = await connect(ear)
    try:
        heard, channel = asyncio.Event(), f"mnemogate_{secrets.token_hex(6)}"
        await other.add_listener(channel, lambda *_: heard.set())
        await raw.fetch("SELECT pg_notify($1, '')", channel, timeout=_ANSWER_S)
        async with asyncio.timeout(_ANSWER_S):
            await heard.wait()
    except TimeoutError:
        return False
    finally:
        other.terminate()
    return True
