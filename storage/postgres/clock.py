"""The database's clock as a process knows it, by which all processes go that share a database.

A reading has the times when it was asked for and when it came back, both by the clock here. The database's time lies in
between, so a reading that took long proves little: the difference of the clocks moves only as far as a reading proves.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

_READINGS = 5


class SharedClock:
    """ahead: the seconds by which the database's clock is ahead of this machine's."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._is_set = False

    def add_reading(self, asked_at: float, at: float, answered_at: float) -> None:
        """Takes in a reading of the database's clock.

        at: the database's time.
        asked_at, answered_at: when it was asked for, and when the answer came, by this machine's clock.
        """
        least, most = at - answered_at, at - asked_at
        if not self._is_set:
            self.ahead, self._is_set = (least + most) / 2, True
        self.ahead = min(max(self.ahead, least), most)

    async def measure(self, read_time: Callable[[], Awaitable[float]]) -> None:
        """Takes several readings: the one that is answered soonest is the most exact. read_time: asks the database."""
        for _ in range(_READINGS):
            asked_at = time.time()
            self.add_reading(asked_at, await read_time(), time.time())
