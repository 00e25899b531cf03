"""The time for which tests wait, functions that poll for a state that sends no notification, and a loop's clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""The time after which a wait fails. It is long because a busy machine takes ten times as long as an idle one."""
SHORT_S = 0.5
"""A limit that a test exceeds on purpose. On a busy machine it is long enough for the steps before that."""
# The interval of polls.
_POLL_S = 0.002


def becomes(
    read: Callable[[], T | None],
    *,
    pause: Callable[[], None] = lambda: time.sleep(_POLL_S),
    explain: Callable[[], object] | None = None,
) -> T:
    """Calls `read` until it returns a true value, and returns this value. Fails after `PATIENCE_S`.

    pause: the function that is called between two reads, such as one that moves a clock.
    explain: a function that returns what the failure shows; None: it shows the last value.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not (value := read()):
        if time.monotonic() > deadline:
            state = value if explain is None else explain()
            raise AssertionError(f"still {state!r} after {PATIENCE_S:.0f} s")
        pause()
    return value


async def comes(read: Callable[[], T]) -> T:
    """Does the same as `becomes`, while the event loop runs."""
    async with asyncio.timeout(PATIENCE_S):
        while not (value := read()):  # noqa: ASYNC110  # no event reports the value
            await asyncio.sleep(_POLL_S)
    return value


def advance_loop(seconds: float) -> None:
    """Moves the running loop's clock forward. The loop calls the timers that are due by then."""
    loop = asyncio.get_running_loop()
    read_time = loop.time
    loop.time = lambda: read_time() + seconds
