"""Optimistic changes: read, change, write, and repeat if another process has written meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from storage.errors import Overtaken

T = TypeVar("T")

# No measurement: each failed try means that another write has succeeded.
_TRIES: Final = 8


async def on_latest(change: Callable[[], Awaitable[T]]) -> T:
    """Makes a change, and repeats it where another writer was faster.

    change: reads the present state and writes a new one. It raises Overtaken where the state has changed meanwhile.

    Raises: Overtaken: another writer was faster each time.
    """
    for _ in range(_TRIES - 1):
        try:
            return await change()
        except Overtaken:
            continue
    return await change()
