"""A PostgreSQL database, as `storage.database.Database`: runs the store's operations over a pool of connections.

Reads are performed by postgres_reader.py, writes by postgres_writer.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from storage.database import Changes, Connection, Operation, Row, StoreHealth
from storage.errors import (
    ServerRefused,
    StatementFailed,
    StoreError,
    StoreReadOnly,
    StoreStatus,
    StoreUnavailable,
)
from storage.health_check import HealthCheck
from storage.postgres.clock import SharedClock
from storage.postgres.connection import NOW, OwnConnection, PostgresTarget, RawConnection
from storage.postgres.database_server import READ_NO_ROW
from storage.postgres.listen import Notification, NotificationListener, NotificationSender
from storage.postgres.migration import migrate
from storage.postgres.pool import ConnectionPool
from storage.postgres.postgres_limits import PostgresLimits
from storage.postgres.postgres_maintenance import PostgresMaintenance
from storage.postgres.postgres_reader import PostgresReader
from storage.postgres.postgres_writer import PostgresWrite, PostgresWriter
from storage.postgres.sqlstates import as_unavailable
from storage.postgres.uptime import Uptime

T = TypeVar("T")


# The intervals of the checks of health without an answer after which there was a break: a check that fails takes no
# longer than one.
_MAX_MISSED_CHECKS = 2

# Returns whether the server accepts no writes.
_HEALTH_QUERY = f"SELECT current_setting('transaction_read_only') = 'on' OR EXISTS ({READ_NO_ROW})"


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
        self._pool = ConnectionPool(
            target, limits, self._prepare, self._report_failure, self._report_recovery
        )
        self._recovery_listeners: list[Callable[[], None]] = []
        self._failure_listeners: list[Callable[[StoreUnavailable], None]] = []
        self._health_check = HealthCheck(self._check_server, limits.health_check_interval_s)
        # True if the last check of health had no answer in time.
        self._is_late = False
        self._clock = SharedClock()
        self._uptime = Uptime(_MAX_MISSED_CHECKS * limits.health_check_interval_s)
        self._listener = NotificationListener(
            listen_target, self._clock.add_reading, self._health_check.check_soon
        )
        self._maintenance = PostgresMaintenance(target, limits.vacuum_interval_s, limits.long_read_timeout_s)
        self._sender = NotificationSender(self._send_notifications)
        self._reader = PostgresReader(self._pool, self._uptime, limits, target.name)
        self._writer = PostgresWriter(target, self._pool, self._uptime, limits, self._maintenance.note_write)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        pool: int = 8,
        is_pooled: bool = False,
        pooler_prepares: bool = False,
        listen_url: str | None = None,
        limits: PostgresLimits | None = None,
        factory: type[Any] = OwnConnection,
    ) -> Self:
        """Connects, and brings the database to the present schema.

        A server that is down does not stop the start: `health` reports it, all operations raise its error, and it is
        connected to when it is up again.

        pool: the number of connections.
        is_pooled: True if the URL names a pooler in transaction mode.
        pooler_prepares: True if the pooler supports prepared statements.
        listen_url: the URL of the server itself, since a pooler passes no notifications on.
        limits: the limits; None: the default limits for a pool of this size.
        factory: the class of connections, for tests that count statements.

        Raises: ServerRefused, ForeignDatabase, SchemaTooNew.
        """
        limits = limits or PostgresLimits(size=pool)
        target = PostgresTarget(url, is_pooled, pooler_prepares, factory)
        # Through a pooler notifications arrive nowhere, without an error.
        listen_target = PostgresTarget(listen_url or url) if listen_url or not is_pooled else None
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
        return await self._reader.read(operation, deadline_ms)

    async def long_read(self, operation: Operation[T], *, deadline_ms: float | None = None) -> T:
        return await self._reader.long_read(operation, deadline_ms)

    def write(
        self, operation: Operation[T], *, size_bytes: int = 0, is_repeatable: bool = False
    ) -> asyncio.Future[T]:
        return self._writer.begin(PostgresWrite(operation, is_repeatable=is_repeatable), size_bytes)

    def write_one(self, statement: str, values: Sequence[object]) -> asyncio.Future[list[Row]]:
        async def run_statement(connection: Connection) -> list[Row]:
            row = await connection.run_single(statement, values)
            return [] if row is None else [row]

        return self._writer.begin(PostgresWrite(run_statement))

    def bulk_write(self, operation: Operation[T], *, size_bytes: int = 0) -> asyncio.Future[T]:
        return self._writer.begin(PostgresWrite(operation, is_bulk=True), size_bytes)

    # -- lifecycle, notifications, health ------------------------------------------------------------------------------

    async def sweep(self, wait_ms: int) -> bool:
        """Has the server remove old versions of rows from its tables. Its log, replicas and backups retain them."""
        return await self._maintenance.sweep(wait_ms / 1000)

    def start(self) -> None:
        self._listener.begin()
        self._uptime.watch()
        self._health_check.start()

    async def _check_server(self) -> None:
        """Asks the server whether it accepts writes, without a write, which would keep an idle server busy.

        Raises: StoreUnavailable.
        """

        async def ask(connection: Connection) -> bool:
            try:
                is_read_only = await connection.fetch_value(_HEALTH_QUERY)
            except TimeoutError:
                self._is_late = True
                self._health_check.check_soon()
                raise
            self._is_late = False
            return bool(is_read_only)

        try:
            is_read_only = await self.read(ask)
        except (ServerRefused, StatementFailed) as error:  # no turn can be read
            self._pool.server.fail(as_unavailable(error))
            return
        if is_read_only:
            self._pool.server.fail(StoreReadOnly(f"{self._target.name} is read-only, as a replica is"))

    def add_listener(self, channel: str, callback: Callable[[str | None], None]) -> None:
        self._listener.add_listener(channel, callback)

    def notify(self, channel: str, payload: str = "") -> None:
        if not self._writer.is_closing:
            self._sender.add(Notification(channel, payload))

    async def _send_notifications(self, notifications: Sequence[Notification]) -> None:
        with contextlib.suppress(StoreError):
            await self.read(lambda connection: self._listener.notify(connection, notifications))

    def add_change_listener(self, callback: Callable[[Changes], None]) -> None:
        # The callback is never called: other processes write to a shared database, too, so this process does not know
        # all changes.
        pass

    def add_failure_listener(self, callback: Callable[[StoreUnavailable], None]) -> None:
        self._failure_listeners.append(callback)

    def add_recovery_listener(self, callback: Callable[[], None]) -> None:
        self._recovery_listeners.append(callback)

    def _report_failure(self, fault: StoreUnavailable) -> None:
        self._uptime.note_failure()
        for callback in self._failure_listeners:
            callback(fault)

    def _report_recovery(self) -> None:
        self._uptime.note_recovery()
        self._listener.reconnect()
        for callback in self._recovery_listeners:
            callback()

    @property
    def health(self) -> StoreHealth:
        return StoreHealth(
            status=self._get_status(),
            error=self._pool.server.last_error,
            waiting=self._writer.count,
            waiting_bytes=self._writer.size_bytes,
        )

    def _get_status(self) -> StoreStatus:
        if self._writer.is_closing:
            return "closed"
        if self._pool.server.fault is not None:
            return self._pool.server.fault.status
        # A single write that takes long holds up its own memory alone.
        return "slow" if self._is_late or self._pool.longest_wait_s > self._limits.slow_wait_s else "ok"

    async def drain(self, timeout_s: float) -> bool:
        return await self._writer.drain(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        if self._writer.is_closing:
            return
        self._writer.is_closing = True
        await self._health_check.close()
        await self._listener.close()
        await self._maintenance.close()
        await self.drain(timeout_s)
        await self._sender.finish()
        await self._writer.cancel()
        await self._pool.close(timeout_s)
