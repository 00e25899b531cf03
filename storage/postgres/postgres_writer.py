"""Performs writes over the pool: each is a transaction in a task of its own.

A write ends even if its caller is cancelled. Its transaction is begun by its first statement, unless the write is one
statement (`Connection.run_single`). After a conflict with another transaction, or a connection that broke, it is
performed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg

from storage.database import Operation
from storage.errors import StatementFailed, StoreBusy, StoreClosed, StoreFailed
from storage.postgres.connection import (
    BEGIN,
    BEGIN_POOLED,
    PostgresConnection,
    PostgresTarget,
    RawConnection,
    SanitizingConnection,
)
from storage.postgres.pool import ConnectionPool
from storage.postgres.postgres_limits import PostgresLimits
from storage.postgres.sqlstates import is_outcome_unknown, is_refused_text
from storage.postgres.uptime import Uptime

T = TypeVar("T")

# An estimate of the bytes of a waiting write besides its `size_bytes`: a task, a future, an operation.
_OVERHEAD_BYTES = 2048
# The SQLSTATEs of two transactions that cannot both commit, serialization failure and deadlock: one is performed again.
_CONFLICT_SQLSTATES = ("40001", "40P01")
# The most attempts of a transaction. Where many conflict, the next attempt may meet another one. Not measured.
_MAX_TRIES = 5


@dataclass(frozen=True, slots=True)
class PostgresWrite(Generic[T]):
    """A transaction to be performed."""

    # The work of the transaction.
    operation: Operation[T]
    # True if the transaction waits for one of the connections for bulk work.
    is_bulk: bool = False
    # True if the write may be performed twice, as in `Database.write`.
    is_repeatable: bool = False


class PostgresWriter:
    """Performs the writes of a database."""

    def __init__(
        self,
        target: PostgresTarget,
        pool: ConnectionPool,
        uptime: Uptime,
        limits: PostgresLimits,
        on_write: Callable[[], None],
    ) -> None:
        """Makes the writer.

        target: the server, which errors name.
        pool: the connections of the writes.
        uptime: the record of the server's answers, which each answer updates.
        limits: the bounds of the queue and of a write's time.
        on_write: the function that is called for each write that begins.
        """
        self._name = target.name
        self._begin_statement = BEGIN_POOLED if target.is_pooled else BEGIN
        self._pool = pool
        self._uptime = uptime
        self._limits = limits
        self._on_write = on_write
        self._loop = asyncio.get_running_loop()
        # The bytes of each write under way.
        self._size_bytes_by_task: dict[asyncio.Task[None], int] = {}
        # The bytes of all writes under way.
        self.size_bytes = 0
        # True if new writes are refused.
        self.is_closing = False

    @property
    def count(self) -> int:
        """The number of writes under way."""
        return len(self._size_bytes_by_task)

    def begin(self, write: PostgresWrite[T], size_bytes: int = 0) -> asyncio.Future[T]:
        """Begins a write, and returns the future of its result.

        size_bytes: the bytes of the write's values.

        Raises: StoreUnavailable.
        """
        if self.is_closing:
            raise StoreClosed(f"{self._name} is closed")
        self._pool.server.check()
        size_bytes += _OVERHEAD_BYTES
        # A write that would be the first in the queue is accepted, however large it is.
        if self._size_bytes_by_task and self.size_bytes + size_bytes > self._limits.queue_bytes:
            raise StoreBusy(
                f"{self._name} is too slow: more than {self._limits.queue_bytes:,} bytes would wait"
            )
        future: asyncio.Future[T] = self._loop.create_future()
        task = self._loop.create_task(self._perform(write, future))
        self._size_bytes_by_task[task] = size_bytes
        self.size_bytes += size_bytes
        task.add_done_callback(lambda task: self._remove_task(task, future))
        self._on_write()
        return future

    def _remove_task(self, task: asyncio.Task[None], future: asyncio.Future[Any]) -> None:
        self.size_bytes -= self._size_bytes_by_task.pop(task)
        # A task that is cancelled before its first step performs nothing, not even an `except`.
        if task.cancelled():
            _fail_future(future, StoreClosed(f"{self._name} was closed while this was being written"))

    async def _perform(self, write: PostgresWrite[T], future: asyncio.Future[T]) -> None:
        """Performs a write, and resolves the future that its caller awaits."""
        try:
            result = await self._transact(write)
        except asyncio.CancelledError:
            raise  # `_remove_task` fails the future
        except BaseException as error:
            _fail_future(future, error)
        else:
            if not future.done():
                future.set_result(result)

    async def _transact(self, write: PostgresWrite[T]) -> T:
        """Performs a transaction; again, with its texts replaced, if the server refuses one of them."""
        try:
            return await self._transact_with_retries(PostgresConnection, write)
        except StatementFailed as error:
            if not is_refused_text(error.__cause__):
                raise
        return await self._transact_with_retries(SanitizingConnection, write)

    async def _transact_with_retries(
        self, connection_type: type[PostgresConnection], write: PostgresWrite[T]
    ) -> T:
        """Performs a transaction, and repeats it after a conflict with another one or the loss of its connection."""
        pool = self._pool
        is_bulk = write.is_bulk
        for tries_left in reversed(range(_MAX_TRIES)):
            raw = (None if is_bulk else pool.acquire_idle()) or await pool.acquire(is_bulk=is_bulk)
            deadline = self._loop.time() + self._limits.write_timeout_s
            connection = connection_type(raw, deadline, self._loop, self._begin_statement)
            try:
                result = await write.operation(connection)
                await connection.commit()
            except BaseException as error:
                store_error = pool.server.translate(error)
                is_pending = connection.is_begun or isinstance(error, TimeoutError)
                await self._roll_back_and_release(raw, is_bulk=is_bulk, is_pending=is_pending)
                if isinstance(store_error, StoreFailed):
                    is_first_try = tries_left == _MAX_TRIES - 1
                    may_repeat = _may_repeat_broken(write, connection, error, is_first_try=is_first_try)
                else:
                    may_repeat = _is_conflict(error)
                if tries_left and may_repeat:
                    continue
                if store_error is error:
                    raise
                raise store_error from error
            else:
                self._uptime.note_answer()
                pool.release(raw, is_bulk=is_bulk)
                return result
        raise AssertionError("the last attempt returns or raises")

    async def _roll_back_and_release(self, raw: RawConnection, *, is_bulk: bool, is_pending: bool) -> None:
        """Rolls back a pending transaction, and returns its connection to the pool."""
        try:
            if is_pending and not raw.is_closed():
                await self._pool.execute_after_failure(raw, "ROLLBACK")
        finally:
            self._pool.release(raw, is_bulk=is_bulk)

    async def drain(self, timeout_s: float) -> bool:
        """Waits until all writes have ended. Returns False where that took longer than `timeout_s`."""
        ends_at = self._loop.time() + timeout_s
        # A write may begin another one before it ends.
        while self._size_bytes_by_task:
            remaining_s = ends_at - self._loop.time()
            if remaining_s <= 0:
                return False
            await asyncio.wait(list(self._size_bytes_by_task), timeout=remaining_s)
        return True

    async def cancel(self) -> None:
        """Cancels the writes that have not ended."""
        tasks = list(self._size_bytes_by_task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _may_repeat_broken(
    write: PostgresWrite[Any], connection: PostgresConnection, error: BaseException, *, is_first_try: bool
) -> bool:
    """Returns whether a transaction may be performed again after the loss of its connection.

    It is performed again once only, unless the write `is_repeatable`: after a broken connection the next one mostly
    breaks as well.
    """
    may_be_on_disk = connection.may_have_committed and is_outcome_unknown(error)
    return write.is_repeatable or (is_first_try and not may_be_on_disk)


def _is_conflict(error: BaseException) -> bool:
    """Returns whether a transaction failed because of another one, and may be performed again."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in _CONFLICT_SQLSTATES


def _fail_future(future: asyncio.Future[Any], error: BaseException) -> None:
    if future.done():  # the caller was cancelled
        return
    future.set_exception(error)
    # This marks the error as retrieved: the loop must not log a write that nothing awaits, since health reports it.
    future.exception()
