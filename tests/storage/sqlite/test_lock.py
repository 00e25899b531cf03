"""One process owns a database file."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from gateway.core.memory.rules import RULES
from storage.database_path import name_account
from storage.errors import FileOwned, StoreFailed, StoreFull, StoreReadOnly
from storage.open import open_store as make_store
from storage.sqlite.connection import DatabaseFile
from storage.sqlite.database import connect_current
from storage.sqlite.lock import Lock, LockOwner, find_lock_owner
from storage.sqlite.migration import load_migrations, migrate

HOLD = """
import sys
from storage.sqlite.lock import Lock
lock = Lock(sys.argv[1], "127.0.0.1:8080")
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def acquire(path: Path, address: str | None = None) -> Lock:
    lock = Lock(path, address)
    lock.acquire()
    return lock


def test_a_second_owner_is_refused_by_name(path: Path) -> None:
    lock = acquire(path, "127.0.0.1:8080")
    with pytest.raises(FileOwned) as refused:
        acquire(path, "127.0.0.1:8081")
    lock.release()
    assert (refused.value.pid, refused.value.address) == (os.getpid(), "127.0.0.1:8080")
    assert str(os.getpid()) in str(refused.value)
    assert "127.0.0.1:8080" in str(refused.value)


def test_two_names_of_one_file_have_one_lock(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.symlink_to(path)
    lock = acquire(path)
    with pytest.raises(FileOwned):
        acquire(other)
    lock.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_a_command_of_roots_leaves_the_lock_to_the_account_of_the_database(path: Path) -> None:
    path.touch()
    os.chown(path, 65534, 65533)
    acquire(path).release()
    found = os.stat(f"{path}.lock")
    assert (found.st_uid, found.st_gid) == (65534, 65533)


def test_the_owner_can_be_asked_for(path: Path) -> None:
    assert find_lock_owner(path) is None
    lock = acquire(path, "127.0.0.1:9000")
    assert find_lock_owner(path) == LockOwner(os.getpid(), "127.0.0.1:9000")
    lock.release()
    lock.release()
    assert find_lock_owner(path) is None


def test_asking_for_the_owner_leaves_no_lock(path: Path) -> None:
    acquire(path).release()
    find_lock_owner(path)
    acquire(path).release()


def test_an_unreadable_lock_file_still_refuses(path: Path) -> None:
    lock = acquire(path)
    Path(f"{path}.lock").write_bytes(b"{")
    with pytest.raises(FileOwned) as refused:
        acquire(path)
    assert refused.value.pid is None
    lock.release()


def test_a_killed_owner_leaves_no_lock(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(FileOwned) as refused:
            acquire(path)
        assert refused.value.pid == owner.pid
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        acquire(path).release()


def test_a_program_started_by_the_owner_does_not_hold_the_lock(path: Path) -> None:
    lock = acquire(path)
    # close_fds off, so that only the descriptor's own flag keeps it from the child
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
    ):
        lock.release()
        acquire(path).release()


def test_a_lock_whose_file_was_removed_is_taken_again(path: Path) -> None:
    lock = acquire(path)
    Path(f"{path}.lock").unlink()  # with its directory, that is
    other = acquire(path)
    with pytest.raises(FileOwned):
        lock.acquire()
    assert not lock.is_held
    other.release()
    lock.acquire()
    assert lock.is_held
    assert find_lock_owner(path) is not None
    lock.release()


async def test_a_file_of_another_program_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "later" / "m.db"
    store = await make_store(path, RULES)
    assert store.health.status == "broken"
    with pytest.raises(
        StoreFailed, match=r"The directory .*later does not exist\. Make it, or name another file with --db\."
    ):
        await store.keys.has_any()
    path.parent.mkdir()
    other = acquire(path, "127.0.0.1:9")
    assert not await store.database.writer.recover()
    with pytest.raises(StoreFailed, match=r"in use by process .* serving 127\.0\.0\.1:9"):
        await store.keys.has_any()
    assert not path.exists()
    other.release()
    assert await store.database.writer.recover()
    assert not await store.keys.has_any()
    await store.close()


@pytest.mark.parametrize("steps", [0, 1])
async def test_nothing_is_read_of_a_file_whose_schema_has_no_room(path: Path, steps: int) -> None:
    """As on a disk that is full at the first start, or at the first one after an upgrade."""
    if steps:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            migrate(connection, str(path), load_migrations()[:steps])
    is_full = True

    def connect(target: DatabaseFile) -> sqlite3.Connection:
        if is_full:
            raise StoreFull("the disk is full")
        return connect_current(target)

    store = await make_store(path, RULES, connect=connect)
    for read in (store.keys.has_any(), store.search_index.find_lagging_agents(0, 1)):
        with pytest.raises(StoreFull):
            await read
    is_full = False
    assert await store.database.writer.recover()
    assert not await store.keys.has_any()
    await store.close()


async def test_the_store_holds_the_lock_for_its_life(open_store: Any, path: Path) -> None:
    store = await open_store(address="here")
    with pytest.raises(FileOwned) as refused:
        await open_store()
    assert refused.value.address == "here"
    await store.close()
    assert find_lock_owner(path) is None
    assert (await open_store()).health.ok


async def test_the_files_are_readable_for_the_stores_account_alone(open_store: Any, path: Path) -> None:
    await open_store()
    made = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    assert made == dict.fromkeys(("memory.db", "memory.db-wal", "memory.db-shm", "memory.db.lock"), 0o600)


@pytest.mark.parametrize(("mode", "becomes"), [(0o644, 0o600), (0o640, 0o640)])
async def test_a_database_of_an_older_version_is_closed_to_other_accounts(
    open_store: Any, path: Path, mode: int, becomes: int
) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        migrate(connection, str(path), load_migrations()[:-1])
    os.chmod(path, mode)
    await open_store()
    assert {each.name: each.stat().st_mode & 0o777 for each in path.parent.glob("memory.db*")} == {
        "memory.db": becomes,
        "memory.db-wal": becomes,
        "memory.db-shm": becomes,
        "memory.db.lock": 0o600,
    }


async def test_a_file_that_is_there_keeps_its_mode(open_store: Any, path: Path) -> None:
    os.close(os.open(path, os.O_CREAT))
    os.chmod(path, 0o640)
    await open_store()
    assert os.stat(path).st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_file_of_another_account_does_not_count_as_missing(is_folder: bool) -> None:
    with TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        folder = Path(top, "data")
        folder.mkdir(mode=0o700 if is_folder else 0o755)
        path = folder / "m.db"
        path.touch(mode=0o600)
        find_lock_owner(str(path))
        os.seteuid(65534)
        try:
            with pytest.raises(StoreReadOnly) as caught:
                find_lock_owner(str(path))
            with pytest.raises(StoreFailed, match="missing does not exist"):
                find_lock_owner(str(Path(top, "missing", "m.db")))
        finally:
            os.seteuid(0)
        action = f"look into the directory {folder}" if is_folder else f"read and write {path}"
        assert caught.value.message == (
            f"The account {name_account(65534)} may not {action}, which belongs to root. Run this as root, or name "
            "another file with --db."
        )
