"""Stores on real files; every one that a test opens is closed after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import storage.open
from storage.records import Agent, Scope
from storage.sql.agents import create_agent
from storage.sql.store import SqlStore

OpenStore = Callable[..., Awaitable[SqlStore]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
async def open_store(path: Path) -> AsyncIterator[OpenStore]:
    opened: list[SqlStore] = []

    async def open_one(**options: Any) -> SqlStore:
        options.setdefault("busy_timeout_ms", 0)  # a test that waits for a lock would only wait
        store = await storage.open.open_store(options.pop("path", path), now=lambda: 1000.0, **options)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: OpenStore) -> SqlStore:
    return await open_store()


@pytest.fixture
async def agent(store: SqlStore) -> Agent:
    draft = store.agents.draft(Scope("default", "default", "user:alice"))
    made = await store.database.write(lambda connection: create_agent(connection, draft))
    store.agents.remember(made)
    return made
