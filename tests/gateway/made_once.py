"""What each gateway makes of the program's own files, and a thousand make alike: the tests have it made once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import starlette.routing

import storage.postgres.migration as postgres_migration
import storage.sqlite.migration as sqlite_migration
from gateway import operations
from gateway.app import Gateway
from gateway.page import page_app
from gateway.settings import Settings
from tests.stored import open_store

_MADE_ONCE = (
    (starlette.routing, "compile_path"),
    (page_app, "_compile"),
    (operations, "version"),
    (sqlite_migration, "load_migrations"),
    (postgres_migration, "load_migrations"),
)


def share(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Has all gateways of this process share it. put: sets a name of a module."""
    for module, name in _MADE_ONCE:
        put(module, name, cache(getattr(module, name)))


def make() -> None:
    """Makes it before there is a gateway, so that copies of this process have it (`forked`)."""

    async def make_one() -> None:
        with TemporaryDirectory() as folder:
            store = await open_store(f"{folder}/memory.db")
            Gateway(Settings(), store)
            await store.close()

    asyncio.run(make_one())
