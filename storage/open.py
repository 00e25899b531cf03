"""Opens a store. No other module knows both the store and the databases below it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.database import Database, ServerFindings
from storage.errors import ServerRefused
from storage.sql.store import Store
from storage.sqlite.database import SqliteDatabase
from storage.store_rules import Rules

_MISSING_DRIVER = (
    "PostgreSQL needs a package that cannot be used: in the clone run "
    "pip install -e '.[postgres]', or uv sync --extra postgres"
)


async def open_store(
    target: str | Path,
    rules: Rules,
    *,
    now: Callable[[], float] | None = None,
    tick: Callable[[], float] | None = None,
    **options: Any,
) -> Store:
    """Opens the store in a SQLite file, or in the PostgreSQL database that a URL names.

    now: a clock, in seconds since the epoch; None: the machine's, or the database's if processes share it.
    tick: a monotonic clock, for leases; None: the machine's, or the database's if processes share it.
    options: the keyword arguments of `SqliteDatabase.open` or `PostgresDatabase.open`.

    Raises: the errors of that `open`.
    """
    if is_url(target):
        return Store(await _open_postgres(str(target), **options), rules, None, now, tick)
    database = await SqliteDatabase.open(target, **options)
    return Store(database, rules, database.path, now, tick)


def is_url(target: str | Path) -> bool:
    """Returns whether a target names a database on a PostgreSQL server."""
    return isinstance(target, str) and target.startswith(("postgresql://", "postgres://"))


async def inspect_server(
    url: str, *, is_pooled: bool, pooler_prepares: bool, listen_url: str | None
) -> ServerFindings:
    """Inspects a database that gateways may be serving. Raises: StoreError."""
    _check_driver()
    from storage.postgres.connection import PostgresTarget
    from storage.postgres.inspection import inspect

    return await inspect(PostgresTarget(url, is_pooled, pooler_prepares), PostgresTarget(listen_url or url))


async def _open_postgres(url: str, **options: Any) -> Database:
    _check_driver()
    from storage.postgres.database import PostgresDatabase

    return await PostgresDatabase.open(url, **options)


def _check_driver() -> None:
    """Imports asyncpg, which is an extra, before the modules that need it. Raises: ServerRefused."""
    try:
        import asyncpg  # noqa: F401
    except ImportError as error:
        raise ServerRefused(f"{_MISSING_DRIVER} ({error})") from error
