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

    def read(self, asked_at: float, at: float, answered: float) -> None:
        """Takes a reading: the database's time, and when it was asked for and was here, by this machine's clock."""
        least, most = at - answered, at - asked_at
        if not self._is_set:
            self.ahead, self._is_set = (least + most) / 2, True
        self.ahead = min(max(self.ahead, least), most)

    async def ask(self, ask: Callable[[], Awaitable[float]]) -> None:
        """Asks for the time, several times: where it comes at once, it is exact."""
        for _ in range(_READINGS):
            asked = time.time()
            self.read(asked, await ask(), time.time())
