"""The store's errors in a request: mapped for its caller, or answered by another try."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from gateway.errors import Conflict, MemoryUnavailable, UnknownId, make_sentence
from storage.errors import NotFound, RecordChanged, StaleWrite, StoreError, WriteConflict

T = TypeVar("T")

# Chosen, not measured: each failed try means that another write has succeeded.
_TRIES: Final = 8


@contextmanager
def map_store_errors() -> Iterator[None]:
    """Raises MemoryUnavailable where the block raises a StoreError."""
    try:
        yield
    except StoreError as error:
        raise MemoryUnavailable.for_status(error.status) from error


def make_record_error(error: StoreError, message: str) -> UnknownId | Conflict | None:
    """Returns the caller's error for a record that is gone or has changed; None: `error` is about no record.

    message: the store's message for the caller.
    """
    if isinstance(error, NotFound):
        return UnknownId(make_sentence(message))
    if isinstance(error, WriteConflict | StaleWrite):
        return Conflict(make_sentence(message))
    return None


async def retry_changed_record(change: Callable[[], Awaitable[T]]) -> T:
    """Makes a change, and repeats it where another writer was faster.

    change: reads the present state and writes a new one. It raises RecordChanged where the state has changed meanwhile.

    Raises: RecordChanged: another writer was faster each time.
    """
    for _ in range(_TRIES - 1):
        try:
            return await change()
        except RecordChanged:
            continue
    return await change()
