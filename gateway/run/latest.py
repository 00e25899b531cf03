"""Changes that are made on what is there at that moment, however many others change it at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from storage.errors import Overtaken

T = TypeVar("T")

_TRIES: Final = 8


async def on_latest(change: Callable[[], Awaitable[T]]) -> T:
    """Makes a change, and makes it again where another writer was faster. change: reads the state, writes on it.

    Raises: Overtaken: another writer was faster each time.
    """
    for _ in range(_TRIES - 1):
        try:
            return await change()
        except Overtaken:
            continue
    return await change()
