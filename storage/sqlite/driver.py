"""A thread that a connection lives in, and how functions are run there."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Self, TypeVar

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL, set_exception, set_result

from storage.sqlite.affinity import ThreadAffinity

T = TypeVar("T")


class Driver(aiosqlite.Connection):
    """A connection in a thread of its own that is handed whole functions: one hop for a batch, not one a statement.

    aiosqlite gives the thread and its queue. It reports to the event loop even when nothing waits any more, which fails
    in the thread once the loop is closed; what is here does not.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], name: str) -> None:
        super().__init__(connect, iter_chunk_size=64)
        self._thread.name = name
        self._affinity: ThreadAffinity | None = None
        # A disk that never answers must not keep a process that has to stop.
        self._thread.daemon = True

    async def open(self) -> Self:
        """Starts the thread and opens the connection in it. Raises: what `connect` raises."""
        self._thread.start()
        self._affinity = ThreadAffinity(self._thread.native_id or 0)
        try:
            await self._run(self._open_in_thread)
        except BaseException:
            self.abandon()
            raise
        return self

    def post(self, function: Callable[[sqlite3.Connection], None], *, is_near: bool = False) -> None:
        """Runs a function in the thread, and reports neither its end nor an error: it must not raise.

        is_near: on the caller's processor. That is faster for short work, in which the interpreter's lock changes hands
            often.
        """
        if self._affinity is not None:
            self._affinity.pin_to_caller() if is_near else self._affinity.unpin()
        self._tx.put_nowait((None, partial(function, self._conn)))

    def call(self, function: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Runs it in the thread. Cancelling the future does not stop it."""
        return self._run(partial(function, self._conn))

    def abandon(self) -> None:
        """Closes as soon as the thread is free, without waiting for it."""
        self._running = False
        self._tx.put_nowait((None, self._close_in_thread))
        self._tx.put_nowait((None, lambda: _STOP_RUNNING_SENTINEL))

    def _run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def perform() -> None:
            try:
                report = partial(set_result, future, function())
            except BaseException as error:
                report = partial(set_exception, future, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
                loop.call_soon_threadsafe(report)

        self._tx.put_nowait((None, perform))
        return future

    def _open_in_thread(self) -> None:
        self._connection = self._connector()

    def _close_in_thread(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
