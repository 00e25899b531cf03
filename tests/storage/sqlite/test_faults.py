"""The store when the machine fails it: named, bounded, and over when the fault is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.ids import new_uid
from gateway.run.background.retention import Retention
from storage.commands import LearnedFact
from storage.database import Operation, work_generation
from storage.errors import (
    StaleWrite,
    StatementFailed,
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
)
from storage.file_records import FileState, StoredFile
from storage.forget_commands import ForgetTarget
from storage.listing import Page
from storage.records import Agent, Passage, Scope
from storage.sql.agents import find_numbers, find_or_create_agent
from storage.sql.fact_writes import add_fact
from storage.sql.passages import insert_passage
from storage.sql.store import Store
from storage.sqlite.connection import DatabaseFile
from storage.sqlite.database import connect_current
from storage.sqlite.opened_file import OpenedFile
from storage.sqlite.reader import Reader, ThreadReader
from storage.sqlite.result_codes import translate_error
from storage.sqlite.watch import Changes
from storage.sqlite.writer import WriterLimits
from tests.core.conversations import assistant, user
from tests.doubles.disk import Disk, may_not_grow, use_page
from tests.patience import PATIENCE_S, comes
from tests.stored import ALICE, HUMAN, Speaker, rows

# Attempts to recover are made by the tests, not by a timer.
BY_HAND = WriterLimits(retry_first_s=3600, idle_s=3600)
# Or begin at once.
AT_ONCE = WriterLimits(retry_first_s=0.0, retry_max_s=0.0, idle_s=3600)


def write(agent: Agent, text: str = "something") -> Operation[Passage]:
    return lambda connection: insert_passage(connection, agent.id, text, at=1.0)


async def make_agent(store: Store) -> Agent:
    draft = store.agents.get_draft(Scope("default", "default", "user:alice"))
    return await store.database.write(lambda connection: find_or_create_agent(connection, draft))


async def assert_refuses(store: Store, agent: Agent, error: type[StoreUnavailable]) -> None:
    """Writes fail with the named error, at once, and health says so."""
    assert not await store.database.writer.recover()
    with pytest.raises(error):
        store.database.write(write(agent))
    with pytest.raises(error):
        store.database.bulk_write(write(agent))
    with pytest.raises(error):
        await store.keys.create("p", "k")
    assert store.health.status == error.status
    assert store.health.error
    assert await store.drain(PATIENCE_S)


async def assert_recovers(store: Store, agent: Agent) -> None:
    assert await store.database.writer.recover()
    assert store.health.ok
    passage = await store.database.write(write(agent, "after"))
    assert passage in await store.passages.list_texts(agent.id, limit=1000)


async def test_a_full_disk_refuses_writes_until_there_is_room(open_store: Any) -> None:
    disk = Disk()
    store = await open_store(limits=BY_HAND, connect=disk.connect)
    agent = await make_agent(store)
    kept = await store.database.write(write(agent, "before"))
    await store.database.writer.submit(may_not_grow)
    disk.full = True
    futures = [store.database.write(write(agent, "x" * 60_000)) for _ in range(3)]
    for result in await asyncio.gather(*futures, return_exceptions=True):
        assert isinstance(result, StoreFull)
    await assert_refuses(store, agent, StoreFull)
    assert await store.passages.list_texts(agent.id) == (kept,)
    disk.full = False
    await assert_recovers(store, agent)


async def stall(store: Store) -> threading.Event:
    """Keeps the writer busy, so that what follows gathers in one batch; until the event is set."""
    gate, entered = threading.Event(), threading.Event()
    store.database.writer.submit(lambda _: (entered.set(), gate.wait()))
    await asyncio.to_thread(entered.wait)
    return gate


async def cancel(waiting: Coroutine[Any, Any, Any]) -> None:
    """Begins something, and cancels it once it has given its write to the store."""
    task = asyncio.create_task(waiting)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def test_a_write_of_a_cancelled_caller_is_not_cached_in_its_old_state(open_store: Any) -> None:
    store = await open_store(limits=BY_HAND)
    alice = Speaker(store)
    await alice.say([user("one")], assistant("First."))
    _, secret = await store.keys.create("default", "laptop")
    forgotten: list[tuple[str, str]] = []
    store.usage.add_forget_listener(lambda *user: forgotten.append(user))
    gate = await stall(store)
    await cancel(store.keys.revoke("laptop"))
    await cancel(store.forgetting.begin(alice.agent.id, ForgetTarget(is_all=True)))
    assert await store.keys.find(secret)
    assert await store.agents.find(alice.scope)
    gate.set()
    assert await store.drain(PATIENCE_S)
    assert await store.keys.find(secret) is None
    assert await store.agents.find(alice.scope) is None
    assert forgotten == [("default", "alice")]


async def test_a_write_that_is_too_big_takes_no_other_with_it(open_store: Any) -> None:
    store = await open_store(limits=BY_HAND)
    agent = await make_agent(store)
    await store.database.writer.submit(may_not_grow)
    gate = await stall(store)
    small = store.database.write(write(agent, "small"))
    big = store.database.write(write(agent, "x" * 60_000))
    gate.set()
    with pytest.raises(StoreFull):
        await big
    assert (await small) in await store.passages.list_texts(agent.id)
    await assert_recovers(store, agent)


@pytest.mark.parametrize("faults", [1, 2])
async def test_a_writer_that_is_reopened_blocks_no_reader(open_store: Any, path: Path, faults: int) -> None:
    """As the file's last connection it would write the whole log back while it closes, and keep out whoever reads."""
    store = await open_store(limits=BY_HAND)
    agent = await make_agent(store)
    for _ in range(faults):
        await store.database.write(write(agent, "y" * 200_000))
        await store.database.writer.submit(may_not_grow)
        with pytest.raises(StoreFull):
            await store.database.write(write(agent, "x" * 60_000))
        assert await store.database.writer.recover()
    log = await asyncio.to_thread(Path(f"{path}-wal").stat)
    assert log.st_size > faults * 200_000
    assert len(await store.passages.list_texts(agent.id)) == faults


