"""Limits the time of a read for the page: its reads share the database's reader with turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from storage.database import read_limit_ms


@contextmanager
def limit_reads(seconds: float) -> Iterator[None]:
    """Ends each read in this context that takes longer, with `StoreTimeout`."""
    token = read_limit_ms.set(seconds * 1000)
    try:
        yield
    finally:
        read_limit_ms.reset(token)
