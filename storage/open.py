"""Opening a store. No other place knows both the store and the databases below it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.commands import Rules
from storage.sql.store import Store
from storage.sqlite.database import SqliteDatabase


async def open_store(
    path: str | Path,
    rules: Rules,
    *,
    now: Callable[[], float] = time.time,
    tick: Callable[[], float] = time.monotonic,
    **options: Any,
) -> Store:
    """Opens the store in a SQLite file. now, tick: as Store; options, Raises: as `SqliteDatabase.open`."""
    database = await SqliteDatabase.open(path, **options)
    return Store(database, rules, database.path, now, tick)