async def test_no_write_succeeds_when_the_database_ends_its_transaction(
    open_store: Any,
) -> None:
    """SQLite rolls everything back when a plain insert finds no room, what came before it in the batch included."""
    store = await open_store(limits=BY_HAND)
    agent = await make_agent(store)
    await store.database.writer.submit(may_not_grow)

    def swallow(connection: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.OperationalError):
            while True:
                use_page(connection)

    gate = await stall(store)
    small = store.database.write(write(agent, "small"))
    big = store.database.writer.submit(
        lambda c: c.execute("INSERT INTO probe (filler) VALUES (zeroblob(60000))")
    )
    gate.set()
    for future in (small, big):
        with pytest.raises(StoreFull):
            await future
    assert await store.passages.list_texts(agent.id) == ()
    assert await store.database.writer.recover()
    await store.database.writer.submit(may_not_grow)
    with pytest.raises(StatementFailed):
        await store.database.writer.submit(swallow)
    assert store.database.reader.connection.execute("SELECT count(*) FROM probe").fetchone() == (0,)
    await assert_recovers(store, agent)


async def test_a_read_only_file_is_read_and_refuses_writes(open_store: Any) -> None:
    disk = Disk()
    store = await open_store()
    agent = await make_agent(store)
    await store.close()
    disk.read_only = True
    store = await open_store(limits=BY_HAND, connect=disk.connect)
    assert store.health.status == "readonly"
    await assert_refuses(store, agent, StoreReadOnly)
    assert await store.agents.find(agent.scope) == agent
    disk.read_only = False
    await assert_recovers(store, agent)


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
async def test_locked_by_another_process(open_store: Any, path: Path, when: str) -> None:
    store = await open_store(limits=BY_HAND)
    agent = await make_agent(store)
    if when == "before the start":
        await store.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    if when == "before the start":
        store = await open_store(limits=BY_HAND)
        assert store.health.status == "locked"
    else:
        futures = [store.database.write(write(agent)) for _ in range(5)]
        for result in await asyncio.gather(*futures, return_exceptions=True):
            assert isinstance(result, StoreLocked)
    await assert_refuses(store, agent, StoreLocked)
    assert await store.agents.find(agent.scope) == agent  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    await assert_recovers(store, agent)


async def test_the_database_recovers_by_itself(open_store: Any, path: Path) -> None:
    store = await open_store(limits=WriterLimits(retry_first_s=0.001, retry_max_s=0.002))
    agent = await make_agent(store)
    back = asyncio.Event()
    store.database.writer._on_recovery = back.set
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreLocked):
        await store.database.write(write(agent))
    other.execute("ROLLBACK")
    other.close()
    async with asyncio.timeout(PATIENCE_S):
        await back.wait()
    assert await store.database.write(write(agent))


