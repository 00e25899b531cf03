"""The database's clock as a process knows it. All processes that share a database go by this clock.

A reading has three times: when it was asked for and when it was answered, by this machine's clock, and the database's
time, which lies in between. So a reading that took long proves little, and the difference of the clocks changes only as
far as a reading proves it wrong.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

# The readings of one measurement. Chosen, not measured: one reading of several is mostly answered without a delay.
_READINGS = 5


class SharedClock:
    """The clock of the database."""

    def __init__(self) -> None:
        # The seconds by which the database's clock is ahead of this machine's clock.
        self.ahead = 0.0
        # True once a reading was added.
        self._is_set = False

    def add_reading(self, asked_at: float, at: float, answered_at: float) -> None:
        """Adds a reading of the database's clock.

        at: the database's time.
        asked_at, answered_at: the times of the question and of the answer, by this machine's clock.
        """
        min_ahead = at - answered_at
        max_ahead = at - asked_at
        if not self._is_set:
            self.ahead = (min_ahead + max_ahead) / 2
            self._is_set = True
        self.ahead = min(max(self.ahead, min_ahead), max_ahead)

    async def measure(self, read_time: Callable[[], Awaitable[float]]) -> None:
        """Reads the clock several times; the reading that is answered soonest is the most exact.

        read_time: a function that returns the database's time.
        """
        for _ in range(_READINGS):
            asked_at = time.time()
            self.add_reading(asked_at, await read_time(), time.time())
