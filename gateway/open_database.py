"""Opens the database that the settings name. Other modules of the gateway know the store's types, and no database.

The one exception is gateway/operation_client.py, which asks the database's lock who serves it, and has to start fast.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Struct

from gateway.core.memory.rules import RULES
from gateway.errors import DatabaseInUse, GatewayError, SettingsError
from gateway.settings import DatabaseSettings, Settings
from storage.errors import FileOwned, StoreError, StoreUnavailable
from storage.open import inspect_server, open_store
from storage.search.rank import preload as preload
from storage.sql.keyed_file import was_keyed
from storage.sql.store import Store
from storage.sqlite.inspection import inspect
from storage.sqlite.mount import find_network_type


async def open_database(settings: Settings, address: str | None = None) -> Store:
    """Opens the store.

    address: the address at which this process serves; None: this process does not serve. The error that another process
        gets for the same file names the address.

    Raises: StoreError: the database cannot be opened, with the reason.
    """
    database = settings.database
    if database.url is not None:
        return await open_store(
            database.url,
            RULES,
            pool=database.pool,
            is_pooled=database.pooled,
            pooler_prepares=database.pooler_prepares,
            listen_url=database.listen_url,
        )
    return await open_store(database.path, RULES, address=address, synchronous=database.synchronous)


@asynccontextmanager
async def database_session(settings: Settings) -> AsyncIterator[Store]:
    """Opens the store for work outside of a server, and closes it after the block.

    Raises: DatabaseInUse; GatewayError: it cannot be opened, or the block raises a StoreError.
    """
    try:
        try:
            store = await open_database(settings)
        except FileOwned as error:
            raise DatabaseInUse(error.message) from error
        try:
            yield store
        finally:
            await store.close()
    except StoreError as error:
        raise GatewayError(error.message) from error


def name_location_setting(settings: Settings) -> str:
    """Returns the name of the setting that has the location of the database."""
    return "database.path" if settings.database.url is None else "database.url"


def may_have_keys(settings: Settings) -> bool:
    """Returns whether keys were made for this database, as far as that is known without opening it.

    Only a file has a marker file next to it. Of a server nothing is known.
    """
    return settings.database.url is None and was_keyed(settings.database.path)


class DatabaseFindings(Struct, frozen=True):
    """A database as the start would find it."""

    # True if there are gateway keys, or if it is unknown whether there are any.
    is_keyed: bool = True
    # Sentences about its version and schema.
    notes: tuple[str, ...] = ()
    # Sentences about faults with which a gateway starts nevertheless, such as no memory.
    warnings: tuple[str, ...] = ()


def check_database(settings: Settings) -> DatabaseFindings:
    """Inspects the database, and closes it. Raises: SettingsError: the start would refuse it."""
    if settings.database.url is not None:
        return asyncio.run(_check_server(settings.database, settings.database.url))
    path = settings.database.path
    try:
        inspection = inspect(path)
    except StoreUnavailable as error:
        return _without_memory(error)
    except StoreError as error:
        raise SettingsError(f"database.path: {error.message}") from error
    notes: list[str] = []
    warnings: list[str] = []
    if inspection.upgrade is not None:
        notes.append(f"the database has {_describe_schema(*inspection.upgrade)}")
    if (warning := find_network_warning(settings)) is not None:
        warnings.append(warning)
    if inspection.is_shared_with_others:
        warnings.append(f"other accounts may read {settings.database.shown}; `chmod 600` closes it")
    return DatabaseFindings(inspection.is_keyed, tuple(notes), tuple(warnings))


def _without_memory(error: StoreUnavailable) -> DatabaseFindings:
    return DatabaseFindings(warnings=(f"nothing would be remembered: {error.message}",))


def find_network_warning(settings: Settings) -> str | None:
    """Returns a warning if the database is a file on a network file system, else None."""
    database = settings.database
    network_type = find_network_type(database.path) if database.url is None else None
    if network_type is None:
        return None
    return (
        f"{database.shown} lies on a network file system ({network_type}): a gateway of another machine could open "
        "it as well, and damage it. Give it a disk of this machine, or use PostgreSQL."
    )


def _describe_schema(version: int, newest: int) -> str:
    upgrade = f", which a start brings to {newest}; only a copy leads back" if version < newest else ""
    return f"schema version {version}{upgrade}"


async def _check_server(database: DatabaseSettings, url: str) -> DatabaseFindings:
    """Returns the findings at a PostgreSQL server. Raises: SettingsError: the server cannot be used as it is."""
    try:
        inspection = await inspect_server(
            url,
            is_pooled=database.pooled,
            pooler_prepares=database.pooler_prepares,
            listen_url=database.listen_url,
        )
    except StoreUnavailable as error:
        return _without_memory(error)
    except StoreError as error:
        raise SettingsError(f"database.url: {error.message}") from error
    schema = "no tables yet"
    if inspection.schema:
        schema = _describe_schema(inspection.schema, inspection.latest_schema)
    server = f"PostgreSQL {inspection.version}, {schema}"
    if inspection.listen_fault is None:
        return DatabaseFindings(inspection.is_keyed, (server, "notifications between gateways arrive"))
    warning = f"notifications between gateways do not arrive: {inspection.listen_fault}"
    return DatabaseFindings(inspection.is_keyed, (server,), (warning,))
