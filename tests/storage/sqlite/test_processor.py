"""Turns are written on the processor of a loop that works meanwhile, and all else where there is room."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time

import pytest

from storage.sqlite.writer import Writer
from tests.storage.conftest import SqliteFile

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="there is one processor, or no saying which",
)


def _seen(connection: sqlite3.Connection) -> tuple[str, set[int]]:
    """Returns the name of the thread that writes, and the processors on which it may run."""
    return threading.current_thread().name, os.sched_getaffinity(0)


async def _write_while_the_loop_works(writer: Writer) -> None:
    """Writes something for as long as the loop works on something else, so that the next write meets a busy one."""
    begun, done, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    def write(connection: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(begun.set)
        done.wait(10)

    writing = writer.submit(write)
    await begun.wait()
    before = time.thread_time()
    while time.thread_time() - before < 0.1:
        pass
    done.set()
    await writing


async def test_turns_are_written_near_a_loop_that_works_and_bulk_work_anywhere(database: SqliteFile) -> None:
    store = await database.open()
    writer, anywhere = store.database.writer, os.sched_getaffinity(0)
    await _write_while_the_loop_works(writer)
    _, near = await writer.submit(_seen)
    assert len(near) == 1
    assert near < anywhere
    await _write_while_the_loop_works(writer)
    assert await writer.submit(_seen, is_bulk=True) == ("mnemogate-writer", anywhere)
    assert os.sched_getaffinity(0) == anywhere
    await store.close()


async def test_turns_behind_which_the_loop_waits_are_written_anywhere(database: SqliteFile) -> None:
    store = await database.open()
    writer, anywhere = store.database.writer, os.sched_getaffinity(0)
    await _write_while_the_loop_works(writer)
    await writer.submit(lambda connection: time.sleep(0.2))
    assert (await writer.submit(_seen))[1] == anywhere
    await store.close()


async def test_the_writer_follows_the_loop(database: SqliteFile) -> None:
    store = await database.open()
    writer, anywhere = store.database.writer, os.sched_getaffinity(0)
    try:
        for processor in sorted(anywhere):
            await _write_while_the_loop_works(writer)
            os.sched_setaffinity(0, {processor})
            assert (await writer.submit(_seen))[1] == {processor}
    finally:
        os.sched_setaffinity(0, anywhere)
    await store.close()


async def test_where_threads_may_not_be_placed_turns_are_written_all_the_same(
    database: SqliteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(thread: int, processors: object) -> None:
        asked.append(thread)
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    store = await database.open()
    anywhere = os.sched_getaffinity(0)
    for _ in range(2):
        await _write_while_the_loop_works(store.database.writer)
        assert (await store.database.writer.submit(_seen))[1] == anywhere
    assert len(asked) == 1
    await store.close()
