"""Caches what each gateway computes from the program's own files: the same for all gateways of the tests."""

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

# (module, name of the function whose results are cached)
_CACHED = (
    (starlette.routing, "compile_path"),
    (route_table, "_compile"),
    (operations, "version"),
    (agents_routes, "version"),
    (sqlite_migration, "load_migrations"),
    (postgres_migration, "load_migrations"),
)


def install(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Installs the caches for all gateways of this process.

    put: the function that replaces an attribute of a module, as `setattr` or `MonkeyPatch.setattr`.
    """
    for module, name in _CACHED:
        put(module, name, cache(getattr(module, name)))
    put(sqlite_migration, "_load_names", _cache_names(sqlite_migration._load_names))
    put(rendering, "Environment", partial(jinja2.Environment, bytecode_cache=_CompiledTemplates()))


def _cache_names(names: Callable[[Any], frozenset[str]]) -> Callable[[Any], frozenset[str]]:
    """Returns `names` with its results cached by the schema of the database.

    names: returns the names of tables and columns of a connection's database.
    """
    cached: dict[tuple[Any, ...], frozenset[str]] = {}

    def names_of(connection: Any) -> frozenset[str]:
        schema = tuple(connection.execute("SELECT type, name, sql FROM sqlite_master"))
        if schema not in cached:
            cached[schema] = names(connection)
        return cached[schema]

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


def fill() -> None:
    """Fills the caches by making a gateway: processes that are forked from this one (`forked`) have them filled."""

    async def make_gateway() -> None:
        with TemporaryDirectory() as folder:
            store = await open_store(f"{folder}/memory.db")
            Gateway(Settings(), store)
            await store.close()

    asyncio.run(make_gateway())
