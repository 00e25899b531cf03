"""The time for which the database has answered without a break, as far as this process can tell.

A lease runs out by the database's clock, also while no process can renew it: in an outage, and while the server or this
process is paused. After such a break each process needs time to come back, before another takes over what it holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Uptime:
    """The time since the last break."""

    def __init__(self, max_gap_s: float, now: Callable[[], float] = time.time) -> None:
        """Makes the record of a database that has not answered yet.

        max_gap_s: the time above which a gap between answers is a break, once answers are expected (`watch`).
        now: a clock, in seconds, that goes on while the process or its machine is paused.
        """
        self._max_gap_s = max_gap_s
        self._now = now
        # The time at which the last break ended; None: it has not ended.
        self._since: float | None = None
        # The time of the last answer.
        self._answered_at = 0.0
        # True: answers are expected regularly.
        self._is_watched = False

    @property
    def seconds(self) -> float:
        """The time for which the database has answered without a break; 0.0 in one."""
        now = self._now()
        if self._since is None or self._is_gap(now):
            return 0.0
        return max(0.0, now - self._since)

    def watch(self) -> None:
        """Notes that `note_answer` is called regularly from now on."""
        self._is_watched = True
        self._answered_at = self._now()

    def note_failure(self) -> None:
        """Notes that the database does not answer, until `note_recovery`."""
        self._since = None

    def note_recovery(self) -> None:
        """Notes that the database answers from now on."""
        now = self._now()
        self._since = now
        self._answered_at = now

    def note_answer(self) -> None:
        """Notes an answer. After a failure an answer ends no break: it may be from a primary that was replaced."""
        now = self._now()
        if self._since is not None and self._is_gap(now):
            self._since = now
        self._answered_at = now

    def _is_gap(self, now: float) -> bool:
        # A clock that was put back has no known distance to the last answer either.
        return self._is_watched and abs(now - self._answered_at) > self._max_gap_s
