"""The clock of a request, which divides its time between the gateway and the upstreams."""

from __future__ import annotations

import time

from msgspec import Struct, field


class RequestClock(Struct, eq=False):
    """The times of one request, or of work without one. They are of `time.perf_counter()`.

    The gateway's share is the time before an upstream was first called, and the time since the last reply began, or
    since it was read if it is whole.
    """

    # The time at which the request arrived, or the work began.
    started_at: float = field(default_factory=time.perf_counter)
    # The time at which the request ended, for its trace; 0: it has not ended.
    ended_at: float = 0.0
    # The milliseconds until the reply's head left; None: the head has not left.
    first_ms: float | None = None
    # The gateway's share of these milliseconds.
    added_ms: float | None = None
    # The time at which an upstream was first called; 0: none was.
    _first_called_at: float = 0.0
    # The time at which the last reply began, or was read if it is whole; 0: an upstream is being called.
    _answered_at: float = 0.0

    def note_call(self) -> None:
        """Notes that an upstream is called now. From now on the time is the upstream's, until `note_answer`."""
        if not self._first_called_at:
            self._first_called_at = time.perf_counter()
        # The time between two calls counts as the upstream's, also the time of the round's tools.
        self._answered_at = 0.0

    def note_answer(self) -> None:
        """Notes that a reply has begun, or that a whole one was read. From now on the time is the gateway's."""
        self._answered_at = time.perf_counter()

    def note_head(self) -> float:
        """Notes that the reply's head leaves now. Returns `added_ms`."""
        now = time.perf_counter()
        self.first_ms = (now - self.started_at) * 1000
        self.added_ms = self._measure_added_ms_at(now)
        return self.added_ms

    def measure_ms(self) -> float:
        """Returns the milliseconds until now."""
        return (time.perf_counter() - self.started_at) * 1000

    def measure_added_ms(self) -> float:
        """Returns the gateway's share of the time until the reply's head left, or until now, in milliseconds."""
        return self.added_ms or self._measure_added_ms_at(time.perf_counter())

    def _measure_added_ms_at(self, now: float) -> float:
        before_call_s = (self._first_called_at or now) - self.started_at
        after_answer_s = now - self._answered_at if self._answered_at else 0.0
        return (before_call_s + after_answer_s) * 1000
