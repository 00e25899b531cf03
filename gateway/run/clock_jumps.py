"""Jumps of the clock: it was wrong, or is wrong now, so nothing is forgotten by age for a while."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.core.dates import DAY_S

_log = logging.getLogger("mnemogate")

# A clock that jumps by more is wrong, or was. Nothing is forgotten by age for as long again: a clock that stands a year
# ahead would take a year too much. Not measured: retention counts in days, so smaller jumps change little.
_JUMP_S = DAY_S
# It is never set. On Linux it goes on while the machine sleeps.
_STEADY_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def read_steady_clock() -> float:
    """Returns the seconds since any moment, by a clock that is never set."""
    return time.clock_gettime(_STEADY_CLOCK)


@dataclass(eq=False)
class ClockJumps:
    """Compares a clock with one that is never set, at each look."""

    # Returns the seconds since the epoch.
    now: Callable[[], float]
    # Returns the seconds since any moment, by a clock that is never set.
    steady_now: Callable[[], float] = read_steady_clock
    # The seconds that `now` was ahead of `steady_now` at the last look.
    _ahead: float = field(init=False)
    # Until then, by `steady_now`, nothing is forgotten by age.
    _waits_until: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        self._ahead = self.now() - self.steady_now()

    def look(self) -> bool:
        """Returns whether the clock has jumped not long ago, so that records which it shows as too old may be young."""
        steady = self.steady_now()
        jump = self.now() - steady - self._ahead
        self._ahead += jump
        if abs(jump) > _JUMP_S:
            self._waits_until = steady + _JUMP_S
            _log.warning(
                "The clock has jumped by %.1f days, so nothing is forgotten by age for a day. Check that it is right.",
                jump / DAY_S,
            )
        return steady < self._waits_until
