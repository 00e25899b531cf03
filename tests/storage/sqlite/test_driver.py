"""The thread that a connection lives in."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import weakref
from functools import partial

import pytest

from storage.sqlite.driver import Driver
from tests.patience import PATIENCE_S, comes


def threads_of(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == name]


async def test_an_error_of_a_function_reaches_its_caller_and_ends_nothing() -> None:
    driver = await Driver(lambda: sqlite3.connect(":memory:"), "driver").open()
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await driver.call(lambda connection: connection.execute("SELECT * FROM missing"))
    assert await driver.call(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    driver.abandon()


async def test_a_connection_that_cannot_be_opened_leaves_no_thread() -> None:
    def refuse() -> sqlite3.Connection:
        raise sqlite3.OperationalError("no room")

    with pytest.raises(sqlite3.OperationalError, match="no room"):
        await Driver(refuse, "refused").open()
    for thread in threads_of("refused"):
        await asyncio.to_thread(thread.join, PATIENCE_S)
    assert not threads_of("refused")


async def test_an_idle_thread_holds_nothing_of_what_it_has_run() -> None:
    class Large:
        pass

    driver = await Driver(lambda: sqlite3.connect(":memory:"), "driver").open()
    large = Large()
    held = weakref.ref(large)
    driver.post(partial(lambda large, connection: None, large))
    del large
    await comes(lambda: held() is None)
    driver.abandon()
