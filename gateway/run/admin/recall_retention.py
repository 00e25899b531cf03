"""For how long the store keeps the recall of a request."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from gateway.core.dates import DAY_S


class RecallRetention(Struct, frozen=True):
    """For how long the store keeps which texts a request recalled, and which reply answers it."""

    # Returns the seconds since the epoch.
    now: Callable[[], float]
    days: float

    @property
    def since(self) -> float:
        """The time of the oldest recalls that are stored, in seconds since the epoch."""
        return self.now() - self.days * DAY_S
