"""How long tests wait for what must come, and how they poll for what sends no notification."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""Until a test fails; never waited out when all is well. A busy machine takes ten times as long as a resting one."""
SHORT_S = 0.5
"""A limit that a test lets pass: long enough on a busy machine for what comes before that."""
_LOOK_S = 0.002


def becomes(look: Callable[[], T]) -> T:
    """Looks until it finds something that is true, and returns that. Fails after `PATIENCE_S`."""
    until = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < until, f"it did not come to that: {found!r}"
        time.sleep(_LOOK_S)
    return found


async def comes(look: Callable[[], T]) -> T:
    """Does the same, and lets the event loop run meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := look()):  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(_LOOK_S)
    return found
