"""A message that is on its way, within the limits of a body: the size of all that are large, and its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.web.body import LARGE_BYTES, SLOWEST_BYTES_PER_S, BodyReader, ByteQuota


class Arrival:
    """The part of a connection's next message that is there. on_late: called when the rest takes too long."""

    def __init__(self, bodies: BodyReader, on_late: Callable[[], object]) -> None:
        self._bodies = bodies
        self._on_late = on_late
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._quota: ByteQuota | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def have(self, count: int) -> None:
        """Takes how many bytes are there; 0: none are, or the message is whole. Raises: Overloaded."""
        self._count = count
        if count > LARGE_BYTES:
            if self._quota is None:
                self._quota = self._bodies.quota()
                self._deadline = self._loop.time() + self._bodies.timeout_s
                self._look()
            self._quota.grow(count)
        elif self._quota is not None:
            self._quota.__exit__()
            self._quota = None
            if self._timer is not None:
                self._timer.cancel()

    def _look(self) -> None:
        left_s = self._deadline + self._count / SLOWEST_BYTES_PER_S - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._on_late()
