"""Performs reads over the pool: statements without a transaction, on one connection, within a time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from storage.database import Operation, choose_deadline_ms
from storage.errors import StatementFailed, StoreTimeout
from storage.postgres.connection import PostgresConnection, SanitizingConnection
from storage.postgres.pool import ConnectionPool
from storage.postgres.postgres_limits import PostgresLimits
from storage.postgres.sqlstates import is_refused_text
from storage.postgres.uptime import Uptime

T = TypeVar("T")


class PostgresReader:
    """Performs the reads of a database."""

    def __init__(self, pool: ConnectionPool, uptime: Uptime, limits: PostgresLimits, name: str) -> None:
        """Makes the reader.

        pool: the connections of the reads.
        uptime: the record of the server's answers, which each answer updates.
        limits: the bounds of a read's time.
        name: the name of the database, for errors.
        """
        self._pool = pool
        self._uptime = uptime
        self._limits = limits
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._long_reads = asyncio.Semaphore(limits.max_long_reads)

    async def read(self, operation: Operation[T], deadline_ms: float | None) -> T:
        """Implements `Database.read`."""
        return await self._read(operation, deadline_ms, self._limits.read_timeout_s)

    async def long_read(self, operation: Operation[T], deadline_ms: float | None) -> T:
        """Implements `Database.long_read`."""
        # A read with a deadline is a turn's, and does not wait for other long reads.
        if choose_deadline_ms(deadline_ms) is not None:
            return await self._read(operation, deadline_ms, self._limits.long_read_timeout_s)
        async with self._long_reads:
            return await self._read(operation, None, self._limits.long_read_timeout_s)

    async def _read(self, operation: Operation[T], deadline_ms: float | None, default_s: float) -> T:
        """Runs a read. If the server refuses a text in it, it is run again with its texts replaced, within its time.

        default_s: the seconds that the read may take if it has no deadline.
        """
        limit_ms = choose_deadline_ms(deadline_ms)
        deadline = self._loop.time() + (default_s if limit_ms is None else limit_ms / 1000)
        try:
            return await self._read_by(PostgresConnection, operation, deadline)
        except StatementFailed as error:
            if not is_refused_text(error.__cause__):
                raise
        return await self._read_by(SanitizingConnection, operation, deadline)

    async def _read_by(
        self, connection_type: type[PostgresConnection], operation: Operation[T], deadline: float
    ) -> T:
        """Returns the result of an operation.

        connection_type: the type of the connection that the operation gets.
        deadline: the time by which the read must have ended, by the loop's clock.

        Raises: StoreTimeout, StoreUnavailable, and the operation's own errors.
        """
        pool = self._pool
        pool.server.check()
        remaining_s = deadline - self._loop.time()
        raw = pool.acquire_idle() or await pool.acquire(
            wait_s=min(remaining_s, self._limits.acquire_timeout_s),
            opening_s=min(remaining_s, self._limits.connect_timeout_s),
        )
        try:
            result = await operation(connection_type(raw, deadline, self._loop))
        except (TimeoutError, asyncio.CancelledError) as error:
            # asyncpg asks the server over another connection to stop. After that this connection can be used again.
            pool.release_later(raw)
            if isinstance(error, TimeoutError):
                raise StoreTimeout(f"{self._name}: no answer in time") from error
            raise
        except BaseException as error:
            translated = pool.server.translate(error)
            pool.release(raw)
            if translated is error:
                raise
            raise translated from error
        self._uptime.note_answer()
        pool.release(raw)
        return result
