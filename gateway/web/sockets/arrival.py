"""Limits a WebSocket message that is arriving as request bodies are limited.

The limits are of its time, and of the size of all large bodies in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.web.body import LARGE_BYTES, SLOWEST_BYTES_PER_S, BodyReader, ByteQuota


class Arrival:
    """The part of a connection's next message that has arrived."""

    def __init__(self, bodies: BodyReader, on_late: Callable[[], object]) -> None:
        """Makes the state before a message. on_late: a function that is called if a message takes too long."""
        self._bodies = bodies
        self._on_late = on_late
        self._loop = asyncio.get_running_loop()
        self._arrived_bytes = 0
        self._quota: ByteQuota | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def note_arrived(self, arrived_bytes: int) -> None:
        """Notes how much of the message has arrived; 0: no message is under way. Raises: Overloaded.

        Must be called with 0 when the connection ends: that gives back the quota of a message that is cut off.
        """
        self._arrived_bytes = arrived_bytes
        if arrived_bytes > LARGE_BYTES:
            if self._quota is None:
                self._quota = self._bodies.make_quota()
                self._deadline = self._loop.time() + self._bodies.timeout_s
                self._check_deadline()
            self._quota.grow(arrived_bytes)
        elif self._quota is not None:
            self._quota.release()
            self._quota = None
            if self._timer is not None:
                self._timer.cancel()

    def _check_deadline(self) -> None:
        # Each byte that has arrived extends the deadline.
        left_s = self._deadline + self._arrived_bytes / SLOWEST_BYTES_PER_S - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._check_deadline)
        else:
            self._on_late()
