"""A thread that owns a connection, and runs functions with it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Self, TypeVar

from storage.sqlite.affinity import ThreadAffinity

T = TypeVar("T")


class Driver:
    """A connection in a thread of its own that is handed whole functions: one hop for a batch, not one a statement."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], name: str) -> None:
        """Makes the connection; `open` starts its thread.

        connect: the function that opens the connection; it is called in the thread.
        name: the name of the thread.
        """
        self._connect = connect
        self._name = name
        # The functions that the thread is to run; None: it ends.
        self._functions: SimpleQueue[Callable[[sqlite3.Connection], None] | None] = SimpleQueue()
        self._affinity: ThreadAffinity | None = None

    async def open(self) -> Self:
        """Starts the thread and opens the connection in it. Raises: whatever `connect` raises."""
        opened: asyncio.Future[sqlite3.Connection] = asyncio.get_running_loop().create_future()
        # A daemon: a disk that never answers must not keep the process from stopping.
        thread = Thread(target=self._run_thread, args=(opened,), name=self._name, daemon=True)
        thread.start()
        self._affinity = ThreadAffinity(thread.native_id or 0)
        try:
            await opened
        except BaseException:
            self.abandon()
            raise
        return self

    def post(self, function: Callable[[sqlite3.Connection], None], *, is_near: bool = False) -> None:
        """Runs a function in the thread, and reports neither its end nor an error: the function must not raise.

        is_near: True to run the function on the caller's processor, which is faster for short work, in which the
            interpreter's lock changes hands often.
        """
        if self._affinity is not None:
            self._affinity.pin_to_caller() if is_near else self._affinity.unpin()
        self._functions.put(function)

    def call(self, function: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Runs a function in the thread, and returns its result. Cancelling the future does not stop the function."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def perform(connection: sqlite3.Connection) -> None:
            _settle(future, partial(function, connection))

        self._functions.put(perform)
        return future

    def abandon(self) -> None:
        """Closes as soon as the thread is free, without waiting for it."""
        self._functions.put(None)

    def _run_thread(self, opened: asyncio.Future[sqlite3.Connection]) -> None:
        """Opens the connection and runs functions on it until it is abandoned, in the thread."""
        connection = _settle(opened, self._connect)
        if connection is None:
            return
        while (function := self._functions.get()) is not None:
            function(connection)
            del function  # else it would hold its variables until the next function comes
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _settle(future: asyncio.Future[T], function: Callable[[], T]) -> T | None:
    """Calls a function, and gives its result or its error to a future of another thread.

    Returns the result; None if it has raised. A future that was cancelled stays so, and nothing is reported to a loop
    that is closed.
    """
    result: T | None = None
    try:
        result = function()
        report = partial(_set_result, future, result)
    except BaseException as error:
        report = partial(_set_error, future, error)
    with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
        future.get_loop().call_soon_threadsafe(report)
    return result


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_error(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
