"""Writes the log back next to the writer: a connection and a thread of their own copy it, and no write waits for that.

SQLite before 3.51.3 can corrupt a database when one connection writes the log back while another one restarts it
(the WAL-reset bug, sqlite.org/wal.html). A log is restarted only by a write that finds all of it copied. So
the caller of `copy` makes sure that there is something to copy, and that nothing else writes the log back meanwhile;
then the copy itself is the first that can make the log complete, and what it publishes last is true. What is left of
the log the writer alone writes back, in its own thread, between two writes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

from storage.sqlite.driver import Driver


class WriteBack:
    """Copies the log into the file. connect: opens its connection, in its thread, when it is first needed."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._driver: Driver | None = None

    async def copy(self) -> None:
        """Copies what lies in the log by now, without waiting for anybody. Raises: sqlite3.Error, StoreError."""
        if self._driver is None:
            self._driver = await Driver(self._connect, "mnemogate-writeback").open()
        await self._driver.call(copy_log)

    async def close(self) -> None:
        """Closes the connection, after a copy under way. The next copy opens another one."""
        driver, self._driver = self._driver, None
        if driver is not None:
            try:
                with contextlib.suppress(sqlite3.Error):
                    await driver.call(lambda connection: connection.close())
            finally:
                driver.abandon()

    def abandon(self) -> None:
        """Closes the connection as soon as a copy under way is made, without waiting for it."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.abandon()


def copy_log(connection: sqlite3.Connection) -> bool:
    """Writes the log back as far as readers allow. True when that is all, so that the next write restarts it."""
    _, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return bool(pages == copied)


def empty_log(connection: sqlite3.Connection, wait_ms: int) -> bool:
    """Writes the log back as far as readers allow, and waits for them at most `wait_ms`. True when it is empty."""
    (busy_timeout_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {wait_ms:d}")
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms:d}")
    return not busy
