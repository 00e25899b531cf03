"""A PostgreSQL database, as `storage.database.Database`: runs the store's operations over a pool of connections.

A read runs its statements without a transaction. A write is a transaction, begun by its first statement, unless it is
one statement (`Connection.single`). Each write runs in a task of its own, so it ends even if its caller is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import asyncpg

from storage.database import Changes, Connection, Operation, Row, StoreHealth, choose_deadline_ms
from storage.errors import (
    Broken,
    Busy,
    Closed,
    ReadOnly,
    StatementFailed,
    StoreError,
    StoreStatus,
    TooSlow,
    Unavailable,
)
from storage.health_check import CHECK_S, HealthCheck
from storage.postgres.clock import SharedClock
from storage.postgres.connection import (
    NOW,
    MendingConnection,
    OwnConnection,
    PostgresConnection,
    PostgresTarget,
    RawConnection,
    begin_statement,
)
from storage.postgres.listen import Notification, NotificationListener, NotificationSender
from storage.postgres.migration import migrate
from storage.postgres.pool import ConnectionPool, PoolLimits
from storage.postgres.postgres_maintenance import PostgresMaintenance
from storage.postgres.sqlstates import (
    ASYNCPG_ERRORS,
    is_outcome_unknown,
    is_refused_text,
    is_stopping,
    translate_error,
)
from storage.postgres.uptime import Uptime

T = TypeVar("T")

# The bytes of a waiting write besides those that it names: a task, a future, an operation.
_OVERHEAD_BYTES = 2048

# The SQLSTATEs of two transactions that cannot both commit, serialization failure and deadlock: one is performed again.
_CONFLICTS = ("40001", "40P01")
# The most attempts of a transaction. Where many conflict, the next attempt may meet another one. Not measured.
_MAX_TRIES = 5

# The intervals of the checks of health without an answer after which there was a break: a check that fails takes no
# longer than one.
_MAX_MISSED_CHECKS = 2

# Whether the server accepts no writes. It reads no row, but waits as a turn does for a table that is locked.
_HEALTH_QUERY = (
    "SELECT current_setting('transaction_read_only') = 'on' OR EXISTS (SELECT FROM agents, conversations, exchanges,"
    " marks, sections, blocks, block_history, recalls WHERE false)"
)


class PostgresLimits(PoolLimits, frozen=True):
    """The bounds and pauses of a database, beyond those of its pool. They are chosen, not measured."""

    # The connections that neither bulk work nor long reads may have, if the pool has as many.
    turns: int = 2
    # The seconds that a read waits for a connection that others use.
    wait_s: float = 0.25
    # The seconds that a read waits for a connection that is opened for it. A gateway that has just started on a busy
    # machine needed 0.3 s and more.
    opening_s: float = 1.0
    # The bytes of all writes that wait; a write beyond them is refused.
    queue_bytes: int = 64 << 20
    # The seconds after which a read of a turn is given up.
    read_s: float = 2.0
    # The seconds after which a read of a list, or of other bulk, is given up.
    long_s: float = 60.0
    # A turn that waits longer for a connection makes the status `slow`.
    slow_s: float = 1.0
    # The seconds between two VACUUMs.
    sweep_s: float = 60.0
    # The seconds between two checks of health.
    health_s: float = CHECK_S
    # The seconds after an outage in which no lease is taken over. By then each process has connected and renewed its
    # own leases: an attempt that hung, and the longest pause after it, are over.
    settle_s: float = 20.0

    @property
    def long_reads(self) -> int:
        """How many connections long reads may have."""
        return max(1, self.size - self.bulk - self.turns)


@dataclass(frozen=True, slots=True)
class _Write(Generic[T]):
    """A transaction to be performed."""

    operation: Operation[T]
    # The transaction waits for one of the connections for bulk work.
    is_bulk: bool = False
    # The parameter of `Database.write`.
    is_repeatable: bool = False


class PostgresDatabase:
    """A database on a server, over a pool of connections, made by `open`.

    Implements `Database`, which documents the methods.
    """

    is_shared = True
    is_owned = False
    # Another database in its place is not noticed, but the epochs of memories refuse old turns. The timeline of the log
    # is no generation: it changes with each promotion, also if nothing is lost, and all work goes on then.
    generation = 0

    def __init__(
        self, target: PostgresTarget, limits: PostgresLimits, listen_target: PostgresTarget | None
    ) -> None:
        self._target = target
        self._limits = limits
        self._begin_statement = begin_statement(target)
        self._loop = asyncio.get_running_loop()
        self._pool = ConnectionPool(
            target, limits, self._prepare, self._report_failure, self._report_recovery
        )
        self._long_reads = asyncio.Semaphore(limits.long_reads)
        self._recovery_listeners: list[Callable[[], None]] = []
        self._failure_listeners: list[Callable[[Unavailable], None]] = []
        self._health_check = HealthCheck(self._check_server, limits.health_s)
        # The last check of health had no answer in time.
        self._is_late = False
        self._clock = SharedClock()
        self._uptime = Uptime(_MAX_MISSED_CHECKS * limits.health_s)
        self._listener = NotificationListener(
            listen_target, self._clock.add_reading, self._health_check.hurry
        )
        self._maintenance = PostgresMaintenance(target, limits.sweep_s, limits.long_s)
        self._sender = NotificationSender(self._send_notifications)
        self._writes = _WriteTasks()
        self._closing = False

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        pool: int = 8,
        pooled: bool = False,
        pooler_prepares: bool = False,
        listen_url: str | None = None,
        limits: PostgresLimits | None = None,
        factory: type[Any] = OwnConnection,
    ) -> Self:
        """Connects, and brings the database to the present schema.

        A server that is down does not stop the start: `health` reports it, all operations raise its error, and it is
        connected to when it is up again.

        pool: the number of connections.
        pooled: the URL is that of a pooler in transaction mode.
        pooler_prepares: the pooler supports prepared statements.
        listen_url: the URL of the server itself, since a pooler passes no notifications on.
        limits: instead of the default limits for this pool.
        factory: the class of connections, for tests that count statements.

        Raises: NotAdmitted, Foreign, TooNew.
        """
        limits = limits or PostgresLimits(size=pool)
        target = PostgresTarget(url, pooled, pooler_prepares, factory)
        # Through a pooler notifications arrive nowhere, without an error.
        listen_target = PostgresTarget(listen_url or url) if listen_url or not pooled else None
        database = cls(target, limits, listen_target)
        await database._pool.server.start()
        return database

    async def _prepare(self, raw: RawConnection) -> None:
        await migrate(raw, self._target.name)
        await self._clock.measure(lambda: raw.fetchval(f"SELECT {NOW}"))
        self._uptime.note_recovery()

    @property
    def clock_ahead_s(self) -> float:
        return self._clock.ahead

    @property
    def is_settled(self) -> bool:
        return self._uptime.seconds >= self._limits.settle_s

    # -- operations ----------------------------------------------------------------------------------------------------

    async def read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        return await self._read(operation, deadline_ms, self._limits.read_s)

    async def long_read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        if choose_deadline_ms(deadline_ms) is not None:  # a turn waits for it
            return await self._read(operation, deadline_ms, self._limits.long_s)
        async with self._long_reads:
            return await self._read(operation, None, self._limits.long_s)

    def write(
        self, operation: Operation[T], *, size_bytes: int = 0, is_repeatable: bool = False
    ) -> asyncio.Future[T]:
        return self._begin_write(_Write(operation, is_repeatable=is_repeatable), size_bytes)

    def write_one(self, statement: str, values: Sequence[object]) -> asyncio.Future[list[Row]]:
        async def one(connection: Connection) -> list[Row]:
            row = await connection.single(statement, values)
            return [] if row is None else [row]

        return self._begin_write(_Write(one))

    def bulk(self, operation: Operation[T], *, size_bytes: int = 0) -> asyncio.Future[T]:
        return self._begin_write(_Write(operation, is_bulk=True), size_bytes)

    async def _read(self, operation: Operation[T], deadline_ms: float | None, default_s: float) -> T:
        """Reads. default_s: how long the read may take if it has no deadline."""
        limit_ms = choose_deadline_ms(deadline_ms)
        timeout_s = default_s if limit_ms is None else limit_ms / 1000
        try:
            return await self._read_on(PostgresConnection, operation, timeout_s)
        except StatementFailed as error:
            if not is_refused_text(error.__cause__):
                raise
        return await self._read_on(MendingConnection, operation, timeout_s)

    async def _read_on(
        self, connection_type: type[PostgresConnection], operation: Operation[T], timeout_s: float
    ) -> T:
        pool = self._pool
        deadline = self._loop.time() + timeout_s
        pool.server.check()
        raw = pool.acquire_idle() or await pool.acquire(
            wait_s=min(timeout_s, self._limits.wait_s), opening_s=min(timeout_s, self._limits.opening_s)
        )
        try:
            result = await operation(connection_type(raw, deadline, self._loop))
        except (TimeoutError, asyncio.CancelledError) as error:
            # asyncpg asks the server over another connection to stop. After that this connection can be used again.
            pool.release_later(raw)
            if isinstance(error, TimeoutError):
                raise TooSlow(f"{self._target.name}: no answer in time") from error
            raise
        except BaseException as error:
            translated = self._translate(error)
            pool.release(raw)
            if translated is error:
                raise
            raise translated from error
        self._uptime.note_answer()
        pool.release(raw)
        return result

    def _begin_write(self, write: _Write[T], size: int = 0) -> asyncio.Future[T]:
        """Begins a write, and returns its result to come. size: the bytes that it holds. Raises: Unavailable."""
        if self._closing:
            raise Closed(f"{self._target.name} is closed")
        self._pool.server.check()
        size += _OVERHEAD_BYTES
        # A write that would be the first in the queue is accepted, however large it is.
        if self._writes.count and self._writes.bytes + size > self._limits.queue_bytes:
            raise Busy(
                f"{self._target.name} is too slow: more than {self._limits.queue_bytes:,} bytes would wait"
            )
        future: asyncio.Future[T] = self._loop.create_future()
        self._writes.begin(self._perform_write(write, future), size)
        self._maintenance.note_write()
        return future

    async def _perform_write(self, write: _Write[T], future: asyncio.Future[T]) -> None:
        """Performs a write, and resolves the future that its caller awaits."""
        try:
            result = await self._transact(write)
        except asyncio.CancelledError:
            _fail_future(future, Closed(f"{self._target.name} was closed while this was being written"))
        except BaseException as error:
            _fail_future(future, error)
        else:
            if not future.done():
                future.set_result(result)

    async def _transact(self, write: _Write[T]) -> T:
        """Performs a transaction. If the server refuses a text in it, it is performed again with its texts mended."""
        try:
            return await self._try_transaction(PostgresConnection, write)
        except StatementFailed as error:
            if not is_refused_text(error.__cause__):
                raise
        return await self._try_transaction(MendingConnection, write)

    async def _try_transaction(self, connection_type: type[PostgresConnection], write: _Write[T]) -> T:
        """Performs a transaction, again after a conflict with another one or after its connection broke."""
        pool, is_bulk = self._pool, write.is_bulk
        for tries_left in reversed(range(_MAX_TRIES)):
            raw = (None if is_bulk else pool.acquire_idle()) or await pool.acquire(is_bulk=is_bulk)
            deadline = self._loop.time() + self._limits.write_s
            connection = connection_type(raw, deadline, self._loop, self._begin_statement)
            try:
                result = await write.operation(connection)
                await connection.commit()
                self._uptime.note_answer()
                pool.release(raw, is_bulk=is_bulk)
                return result
            except BaseException as error:
                translated = self._translate(error)
                is_pending = connection.is_begun or isinstance(error, TimeoutError)
                await self._roll_back(raw, is_bulk=is_bulk, is_pending=is_pending)
                if isinstance(translated, Broken):
                    # Once only, unless the write `is_repeatable`: after a broken connection the next one mostly breaks.
                    may_be_on_disk = connection.may_have_committed and is_outcome_unknown(error)
                    is_first_try = tries_left == _MAX_TRIES - 1
                    may_repeat = write.is_repeatable or (is_first_try and not may_be_on_disk)
                else:
                    may_repeat = _is_conflict(error)
                if tries_left and may_repeat:
                    continue
                if translated is error:
                    raise
                raise translated from error
        raise AssertionError("the last attempt returns or raises")

    async def _roll_back(self, raw: RawConnection, *, is_bulk: bool, is_pending: bool) -> None:
        """Rolls back a pending transaction, and returns its connection to the pool."""
        try:
            if is_pending and not raw.is_closed():
                await self._pool.execute_after_failure(raw, "ROLLBACK")
        finally:
            self._pool.release(raw, is_bulk=is_bulk)

    def _translate(self, error: BaseException) -> BaseException:
        """Returns the store's error for an error of the server or the connection; any other error as it is.

        An error after which nothing works fails the pool.
        """
        if not isinstance(error, ASYNCPG_ERRORS):
            return error
        translated = translate_error(error, self._target.name)
        if is_stopping(translated) and isinstance(translated, Unavailable):
            self._pool.server.fail(translated)
        return translated

    # -- lifecycle, notifications, health ------------------------------------------------------------------------------

    async def sweep(self, wait_ms: int) -> bool:
        """Has the server remove old versions of rows from its tables. Its log, replicas and backups retain them."""
        return await self._maintenance.sweep(wait_ms / 1000)

    def start(self) -> None:
        self._listener.begin()
        self._uptime.watch()
        self._health_check.start()

    async def _check_server(self) -> None:
        """Asks the server whether it accepts writes, without a write, which would keep an idle server busy."""

        async def ask(connection: Connection) -> bool:
            try:
                is_read_only = await connection.value(_HEALTH_QUERY)
            except TimeoutError:
                self._is_late = True
                self._health_check.hurry()
                raise
            self._is_late = False
            return bool(is_read_only)

        if await self.read(ask):
            self._pool.server.fail(ReadOnly(f"{self._target.name} is read-only, as a replica is"))

    def add_listener(self, channel: str, callback: Callable[[str | None], None]) -> None:
        self._listener.add_listener(channel, callback)

    def notify(self, channel: str, payload: str = "") -> None:
        if not self._closing:
            self._sender.add(Notification(channel, payload))

    async def _send_notifications(self, notifications: Sequence[Notification]) -> None:
        with contextlib.suppress(StoreError):
            await self.read(lambda connection: self._listener.notify(connection, notifications))

    def add_change_listener(self, callback: Callable[[Changes], None]) -> None:
        pass  # a shared database calls none, since other processes write there, too

    def add_failure_listener(self, callback: Callable[[Unavailable], None]) -> None:
        self._failure_listeners.append(callback)

    def add_recovery_listener(self, callback: Callable[[], None]) -> None:
        self._recovery_listeners.append(callback)

    def _report_failure(self, fault: Unavailable) -> None:
        self._uptime.note_failure()
        for function in self._failure_listeners:
            function(fault)

    def _report_recovery(self) -> None:
        self._uptime.note_recovery()
        self._listener.reconnect()
        for function in self._recovery_listeners:
            function()

    @property
    def health(self) -> StoreHealth:
        return StoreHealth(
            status=self._status(),
            error=self._pool.server.last_error,
            waiting=self._writes.count,
            waiting_bytes=self._writes.bytes,
        )

    def _status(self) -> StoreStatus:
        if self._closing:
            return "closed"
        if self._pool.server.fault is not None:
            return self._pool.server.fault.status
        # A single write that takes long holds up its own memory alone.
        return "slow" if self._is_late or self._pool.longest_wait_s > self._limits.slow_s else "ok"

    async def drain(self, timeout_s: float) -> bool:
        return await self._writes.drain(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        if self._closing:
            return
        self._closing = True
        await self._health_check.close()
        await self._listener.close()
        await self._maintenance.close()
        await self.drain(timeout_s)
        await self._sender.finish()
        await self._writes.cancel()
        await self._pool.close(timeout_s)


class _WriteTasks:
    """The writes under way, each in a task of its own, and the sum of their bytes."""

    def __init__(self) -> None:
        self._sizes: dict[asyncio.Task[None], int] = {}
        self.bytes = 0

    @property
    def count(self) -> int:
        return len(self._sizes)

    def begin(self, write: Coroutine[Any, Any, None], size: int) -> None:
        """Begins a write. size: the bytes that it holds."""
        task = asyncio.get_running_loop().create_task(write)
        self._sizes[task] = size
        self.bytes += size
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self.bytes -= self._sizes.pop(task)

    async def drain(self, timeout_s: float) -> bool:
        """Waits until all writes have ended. Returns False where that took longer than `timeout_s`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        # A write may begin another one before it ends.
        while self._sizes:
            remaining_s = end - loop.time()
            if remaining_s <= 0:
                return False
            await asyncio.wait(list(self._sizes), timeout=remaining_s)
        return True

    async def cancel(self) -> None:
        """Cancels the writes that have not ended."""
        tasks = list(self._sizes)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_conflict(error: BaseException) -> bool:
    """Returns whether a transaction failed because of another one, and may be performed again."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in _CONFLICTS


def _fail_future(future: asyncio.Future[Any], error: BaseException) -> None:
    if future.done():  # its caller was cancelled
        return
    future.set_exception(error)
    # This marks the error as retrieved: the loop must not log a write that nothing awaits, since health reports it.
    future.exception()
