"""The reader with a thread, when it closes while it opens the file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from storage.errors import StoreClosed
from storage.sqlite.connection import DatabaseFile
from storage.sqlite.reader import ThreadReader
from tests.patience import PATIENCE_S, comes


class SlowFile:
    """A file with connections that open only when the test allows it."""

    def __init__(self, path: Path) -> None:
        sqlite3.connect(path).close()
        self.opening, self.may_open, self.closed = (threading.Event() for _ in range(3))
        file = self

        class SlowConnection(sqlite3.Connection):
            def __init__(self, *args: Any, **options: Any) -> None:
                file.opening.set()
                assert file.may_open.wait(PATIENCE_S)
                super().__init__(*args, **options)

            def close(self) -> None:
                super().close()
                file.closed.set()

        self.reader = ThreadReader(
            DatabaseFile(str(path), factory=SlowConnection), lambda error: True, lambda: None
        )

    async def begin_read(self) -> asyncio.Task[Any]:
        """Begins a read, and returns its task once the file is being opened."""
        read = asyncio.create_task(
            self.reader.run(lambda connection: connection.execute("SELECT 1").fetchone())
        )
        await comes(self.opening.is_set)
        return read


async def test_a_reader_that_closes_waits_until_the_file_is_open(tmp_path: Path) -> None:
    file = SlowFile(tmp_path / "db")
    read = await file.begin_read()
    closing = asyncio.create_task(file.reader.close(timeout_s=PATIENCE_S))
    await asyncio.sleep(0)
    assert not closing.done()
    file.may_open.set()
    await closing
    assert read.done()
    with pytest.raises(StoreClosed):
        await read


async def test_a_file_that_opens_after_its_reader_has_closed_does_not_stay_open(tmp_path: Path) -> None:
    file = SlowFile(tmp_path / "db")
    read = await file.begin_read()
    await file.reader.close(timeout_s=0)
    file.may_open.set()
    with pytest.raises(StoreClosed):
        await read
    assert await asyncio.to_thread(file.closed.wait, PATIENCE_S)
