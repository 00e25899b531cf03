"""The state of the server as a process knows it: up, or down with the error that it failed with.

When the server fails, the process tries to connect at once, and requests wait for the end of this first attempt. If the
attempt fails, all requests are refused at once with its error, and further attempts follow with growing pauses until a
test write succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from storage.errors import StoreClosed, StoreError, StoreUnavailable
from storage.postgres.connection import BEGIN_POOLED, PostgresTarget, RawConnection, connect
from storage.postgres.sqlstates import ASYNCPG_ERRORS, as_unavailable, is_stopping, translate_error

# Reads no row, but fails if a table of turns is gone or may not be read, and waits as a turn does if it is locked.
READ_NO_ROW = (
    "SELECT FROM agents, conversations, exchanges, marks, sections, blocks, block_history, recalls"
    " WHERE false"
)
# Reads no row, and waits no longer for a lock than a write does, also through a pooler.
TEST_READ = f"{BEGIN_POOLED}; {READ_NO_ROW}; COMMIT"
# Writes a whole page, which a full disk refuses.
_TEST_WRITE = (
    "BEGIN; INSERT INTO probe (id, filler) VALUES (1, decode(repeat('00', 8000), 'hex'))"
    " ON CONFLICT (id) DO UPDATE SET filler = excluded.filler; DELETE FROM probe; COMMIT"
)


class ServerLimits(Struct, frozen=True):
    """Waits and pauses. Not measured."""

    # The seconds after which a statement of a transaction that writes is given up.
    write_timeout_s: float = 30.0
    # The seconds between the first two attempts to connect after a fault; the pause doubles with each attempt.
    retry_first_s: float = 0.25
    # The longest pause between two attempts, in seconds.
    retry_max_s: float = 10.0


class NotifiedPool(Protocol):
    """The pool of connections to the server, which is notified when the server fails or works again."""

    def drop_idle(self) -> None:
        """Drops the connections that nothing uses: the server has failed."""

    def put_idle(self, raw: RawConnection) -> None:
        """Adds a connection on which writing works."""

    def wake_all(self) -> None:
        """Wakes all callers that wait for a connection, so that they ask again."""


class DatabaseServer:
    """The state of a server. Connects again when the server does not answer."""

    def __init__(
        self,
        target: PostgresTarget,
        limits: ServerLimits,
        pool: NotifiedPool,
        prepare: Callable[[RawConnection], Awaitable[None]],
        on_failure: Callable[[StoreUnavailable], None],
        on_recovery: Callable[[], None],
    ) -> None:
        """Makes the state of a server that works; `start` opens its first connection.

        target: the server and its database.
        limits: the waits and pauses.
        pool: the pool that holds the connections.
        prepare: the function that checks or makes the schema, when the server answers for the first time.
        on_failure: the function that is called with the error when the server fails after it worked.
        on_recovery: the function that is called when the server works again.
        """
        self._target = target
        self._limits = limits
        self._pool = pool
        self._prepare = prepare
        # True if the schema was checked.
        self._is_prepared = False
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        # The task that connects again after a fault; None: the server has not failed.
        self._reconnecting: asyncio.Task[None] | None = None
        # Cleared while the first attempt to reconnect after a fault is under way.
        self._first_attempt_ended = asyncio.Event()
        self._first_attempt_ended.set()
        # True if all requests are refused.
        self.is_closed = False
        # The error with which requests are refused; None: the server works.
        self.fault: StoreUnavailable | None = None
        # The message of the last fault; None: the server has not failed.
        self.last_error: str | None = None

    async def start(self) -> None:
        """Opens the first connection. If the server does not answer, tries again later. Raises: StoreError."""
        try:
            raw = await self._connect_and_test()
        except StoreUnavailable as error:
            self.fail(error)
            # The attempt above was the first one, so requests need not wait for another.
            self._first_attempt_ended.set()
            return
        self._pool.put_idle(raw)

    def check(self) -> None:
        """Refuses an operation that cannot be served now. Raises: StoreUnavailable."""
        if self.is_closed:
            raise StoreClosed(f"{self._target.name} is closed")
        if self.fault is not None and self._first_attempt_ended.is_set():
            raise self.fault.copy()

    async def wait_until_known(self) -> None:
        """Waits while the first attempt to reconnect after a fault is under way. Raises: StoreUnavailable."""
        await self._first_attempt_ended.wait()
        self.check()

    async def connect(self) -> RawConnection:
        """Returns a new connection. Raises: StoreError."""
        return await connect(self._target)

    def fail(self, fault: StoreUnavailable) -> None:
        """Sets the state to failed, and begins to connect again."""
        self.last_error = fault.message
        if self.fault is not None or self.is_closed:
            return
        self.fault = fault
        self._first_attempt_ended.clear()
        self._pool.drop_idle()
        self._pool.wake_all()
        self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())
        self._on_failure(fault)

    def translate(self, error: BaseException) -> BaseException:
        """Returns the store's error for an error of the server or the connection; any other error as it is.

        An error after which nothing works fails the server.
        """
        if not isinstance(error, ASYNCPG_ERRORS):
            return error
        translated = translate_error(error, self._target.name)
        if is_stopping(translated) and isinstance(translated, StoreUnavailable):
            self.fail(translated)
        return translated

    async def _reconnect(self) -> None:
        """Connects until a test write succeeds. After the first failure all requests are refused meanwhile."""
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            try:
                raw = await self._connect_and_test()
                break
            except StoreError as error:
                self.fault = as_unavailable(error)
                self.last_error = self.fault.message
            self._first_attempt_ended.set()
            self._pool.wake_all()
            pause_s = min(max(2 * pause_s, self._limits.retry_first_s), self._limits.retry_max_s)
        self.fault = None
        self._pool.put_idle(raw)
        self._first_attempt_ended.set()
        self._pool.wake_all()
        self._on_recovery()

    async def _connect_and_test(self) -> RawConnection:
        """Returns a connection on which reading and writing work.

        Raises: StoreUnavailable if the tables of a turn cannot be read; StoreError.
        """
        raw = await connect(self._target)
        try:
            try:
                if not self._is_prepared:
                    await self._prepare(raw)
                    self._is_prepared = True
                await raw.execute(_TEST_WRITE, timeout=self._limits.write_timeout_s)
            except ASYNCPG_ERRORS as error:
                raise translate_error(error, self._target.name) from error
            try:
                await raw.execute(TEST_READ, timeout=self._limits.write_timeout_s)
            except ASYNCPG_ERRORS as error:  # a restore may bring the tables back at any time
                raise as_unavailable(translate_error(error, self._target.name)) from error
        except BaseException:
            raw.terminate()
            raise
        return raw

    async def close(self) -> None:
        """Refuses requests from now on, and stops reconnecting. The caller then wakes all that wait."""
        self.is_closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        self._first_attempt_ended.set()