@pytest.mark.parametrize("garbage", [b"", b"not a database, whatever it is" * 300])
async def test_a_damaged_file_at_the_start(open_store: Any, path: Path, garbage: bytes) -> None:
    store = await open_store()
    agent = await make_agent(store)
    await store.close()
    backup = shutil.copy(path, f"{path}.bak")
    damage(path, lambda data: garbage or b"\xff" * 64 + data[64:])
    store = await open_store(limits=BY_HAND)
    assert store.health.status == "corrupt"
    await assert_refuses(store, agent, StoreCorrupt)
    with pytest.raises(StoreCorrupt):
        await store.agents.find(agent.scope)
    restore(path, backup)
    await assert_recovers(store, agent)
    found = await store.agents.find(agent.scope)
    assert found is not None
    assert found.secret == agent.secret


def test_a_disk_without_room_is_named_where_sqlite_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the file that connections share cannot grow (SQLITE_IOERR_SHMSIZE)."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode, error.sqlite_errorname = 4874, "SQLITE_IOERR_SHMSIZE"
    path = str(tmp_path / "m.db")
    assert type(translate_error(error, path)) is StoreFailed
    found = list(os.statvfs(tmp_path))
    found[4] = 0  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(found))
    answer = translate_error(error, path)
    assert type(answer) is StoreFull
    assert answer.message.startswith(f"The disk is full: {path} cannot be written. Make room on it.")


@pytest.mark.parametrize("kind", [Reader, ThreadReader])
async def test_either_reader_reports_a_file_that_cannot_be_opened(path: Path, kind: Any) -> None:
    await asyncio.to_thread(path.write_bytes, b"not a database, whatever it is" * 300)
    reported: list[StoreCorrupt] = []

    def report(error: StoreCorrupt) -> bool:
        reported.append(error)
        return len(reported) == 1

    reader = kind(DatabaseFile(str(path)), report, lambda: None)

    async def read() -> None:
        found = reader.run(lambda connection: connection.execute("SELECT 1").fetchall())
        if kind is ThreadReader:
            await found

    for is_known in (False, True):
        with pytest.raises(StoreCorrupt) as caught:
            await read()
        assert caught.value.is_known is is_known
    assert len(reported) == 2


async def test_a_reader_with_a_deadline_reports_it_too(path: Path) -> None:
    await asyncio.to_thread(path.write_bytes, b"not a database, whatever it is" * 300)
    reported: list[StoreCorrupt] = []
    with pytest.raises(StoreCorrupt):
        Reader(DatabaseFile(str(path)), lambda error: not reported.append(error), lambda: None).run(
            lambda _: None, deadline_ms=1000
        )
    assert len(reported) == 1


async def test_a_damaged_page_is_found_when_it_is_met(open_store: Any, path: Path) -> None:
    store = await open_store()
    agent = await make_agent(store)
    for i in range(40):
        await store.database.write(write(agent, f"{i} " * 400))
    (root,) = store.database.reader.connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'passages'"
    ).fetchone()
    await store.close()
    backup = shutil.copy(path, f"{path}.bak")
    at = (root - 1) * 4096
    damage(path, lambda data: data[:at] + b"\xff" * 4096 + data[at + 4096 :])
    store = await open_store(limits=BY_HAND)
    assert store.health.ok
    with pytest.raises(StoreCorrupt):
        await store.database.write(write(agent))
    await assert_refuses(store, agent, StoreCorrupt)  # the trial write alone would succeed
    with pytest.raises(StoreCorrupt):
        await store.passages.list_texts(agent.id)
    restore(path, backup)
    await assert_recovers(store, agent)
    assert len(await store.passages.list_texts(agent.id, limit=100)) == 41


async def test_a_stalled_disk_does_not_stop_reading(open_store: Any) -> None:
    store = await open_store(limits=WriterLimits(slow_s=0))
    agent = await make_agent(store)
    gate = await stall(store)
    assert store.health.status == "slow"
    assert await store.passages.list_texts(agent.id) == ()
    assert await store.database.long_reader.run(
        lambda c: c.execute("SELECT count(*) FROM agents").fetchone()
    ) == (1,)
    gate.set()
    assert await store.drain(PATIENCE_S)
    assert store.health.ok


async def test_the_fault_of_a_store_that_closes_blocks_no_caller(open_store: Any, path: Path) -> None:
    store = await open_store(limits=BY_HAND)
    agent = await make_agent(store)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    futures = [store.database.write(write(agent)) for _ in range(3)]
    await store.close()
    for result in await asyncio.gather(*futures, return_exceptions=True):
        assert isinstance(result, StoreUnavailable)
    other.close()


