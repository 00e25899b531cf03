"""What is SQLite's own: the file, its lock, its log, its writer, and what is erased in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import stored
from tests.storage.conftest import SqliteFile


@pytest.fixture(autouse=True)
def _files_are_made_by_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "lay_new_file", lambda path: None)


@pytest.fixture
def database(tmp_path: Path) -> SqliteFile:
    return SqliteFile(tmp_path)


@pytest.fixture
def path(database: SqliteFile) -> Path:
    return database.path
