"""The connections of one process to its server.

Bulk work has a few connections at most, so that turns find one. When the server fails
(storage/postgres/database_server.py), idle connections are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

from storage.errors import StoreBusy, StoreError, StoreFailed, StoreTimeout, StoreUnavailable
from storage.postgres.connection import PostgresTarget, RawConnection
from storage.postgres.database_server import DatabaseServer, ServerLimits
from storage.postgres.sqlstates import ASYNCPG_ERRORS, as_unavailable
from storage.task_set import TaskSet


class PoolLimits(ServerLimits, frozen=True):
    """Bounds and pauses."""

    # The most connections of the pool. Eight were enough for 16 turns at a time.
    size: int = 8
    # The most connections that bulk work may have at a time: a quarter of them. Not measured.
    bulk_connections: int = 2
    # The seconds that a connection has to answer after a read on it was given up. Not measured; an answer of a server
    # that is well takes milliseconds.
    check_timeout_s: float = 2.0


class ConnectionPool:
    """Connections to one server, handed out in the order of the requests for them."""

    def __init__(
        self,
        target: PostgresTarget,
        limits: PoolLimits,
        prepare: Callable[[RawConnection], Awaitable[None]],
        on_failure: Callable[[StoreUnavailable], None],
        on_recovery: Callable[[], None],
    ) -> None:
        """Makes a pool without connections.

        target: the server and its database.
        limits: the bounds and pauses of the pool and of its server.
        prepare: the function that checks or makes the schema, when the server answers for the first time.
        on_failure: the function that is called with the error when the server fails after it worked.
        on_recovery: the function that is called when the server works again.
        """
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._name = target.name
        self.server = DatabaseServer(
            target, limits, self, prepare=prepare, on_failure=on_failure, on_recovery=on_recovery
        )
        # The connections that are not in use.
        self._idle: list[RawConnection] = []
        # The connections of the pool, idle or in use.
        self._open: set[RawConnection] = set()
        # The number of connections that are being opened, or are open and not in `_open` yet.
        self._opening_count = 0
        # The number of connections that bulk work has, or waits for in `_waiting`.
        self._bulk_count = 0
        # The loop's times at which reads and writes of turns began to wait for a connection.
        self._waiting_since: dict[object, float] = {}
        # Callers that wait for a connection.
        self._waiting = _WaitQueue(self.release)
        # Bulk work that waits until less bulk work runs.
        self._waiting_bulk = _WaitQueue(self.release)
        # Tasks that open connections, or wait for an answer on a connection that is to be released.
        self._tasks = TaskSet()

    @property
    def longest_wait_s(self) -> float:
        """The longest time, in seconds, for which a turn has been waiting for a connection; 0.0: none waits."""
        first_began_at = min(self._waiting_since.values(), default=None)
        return 0.0 if first_began_at is None else self._loop.time() - first_began_at

    def acquire_idle(self) -> RawConnection | None:
        """Returns a free connection; None: no connection is free. Neither waits nor opens one."""
        while self._idle:
            raw = self._idle.pop()
            if not raw.is_closed():
                return raw
            self._open.discard(raw)
        return None

    async def acquire(
        self, *, is_bulk: bool = False, wait_s: float | None = None, opening_s: float | None = None
    ) -> RawConnection:
        """Returns a connection, which must be given back.

        Raises: StoreUnavailable (StoreTimeout if none was free in time).

        is_bulk: True for bulk work, which gets few of the connections at a time.
        wait_s: the seconds that the caller waits for a connection that is in use; None: as long as it takes.
        opening_s: the seconds that the caller waits in all if a connection is opened for it; None: `wait_s`.
        """
        opening_deadline = None if opening_s is None else self._loop.time() + opening_s
        wait_key = object()
        if not is_bulk:
            self._waiting_since[wait_key] = self._loop.time()
        try:
            async with asyncio.timeout(wait_s) as timeout:
                return await self._acquire_when_up(timeout, opening_deadline, is_bulk=is_bulk)
        except TimeoutError:
            self.server.check()
            # Without the time, which differs each time: the log counts the lines that are alike.
            raise StoreTimeout(f"{self._name}: no connection was free in time") from None
        finally:
            self._waiting_since.pop(wait_key, None)

    async def _acquire_when_up(
        self, timeout: asyncio.Timeout, opening_deadline: float | None, *, is_bulk: bool
    ) -> RawConnection:
        while True:
            await self.server.wait_until_known()
            if is_bulk and self._bulk_count >= self._limits.bulk_connections:
                await self._waiting_bulk.wait()
                continue
            # Bulk work counts while it waits as well, so that no more runs than the bound.
            self._bulk_count += is_bulk
            raw = None
            try:
                raw = self.acquire_idle() or await self._open_or_wait(timeout, opening_deadline)
            finally:
                if raw is None and is_bulk:
                    self._free_bulk()
            if raw is not None:
                return raw

    async def _open_or_wait(
        self, timeout: asyncio.Timeout, opening_deadline: float | None
    ) -> RawConnection | None:
        """Returns a new connection, or the next that becomes free; None if the caller must ask again."""
        if len(self._open) + self._opening_count >= self._limits.size:
            return await self._waiting.wait()
        if opening_deadline is not None:
            timeout.reschedule(opening_deadline)
        # A caller that gives up leaves its connection to the next caller. Otherwise the pool would never grow where
        # opening a connection takes longer than a read waits.
        # Counted before the task begins, since other callers may come first.
        self._opening_count += 1
        opening_task = self._tasks.start(self._open_another())
        try:
            await asyncio.wait([opening_task])
        except asyncio.CancelledError:
            opening_task.add_done_callback(self._hand_over_opened)
            raise
        if opening_task.cancelled():
            # By `close`: the caller itself was not cancelled.
            self.server.check()
        raw = opening_task.result()
        if raw is None:
            # A connection that has come free meanwhile was not handed to this caller, which did not wait yet.
            return self.acquire_idle() or (await self._waiting.wait() if self._open else None)
        return raw if self._add_opened(raw) else None

    async def _open_another(self) -> RawConnection | None:
        """Returns a new connection; None if the server refuses one more, but answers on the connections of the pool.

        The connection counts as being opened until `_add_opened`.
        """
        raw = None
        try:
            raw = await self.server.connect()
            return raw
        except StoreError as error:
            if isinstance(error, StoreBusy) and self._open:
                return None
            fault = as_unavailable(error)
            self.server.fail(fault)
            raise fault from error
        finally:
            if raw is None:
                self._opening_count -= 1

    def _add_opened(self, raw: RawConnection) -> bool:
        """Adds a new connection to the pool. Returns False if the server has failed meanwhile, or the pool is full.

        After a failure the pool may be full: the server's own attempt to connect has given it another connection.
        """
        self._opening_count -= 1
        is_full = len(self._open) >= self._limits.size
        if is_full or self.server.fault is not None or self.server.is_closed:
            raw.terminate()
            return False
        self._open.add(raw)
        return True

    def _hand_over_opened(self, opening_task: asyncio.Task[RawConnection | None]) -> None:
        """Hands the connection of a caller that gave up to the first caller that waits."""
        has_failed = opening_task.cancelled() or opening_task.exception() is not None
        raw = None if has_failed else opening_task.result()
        if raw is not None and self._add_opened(raw):
            self.release(raw)
        else:
            self._waiting.hand_over(None)

    def release(self, raw: RawConnection, *, is_bulk: bool = False) -> None:
        """Ends the use of a connection, and hands it to the first caller that waits.

        is_bulk: the value that was given to `acquire`.
        """
        if is_bulk:
            self._free_bulk()
        if raw not in self._open or raw.is_closed():
            # Dropped meanwhile, or lost: the first caller that waits opens another connection.
            self._open.discard(raw)
            if not raw.is_closed():
                raw.terminate()
            self._waiting.hand_over(None)
        elif not self._waiting.hand_over(raw):
            self._idle.append(raw)

    def _free_bulk(self) -> None:
        self._bulk_count -= 1
        self._waiting_bulk.hand_over(None)

    def release_later(self, raw: RawConnection) -> None:
        """Releases a connection after a cancelled wait, once it answers again."""
        self._tasks.start(self._release_after_answer(raw))

    async def _release_after_answer(self, raw: RawConnection) -> None:
        """Releases a connection once it has answered; a connection that does not answer is dropped."""
        try:
            await self.execute_after_failure(raw, "SELECT 1")
        finally:
            self.release(raw)

    async def execute_after_failure(self, raw: RawConnection, statement: str) -> None:
        """Performs a statement after a failed one. A connection that does not answer even then is dropped."""
        try:
            await raw.execute(statement, timeout=self._limits.check_timeout_s)
        except BaseException as error:
            raw.terminate()
            if isinstance(error, TimeoutError):
                self.server.fail(StoreFailed(f"{self._name} does not answer"))
            if not isinstance(error, ASYNCPG_ERRORS):
                raise

    # -- called when the server's state changes ------------------------------------------------------------------------

    def drop_idle(self) -> None:
        """Implements `NotifiedPool`.

        A connection in use is closed after its work: an old primary would still answer reads.
        """
        for raw in self._idle:
            raw.terminate()
        self._idle.clear()
        self._open.clear()

    def put_idle(self, raw: RawConnection) -> None:
        """Implements `NotifiedPool`."""
        self._open.add(raw)
        self._idle.append(raw)

    def wake_all(self) -> None:
        """Implements `NotifiedPool`."""
        for queue in (self._waiting, self._waiting_bulk):
            while queue.hand_over(None):
                pass

    async def close(self, timeout_s: float) -> None:
        """Closes all connections. Idempotent."""
        await self.server.close()
        await self._tasks.aclose()
        self.wake_all()
        connections = self._open
        self._open = set()
        self._idle = []
        await asyncio.gather(*(_close_connection(raw, timeout_s) for raw in connections))


class _WaitQueue:
    """The requests that wait for a connection, in order.

    release: a function that takes back a connection that was handed to a request which gave up at that moment.
    """

    def __init__(self, release: Callable[[RawConnection], None]) -> None:
        self._release = release
        self._futures: deque[asyncio.Future[RawConnection | None]] = deque()

    async def wait(self) -> RawConnection | None:
        """Returns the connection that is handed to the caller; None if the caller must ask again."""
        future: asyncio.Future[RawConnection | None] = asyncio.get_running_loop().create_future()
        self._futures.append(future)
        try:
            return await future
        except BaseException:
            # A connection that was handed to a request which gave up at that moment goes to the next request.
            if future.done() and not future.cancelled():
                if (raw := future.result()) is None:
                    self.hand_over(None)
                else:
                    self._release(raw)
            raise

    def hand_over(self, raw: RawConnection | None) -> bool:
        """Hands a connection, or None, to the first caller that still waits. Returns whether a caller does."""
        while self._futures:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(raw)
                return True
        return False


async def _close_connection(raw: RawConnection, timeout_s: float) -> None:
    with contextlib.suppress(*ASYNCPG_ERRORS):
        await raw.close(timeout=timeout_s)
    raw.terminate()
