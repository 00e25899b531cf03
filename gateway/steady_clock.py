"""A clock that does not go back where the machine's is set back a little, as services that keep it exact do.

Of two messages in one place the later one counts, and an edit must not count as the older one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# The longest step back that is hidden. A longer one mends a clock that was wrong, and times ahead of it would stay.
# No measurement; any value from 5 to 600 behaves alike.
MAX_STEP_S: Final = 60.0
# What a look adds while the clock is behind: less than any two messages are apart, and more than times are exact to.
_TICK_S: Final = 0.000_001


class SteadyClock:
    """Returns a time after the last one, in seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        """now: the clock that may be set back."""
        self._now = now
        self._last = 0.0

    def __call__(self) -> float:
        now = self._now()
        if 0.0 <= self._last - now <= MAX_STEP_S:
            now = self._last + _TICK_S
        self._last = now
        return now
