"""Turns are written on the processor of a loop that works meanwhile, and all else where there is room."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

import pytest

import storage.sqlite.writer
from tests.storage.conftest import SqliteFile

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="there is one processor, or no saying which",
)


def _seen(connection: sqlite3.Connection) -> tuple[str, set[int]]:
    """Returns the name of the thread that writes, and the processors on which it may run."""
    return threading.current_thread().name, os.sched_getaffinity(0)


class Load:
    """What the loop does while something is written: it works all of the time, or it waits."""

    works = True

    def thread_time(self) -> float:
        return time.monotonic() if self.works else 0.0


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    made = Load()
    # A busy machine leaves a loop that works only a part of the time.
    monkeypatch.setattr(storage.sqlite.writer, "time", made)
    return made


@pytest.mark.usefixtures("load")
async def test_turns_are_written_near_a_loop_that_works_and_bulk_work_anywhere(database: SqliteFile) -> None:
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


async def test_turns_behind_which_the_loop_waits_are_written_anywhere(
    database: SqliteFile, load: Load
) -> None:
    store = await database.open()
    writer, anywhere = store.database.writer, os.sched_getaffinity(0)
    await writer.submit(_seen)
    load.works = False
    assert len((await writer.submit(_seen))[1]) == 1
    assert (await writer.submit(_seen))[1] == anywhere
    await store.close()


@pytest.mark.usefixtures("load")
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


@pytest.mark.usefixtures("load")
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
