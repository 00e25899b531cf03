"""The writer: one connection, one thread, many writes in one transaction.

A write is a function of the connection, which may be called twice. While one batch is in the thread, the next one
gathers. For an idle thread a batch gathers as long as each pass of the loop brings more writes; a write that comes
alone goes at once. A batch is one hop to the thread and one COMMIT. A failed write undoes no other: then the batch is
run again, each function in a savepoint.

    submit -> waiting -> batch -> BEGIN; f*; COMMIT -> futures
                                  else ROLLBACK; BEGIN; (SAVEPOINT f RELEASE)*; COMMIT

A write that comes alone may begin its transaction itself, or be a single statement without one.

A waiting write is never cancelled: a caller that goes away abandons the result, not the write. The waiting writes are
bounded in bytes; beyond the bound `submit` refuses at once.

Faults. When the database fails (as opposed to a write that is wrong in itself), the connection is opened again and a
trial write is made. Waiting writes wait for this first attempt. If it fails, they all fail with the named error,
`submit` refuses at once, and further attempts follow with growing pauses until writing works again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from storage.database import Changes, StoreHealth
from storage.errors import Broken, Busy, Closed, Corrupt, StoreError, Unavailable
from storage.sidecar import unavailable
from storage.sqlite.batch import BatchReport, BatchRunner
from storage.sqlite.connection import try_writing
from storage.sqlite.driver import Driver
from storage.sqlite.loop_calls import LoopCalls
from storage.sqlite.result_codes import translate_error
from storage.sqlite.watch import Watch
from storage.sqlite.write_ahead_log import LogLimits, LogWork, WriteAheadLog
from storage.sqlite.write_queues import Write, WriteQueues
from storage.sqlite.writeback import WriteBack, empty_log

T = TypeVar("T")


class WriterLimits(LogLimits, frozen=True):
    """Bounds and pauses; the defaults are chosen, except where a measurement is named."""

    # How much may wait in each queue.
    queue_bytes: int = 64 << 20
    # How long a batch gathers at most.
    gather_s: float = 0.004
    # The most writes of a batch, so that its first write need not wait for hundreds.
    batch_items: int = 256
    # The batches of turns in a row after which one bulk write goes first, or the search index would never catch up.
    fair_batches: int = 32
    # A batch that takes longer makes the status `slow`.
    slow_s: float = 1.0
    # How long a writer is idle before it empties the log.
    idle_s: float = 1.0
    # Pauses between attempts to open a failed database again: the first, and the longest.
    retry_first_s: float = 0.25
    retry_most_s: float = 10.0


# A waiting write takes this much in addition to the bytes that it names: a future, a function and its variables.
_OVERHEAD_BYTES = 1024


class Writer:
    """The writer. All its methods belong to the event loop's thread; the functions given to it run in the writer's.

    connect: opens the connection that writes, in the writer's thread.
    watch: it watches that connection.
    log_copier: copies a grown log.
    when_changed: called with what a batch has changed, before its writes are answered.
    when_failed: called with the fault when writing fails after it worked.
    when_recovered: called when writing works again.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        watch: Watch,
        *,
        log_copier: WriteBack,
        when_changed: Callable[[Changes], None],
        when_failed: Callable[[Unavailable], None],
        when_recovered: Callable[[], None],
        limits: WriterLimits | None,
    ) -> None:
        self._path = path
        self._connect = connect
        self._watch = watch
        self._limits = limits = limits or WriterLimits()
        self._when_changed = when_changed
        self._when_failed = when_failed
        self._when_recovered = when_recovered
        self._loop = asyncio.get_running_loop()
        self._waiting = WriteQueues(limits.batch_items, limits.fair_batches)
        self._is_gathering = False
        self._running: list[Write[Any]] = []
        self._running_since = 0.0
        self._emptied = asyncio.Event()  # set whenever nothing is left to write
        # The connection, and the file that it was opened on, once that was looked at.
        self._driver: Driver | None = None
        self._inode: int | None = None
        self._calls: LoopCalls | None = None  # that the thread makes; None: it does not write yet
        self._closing = False
        self._closed = False
        # What is wrong with the database; None: nothing.
        self._fault: Unavailable | None = None
        self._has_failed_again = False  # an attempt to mend the fault has failed
        self._mending: asyncio.Task[None] | None = None
        self._recovering = asyncio.Lock()
        self._last_error: str | None = None
        self._failures = 0
        # The log, and when the writer was last busy.
        self.log = WriteAheadLog(path, limits, log_copier, self._post_write_back)
        self._active_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the database.

        If that fails for want of disk, rights or a sound file the writer starts all the same, reports it, and goes on
        trying. Raises: TooNew, Foreign, StatementFailed.
        """
        try:
            self._driver = await self._open(check=False)
        except (sqlite3.Error, OSError, StoreError) as error:
            self._start_failed(self._translate(error))
        self._calls = LoopCalls()

    def _start_failed(self, error: StoreError) -> None:
        if not isinstance(error, Unavailable):
            raise error
        self._has_failed_again = True
        self._fail(error)

    def _translate(self, error: sqlite3.Error | OSError | StoreError) -> StoreError:
        """Returns the store's error for one that came while the file was opened."""
        if isinstance(error, sqlite3.Error):
            return translate_error(error, self._path)
        return unavailable(f"{self._path} cannot be opened", error) if isinstance(error, OSError) else error

    async def drain(self, timeout_s: float) -> bool:
        """Waits until all writes are performed. Returns False where that took longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                self._emptied.clear()
                self._check_empty()
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True

    async def finish(self, timeout_s: float) -> bool:
        """Refuses new writes and drains; what is left then fails with Closed. Returns whether nothing was left."""
        self._closing = True
        if self._fault is not None:
            self._fail_waiting(self._fault)
        drained = await self.drain(timeout_s)
        if not drained:
            self._fail_waiting(Closed(f"{self._path} was closed before this was written"))
            for write in self._running:
                write.settle((False, Closed(f"{self._path} was closed while this was being written")))
        return drained

    async def close(self, timeout_s: float = 5.0) -> None:
        """Drains, checkpoints and closes. Readers must be closed before. Idempotent."""
        if self._closed:
            return
        is_whole = await self.finish(timeout_s)
        self._closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
        try:
            async with asyncio.timeout(timeout_s):
                await self.log.stop_copying()
        except TimeoutError:
            is_whole = False  # nothing else may write the log back while it is copied
            self.log.abandon_copying()
        driver, self._driver = self._driver, None
        if driver is not None:
            await self._close(driver, timeout_s, is_whole=is_whole)
        if self._calls is not None:
            self._calls.close()

    async def _close(self, driver: Driver, timeout_s: float, *, is_whole: bool) -> None:
        """Closes the connection. is_whole: nothing is under way any more, so the log is emptied first."""
        try:
            if is_whole:
                async with asyncio.timeout(timeout_s):
                    await driver.call(partial(empty_log, wait_ms=0))
                    await driver.call(lambda connection: connection.close())
        except (TimeoutError, sqlite3.Error) as error:
            self._last_error = f"closing: {error!r}"
        finally:
            driver.abandon()
        self.log.size = self.log.measure()

    @property
    def fault(self) -> Unavailable:
        """The error for whoever asks while nothing can be written."""
        return Closed(f"{self._path} is closed") if self._fault is None else self._fault.again()

    @property
    def health(self) -> StoreHealth:
        return StoreHealth(
            status=self.status,
            error=self._last_error,
            failures=self._failures,
            waiting=len(self._waiting) + len(self._running),
            waiting_bytes=self._waiting.bytes + sum(write.size for write in self._running),
        )

    @property
    def status(self) -> str:
        """The state in a word: ok, closed, slow, or the fault's `status`. Reading it never waits for the disk."""
        if self._closing:
            return "closed"
        if self._fault is not None:
            return self._fault.status
        if self._running and self._loop.time() - self._running_since >= self._limits.slow_s:
            return "slow"
        return "ok"

    # -- writing ------------------------------------------------------------------------------------------------------

    def submit(
        self,
        function: Callable[[sqlite3.Connection], T],
        *,
        size_bytes: int = 0,
        is_bulk: bool = False,
        begins_own_transaction: bool = False,
    ) -> asyncio.Future[T]:
        """Queues a write. The future has the function's result once it is committed.

        The function runs in the writer's thread, inside a transaction that it must not end. Cancelling the
        future, or the task that awaits it, abandons the result and never the write.

        size_bytes: about what the function holds.
        is_bulk: work that can wait: index, import, forget. It is a transaction of its own, performed when no
            turn waits. Turns that come meanwhile wait for it, so that it should stay below 5 ms.
        begins_own_transaction: the function begins a transaction itself where it needs one. It is given none if it
            comes alone.

        Raises, here or from the future: Busy, Closed, and what is wrong with the database (Unavailable); from the
        future also what the function raises, SQLite's errors translated.
        """
        if self._closing:
            raise Closed(f"{self._path} is closed")
        if self._fault is not None and self._has_failed_again:
            raise self._fault.again()
        queue = self._waiting.bulk if is_bulk else self._waiting.turns
        size = size_bytes + _OVERHEAD_BYTES
        # One that nothing stands before is let in, however large it is.
        if queue.writes and queue.bytes + size > self._limits.queue_bytes:
            raise Busy(f"{self._path} is too slow: more than {self._limits.queue_bytes:,} bytes would wait")
        future: asyncio.Future[T] = self._loop.create_future()
        queue.add(Write(function, future, size, begins_own_transaction))
        if not self._running and not self._is_gathering:
            self._is_gathering = True
            self._loop.call_soon(self._gather, 1, self._loop.time() + self._limits.gather_s)
        return future

    async def checkpoint(self, *, wait_ms: int = 1000) -> bool:
        """Writes the log back and empties it, waiting for readers; True when it is empty. Raises: Unavailable."""
        while not self.log.is_free.is_set():
            await self.log.is_free.wait()
        if self._driver is None:
            raise self.fault
        try:
            return await self.log.empty(self._driver, wait_ms)
        except sqlite3.Error as error:
            raise translate_error(error, self._path) from error

    def _gather(self, before: int, end: float) -> None:
        """Waits for another pass of the loop, if the one before has brought turns. before: how many waited then.

        Turns that end together cost little more than one of them: pages, wake-ups and caches are shared.
        """
        waiting = len(self._waiting.turns.writes)
        if waiting > before and self._loop.time() < end:
            self._loop.call_soon(self._gather, waiting, end)
        else:
            self._is_gathering = False
            self._pump()

    def _pump(self) -> None:
        """Hands the next batch to the thread, if there is one and the thread is free."""
        driver = self._driver
        if self._running or self._fault is not None or driver is None:
            return
        batch, is_bulk = self._waiting.take_batch()
        if not batch:
            self._schedule_idle()
            return
        self._running, self._running_since = batch, self._loop.time()
        # A bulk write has enough to do for a processor of its own.
        driver.post(partial(self._perform, batch), is_near=not is_bulk)

    def _perform(self, batch: list[Write[Any]], connection: sqlite3.Connection) -> None:
        """Runs a batch in the writer's thread. Never raises."""
        try:
            functions = [write.function for write in batch]
            report = BatchRunner(connection, self._path).run(
                functions, begins_own_transaction=batch[0].begins_own_transaction
            )
        except BaseException as error:  # nothing else would ever resolve these futures
            answer = error if isinstance(error, Unavailable) else Broken(f"{self._path}: {error!r}")
            report = BatchReport([(False, answer)] * len(batch), answer)
        # A commit to a file that was removed or replaced succeeds, and is lost: it must not be acknowledged.
        if report.fault is None and self._is_moved():
            lost = self._moved_error()
            report = BatchReport([(False, lost.again()) for _ in batch], lost)
        changes = self._watch.take(is_whole=report.is_whole)
        self._call_loop(self._finish_batch, batch, report, changes, self.log.measure())

    def _finish_batch(
        self, batch: list[Write[Any]], report: BatchReport, changes: Changes, log_bytes: int
    ) -> None:
        self._running = []
        self.log.size = log_bytes
        self._when_changed(changes)
        if report.fault is not None:
            self._fail(report.fault)
        else:
            self.log.shrink()
            self._pump()  # before the futures, so that the thread works while they are answered
        for write, outcome in zip(batch, report.outcomes, strict=True):
            write.settle(outcome)
        self._check_empty()

    def _check_empty(self) -> None:
        if not (self._running or self._waiting):
            self._emptied.set()

    # -- faults -------------------------------------------------------------------------------------------------------

    def report(self, fault: Unavailable) -> bool:
        """Takes note of a fault that a reader has found in the file. Returns whether there was none yet."""
        is_new = self._fault is None and not self._closing and not self._recovering.locked()
        if is_new:
            self._fail(fault)
        return is_new

    async def recover(self) -> bool:
        """Tries now whether a failed database can be written again. True when all is well."""
        async with self._recovering:
            if self._fault is None:
                return True
            if self._closing:
                return False
            try:
                old, self._driver = self._driver, None
                try:
                    await self.log.stop_copying()
                    if old is not None:
                        await old.call(_close_quietly)
                finally:
                    if old is not None:
                        old.abandon()
                driver = await self._open(check=isinstance(self._fault, Corrupt))
            except (sqlite3.Error, OSError, StoreError) as error:
                answer = self._translate(error)
                if not isinstance(answer, Unavailable):  # another program's file, say, now lies there
                    answer = Broken(answer.message)
                self._fault = answer
                self._last_error = answer.message
                self._has_failed_again = True
                self._fail_waiting(answer)
                return False
            self._driver = driver
            self._fault = None
            self._has_failed_again = False
            self.log.expect_new_file()
        self._when_recovered()
        self._pump()
        return True

    async def _open(self, *, check: bool) -> Driver:
        """Opens a connection and has it show that it can write. Raises: StoreError, sqlite3.Error, OSError."""
        driver = await Driver(self._connect, "mnemogate-writer").open()
        try:
            await driver.call(partial(try_writing, check=check))
        except BaseException as error:
            try:
                # Unless it was cancelled, it waits for the end: the next attempt would meet this one's locks.
                if isinstance(error, Exception):
                    await driver.call(_close_quietly)
            finally:
                driver.abandon()
            raise
        self._inode = None
        self._is_moved()  # which file this is
        return driver

    def _fail(self, fault: Unavailable) -> None:
        """Takes note of a fault, and begins to mend it."""
        self._failures += 1
        self._last_error = fault.message
        self._when_changed(None)  # what was written last is not known
        if self._closing or self._fault is not None:
            self._fail_waiting(fault)
            return
        self._fault = fault
        self._when_failed(fault)
        if self._has_failed_again:
            self._fail_waiting(fault)
        self._mending = self._loop.create_task(self._mend(), name="mnemogate-writer-mend")

    async def _mend(self) -> None:
        """Tries to recover, with growing pauses, until it has."""
        pause_s = self._limits.retry_first_s
        if self._has_failed_again:
            await asyncio.sleep(pause_s)
        while not await self.recover():
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, self._limits.retry_most_s)

    def _fail_waiting(self, error: Unavailable) -> None:
        for write in self._waiting.take_all():
            write.settle((False, error.again()))
        self._check_empty()

    # -- the log ------------------------------------------------------------------------------------------------------

    def _schedule_idle(self) -> None:
        """Has `_idle` called when nothing was written for `idle_s`, if there may be a log to write back."""
        self._active_at = self._loop.time()
        if self._idle_timer is None and self.log.size and not self._closing:
            self._idle_timer = self._loop.call_later(self._limits.idle_s, self._idle)

    def _idle(self) -> None:
        self._idle_timer = None
        if self._closing or self._fault is not None or self._driver is None:
            return
        left = self._active_at + self._limits.idle_s - self._loop.time()
        if self._running or left > 0.01 or not self.log.is_free.is_set():
            self._idle_timer = self._loop.call_later(max(left, 0.01), self._idle)
        elif self._is_moved():
            self.report(self._moved_error())
        else:
            self.log.write_back(at_rest=True)

    def _post_write_back(self, work: LogWork) -> bool:
        """Hands work on the log to the thread, after the writes that it was given. Returns whether it could."""
        if self._driver is None or self._fault is not None:
            return False
        self._driver.post(partial(self._write_back, work))
        return True

    def _write_back(self, work: LogWork, connection: sqlite3.Connection) -> None:
        """Writes the log back, in the writer's thread. Never raises."""
        try:
            is_whole = work(connection)
        except sqlite3.Error as error:
            answer = translate_error(error, self._path)
            if isinstance(answer, Unavailable):
                self._call_loop(self._fail, answer)
            self._call_loop(self.log.is_free.set)
            return
        self._call_loop(self._end_write_back, self.log.measure(), is_whole)

    def _end_write_back(self, size: int, is_whole: bool) -> None:
        self.log.end_write_back(size, is_whole)
        if not is_whole:
            # It is being read. What was forgotten may lie in it, so that is not left to the next write.
            self._schedule_idle()

    # -- the file -----------------------------------------------------------------------------------------------------

    def _moved_error(self) -> Broken:
        return Broken(f"{self._path} was removed or replaced while the gateway had it open")

    def _is_moved(self) -> bool:
        """Returns whether another file, or none, lies at the path: writes to this one would be lost."""
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            return True
        except OSError:
            return False  # whatever it is, writing will show it
        if self._inode is None:
            self._inode = inode
        return inode != self._inode

    def _call_loop(self, function: Callable[..., None], *arguments: object) -> None:
        if self._calls is not None:
            self._calls.call(function, *arguments)


def _close_quietly(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        connection.close()
