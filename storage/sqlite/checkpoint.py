"""Copies the write-ahead log into the file on a connection and a thread of their own, so that no write waits for it.

SQLite before 3.51.3 can corrupt a database when one connection copies the log while another restarts it (the WAL-reset
bug, sqlite.org/wal.html). Only a write that finds the whole log copied restarts the log. So the caller of `copy` makes
sure that there is something to copy, and that nothing else copies the log meanwhile: then no log is wholly copied
before this copy ends, and the state that the copy publishes last is true. The rest of the log is copied by the writer
alone, in its own thread, between two writes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

from storage.sqlite.driver import Driver


class WriteBack:
    """Copies the log into the file.

    connect: a function that opens the connection, called in the thread when the connection is first needed.
    check_in_place: a function that raises Broken if the file at the path is not the file that is written. It is called
        first, since the log would be copied into any file at the path.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], check_in_place: Callable[[], None] = lambda: None
    ) -> None:
        self._connect = connect
        self._check_in_place = check_in_place
        self._driver: Driver | None = None

    async def copy(self) -> None:
        """Copies the present log, without waiting for readers. Raises: sqlite3.Error, StoreError."""
        if self._driver is None:
            self._check_in_place()
            self._driver = await Driver(self._connect, "mnemogate-writeback").open()
        await self._driver.call(copy_log)

    async def close(self) -> None:
        """Closes the connection after a copy under way. The next copy opens a connection again."""
        driver, self._driver = self._driver, None
        if driver is not None:
            try:
                with contextlib.suppress(sqlite3.Error):
                    await driver.call(lambda connection: connection.close())
            finally:
                driver.abandon()

    def abandon(self) -> None:
        """Has the connection closed after a copy under way, and returns at once."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.abandon()


def copy_log(connection: sqlite3.Connection) -> bool:
    """Copies the log as far as readers allow. Returns True if all is copied: then the next write restarts the log."""
    _, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return bool(pages == copied)


def empty_log(connection: sqlite3.Connection, wait_ms: int) -> bool:
    """Copies the log and empties it. Waits for readers at most `wait_ms`. Returns whether the log is empty."""
    (busy_timeout_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {wait_ms:d}")
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms:d}")
    return not busy
