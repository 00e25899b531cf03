"""The contract of a store, over each database; every store that a test opens is closed after it.

The tests beside this file hold for all databases. What is SQLite's own is in tests/storage/sqlite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from storage.records import Agent, Scope
from storage.sql.agents import create_agent
from storage.sql.store import Store
from tests import stored

OpenStore = Callable[..., Awaitable[Store]]
Holds = Callable[[bytes], bool]


class SqliteFile:
    """A SQLite database in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "memory.db"

    async def open(self, **options: Any) -> Store:
        options.setdefault("busy_timeout_ms", 0)  # a test that waits for a lock would only wait
        return await stored.open_store(options.pop("path", self.path), **options)

    def holds(self, data: bytes) -> bool:
        """Tells whether these bytes are anywhere in the file, its log or its index of the log."""
        files = (Path(f"{self.path}{suffix}") for suffix in ("", "-wal", "-shm"))
        return data in b"".join(file.read_bytes() for file in files if file.exists())


# Each database that keeps the contract. One more needs `open`, and `holds` as far as it promises to erase.
DATABASES = {"sqlite": SqliteFile}


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteFile:
    return DATABASES[request.param](tmp_path)


@pytest.fixture
def holds(database: SqliteFile) -> Holds:
    """Tells whether the database still has these bytes anywhere."""
    return database.holds


@pytest.fixture
async def open_store(database: SqliteFile) -> AsyncIterator[OpenStore]:
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
    draft = store.agents.draft(Scope("default", "default", "user:alice"))
    made = await store.database.write(lambda connection: create_agent(connection, draft))
    store.agents.remember(made)
    return made
