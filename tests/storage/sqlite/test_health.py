"""The state of the store is known while no request reads or writes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from storage.sqlite.mount import is_disk_doubtful
from storage.sqlite.writer import WriterLimits
from tests.doubles.disk import Disk, fill
from tests.patience import comes

QUICK = WriterLimits(retry_first_s=0.01, retry_max_s=0.01)


def doubtful(_: str) -> bool:
    return True


def written(path: Path) -> list[tuple[int, int]]:
    """When the file and its log were written, and their sizes. To read them here would drop SQLite's locks."""
    return [(found.st_mtime_ns, found.st_size) for found in (os.stat(path), os.stat(f"{path}-wal"))]


async def test_a_disk_that_fills_up_is_noticed_and_so_is_its_room(open_store: Any) -> None:
    disk = Disk()
    store = await open_store(limits=QUICK, connect=disk.connect, check_s=0.01, is_disk_doubtful=doubtful)
    failed, recovered = [], []
    store.database.add_failure_listener(lambda fault: failed.append(fault.status))
    store.database.add_recovery_listener(lambda: recovered.append(True))
    store.database.start()
    disk.full = True
    await store.database.writer.submit(fill, begins_own_transaction=True)
    await comes(lambda: store.health.status == "full")
    disk.full = False
    await comes(lambda: store.health.ok)
    assert (failed, recovered) == (["full"], [True])


async def test_a_disk_that_becomes_read_only_is_noticed(open_store: Any) -> None:
    disk = Disk()
    store = await open_store(limits=QUICK, connect=disk.connect, check_s=0.01, is_disk_doubtful=doubtful)
    store.database.start()
    disk.read_only = True
    await store.database.writer.submit(lambda c: c.execute("PRAGMA query_only = ON"))
    await comes(lambda: store.health.status == "readonly")
    disk.read_only = False
    await comes(lambda: store.health.ok)


async def test_a_file_that_was_removed_is_noticed(open_store: Any, path: Path) -> None:
    store = await open_store(limits=WriterLimits(retry_first_s=3600), check_s=0.01)
    store.database.start()
    await asyncio.to_thread(path.unlink)
    # It makes a file again at once, which may take less time than a look from here; the failure stays noted.
    await comes(lambda: store.health.error is not None)
    assert "was removed or replaced" in store.health.error


async def test_an_idle_store_writes_nothing(open_store: Any, path: Path) -> None:
    checks: list[bool] = []

    def check(name: str) -> bool:
        checks.append(is_disk_doubtful(name))
        return checks[-1]

    store = await open_store(limits=QUICK, check_s=0.01, is_disk_doubtful=check)
    assert await store.database.sweep(1000)
    before = written(path)
    store.database.start()
    await comes(lambda: len(checks) > 3)
    assert not any(checks)
    assert written(path) == before


async def test_the_checks_end_with_the_store(open_store: Any) -> None:
    store = await open_store(check_s=0.01)
    store.database.start()
    await store.close()
    assert store.health.status == "closed"


@pytest.mark.parametrize("name", ["no such file", "no/such/directory"])
def test_a_path_that_cannot_be_looked_at_is_doubtful(tmp_path: Path, name: str) -> None:
    assert is_disk_doubtful(str(tmp_path / name))
    assert not is_disk_doubtful(str(tmp_path))
