"""Turns are written on the processor of the loop, and all else where there is room."""

from __future__ import annotations

import os
import sqlite3
import threading

import pytest

from tests.storage.conftest import SqliteFile

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="there is one processor, or no saying which",
)


def _seen(connection: sqlite3.Connection) -> tuple[str, set[int]]:
    """Returns the name of the thread that writes, and the processors on which it may run."""
    return threading.current_thread().name, os.sched_getaffinity(0)


async def test_turns_are_written_near_the_loop_and_bulk_work_anywhere(database: SqliteFile) -> None:
    store = await database.open()
    writer, anywhere = store.database.writer, os.sched_getaffinity(0)
    await writer.submit(_seen)
    _, near = await writer.submit(_seen)
    assert len(near) == 1
    assert near < anywhere
    await writer.submit(_seen)
    assert await writer.submit(_seen, is_bulk=True) == ("mnemogate-writer", anywhere)
    assert os.sched_getaffinity(0) == anywhere
    await store.close()


async def test_the_writer_follows_the_loop(database: SqliteFile) -> None:
    store = await database.open()
    writer, anywhere = store.database.writer, os.sched_getaffinity(0)
    try:
        for processor in sorted(anywhere):
            await writer.submit(_seen)
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
        await store.database.writer.submit(_seen)
        assert (await store.database.writer.submit(_seen))[1] == anywhere
    assert len(asked) == 1
    await store.close()
