"""A database file is looked at without being touched, whoever has it open."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from storage.errors import ForeignDatabase, SchemaTooNew, StatementFailed, StoreCorrupt, StoreFailed
from storage.sqlite import connection
from storage.sqlite.inspection import FileFindings, inspect


def left(path: Path) -> list[tuple[str, bytes]]:
    return sorted(
        (each.name, each.read_bytes()) for each in path.parent.iterdir() if each.suffix != ".db-shm"
    )


def damage(path: Path) -> None:
    path.write_bytes(b"not a database, whatever it is " * 300)


async def test_a_sound_file_is_left_as_it_is_with_its_owner_and_without(open_store: Any, path: Path) -> None:
    assert (inspect(str(path)), left(path)) == (FileFindings(), [])
    store = await open_store()
    before = left(path)
    assert inspect(str(path)) == FileFindings()
    assert left(path) == before
    await store.keys.create("default", "ann")  # it lies in the log
    before = left(path)
    assert inspect(str(path)) == FileFindings(is_keyed=True)
    assert left(path) == before
    await store.close()
    os.chmod(path, 0o604)
    before = left(path)
    assert inspect(str(path)) == FileFindings(is_keyed=True, is_shared_with_others=True)
    assert left(path) == before
    assert not list(path.parent.glob("*-shm"))


async def test_an_inspection_refuses_the_files_that_a_start_refuses(
    open_store: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await open_store()).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(SchemaTooNew, match="version 99"):
        inspect(str(path))
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA application_id = 7")
    with pytest.raises(ForeignDatabase):
        inspect(str(path))
    damage(path)
    with pytest.raises(StoreCorrupt):
        inspect(str(path))
    monkeypatch.setattr(connection, "OLDEST_SQLITE", (99, 0, 0))
    with pytest.raises(StatementFailed, match=r"99\.0\.0"):
        inspect(str(path))


def test_a_place_that_this_account_could_not_own_is_named(path: Path) -> None:
    with pytest.raises(StoreFailed, match="nowhere does not exist"):
        inspect(str(path.parent / "nowhere" / "m.db"))
    with pytest.raises(StoreFailed, match="is a directory, not a regular file"):
        inspect(str(path.parent))
