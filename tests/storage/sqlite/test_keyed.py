"""The file next to the database that says whether there are keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.sql.keyed_file import was_keyed
from storage.sql.store import Store
from tests.stored import open_store


def damage(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


def remove(path: Path, suffixes: set[str]) -> None:
    gone = [each for each in path.parent.glob(f"{path.name}*") if each.suffix in suffixes]
    assert path in gone or ".keyed" in suffixes
    for each in gone:
        each.unlink()


async def test_whether_there_are_keys_is_known_without_the_file(store: Store, path: Path) -> None:
    assert not await store.keys.has_any()
    assert not was_keyed(path)
    key, _ = await store.keys.create("shop", "laptop")
    await store.keys.revoke(str(key.id))  # taking back the last one does not open the door
    await store.close()
    damage(path)
    assert was_keyed(path)


async def test_keys_made_before_there_was_a_sign_leave_one_at_the_next_start(
    store: Store, path: Path
) -> None:
    await store.keys.create("shop", "laptop")
    await store.close()
    remove(path, {".keyed"})
    store = await open_store(path)
    assert await store.keys.has_any()
    await store.close()
    assert was_keyed(path)


async def test_a_new_file_in_the_place_of_one_with_keys_has_none_and_says_so(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy of before the first key opens the door again."""
    assert not await store.keys.has_any()
    await store.keys.create("shop", "laptop")
    await store.close()
    remove(path, {".db", ".db-wal", ".db-shm", ".lock"})
    assert not caplog.messages
    store = await open_store(path)
    assert not await store.keys.has_any()
    (said,) = caplog.messages
    assert "This database had gateway keys and now has none" in said
    await store.close()
    assert not was_keyed(path)
