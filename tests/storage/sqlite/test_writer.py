"""Group commit: what is written together, what fails alone, which write waits for which."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from storage.errors import (
    ForeignDatabase,
    NotFound,
    StatementFailed,
    StoreBusy,
    StoreClosed,
    StoreFailed,
    StoreTimeout,
    WriteConflict,
)
from storage.sql.store import Store
from storage.sqlite.checkpoint import Checkpointer
from storage.sqlite.connection import DatabaseFile, open_writer
from storage.sqlite.driver import Driver
from storage.sqlite.watch import Watch
from storage.sqlite.writer import Writer, WriterLimits
from tests.doubles.statements import counting
from tests.patience import PATIENCE_S, comes
from tests.storage.conftest import OpenStore

Write = Callable[[sqlite3.Connection], Any]


def add(value: object) -> Write:
    def write(connection: sqlite3.Connection) -> object:
        connection.execute("INSERT INTO items VALUES (?)", (value,))
        return value

    return write


class Commits(sqlite3.Connection):
    """Counts transactions and savepoints; can be made to fail the next commit."""

    commits = 0
    savepoints = 0
    break_next = False

    def execute(self, sql: str, *rest: Any) -> Any:  # type: ignore[override]
        Commits.savepoints += sql.startswith("SAVEPOINT")
        if sql == "COMMIT":
            Commits.commits += 1
            if Commits.break_next:
                Commits.break_next = False
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                error.sqlite_errorname = "SQLITE_IOERR"
                raise error
        return super().execute(sql, *rest)


class Bench:
    """A writer on a file with one table, and a hand on what is in its thread."""

    def __init__(self, path: Path, beside: Checkpointer | None = None, **limits: Any) -> None:
        self.path = path
        self.opened = 0
        limits = {"retry_first_s": 3600, "idle_s": 3600, **limits}
        self.writer = Writer(
            str(path),
            self.connect,
            Watch(),
            checkpointer=beside or Checkpointer(lambda: open_writer(DatabaseFile(str(path)))),
            on_change=lambda changes: None,
            on_failure=lambda fault: None,
            on_recovery=lambda: None,
            limits=WriterLimits(**limits),
        )
        self.gates: list[threading.Event] = []
        Commits.commits = Commits.savepoints = 0
        Commits.break_next = False

    def connect(self) -> sqlite3.Connection:
        open_writer(DatabaseFile(str(self.path))).close()
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, factory=Commits
        )
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("CREATE TABLE IF NOT EXISTS items (value UNIQUE)")
        connection.execute("CREATE TABLE IF NOT EXISTS probe (id INTEGER PRIMARY KEY, filler)")
        self.opened += 1
        return connection

    def log_size(self) -> int:
        """Bytes in the write-ahead log."""
        return Path(f"{self.path}-wal").stat().st_size

    async def stall(self, submit: Any = None) -> threading.Event:
        """Keeps the thread inside a write until the event is set."""
        entered, gate = threading.Event(), threading.Event()
        self.gates.append(gate)

        def wait(_: sqlite3.Connection) -> None:
            entered.set()
            gate.wait()

        (submit or self.writer.submit)(wait)
        await asyncio.to_thread(entered.wait)
        return gate

    def rows(self) -> list[Any]:
        connection = sqlite3.connect(self.path)
        try:
            return [row[0] for row in connection.execute("SELECT value FROM items ORDER BY rowid")]
        finally:
            connection.close()


@pytest.fixture
async def make(path: Path) -> AsyncIterator[Callable[..., Any]]:
    benches: list[Bench] = []

    async def make_one(**limits: Any) -> Bench:
        bench = Bench(path, **limits)
        await bench.writer.start()
        benches.append(bench)
        return bench

    yield make_one
    for bench in benches:
        for gate in bench.gates:
            gate.set()
        await bench.writer.close()


async def test_a_result_comes_back_when_it_is_committed(make: Any) -> None:
    bench = await make()
    assert await bench.writer.submit(add(1)) == 1
    assert bench.rows() == [1]


async def test_writes_that_gather_while_a_batch_runs_are_one_transaction(make: Any) -> None:
    bench = await make()
    gate = await bench.stall()
    futures = [bench.writer.submit(add(i)) for i in range(50)]
    gate.set()
    assert await asyncio.gather(*futures) == list(range(50))
    assert (Commits.commits, Commits.savepoints) == (2, 0)
    assert bench.rows() == list(range(50))


async def test_writes_of_successive_passes_of_the_loop_are_one_transaction(make: Any) -> None:
    bench = await make(gather_s=3600)
    futures = [bench.writer.submit(add(0))]
    for i in range(1, 6):
        futures.append(bench.writer.submit(add(i)))
        await asyncio.sleep(0)
    assert await asyncio.gather(*futures) == list(range(6))
    assert Commits.commits == 1


async def test_a_write_that_comes_alone_goes_at_once(make: Any) -> None:
    bench = await make(gather_s=3600)
    first = bench.writer.submit(add(1))
    await asyncio.sleep(0)
    await asyncio.gather(first, bench.writer.submit(add(2)))
    assert Commits.commits == 2


async def test_a_batch_gathers_no_longer_than_it_may(make: Any) -> None:
    bench = await make(gather_s=0)
    first = [bench.writer.submit(add(1)), bench.writer.submit(add(2))]
    await asyncio.sleep(0)
    await asyncio.gather(*first, bench.writer.submit(add(3)))
    assert Commits.commits == 2


async def test_a_batch_is_bounded(make: Any) -> None:
    bench = await make(max_batch_turns=10)
    gate = await bench.stall()
    futures = [bench.writer.submit(add(i)) for i in range(25)]
    gate.set()
    await asyncio.gather(*futures)
    assert Commits.commits == 1 + 3


@pytest.mark.parametrize("others", [0, 2], ids=["alone", "in a batch"])
@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("INSERT INTO items VALUES ('there')", WriteConflict),
        ("INSERT INTO nowhere VALUES (1)", StatementFailed),
        (None, NotFound),
    ],
)
async def test_a_bad_write_fails_alone(make: Any, others: int, sql: str | None, error: type) -> None:
    bench = await make()
    await bench.writer.submit(add("there"))

    def bad(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO items VALUES ('half')")
        if sql is None:
            raise NotFound("nothing there")
        connection.execute(sql)

    gate = await bench.stall()
    before = [bench.writer.submit(add(f"before {i}")) for i in range(others)]
    failing = bench.writer.submit(bad)
    after = [bench.writer.submit(add(f"after {i}")) for i in range(others)]
    gate.set()
    with pytest.raises(error):
        await failing
    await asyncio.gather(*before, *after)
    assert bench.rows() == [
        "there",
        *(f"before {i}" for i in range(others)),
        *(f"after {i}" for i in range(others)),
    ]
    assert bench.writer.status == "ok"


async def test_a_failed_commit_fails_all_of_its_batch_and_reopens_the_database(make: Any) -> None:
    bench = await make(max_batch_turns=3)
    gate = await bench.stall()

    def break_commit(_: sqlite3.Connection) -> None:
        Commits.break_next = True

    lost = [bench.writer.submit(write) for write in (add("lost 0"), break_commit, add("lost 1"))]
    kept = [bench.writer.submit(add(f"kept {i}")) for i in range(3)]
    bench.writer.submit(add("bulk"), is_bulk=True)
    gate.set()
    for future in lost:
        with pytest.raises(StoreFailed, match="disk I/O error"):
            await future
    assert await asyncio.gather(*kept) == [f"kept {i}" for i in range(3)]
    assert bench.opened == 2
    assert await bench.writer.drain(PATIENCE_S)
    assert bench.rows() == ["kept 0", "kept 1", "kept 2", "bulk"]
    health = bench.writer.health
    assert health.status == "ok"
    assert health.error is not None
    assert "SQLITE_IOERR" in health.error


async def test_each_write_of_a_batch_that_lost_its_transaction_has_an_error_of_its_own(make: Any) -> None:
    bench = await make()
    gate = await bench.stall()

    def end_transaction(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")

    lost = [bench.writer.submit(write) for write in (add("lost 0"), add("lost 1"), end_transaction)]
    gate.set()
    errors = await asyncio.gather(*lost, return_exceptions=True)
    assert [type(error) for error in errors] == [StatementFailed] * 3
    assert len(set(map(id, errors))) == 3
    assert bench.rows() == []


class FailsFirst(Bench):
    """A writer whose file cannot be opened three times, since the disk fails."""

    failures = 3

    def connect(self) -> sqlite3.Connection:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EIO, "Input/output error")
        return super().connect()


async def test_a_file_that_is_refused_at_the_start_is_refused_with_the_cause(path: Path) -> None:
    cause = sqlite3.DatabaseError("no such table")
    bench = Bench(path)

    def refuse() -> sqlite3.Connection:
        raise ForeignDatabase("another program's file") from cause

    bench.writer._connection._connect = refuse
    with pytest.raises(ForeignDatabase) as caught:
        await bench.writer.start()
    assert caught.value.__cause__ is cause
    await bench.writer.close()


async def test_an_error_of_the_system_does_not_end_the_attempts_to_open_it(path: Path) -> None:
    """A disk that fails may fail any call, such as one that closes a file."""
    bench = FailsFirst(path, retry_first_s=0.01, retry_max_s=0.01)
    await bench.writer.start()
    try:
        assert bench.writer.status == "broken"
        await comes(lambda: bench.writer.status == "ok")
        await bench.writer.submit(add("kept"))
        assert bench.rows() == ["kept"]
    finally:
        await bench.writer.close()


async def test_a_cancelled_waiter_does_not_cancel_the_write(make: Any) -> None:
    bench = await make()
    gate = await bench.stall()

    async def wait() -> None:
        await bench.writer.submit(add("kept"))

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    behind = bench.writer.submit(add("behind"))
    gate.set()
    await behind
    assert bench.rows() == ["kept", "behind"]


async def test_the_queue_is_bounded_and_refuses_at_once(make: Any) -> None:
    bench = await make(queue_bytes=10_000)
    gate = await bench.stall()
    first = bench.writer.submit(add(1), size_bytes=6_000)
    with pytest.raises(StoreBusy):
        bench.writer.submit(add(2), size_bytes=6_000)
    bulk = bench.writer.submit(add(3), size_bytes=6_000, is_bulk=True)
    assert bench.writer.health.waiting == 3
    gate.set()
    await first
    await bulk
    await bench.writer.submit(add(4), size_bytes=6_000)
    assert bench.rows() == [1, 3, 4]
    assert bench.writer.health.waiting_bytes == 0


async def test_a_large_write_is_accepted_if_no_other_waits(make: Any) -> None:
    bench = await make(queue_bytes=10_000)
    await bench.writer.submit(add(1), size_bytes=20_000)
    assert bench.rows() == [1]


async def test_turns_go_before_bulk_work(make: Any) -> None:
    bench = await make()
    gate = await bench.stall()
    bulk = [bench.writer.submit(add(f"bulk {i}"), is_bulk=True) for i in range(2)]
    turns = [bench.writer.submit(add(f"turn {i}")) for i in range(2)]
    gate.set()
    await asyncio.gather(*bulk, *turns)
    assert bench.rows() == ["turn 0", "turn 1", "bulk 0", "bulk 1"]
    assert Commits.commits == 1 + 1 + 2


async def test_bulk_work_is_not_starved(make: Any) -> None:
    bench = await make(max_batch_turns=1, max_turn_batches=3)
    gate = await bench.stall()
    futures = [bench.writer.submit(add(f"turn {i}")) for i in range(6)]
    futures.append(bench.writer.submit(add("bulk"), is_bulk=True))
    gate.set()
    await asyncio.gather(*futures)
    assert bench.rows().index("bulk") == 2  # the stalled write was the first of three


async def test_a_stalled_write_shows_and_passes(make: Any) -> None:
    bench = await make(slow_s=0)
    gate = await bench.stall()
    waiting = bench.writer.submit(add(1))
    assert bench.writer.status == "slow"
    assert not await bench.writer.drain(0)
    gate.set()
    await waiting
    assert await bench.writer.drain(PATIENCE_S)
    assert bench.writer.status == "ok"


async def test_closing_drains_first_and_refuses_after(make: Any) -> None:
    bench = await make()
    futures = [bench.writer.submit(add(i)) for i in range(20)]
    await bench.writer.close()
    assert await asyncio.gather(*futures) == list(range(20))
    assert bench.rows() == list(range(20))
    assert bench.writer.status == "closed"
    with pytest.raises(StoreClosed):
        bench.writer.submit(add(21))
    await bench.writer.close()


async def test_closing_does_not_wait_for_ever(make: Any) -> None:
    bench = await make()
    await bench.stall()
    waiting = bench.writer.submit(add(1))
    await bench.writer.close(timeout_s=0)
    with pytest.raises(StoreClosed):
        await waiting


async def test_the_log_is_written_back_when_it_has_grown(make: Any) -> None:
    bench = await make(checkpoint_bytes=200_000)
    for i in range(24):
        await bench.writer.submit(add(f"{i:02}" * 20_000))
        await bench.writer.log.is_free.wait()
    # It began again in its file, which is no smaller for that.
    assert 200_000 < bench.log_size() < 400_000
    assert len(bench.rows()) == 24
    # Nothing of what it held stays when it has to be gone.
    assert await bench.writer.checkpoint()
    assert bench.log_size() == 0


async def test_the_file_of_a_log_is_emptied_once_it_is_twice_as_large(make: Any) -> None:
    bench = await make(checkpoint_bytes=200_000)
    await bench.writer.submit(add("0" * 500_000))
    await bench.writer.log.is_free.wait()
    await bench.writer.submit(add("last"))
    assert 0 < bench.log_size() < 200_000
    assert len(bench.rows()) == 2


class HeldUp(Checkpointer):
    """A checkpoint parallel to the writer that stops before it begins."""

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False))
        self.began, self.gate = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        self.began.set()
        await self.gate.wait()
        await super().run()


async def hold_up(make: Any, path: Path) -> tuple[Bench, HeldUp]:
    """A writer whose log has grown, and is about to be checkpointed in parallel."""
    beside = HeldUp(path)
    bench = await make(beside=beside, checkpoint_bytes=100_000)
    await bench.writer.submit(add("0" * 150_000))
    await beside.began.wait()
    return bench, beside


async def test_no_write_waits_for_a_grown_log(make: Any, path: Path) -> None:
    bench, beside = await hold_up(make, path)
    await bench.writer.submit(add("1" * 150_000))
    await bench.writer.submit(add(2))
    assert bench.log_size() > 300_000
    beside.gate.set()
    await bench.writer.log.is_free.wait()
    assert bench.log_size() == 0
    assert len(bench.rows()) == 3


async def test_the_log_is_written_back_by_one_at_a_time(make: Any, path: Path) -> None:
    """Two checkpoints at once, and a write that starts the log again, can corrupt it in an older SQLite."""
    bench, beside = await hold_up(make, path)
    sweeping = asyncio.create_task(bench.writer.checkpoint())
    done, _ = await asyncio.wait([sweeping], timeout=0.05)
    assert not done
    beside.gate.set()
    assert await sweeping
    assert bench.log_size() == 0


async def test_a_waiter_for_the_log_gets_the_error_of_the_file(make: Any, path: Path) -> None:
    bench, beside = await hold_up(make, path)
    sweeping = asyncio.create_task(bench.writer.checkpoint())
    await asyncio.sleep(0)
    bench.writer.report_fault(StoreFailed("the disk is gone"))
    recovering = asyncio.create_task(bench.writer.recover())
    await asyncio.sleep(0)
    beside.gate.set()
    with pytest.raises(StoreFailed, match="the disk is gone"):
        await sweeping
    assert await recovering


async def test_a_log_is_still_being_written_back_when_its_caller_gives_up(make: Any) -> None:
    bench = await make(checkpoint_bytes=100_000)
    await bench.writer.submit(add("seen"))
    reader = sqlite3.connect(bench.path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM items").fetchone() == (1,)
    await bench.writer.submit(add("written since"))
    sweeping = asyncio.create_task(bench.writer.checkpoint(wait_ms=60_000))
    await asyncio.sleep(0)
    sweeping.cancel()
    await asyncio.wait([sweeping])
    assert not bench.writer.log.is_free.is_set()
    reader.close()
    await bench.writer.log.is_free.wait()
    assert bench.log_size() == 0


async def test_closing_waits_for_a_log_that_is_being_written_back(make: Any, path: Path) -> None:
    bench, beside = await hold_up(make, path)
    closing = asyncio.create_task(bench.writer.close())
    done, _ = await asyncio.wait([closing], timeout=0.05)
    assert not done
    beside.gate.set()
    await closing
    assert len(bench.rows()) == 1


async def test_closing_before_a_log_is_written_back_leaves_no_connection(
    make: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, beside = await hold_up(make, path)
    checkpoint = bench.writer.log.parallel_checkpoint
    assert checkpoint is not None
    emptied = Mock()
    monkeypatch.setattr("storage.sqlite.writer_connection.empty_log", emptied)
    await bench.writer.close(timeout_s=0.01)
    emptied.assert_not_called()  # two checkpoints would run at once
    beside.gate.set()
    await asyncio.wait([checkpoint])
    assert beside._driver is None


async def test_closing_in_the_middle_of_a_recovery_leaves_no_thread(make: Any, path: Path) -> None:
    earlier = set(threading.enumerate())  # the writer's thread of an earlier test may still end
    bench, beside = await hold_up(make, path)
    started = set(threading.enumerate()) - earlier
    (thread,) = (each for each in started if each.name == "mnemogate-writer")
    bench.writer.report_fault(StoreFailed("the disk is gone"))
    await asyncio.sleep(0)  # the recovery waits for the checkpoint
    await bench.writer.close(timeout_s=0.01)
    beside.gate.set()
    await asyncio.to_thread(thread.join, PATIENCE_S)
    assert not thread.is_alive()


async def test_a_log_that_cannot_be_written_back_in_parallel_is_by_the_writer(make: Any, path: Path) -> None:
    def refuse() -> sqlite3.Connection:
        raise sqlite3.OperationalError("no more files")

    bench = await make(beside=Checkpointer(refuse), checkpoint_bytes=100_000)
    await bench.writer.submit(add("0" * 40_000))
    await bench.writer.log.is_free.wait()
    size = bench.log_size()
    assert size > 100_000
    await bench.writer.submit(add("1" * 10_000))
    assert bench.log_size() == size


async def test_a_reader_that_stays_does_not_stop_the_writer(make: Any) -> None:
    bench = await make(checkpoint_bytes=100_000)
    await bench.writer.submit(add("seen"))
    reader = sqlite3.connect(bench.path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM items").fetchone() == (1,)
    for i in range(6):
        await bench.writer.submit(add(f"{i}" * 60_000))
    assert not await bench.writer.checkpoint(wait_ms=0)
    assert reader.execute("SELECT count(*) FROM items").fetchone() == (1,)
    reader.close()
    assert await bench.writer.checkpoint()
    assert bench.log_size() == 0


async def test_the_log_is_written_back_when_idle(make: Any) -> None:
    bench = await make(idle_s=0)
    written_back = asyncio.Event()
    original = bench.writer._end_log_work

    def note(size: int, done: bool) -> None:
        original(size, done)
        written_back.set()

    bench.writer._end_log_work = note
    await bench.writer.submit(add(1))
    async with asyncio.timeout(PATIENCE_S):
        await written_back.wait()
    assert bench.log_size() == 0


async def test_a_log_in_use_by_a_reader_is_emptied_after_it_though_nothing_is_written(
    make: Any,
) -> None:
    bench = await make(idle_s=0)
    reader = sqlite3.connect(bench.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM items").fetchone()
    tries = asyncio.Semaphore(0)
    original = bench.writer._end_log_work

    def note(size: int, done: bool) -> None:
        original(size, done)
        tries.release()

    bench.writer._end_log_work = note
    await bench.writer.submit(add("what is to be forgotten"))
    async with asyncio.timeout(PATIENCE_S):
        await tries.acquire()
        assert bench.log_size() > 0
        reader.close()
        while bench.log_size():
            await tries.acquire()


async def test_reads_have_a_deadline(store: Store) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    def read(connection: sqlite3.Connection) -> Any:
        return connection.execute(endless).fetchone()

    with pytest.raises(StoreTimeout):
        store.database.reader.run(read, deadline_ms=1)
    with pytest.raises(StoreTimeout):
        await store.database.long_reader.run(read, deadline_ms=1)
    assert store.database.reader.run(lambda c: c.execute("SELECT 1").fetchone()) == (1,)
    assert await store.database.long_reader.run(lambda c: c.execute("SELECT 1").fetchone()) == (1,)


async def test_a_read_that_has_no_time_left_is_too_slow(store: Store) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) SELECT max(i) FROM n"
    for read in (store.database.read, store.database.long_read):
        with pytest.raises(StoreTimeout):
            await read(lambda connection: connection.fetch_rows(many), deadline_ms=0)


@pytest.mark.parametrize(("asked", "level"), [({}, 1), ({"synchronous": "FULL"}, 2)], ids=["NORMAL", "FULL"])
async def test_how_it_is_written_to_disk(open_store: OpenStore, asked: dict[str, str], level: int) -> None:
    """NORMAL survives the death of the process, FULL that of the machine; what is deleted is overwritten."""
    store = await open_store(**asked)

    def read(connection: sqlite3.Connection) -> list[Any]:
        names = ("synchronous", "journal_mode", "secure_delete", "wal_autocheckpoint")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await store.database.writer.submit(read) == [level, "wal", 1, 0]


async def test_readers_cannot_write(store: Store) -> None:
    def write(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM agents")

    with pytest.raises(Exception, match="readonly"):
        store.database.reader.run(write)
    with pytest.raises(Exception, match="readonly"):
        await store.database.long_reader.run(write)


async def test_statements_are_counted_with_what_begins_and_ends_transactions(open_store: Any) -> None:
    statements: list[str] = []
    store = await open_store(factory=counting(statements.append))
    store.database.reader.run(lambda c: c.execute("SELECT 1").fetchone())
    statements.clear()

    def write(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO terms VALUES (1, 1, x'00', 1)")
        connection.execute("UPDATE terms SET chunk = 2")

    await asyncio.gather(
        store.database.writer.submit(write), store.database.writer.submit(lambda _: None, is_bulk=True)
    )
    store.database.reader.run(lambda c: c.execute("SELECT 2").fetchone())
    found = [sql.split()[0] for sql in statements]
    assert found == ["BEGIN", "INSERT", "UPDATE", "COMMIT", "BEGIN", "COMMIT", "SELECT"]


def test_a_thread_that_outlives_its_loop_ends_in_silence(tmp_path: Path) -> None:
    """A connection takes long to close while the process ends. (What a thread raises fails a test.)"""
    gate = threading.Event()

    async def leave() -> threading.Thread:
        driver = await Driver(lambda: sqlite3.connect(tmp_path / "m.db"), "outliving").open()
        closing = asyncio.ensure_future(driver.call(lambda connection: gate.wait()))
        await asyncio.sleep(0)
        closing.cancel()
        driver.abandon()
        return next(each for each in threading.enumerate() if each.name == "outliving")

    thread = asyncio.run(leave())
    gate.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
