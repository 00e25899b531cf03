"""The writer: one connection, one thread, many writes in one transaction.

A write is a function of the connection, which may be called twice. While one batch is in the thread, the next batch
gathers. If the thread is idle, a batch gathers as long as each pass of the loop brings more writes; a write that comes
alone goes at once. A batch is one hop to the thread and one COMMIT. If a write fails, its batch is run again with each
function in a savepoint, so that it undoes no other write.

    submit -> waiting -> batch -> BEGIN; f*; COMMIT -> futures
                                  else ROLLBACK; BEGIN; (SAVEPOINT f RELEASE)*; COMMIT

A write that comes alone may begin its transaction itself, or be a single statement without one.

A waiting write is never cancelled: a caller that goes away abandons the result, not the write. The waiting writes are
bounded in bytes; beyond the bound `submit` refuses at once.

When the database fails, rather than a single write, the connection is opened again
(storage/sqlite/writer_connection.py). Waiting writes wait for the first attempt. If that fails, they all fail with the
database's error, and `submit` refuses at once until writing works again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from storage.database import Changes, StoreHealth
from storage.errors import StoreBusy, StoreClosed, StoreFailed, StoreStatus, StoreUnavailable
from storage.sqlite.batch import BatchReport, BatchRunner, WriteOutcome
from storage.sqlite.checkpoint import Checkpointer
from storage.sqlite.loop_calls import LoopCalls
from storage.sqlite.result_codes import translate_error
from storage.sqlite.watch import Watch
from storage.sqlite.write_ahead_log import LogLimits, LogWork, WriteAheadLog
from storage.sqlite.write_queues import Write, WriteQueues
from storage.sqlite.writer_connection import WriterConnection

T = TypeVar("T")


class WriterLimits(LogLimits, frozen=True):
    """The bounds and pauses of a writer. They are chosen, not measured."""

    # The most bytes that may wait in each queue.
    queue_bytes: int = 64 << 20
    # The longest time in which a batch gathers writes.
    gather_s: float = 0.004
    # The most writes of a batch, so that its first write need not wait for hundreds.
    max_batch_turns: int = 256
    # The batches of turns in a row after which one bulk write goes first, or the search index would never catch up.
    max_turn_batches: int = 32
    # A batch that takes longer makes the status `slow`.
    slow_s: float = 1.0
    # The time for which a writer is idle before it empties the log.
    idle_s: float = 1.0
    # The first pause between attempts to open a failed database again.
    retry_first_s: float = 0.25
    # The longest pause between such attempts.
    retry_max_s: float = 10.0


# The most seconds that a timer fires too early. A timer that did so waits at least this long again.
_TIMER_SLACK_S = 0.01
# The bytes of a waiting write besides its `size_bytes`: a future, a function and its variables.
_OVERHEAD_BYTES = 1024


class Writer:
    """The writer. Its methods are called in the event loop's thread, the functions of writes in the writer's thread."""

    def __init__(
        self,
        path: str,
        connect: Callable[[], sqlite3.Connection],
        watch: Watch,
        *,
        checkpointer: Checkpointer,
        on_change: Callable[[Changes], None],
        on_failure: Callable[[StoreUnavailable], None],
        on_recovery: Callable[[], None],
        limits: WriterLimits | None,
    ) -> None:
        """Makes the writer; `start` opens the database.

        path: the file of the database.
        connect: the function that opens the connection that writes; it is called in the writer's thread.
        watch: the watch that is attached to that connection.
        checkpointer: the thread that checkpoints a grown log.
        on_change: the function that is called with the changes of a batch, before its writes are answered.
        on_failure: the function that is called with the fault when writing fails after it worked.
        on_recovery: the function that is called when writing works again.
        limits: the bounds and pauses of the writer; None: the defaults.
        """
        self._path = path
        self._watch = watch
        self._limits = limits = limits or WriterLimits()
        self._on_change = on_change
        self._on_recovery = on_recovery
        self._loop = asyncio.get_running_loop()
        # The writes that wait.
        self._waiting = WriteQueues(limits.max_batch_turns, limits.max_turn_batches)
        # True while a batch gathers writes.
        self._is_gathering = False
        # The writes of the batch that is in the thread.
        self._running: list[Write[Any]] = []
        # The loop's time at which that batch began.
        self._running_since = 0.0
        # Set whenever nothing is left to write.
        self._emptied = asyncio.Event()
        self._connection = WriterConnection(
            path,
            connect,
            self,
            on_failure=on_failure,
            retry_first_s=limits.retry_first_s,
            retry_max_s=limits.retry_max_s,
        )
        self.file = self._connection.file
        # The calls of the thread into the event loop; None: the writer was not started.
        self._calls: LoopCalls | None = None
        self._is_closed = False
        self.log = WriteAheadLog(path, limits, checkpointer, self._post_log_work)
        # The loop's time at which the last write ended.
        self._active_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the database.

        If the disk, the rights or a damaged file prevent that, the writer starts all the same, reports the fault, and
        goes on trying. Raises: SchemaTooNew, ForeignDatabase, StatementFailed.
        """
        try:
            await self._connection.open()
        except StoreUnavailable as error:
            self._report_write_fault(error)
        self._calls = LoopCalls()

    async def drain(self, timeout_s: float) -> bool:
        """Waits until all writes are performed. Returns False if that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                self._emptied.clear()
                self._note_if_empty()
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True

    async def finish(self, timeout_s: float) -> bool:
        """Refuses new writes, and drains. Returns whether all writes were performed; others fail with StoreClosed."""
        self._connection.is_closing = True
        if self._connection.fault is not None:
            self.refuse_waiting(self._connection.fault)
        is_drained = await self.drain(timeout_s)
        if not is_drained:
            self.refuse_waiting(StoreClosed(f"{self._path} was closed before this was written"))
            for write in self._running:
                write.settle(
                    WriteOutcome(error=StoreClosed(f"{self._path} was closed while this was being written"))
                )
        return is_drained

    async def close(self, timeout_s: float = 5.0) -> None:
        """Performs the writes that wait, checkpoints the log and closes the database, once.

        Readers must be closed before. Writes that take longer than `timeout_s` fail with StoreClosed.
        """
        if self._is_closed:
            return
        is_log_free = await self.finish(timeout_s)
        self._is_closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await self._connection.stop_recovering()
        try:
            async with asyncio.timeout(timeout_s):
                await self.log.close_checkpointer()
        except TimeoutError:
            is_log_free = False  # its checkpoint still runs, and no other may run meanwhile
            self.log.abandon_checkpointer()
        await self._connection.close(timeout_s, empties_log=is_log_free)
        self.log.size_bytes = self.log.measure()
        if self._calls is not None:
            self._calls.close()

    @property
    def fault(self) -> StoreUnavailable:
        """The error of a write that is requested while nothing can be written."""
        fault = self._connection.fault
        return StoreClosed(f"{self._path} is closed") if fault is None else fault.copy()

    @property
    def health(self) -> StoreHealth:
        return StoreHealth(
            status=self.status,
            error=self._connection.last_error,
            waiting=len(self._waiting) + len(self._running),
            waiting_bytes=self._waiting.size_bytes + sum(write.size_bytes for write in self._running),
        )

    @property
    def status(self) -> StoreStatus:
        """The state of the database, as far as it is known without a wait for the disk."""
        if self._connection.is_closing:
            return "closed"
        if self._connection.fault is not None:
            return self._connection.fault.status
        if self._running and self._loop.time() - self._running_since >= self._limits.slow_s:
            return "slow"
        return "ok"

    def check_in_place(self) -> None:
        """Reports a fault if another file, or none, lies at the path. Raises: StoreFailed."""
        if self.file.is_replaced():
            fault = self.file.make_replaced_error()
            fault.is_known = not self.report_fault(fault)
            raise fault

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

        The function runs in the writer's thread, inside a transaction that it must not end. Cancelling the future, or
        the task that awaits it, abandons the result and never the write.

        size_bytes: the approximate size of the values that the function holds.
        is_bulk: True if the write can wait: index, import, forget. It runs in a transaction of its own when no turn
            waits. Turns that come meanwhile wait for its end, so it should take less than 5 ms.
        begins_own_transaction: True if the function begins a transaction itself if it needs one. The writer begins none
            for such a function if it comes alone.

        Raises: StoreBusy, StoreClosed; StoreUnavailable: the fault of the database. The future can raise them as well,
            and the errors of the function; errors of SQLite are translated.
        """
        if self._connection.is_closing:
            raise StoreClosed(f"{self._path} is closed")
        self._connection.check()
        queue = self._waiting.bulk if is_bulk else self._waiting.turns
        size_bytes += _OVERHEAD_BYTES
        # A write that would be the first in the queue is accepted, however large it is.
        if queue.writes and queue.size_bytes + size_bytes > self._limits.queue_bytes:
            raise StoreBusy(
                f"{self._path} is too slow: more than {self._limits.queue_bytes:,} bytes would wait"
            )
        future: asyncio.Future[T] = self._loop.create_future()
        queue.add(Write(function, future, size_bytes, begins_own_transaction))
        if not self._running and not self._is_gathering:
            self._is_gathering = True
            self._loop.call_soon(self._gather_writes, 1, self._loop.time() + self._limits.gather_s)
        return future

    async def checkpoint(self, *, wait_ms: int = 1000) -> bool:
        """Checkpoints the log and empties it. Returns whether it is empty. Raises: StoreUnavailable.

        wait_ms: the longest time for which readers are waited for.
        """
        while not self.log.is_free.is_set():
            await self.log.is_free.wait()
        if self._connection.driver is None:
            raise self.fault
        try:
            return await self.log.empty(self._connection.driver, wait_ms)
        except sqlite3.Error as error:
            raise translate_error(error, self._path) from error

    def _gather_writes(self, turns_before: int, end: float) -> None:
        """Waits for another pass of the loop if the last pass has brought turns. Otherwise begins a batch.

        Turns that end together cost little more than one turn: they share pages, wake-ups and caches.

        turns_before: the number of turns that waited before the last pass.
        end: the loop's time at which the batch begins in any case.
        """
        count = len(self._waiting.turns.writes)
        if count > turns_before and self._loop.time() < end:
            self._loop.call_soon(self._gather_writes, count, end)
        else:
            self._is_gathering = False
            self._begin_batch()

    def _begin_batch(self) -> None:
        """Hands the next batch to the thread, if there is one and the thread is free."""
        driver = self._connection.driver
        if self._running or self._connection.fault is not None or driver is None:
            return
        writes, is_bulk = self._waiting.take_batch()
        if not writes:
            self._schedule_idle()
            return
        self._running = writes
        self._running_since = self._loop.time()
        # A bulk write has enough to do for a processor of its own.
        driver.post(partial(self._perform_batch, writes), is_near=not is_bulk)

    def _perform_batch(self, batch: list[Write[Any]], connection: sqlite3.Connection) -> None:
        """Runs a batch in the writer's thread. Never raises."""
        try:
            if self.file.is_overwritten(connection):
                raise self.file.make_overwritten_error()
            functions = [write.function for write in batch]
            report = BatchRunner(connection, self._path).run(
                functions, begins_own_transaction=batch[0].begins_own_transaction
            )
        except BaseException as error:  # nothing else would ever resolve these futures
            fault = error if isinstance(error, StoreUnavailable) else StoreFailed(f"{self._path}: {error!r}")
            report = BatchReport([WriteOutcome(error=fault.copy()) for _ in batch], fault)
        # A commit to a file that was removed or replaced succeeds, and is lost: it must not be acknowledged.
        if report.fault is None and self.file.is_replaced():
            fault = self.file.make_replaced_error()
            report = BatchReport([WriteOutcome(error=fault.copy()) for _ in batch], fault)
        changes = self._watch.take_changes(is_whole=report.is_whole)
        self._call_loop(self._finish_batch, batch, report, changes, self.log.measure())

    def _finish_batch(
        self, batch: list[Write[Any]], report: BatchReport, changes: Changes, log_bytes: int
    ) -> None:
        self._running = []
        self.log.size_bytes = log_bytes
        self._on_change(changes)
        if report.fault is not None:
            self._report_write_fault(report.fault)
        else:
            self.log.checkpoint_if_grown()
            self._begin_batch()  # before the futures, so that the thread works while they are answered
        for write, outcome in zip(batch, report.outcomes, strict=True):
            write.settle(outcome)
        self._note_if_empty()

    def _note_if_empty(self) -> None:
        if not (self._running or self._waiting):
            self._emptied.set()

    # -- faults -------------------------------------------------------------------------------------------------------

    def report_fault(self, fault: StoreUnavailable) -> bool:
        """Reports a fault that was found outside of a write. Returns False if another fault is known already."""
        is_new = self._connection.is_sound
        if is_new:
            self._report_write_fault(fault)
        return is_new

    def _report_write_fault(self, fault: StoreUnavailable) -> None:
        self._on_change(None)  # it is not known what the last writes have changed
        self._connection.fail(fault)

    async def recover(self) -> bool:
        """Tries at once to write to a failed database again. Returns whether that works."""
        return await self._connection.recover()

    async def stop_using(self) -> None:
        """Implements `ConnectionUser`."""
        await self.log.close_checkpointer()

    def refuse_waiting(self, fault: StoreUnavailable) -> None:
        """Implements `ConnectionUser`."""
        for write in self._waiting.take_all():
            write.settle(WriteOutcome(error=fault.copy()))
        self._note_if_empty()

    def resume(self) -> None:
        """Implements `ConnectionUser`."""
        self.log.expect_new_file()
        self._on_recovery()
        self._begin_batch()

    # -- the log ------------------------------------------------------------------------------------------------------

    def _schedule_idle(self) -> None:
        """Has `_use_idle_time` called when nothing was written for `idle_s`, if there may be a log to checkpoint."""
        self._active_at = self._loop.time()
        if self._idle_timer is None and self.log.size_bytes and not self._connection.is_closing:
            self._idle_timer = self._loop.call_later(self._limits.idle_s, self._use_idle_time)

    def _use_idle_time(self) -> None:
        self._idle_timer = None
        connection = self._connection
        if connection.is_closing or connection.fault is not None or connection.driver is None:
            return
        remaining_s = self._active_at + self._limits.idle_s - self._loop.time()
        if self._running or remaining_s > _TIMER_SLACK_S or not self.log.is_free.is_set():
            self._idle_timer = self._loop.call_later(max(remaining_s, _TIMER_SLACK_S), self._use_idle_time)
        elif self.file.is_replaced():
            self.report_fault(self.file.make_replaced_error())
        else:
            self.log.post_checkpoint(is_at_rest=True)

    def _post_log_work(self, work: LogWork) -> bool:
        """Hands a checkpoint to the thread, after its writes. Returns False if there is no working connection."""
        driver = self._connection.driver
        if driver is None or self._connection.fault is not None:
            return False
        driver.post(partial(self._perform_log_work, work))
        return True

    def _perform_log_work(self, work: LogWork, connection: sqlite3.Connection) -> None:
        """Checkpoints the log, in the writer's thread. Never raises."""
        try:
            is_all_copied = work(connection)
        except sqlite3.Error as error:
            fault = translate_error(error, self._path)
            if isinstance(fault, StoreUnavailable):
                self._call_loop(self._report_write_fault, fault)
            self._call_loop(self.log.is_free.set)
            return
        self._call_loop(self._end_log_work, self.log.measure(), is_all_copied)

    def _end_log_work(self, size_bytes: int, is_all_copied: bool) -> None:
        self.log.end_work(size_bytes, is_all_copied=is_all_copied)
        if not is_all_copied:
            # A reader holds the log, which may have forgotten words. So it is tried again soon, not at the next write.
            self._schedule_idle()

    def _call_loop(self, function: Callable[..., None], *arguments: object) -> None:
        if self._calls is not None:
            self._calls.call(function, *arguments)
