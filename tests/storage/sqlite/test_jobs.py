"""Jobs where the writer is held up, or the disk is full."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest

from storage.database import Connection
from storage.errors import StoreFull
from storage.sql.store import Store
from storage.sqlite.operations import drive
from tests.patience import PATIENCE_S


async def test_a_caller_that_goes_away_hides_no_job(store: Store) -> None:
    jobs = store.jobs
    counts: list[int] = []
    jobs.add_listener(lambda: counts.append(len(drive(jobs.list_newest()))))
    gate = threading.Event()
    stalled = store.database.writer.submit(lambda _: gate.wait(PATIENCE_S))
    task = asyncio.create_task(jobs.enqueue("learn", 0, "k"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await stalled
    assert await store.drain(PATIENCE_S)
    assert counts == [1]


async def test_a_full_disk_is_named(store: Store) -> None:
    jobs = store.jobs
    await jobs.enqueue("learn", 0, "k")
    job = await jobs.leases.claim(("learn",), lease_s=60.0, tries=3)
    assert job is not None

    async def fill(connection: Connection) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with pytest.raises(StoreFull):
        await jobs.commit(job, fill)
    assert await store.database.writer.recover()
    await jobs.finish(job)
