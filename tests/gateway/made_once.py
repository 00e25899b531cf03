"""What each gateway makes of the program's own files, and a thousand make alike: the tests have it made once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache, partial
from tempfile import TemporaryDirectory
from types import CodeType
from typing import Any

import jinja2
import starlette.routing

import storage.postgres.migration as postgres_migration
import storage.sqlite.migration as sqlite_migration
from gateway import operations
from gateway.agents import routes as agents_routes
from gateway.app import Gateway
from gateway.page import rendering, route_table
from gateway.settings import Settings
from tests.stored import open_store

_MADE_ONCE = (
    (starlette.routing, "compile_path"),
    (route_table, "_compile"),
    (operations, "version"),
    (agents_routes, "version"),
    (sqlite_migration, "load_migrations"),
    (postgres_migration, "load_migrations"),
)


def share(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Has all gateways of this process share it. put: sets a name of a module."""
    for module, name in _MADE_ONCE:
        put(module, name, cache(getattr(module, name)))
    put(sqlite_migration, "_load_names", _once_a_schema(sqlite_migration._load_names))
    put(rendering, "Environment", partial(jinja2.Environment, bytecode_cache=_CompiledTemplates()))


def _once_a_schema(names: Callable[[Any], frozenset[str]]) -> Callable[[Any], frozenset[str]]:
    """Has the names of tables and columns read once of all files with one schema."""
    known: dict[tuple[Any, ...], frozenset[str]] = {}

    def names_of(connection: Any) -> frozenset[str]:
        schema = tuple(connection.execute("SELECT type, name, sql FROM sqlite_master"))
        if schema not in known:
            known[schema] = names(connection)
        return known[schema]

    return names_of


class _CompiledTemplates(jinja2.BytecodeCache):
    """The code of templates, by their path and content."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        bucket.code = self._codes.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        assert bucket.code is not None
        self._codes[bucket.key, bucket.checksum] = bucket.code


def make() -> None:
    """Makes it before there is a gateway, so that copies of this process have it (`forked`)."""

    async def make_one() -> None:
        with TemporaryDirectory() as folder:
            store = await open_store(f"{folder}/memory.db")
            Gateway(Settings(), store)
            await store.close()

    asyncio.run(make_one())
