"""Maintenance where processes share a database: what those that died have left is put in order by another."""

from __future__ import annotations

import asyncio

import pytest

from gateway.run.background import maintenance
from gateway.run.background.indexing import Indexing
from tests.postgres import empty_database
from tests.stored import open_store, rows


async def test_lines_of_processes_that_died_are_deleted(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_LOOK_S", 0.01)
    store = await open_store(empty_database(postgres).url)
    try:
        for name, seconds in (("left", -4000.0), ("held", 15.0)):
            assert await store.lines.take(name, seconds)
        looking = asyncio.create_task(
            maintenance.Maintenance(store, 60.0, lambda: 0.0, Indexing(store)).look_again()
        )
        names = {("left",), ("held",)}
        while ("left",) in names:
            names = set(await rows(store, "SELECT name FROM lines"))
        looking.cancel()
        assert names == {("held",)}
    finally:
        await store.close()
