"""The clean-up after runs of agents and responses in the background.

Their requests, events and records of calls are stored for three hours after their end. Records of calls that wait or
were interrupted stay as long as they are the end of their conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from gateway.run.background.tasks import MIN_PAUSE_S, PeriodicTask
from storage.sql.store import Store

# The time for which the texts of a run are retained after its end. Not measured: a client can read a run's events for
# this time, and they take disk for this time.
_RETENTION_S = 3 * 3600.0
# The runs that one step cleans up after. Not measured: a larger step is a longer transaction, and the next step follows
# after `MIN_PAUSE_S`.
_STEP_RUNS = 64


@dataclass(eq=False)
class RunCleaning:
    """Drops the texts of runs that are not needed any more."""

    # The store of the runs.
    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]

    def run(self) -> Coroutine[Any, Any, None]:
        """Cleans up until it is cancelled."""
        return PeriodicTask("clean up after runs", self.perform_due).run()

    async def perform_due(self) -> float:
        """Cleans up after the runs that are due. Returns the seconds until the next step."""
        texts = self.store.run_texts
        now = self.now()
        if await texts.drop_texts(now - _RETENTION_S, _STEP_RUNS) == _STEP_RUNS:
            return MIN_PAUSE_S
        first_end = await texts.find_first_end()
        # A run that ends from now on is due after `_RETENTION_S` at the earliest. One that has ended in the future has
        # ended before the clock was put back.
        if first_end is None or first_end > now:
            return _RETENTION_S
        return max(MIN_PAUSE_S, first_end + _RETENTION_S - now)
