"""Jumps of the clock. After a jump nothing is forgotten by age for a while, since the clock was wrong or is wrong."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.core.dates import DAY_S

_log = logging.getLogger("mnemogate")

# The longest jump that is ignored. Not measured: retention counts in days, so smaller jumps change little.
_MAX_JUMP_S = DAY_S
# The time after a jump in which nothing is forgotten by age, so that an operator can set the clock right: a clock that
# is a year ahead makes all memories a year too old. Not measured.
_PAUSE_S = DAY_S
# A clock that is never set. On Linux it runs on while the machine sleeps.
_STEADY_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def read_steady_clock() -> float:
    """Returns the seconds since any moment, by a clock that is never set."""
    return time.clock_gettime(_STEADY_CLOCK)


@dataclass(eq=False)
class ClockJumps:
    """Finds the jumps of a clock, by comparing it with one that is never set."""

    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Returns the seconds since any moment, by a clock that is never set.
    steady_now: Callable[[], float] = read_steady_clock
    # The seconds that `now` was ahead of `steady_now` when they were last compared.
    _ahead_s: float = field(init=False)
    # The end of the pause after the last jump, by `steady_now`.
    _pause_ends_at: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        self._ahead_s = self.now() - self.steady_now()

    def has_jumped_lately(self) -> bool:
        """Compares the clocks. Returns whether the clock has jumped within `_PAUSE_S`.

        After a jump, records that look too old may be young.
        """
        steady_now = self.steady_now()
        jump_s = self.now() - steady_now - self._ahead_s
        self._ahead_s += jump_s
        if abs(jump_s) > _MAX_JUMP_S:
            self._pause_ends_at = steady_now + _PAUSE_S
            _log.warning(
                "The clock has jumped by %.1f days, so nothing is forgotten by age for a day. Check that it is right.",
                jump_s / DAY_S,
            )
        return steady_now < self._pause_ends_at
