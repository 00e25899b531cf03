"""The readers: one in the event loop's own thread for short, indexed reads, and one with a thread for long reads.

A read by key costs about 3 us, a hop to a thread 60 to 100 us. Neither reader can write. Results are fetched whole: a
statement left open across an await would hold its snapshot, and the write-ahead log with it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from storage.errors import StoreClosed, StoreCorrupt, StoreFailed, StoreUnavailable
from storage.sqlite.connection import DatabaseFile, open_reader
from storage.sqlite.driver import Driver
from storage.sqlite.result_codes import translate_error

T = TypeVar("T")

# Instructions of SQLite's virtual machine between two checks of the clock: some 0.1 to 0.5 ms of work. Each check takes
# the interpreter's lock, for which the event loop has to stop.
_INSTRUCTIONS_PER_CHECK = 10_000

# A wait in the loop's thread has to be short; readers of a write-ahead log hardly ever have to wait.
_LOOP_BUSY_MS = 5
_THREAD_BUSY_MS = 200


class _ReaderBase:
    """The base of both readers. It reports damage, and reopens the file after a failure of the file."""

    def __init__(
        self,
        target: DatabaseFile,
        report_damage: Callable[[StoreCorrupt], bool],
        check_in_place: Callable[[], None],
    ) -> None:
        """Makes the reader.

        report_damage: a function that is called when a read meets a damaged file, and returns whether that is new.
        check_in_place: a function that raises StoreFailed if the file at the path is not the file that is written. It
            is called before the file is opened, since a closing connection may write the log into another file, and
            afterwards, since the file may have been replaced meanwhile.
        """
        self._target = target
        self._report_damage = report_damage
        self._check_in_place = check_in_place
        self._is_closed = False

    def reset(self) -> None:
        """Closes the connection; the next read reopens the file."""
        raise NotImplementedError

    @contextmanager
    def _handle_failures(self) -> Iterator[None]:
        """Translates SQLite's errors, reports damage, and has the next read reopen a file that failed."""
        try:
            yield
        except sqlite3.Error as error:
            failure = translate_error(error, self._target.path)
            if isinstance(failure, StoreCorrupt | StoreFailed):
                self.reset()
            if isinstance(failure, StoreCorrupt):
                failure.is_known = not self._report_damage(failure)
            raise failure from error
        except StoreCorrupt as error:  # seen when the connection was opened
            error.is_known = not self._report_damage(error)
            raise
        except StoreFailed:  # the file at the path is not the one that is written
            self.reset()
            raise


class Reader(_ReaderBase):
    """The read connection of the event loop's thread. It opens with the store, and again after a failure."""

    _connection: sqlite3.Connection | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection. Prefer `run`, which translates errors. Raises: StoreUnavailable."""
        if self._connection is None:
            if self._is_closed:
                raise StoreClosed(f"{self._target.path} is closed")
            self._check_in_place()
            self._connection = open_reader(self._target, busy_timeout_ms=_LOOP_BUSY_MS)
            self._check_in_place()
        return self._connection

    def open(self) -> None:
        """Opens the file; if that fails, the next read tries again.

        While this connection is open, a writer that closes is not the last one: SQLite writes the whole log back when
        the last one closes, and refuses whoever opens the file meanwhile.
        """
        with suppress(StoreUnavailable):
            self.run(lambda opened: None)

    def run(self, function: Callable[[sqlite3.Connection], T], *, deadline_ms: float | None = None) -> T:
        """Runs a read. Raises: StoreUnavailable (StoreTimeout past the deadline), and the errors of the function."""
        with self._handle_failures():
            return _run_with_deadline(self.connection, function, deadline_ms)

    def reset(self) -> None:
        """Closes the connection; the next read reopens the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def close(self) -> None:
        """Closes the connection for good."""
        self._is_closed = True
        self.reset()


class ThreadReader(_ReaderBase):
    """A read connection with a thread, for reads that may take long: big indexes, exports."""

    _driver: Driver | None = None

    def __init__(
        self,
        target: DatabaseFile,
        report_damage: Callable[[StoreCorrupt], bool],
        check_in_place: Callable[[], None],
    ) -> None:
        """Makes the reader. The parameters are as in its base."""
        super().__init__(target, report_damage, check_in_place)
        self._opening = asyncio.Lock()

    async def run(
        self, function: Callable[[sqlite3.Connection], T], *, deadline_ms: float | None = None
    ) -> T:
        """Runs a read in the thread.

        Raises: StoreUnavailable (StoreTimeout past the deadline), and the errors of the function.

        The deadline counts from when the thread begins. A cancelled wait does not interrupt the read.
        """
        with self._handle_failures():
            driver = await self._open_driver()
            return await driver.call(lambda connection: _run_with_deadline(connection, function, deadline_ms))

    async def _open_driver(self) -> Driver:
        async with self._opening:
            if self._is_closed:
                raise StoreClosed(f"{self._target.path} is closed")
            if self._driver is None:
                self._check_in_place()
                driver = Driver(
                    lambda: open_reader(self._target, busy_timeout_ms=_THREAD_BUSY_MS), "mnemogate-reader"
                )
                self._driver = await driver.open()
                if self._is_closed:  # closed while the file was opened
                    self.reset()
                    raise StoreClosed(f"{self._target.path} is closed")
                self._check_in_place()
            return self._driver

    def reset(self) -> None:
        """Drops the connection after a running read; the next read reopens the file."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.abandon()

    async def close(self, timeout_s: float = 1.0) -> None:
        """Closes the connection for good. Waits at most `timeout_s` seconds for a running read or opening."""
        self._is_closed = True
        try:
            async with asyncio.timeout(timeout_s), self._opening:
                if self._driver is not None:
                    await self._driver.call(lambda connection: connection.close())
        except (TimeoutError, sqlite3.Error):
            pass  # the thread closes the connection after the read
        finally:
            self.reset()


def _run_with_deadline(
    connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T], deadline_ms: float | None
) -> T:
    if deadline_ms is None:
        return function(connection)
    # SQLite asks the handler every few thousand instructions, and ends the statement when it answers True.
    end = time.perf_counter() + deadline_ms / 1000
    connection.set_progress_handler(lambda: time.perf_counter() > end, _INSTRUCTIONS_PER_CHECK)
    try:
        return function(connection)
    finally:
        connection.set_progress_handler(None, 0)
