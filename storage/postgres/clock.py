"""The database's clock as a process knows it. All processes that share a database go by this clock.

For each reading, this machine's clock says when it was asked for and when it was answered. The database's time lies in
between, so a reading that took long proves little: the difference of the clocks changes only as far as it is proved.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

_READINGS = 5


class SharedClock:
    """The clock of the database. ahead: the seconds by which it is ahead of this machine's clock."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._is_set = False

    def add_reading(self, asked_at: float, at: float, answered_at: float) -> None:
        """Takes in a reading of the database's clock.

        at: the database's time.
        asked_at, answered_at: when it was asked for, and when the answer came, by this machine's clock.
        """
        min_ahead, max_ahead = at - answered_at, at - asked_at
        if not self._is_set:
            self.ahead, self._is_set = (min_ahead + max_ahead) / 2, True
        self.ahead = min(max(self.ahead, min_ahead), max_ahead)

    async def measure(self, read_time: Callable[[], Awaitable[float]]) -> None:
        """Takes several readings: the one that is answered soonest is the most exact. read_time: asks the database."""
        for _ in range(_READINGS):
            asked_at = time.time()
            self.add_reading(asked_at, await read_time(), time.time())
