"""The contract of a store, over each database; every store that a test opens is closed after it.

The tests next to this file hold for all databases. What is SQLite's own is in tests/storage/sqlite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from msgspec.structs import replace

from storage.records import Agent, Scope
from storage.sql.agents import find_or_create_agent
from storage.sql.store import Store
from tests import stored
from tests.doubles.statements import counting, noting
from tests.inflated import with_inflated
from tests.postgres import EmptyDatabase, empty_database
from tests.storage.names import is_named, name_of

OpenStore = Callable[..., Awaitable[Store]]


class TestDatabase(Protocol):
    """A database of the test's own.

    note: is called with the name of each statement of the store, and the text of any other. content: all of its bytes
    that it promises to erase when they are forgotten.
    """

    async def open(self, *, note: Callable[[str], None] | None = None, **options: Any) -> Store: ...

    def content(self) -> bytes: ...


class SqliteFile:
    """A SQLite database in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "memory.db"

    async def open(self, *, note: Callable[[str], None] | None = None, **options: Any) -> Store:
        if note is not None:
            options["factory"] = counting(lambda text: note(name_of(text)))
        options.setdefault("busy_timeout_ms", 0)  # a test that waits for a lock would only wait
        return await stored.open_store(options.pop("path", self.path), **options)

    def content(self) -> bytes:
        """The file, its log and its index of the log."""
        files = (Path(f"{self.path}{suffix}") for suffix in ("", "-wal", "-shm"))
        return with_inflated(b"".join(file.read_bytes() for file in files if file.exists()))


class PostgresServer:
    """A PostgreSQL database that is empty when a test begins."""

    def __init__(self, database: EmptyDatabase) -> None:
        self.url = database.url
        self._database = database

    async def open(self, *, note: Callable[[str], None] | None = None, **options: Any) -> Store:
        options.setdefault("limits", replace(stored.PATIENT, vacuum_interval_s=0.0))
        options["factory"] = noting(lambda text: note and note(name_of(text)), is_named)
        return await stored.open_store(options.pop("path", self.url), **options)

    def content(self) -> bytes:
        """All that a statement could still find in any row."""
        return self._database.content()


class Holds:
    """Returns what a database still has anywhere, as far as it promises to erase."""

    def __init__(self, database: TestDatabase) -> None:
        self._database = database

    def __call__(self, data: bytes) -> bool:
        return data in self._database.content()

    def content(self) -> bytes:
        return self._database.content()


def _sqlite(request: pytest.FixtureRequest) -> TestDatabase:
    return SqliteFile(request.getfixturevalue("tmp_path"))


def _postgres(request: pytest.FixtureRequest) -> TestDatabase:
    return PostgresServer(empty_database(request.getfixturevalue("postgres")))


# Each database that keeps the contract.
DATABASES = {"sqlite": _sqlite, "postgres": _postgres}


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> TestDatabase:
    return DATABASES[request.param](request)


@pytest.fixture
def holds(database: TestDatabase) -> Holds:
    return Holds(database)


@pytest.fixture
async def open_store(database: TestDatabase) -> AsyncIterator[OpenStore]:
    opened: list[Store] = []

    async def open_one(**options: Any) -> Store:
        store = await database.open(**{"now": lambda: 1000.0, **options})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store()


@pytest.fixture
async def agent(store: Store) -> Agent:
    draft = store.agents.get_draft(Scope("default", "default", "user:alice"))
    made = await store.database.write(lambda connection: find_or_create_agent(connection, draft))
    store.agents.cache(made)
    return made