UNDER_LOAD = """
import asyncio, os, sys
from storage.records import Scope
from storage.sql.agents import find_or_create_agent
from storage.sql.passages import insert_passage
from tests.stored import open_store
from storage.sql.terms import replace_terms
from storage.sqlite.writer import WriterLimits
from tests.doubles.disk import Disk, may_not_grow, use_page

async def main():
    store = await open_store(sys.argv[1], limits=WriterLimits(checkpoint_bytes=300_000))
    draft = store.agents.get_draft(Scope("p", "d", "user:a"))
    agent = await store.database.write(lambda c: find_or_create_agent(c, draft))

    async def turn(c):
        passage = await insert_passage(c, agent.id, os.urandom(400).hex(), at=1.0)
        await replace_terms(c, agent.id, passage.seq, b"x")
        return passage.seq

    async def client():
        while True:
            seq = await store.database.write(turn)
            os.write(1, b"%d\\n" % seq)

    await asyncio.gather(*(client() for _ in range(8)))

asyncio.run(main())
"""


def test_acknowledged_writes_survive_sigkill(path: Path) -> None:
    acknowledged: list[int] = []
    for until in (1, 40, 333, 700):
        with subprocess.Popen(
            [sys.executable, "-c", UNDER_LOAD, str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            acknowledged += [int(process.stdout.readline()) for _ in range(until)]
            process.kill()
            acknowledged += [int(line) for line in process.stdout if line.endswith(b"\n")]
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        passages = {row[0] for row in connection.execute("SELECT seq FROM passages")}
        terms = {row[0] for row in connection.execute("SELECT chunk FROM terms")}
        connection.close()
        assert passages == terms  # no turn is there by half
        assert passages >= set(acknowledged)
    assert len(acknowledged) == len(set(acknowledged)) >= 1074


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Only while no connection of this process is open: closing a descriptor of the file drops SQLite's locks."""
    path.write_bytes(change(path.read_bytes()))


def restore(path: Path, backup: str) -> None:
    """As an operator does: the copy takes the name, and the log of the damaged file goes."""
    for side in ("-wal", "-shm"):
        Path(f"{path}{side}").unlink(missing_ok=True)
    shutil.move(backup, path)


def take_away(path: Path) -> None:
    for side in ("", "-wal", "-shm"):
        Path(f"{path}{side}").unlink(missing_ok=True)


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_write_to_a_removed_file_is_not_acknowledged(
    open_store: Any, path: Path, tmp_path: Path, how: str
) -> None:
    store = await open_store(limits=AT_ONCE)
    await store.keys.create("default", "first")
    other = tmp_path / "other.db"
    shutil.copy(path, other)
    take_away(path)
    if how == "replaced":
        shutil.move(other, path)
    with pytest.raises(StoreFailed, match="removed or replaced"):
        await store.keys.create("default", "second")
    assert await store.database.writer.recover()
    assert ("new, empty database" in (store.health.error or "")) == (how == "removed")
    third = await store.keys.create("default", "third")
    assert third[0] in await store.keys.list()


async def test_a_file_that_could_not_be_looked_at_is_not_taken_for_another_one(
    open_store: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system that fails for a moment: what is written is written."""
    look, is_failing = os.stat, True

    def look_or_fail(which: Any, *args: Any, **more: Any) -> os.stat_result:
        if (
            is_failing
            and str(which) == str(path)
            and sys._getframe(1).f_code.co_name in ("find_inode", "is_replaced")
        ):
            raise PermissionError(which)
        return look(which, *args, **more)

    monkeypatch.setattr("storage.sqlite.opened_file.os.stat", look_or_fail)
    store = await open_store(limits=AT_ONCE)
    is_failing = False
    first = await store.keys.create("default", "first")
    assert first[0] in await store.keys.list()


async def reopen(store: Store, path: Path, backup: Path) -> None:
    """Puts another file in the place of the one that a store has open, and has the store open it."""
    restore(path, str(backup))
    with pytest.raises(StoreFailed, match="removed or replaced"):
        await store.keys.create("default", "lost")
    assert await store.database.writer.recover()


async def test_the_keys_of_a_file_that_was_restored_are_its_own(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    other = await open_store(path=tmp_path / "other.db")
    _, theirs = await other.keys.create("default", "theirs")
    await other.close()
    store = await open_store(limits=AT_ONCE)
    _, mine = await store.keys.create("", "mine", opens="operator")
    assert await store.keys.find(mine)
    assert not await store.keys.has_any()
    await reopen(store, path, tmp_path / "other.db")
    assert await store.keys.has_any()
    assert await store.keys.find(theirs)
    assert await store.keys.find(mine) is None


@pytest.mark.parametrize("is_read", [False, True])
async def test_the_log_of_a_file_that_was_replaced_is_not_applied_to_the_new_one(
    open_store: Any, path: Path, tmp_path: Path, is_read: bool
) -> None:
    other = await open_store(path=tmp_path / "other.db")
    _, theirs = await other.keys.create("default", "theirs")
    await other.close()
    store = await open_store(limits=AT_ONCE)
    _, mine = await store.keys.create("default", "mine")
    reader = sqlite3.connect(path)
    if is_read:  # then the log cannot be emptied
        reader.execute("BEGIN")
        reader.execute("SELECT 1 FROM keys").fetchall()
    shutil.move(path, tmp_path / "old.db")
    shutil.move(tmp_path / "other.db", path)  # the logs stay
    with pytest.raises(StoreFailed, match="removed or replaced"):
        await store.keys.create("default", "lost")
    assert await store.database.writer.recover()
    assert await store.keys.find(theirs)
    assert await store.keys.find(mine) is None
    reader.close()
    if not is_read:
        old = await open_store(path=tmp_path / "old.db")
        assert await old.keys.find(mine)


async def test_a_file_in_the_place_of_another_is_not_opened_before_the_old_log_is_deleted(
    open_store: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await open_store(path=tmp_path / "other.db")
    _, theirs = await other.keys.create("default", "theirs")
    await other.close()
    store = await open_store(limits=AT_ONCE)
    await store.keys.create("default", "mine")
    with contextlib.closing(sqlite3.connect(path)) as reader:  # with it the log cannot be emptied
        reader.execute("BEGIN")
        reader.execute("SELECT 1 FROM keys").fetchall()
        shutil.move(tmp_path / "other.db", path)
        with monkeypatch.context() as patch:

            def refuse(which: Any) -> None:
                raise PermissionError(which)

            patch.setattr("storage.sqlite.opened_file.os.unlink", refuse)
            with pytest.raises(StoreFailed, match="removed or replaced"):
                await store.keys.create("default", "lost")
            assert not await store.database.writer.recover()
            assert not await store.database.writer.recover()
    assert await store.database.writer.recover()
    assert await store.keys.find(theirs)


def test_a_log_that_has_the_inode_of_a_deleted_log_is_not_deleted(path: Path, tmp_path: Path) -> None:
    """A file system gives the number of a freed inode to a new file. Here a second name holds on to the inode."""
    log, second_name = Path(f"{path}-wal"), tmp_path / "second-name"
    path.touch()
    log.touch()
    os.link(log, second_name)
    file = OpenedFile(str(path))
    file.record_opened(file.find_inode(), 1, is_different=False)
    file.delete_logs()
    assert not log.exists()
    os.link(second_name, log)
    file.delete_logs()
    assert log.exists()


async def test_a_copy_that_is_restored_into_the_open_file_is_noticed_before_a_write(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    """Otherwise a turn of one user, planned with the ids of before, is stored in the memory of another."""
    other = await open_store(path=tmp_path / "other.db")
    _, theirs = await other.keys.create("default", "theirs")
    await other.close()
    store = await open_store(limits=AT_ONCE)
    _, mine = await store.keys.create("default", "mine")
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as copy,
        contextlib.closing(sqlite3.connect(path)) as file,
    ):
        copy.backup(file)
    with pytest.raises(StoreFailed, match="restored or changed by another program"):
        await store.keys.create("default", "lost")
    assert await store.database.writer.recover()
    assert await store.keys.find(theirs)
    assert await store.keys.find(mine) is None
    assert [key.name for key in await store.keys.list()] == ["theirs"]


async def open_with_copy(open_store: Any, path: Path, other_path: Path, scope: Scope) -> Any:
    """Opens a store with a memory of Alice, and makes a copy with the memory of another scope under the same id."""
    other = await open_store(path=other_path)
    await Speaker(other, scope).say([user("My safe has the code 4711.")], assistant("Noted."), "c1")
    await other.close()
    store = await open_store(path=path, limits=AT_ONCE)
    await Speaker(store).say([user("I like tea.")], assistant("Noted."), "c1")
    return store


def restore_in_place(copy_path: Path, path: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(copy_path)) as copy,
        contextlib.closing(sqlite3.connect(path)) as file,
    ):
        copy.backup(file)


BOB = Scope("default", "default", "user:bob")


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("is_moved", [False, True])
async def test_a_turn_that_was_under_way_when_a_copy_was_restored_is_not_stored_in_another_memory(
    open_store: Any, path: Path, tmp_path: Path, is_new: bool, is_moved: bool
) -> None:
    """is_new: the id of its memory is not in the copy, and would be that of the next one."""
    store = await open_with_copy(open_store, path, tmp_path / "other.db", BOB)
    alice, bob = Speaker(store), Speaker(store, BOB)
    if is_new:
        alice = Speaker(store, Scope("default", "default", "user:carol"))
        await alice.say([user("I like tea.")], assistant("Noted."), "c1")
        bob = Speaker(store, Scope("default", "default", "user:dave"))
    turn = await alice.begin([user("I like tea."), assistant("Noted."), user("I am ill.")], "c1")
    if is_moved:
        (tmp_path / "other.db").replace(path)
    else:
        restore_in_place(tmp_path / "other.db", path)
    with pytest.raises(StoreFailed):
        await store.keys.create("default", "lost")
    assert await store.database.writer.recover()
    if is_new:
        await bob.say([user("I like tea.")], assistant("Noted."), "c1")
    before = len(await bob.rows())
    with pytest.raises(StaleWrite):
        await alice.commit(turn, [assistant("Get well.")])
    assert len(await bob.rows()) == before
    await bob.say([user("My cat is Miso.")], assistant("Noted."), "c2")
    assert len(await bob.rows()) == before + 1


@pytest.mark.parametrize("is_long", [False, True])
async def test_no_read_after_a_restore_returns_the_rows_of_another_memory(
    open_store: Any, path: Path, tmp_path: Path, is_long: bool
) -> None:
    """Caches name the rows of before until the next write."""
    store = await open_with_copy(open_store, path, tmp_path / "other.db", BOB)
    alice = await store.agents.find(ALICE)
    assert alice is not None
    restore_in_place(tmp_path / "other.db", path)
    with pytest.raises(StoreFailed, match="restored or changed by another program"):
        await (
            store.facts.load_sourced_lines(alice.id, {}) if is_long else store.facts.list_standing(alice.id)
        )
    assert await store.database.writer.recover()
    assert await store.agents.find(ALICE) is None


async def test_a_reader_that_opens_after_the_file_was_replaced_reads_nothing_of_it(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    other = await open_store(path=tmp_path / "other.db")
    _, file = await fill(other, BOB)
    await other.close()
    store = await open_store(path=path, limits=AT_ONCE)
    (tmp_path / "other.db").replace(path)
    with pytest.raises(StoreFailed, match="removed or replaced"):
        await store.files.load_text(file)  # the first long read opens the file
    assert await store.database.writer.recover()
    assert await store.files.load_text(file) == FILE_TEXT


@pytest.mark.parametrize("is_long", [False, True])
async def test_a_reader_does_not_write_the_log_of_the_old_file_into_the_one_in_its_place(
    open_store: Any, path: Path, tmp_path: Path, is_long: bool
) -> None:
    """The last connection to close a file writes the log at its path back, also that of another file."""
    other = await open_store(path=tmp_path / "other.db")
    _, file = await fill(other, BOB)
    await other.close()
    before = await asyncio.to_thread((tmp_path / "other.db").read_bytes)
    store = await open_store(path=path, limits=BY_HAND)
    store.database.reader.reset()
    (tmp_path / "other.db").replace(path)
    with pytest.raises(StoreFailed, match="removed or replaced"):
        await (store.files.load_text(file) if is_long else store.keys.list())
    for thread in threading.enumerate():
        if thread.name == "mnemogate-reader":
            await asyncio.to_thread(thread.join)  # it closes its connection
    assert await asyncio.to_thread(path.read_bytes) == before


async def test_a_grown_log_is_not_copied_into_the_file_in_the_place_of_the_one_written(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    other = await open_store(path=tmp_path / "other.db")
    _, file = await fill(other, BOB)
    await other.close()
    store = await open_store(path=path, limits=replace(BY_HAND, checkpoint_bytes=1))
    replacements = [tmp_path / "other.db"]

    def put_in_place(_: Changes) -> None:
        while replacements:
            replacements.pop().replace(path)

    store.database.add_change_listener(
        put_in_place
    )  # the batch has found its file, and its log is not yet copied
    await store.agents.find_or_create(ALICE, (HUMAN,), (), 1.0)
    await store.database.writer.log.is_free.wait()
    with contextlib.suppress(StoreFailed):  # unless the file in place is open already
        await store.keys.create("default", "laptop")
    assert await store.database.writer.recover()
    assert await store.files.load_text(file) == FILE_TEXT
    assert await store.agents.find(ALICE) is None


async def test_a_file_that_is_replaced_while_it_is_opened_again_ends_the_turns_under_way(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    exchanges: list[Path] = []

    def connect(target: DatabaseFile) -> sqlite3.Connection:
        for other in exchanges:
            other.replace(path)
        exchanges.clear()
        return connect_current(target)

    other = await open_store(path=tmp_path / "other.db")
    await Speaker(other, BOB).say([user("I like milk.")], assistant("Noted."), "c1")
    await other.close()
    store = await open_store(path=path, limits=AT_ONCE, connect=connect)
    alice, bob = Speaker(store), Speaker(store, BOB)
    await alice.say([user("I like tea.")], assistant("Noted."), "c1")
    turn = await alice.begin([user("I like tea."), assistant("Noted."), user("I am ill.")], "c1")
    exchanges.append(tmp_path / "other.db")
    store.database.writer.report_fault(StoreFailed("a fault of the disk"))
    assert not await store.database.writer.recover()
    assert await store.database.writer.recover()
    before = len(await bob.rows())
    with pytest.raises(StaleWrite):
        await alice.commit(turn, [assistant("Get well.")])
    assert len(await bob.rows()) == before


async def test_a_turn_that_was_under_way_when_a_copy_was_restored_finds_nothing_of_another_memory(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    """Its model may call a tool that searches once the gateway has opened the file again."""
    store = await open_with_copy(open_store, path, tmp_path / "other.db", BOB)
    alice = await store.agents.find(ALICE)
    assert alice is not None
    numbers = await store.database.read(lambda connection: find_numbers(connection, alice.id))
    restore_in_place(tmp_path / "other.db", path)
    with pytest.raises(StoreFailed):
        await store.keys.create("default", "lost")
    assert await store.database.writer.recover()
    bob = await store.agents.find(BOB)
    assert bob is not None
    assert alice.id == bob.id
    for known_numbers in (None, numbers):
        assert await store.recall.search(alice, "safe code", numbers=known_numbers) == []
    assert await store.recall.search(bob, "safe code")
    for known_numbers in (None, numbers):
        assert await store.recall.search(alice, "safe code", numbers=known_numbers) == []
    assert not (await store.recall.find_containing(alice, "safe")).messages


FILE_TEXT = "The text of a file."


def reads_by_row(
    store: Store, agent_row: int, file: StoredFile
) -> list[Callable[[], Coroutine[Any, Any, Any]]]:
    """Returns reads of all kinds, each of which finds something in a memory that `fill` has made."""
    return [
        lambda: store.facts.list_page(agent_row),
        lambda: store.blocks.load(agent_row),
        lambda: store.passages.list_texts(agent_row, limit=10),
        lambda: store.files.load_text(file),
        lambda: store.messages.list_page(agent_row, Page(limit=10)),
        lambda: store.agents.find_by_id(agent_row),
    ]


async def fill(store: Store, scope: Scope) -> tuple[Agent, StoredFile]:
    """Adds a memory with a block, a turn, a fact, a passage and a file of its own. Returns it and the file."""
    agent = await store.agents.find_or_create(scope, (HUMAN,), (), 1.0)
    await Speaker(store, scope).say([user("My safe has the code 4711.")], assistant("Noted."), "c1")
    fact = LearnedFact("Has a safe.", "", "has a safe.", 1.0, 1, (1,), ())
    await store.database.write(lambda connection: add_fact(connection, agent, fact, 1.0))
    await store.database.write(write(agent, "A passage."))
    draft = StoredFile(0, new_uid(), agent.id, FileState.PARSING, 1, 1.0, "text/plain", "a.md")
    file = await store.files.add(draft, on_taken_name="rename")
    await store.files.add_parts(file, [FILE_TEXT])
    return agent, file


@pytest.mark.parametrize("is_moved", [False, True])
async def test_work_that_was_under_way_at_a_restore_reads_and_writes_nothing_by_the_ids_of_before(
    open_store: Any, path: Path, tmp_path: Path, is_moved: bool
) -> None:
    """They are those of another user in the database that was opened then."""
    other = await open_store(path=tmp_path / "other.db")
    bob, _ = await fill(other, BOB)
    await other.close()
    store = await open_store(path=path, limits=AT_ONCE)
    store.begin_work()
    alice, file = await fill(store, ALICE)
    assert alice.id == bob.id
    if is_moved:
        (tmp_path / "other.db").replace(path)
    else:
        restore_in_place(tmp_path / "other.db", path)
    with pytest.raises(StoreFailed):
        await store.keys.create("default", "lost")
    assert await store.database.writer.recover()
    for read in reads_by_row(store, alice.id, file):
        with pytest.raises(StoreFailed):
            await read()
    for put in (store.database.write, store.database.bulk_write):
        with pytest.raises(StaleWrite):
            await put(write(alice))
    store.begin_work()
    assert all([await read() for read in reads_by_row(store, alice.id, file)])


async def test_work_that_was_under_way_at_a_restore_gets_no_cached_snapshot_of_another_memory(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    store = await open_with_copy(open_store, path, tmp_path / "other.db", BOB)
    store.begin_work()
    alice = await store.agents.find(ALICE)
    assert alice is not None
    restore_in_place(tmp_path / "other.db", path)
    with pytest.raises(StoreFailed):
        await store.keys.create("default", "lost")
    assert await store.database.writer.recover()
    begins_now = Speaker(store, BOB).begin([user("Which code?")], "c1")
    turn = await asyncio.create_task(begins_now, context=Context())
    assert turn.agent.id == alice.id
    with pytest.raises(StoreFailed):
        await store.turns.find_snapshot(alice, None, None)


async def test_recovery_listeners_are_no_part_of_the_work_that_found_the_failure(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    """It reads the new file: the keys of the settings are added to it, for instance."""
    store = await open_with_copy(open_store, path, tmp_path / "other.db", BOB)
    generations, recovered = list[int | None](), asyncio.Event()
    store.database.add_recovery_listener(lambda: generations.append(work_generation.get()))
    store.database.add_recovery_listener(recovered.set)
    store.begin_work()
    restore_in_place(tmp_path / "other.db", path)
    with pytest.raises(StoreFailed):
        await store.agents.find_by_id(1)
    async with asyncio.timeout(PATIENCE_S):
        await recovered.wait()
    assert generations == [None]


async def test_a_forgetting_in_a_file_that_was_restored_begins_at_its_first_phase(
    open_store: Any, path: Path, tmp_path: Path
) -> None:
    store = await open_store(limits=AT_ONCE)
    alice = Speaker(store)
    await alice.say([user("I have a heron.")], assistant("Good."))
    await store.close()
    shutil.copy(path, tmp_path / "other.db")
    store = await open_store(limits=AT_ONCE)
    whole, steps = ForgetTarget(is_all=True), iter(range(100))
    begun = await store.forgetting.begin(alice.agent.id, whole)
    assert not await store.forgetting.run(begun, until=lambda: next(steps) == 15)
    await reopen(store, path, tmp_path / "other.db")
    assert await store.forgetting.begin(alice.agent.id, whole) == begun
    await store.forgetting.finish(begun)
    assert await rows(store, "SELECT 1 FROM exchanges WHERE agent <> 0") == []


async def test_retention_that_was_under_way_at_a_restore_forgets_nothing_of_another_memory(
    open_store: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is forgotten by age in the project of the memory that has the row now."""
    bob = Scope("other", "default", "user:bob")
    store = await open_with_copy(open_store, path, tmp_path / "other.db", bob)
    list_older = store.forget_targets.list_older

    async def list_and_restore(*of: Any, **named: Any) -> Any:
        agent_rows = await list_older(*of, **named)
        monkeypatch.undo()
        restore_in_place(tmp_path / "other.db", path)
        # Other work notices the restore meanwhile.
        with pytest.raises(StoreFailed):
            await asyncio.create_task(store.agents.find_by_id(1), context=Context())
        assert await store.database.writer.recover()
        return agent_rows

    monkeypatch.setattr(store.forget_targets, "list_older", list_and_restore)
    retention = Retention(store, {"default": 1.0}, lambda: 1e9)
    with contextlib.suppress(StoreError):  # it is repeated later
        await asyncio.create_task(retention.perform_due())
    await asyncio.create_task(retention.perform_due())
    assert await rows(store, "SELECT project, state FROM exchanges x JOIN agents a ON a.id = x.agent") == [
        ("other", "finished")
    ]


async def test_a_file_that_was_removed_is_noticed_and_made_again(open_store: Any, path: Path) -> None:
    limits = WriterLimits(idle_s=0.0, retry_first_s=0.0, retry_max_s=0.0)
    store = await open_store(limits=limits)
    first = await store.keys.create("default", "first")
    take_away(path)
    # The writer looks when it is idle.
    assert "removed or replaced" in await comes(lambda: store.health.error or "")
    assert await store.database.writer.recover()
    second = await store.keys.create("default", "second")
    assert [key.name for key in await store.keys.list()] == [second[0].name]
    assert first[0].name == "first"
