"""A clock that never goes back by a little, though time services set the machine's clock back.

If a message is edited, the version with the later time counts. With a clock that went back, the edit could lose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# The longest step back that is hidden. A longer step corrects a clock that was wrong, and is followed.
# Chosen, not measured; any value from 5 to 600 behaves alike.
MAX_STEP_S: Final = 60.0
# What each call adds until the machine's clock has caught up: less than the time between any two messages, and more
# than the resolution of a float.
_TICK_S: Final = 0.000_001


class SteadyClock:
    """Returns the time in seconds since the epoch, each time a later one."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Makes a clock that follows another one. now: the other clock, which may be set back."""
        self._now = now
        self._last_time = 0.0

    def __call__(self) -> float:
        now = self._now()
        if 0.0 <= self._last_time - now <= MAX_STEP_S:
            now = self._last_time + _TICK_S
        self._last_time = now
        return now
