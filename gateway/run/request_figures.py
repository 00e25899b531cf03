"""Figures of the requests of the last hour, by project: the mode of memory, failures, the latency of the gateway.

The latency that the gateway adds to a request is counted in a histogram with logarithmic buckets.
"""

from __future__ import annotations

from collections import Counter, deque
from math import ceil, log2

from msgspec import Struct, field

_MINUTE_S = 60.0
# The minutes that the figures cover.
_MAX_MINUTES = 60
# A shorter time counts as this one.
_SMALLEST_MS = 0.01
# Each bucket is 9 % wider than the one before (2 ** (1 / 8)), so that a quantile is right to within 5 %.
_BUCKETS_PER_DOUBLING = 8


class RequestFigures(Struct, frozen=True):
    """The requests of an hour."""

    # The number of requests.
    count: int
    # The requests with a status of 500 or above.
    failed: int
    # The requests by the mode of memory, as in `x-mnemogate-memory`; `strict` counts as `on`.
    modes: dict[str, int]
    # The median of the latency that the gateway added, in milliseconds, to within 5 %; None: no request came.
    added_p50: float | None
    # The 99th percentile of this latency.
    added_p99: float | None


class _Minute(Struct):
    """The counts of the requests of one minute."""

    # Minutes since the epoch.
    number: int
    # The number of requests.
    count: int = 0
    # The number of requests with a status of 500 or above.
    failed: int = 0
    # The number of requests by the mode of memory.
    modes: Counter[str] = field(default_factory=Counter)
    # The numbers of requests by the bucket of the added latency.
    added_buckets: Counter[int] = field(default_factory=Counter)


class RequestFiguresRecorder:
    """Counts requests by the minute. The counts do not grow with the number of requests, so none is left out."""

    def __init__(self) -> None:
        # The minutes of each project, oldest first.
        self._minutes: dict[str, deque[_Minute]] = {}

    def add(self, now: float, project: str, mode: str, status: int, added_ms: float | None) -> None:
        """Counts a request that has ended.

        now: seconds since the epoch.
        added_ms: the latency that the gateway added; None: the reply never began.
        """
        number = int(now // _MINUTE_S)
        minutes = self._minutes.get(project)
        if minutes is None:
            minutes = self._minutes[project] = deque(maxlen=_MAX_MINUTES)
        if not minutes or minutes[-1].number != number:
            minutes.append(_Minute(number))
        minute = minutes[-1]
        minute.count += 1
        minute.failed += status >= 500
        minute.modes["on" if mode == "strict" else mode] += 1
        if added_ms is not None:
            minute.added_buckets[_choose_bucket(added_ms)] += 1

    def sum_last_hour(self, now: float, project: str | None = None) -> RequestFigures:
        """Returns the figures of the last 60 minutes, the current one included. project: None for all projects."""
        last_number = int(now // _MINUTE_S)
        first_number = last_number - _MAX_MINUTES + 1
        projects = list(self._minutes) if project is None else [project]
        minutes = [
            each
            for name in projects
            for each in self._minutes.get(name, ())
            if first_number <= each.number <= last_number
        ]
        modes: Counter[str] = Counter()
        buckets: Counter[int] = Counter()
        for each in minutes:
            modes.update(each.modes)
            buckets.update(each.added_buckets)
        return RequestFigures(
            count=sum(each.count for each in minutes),
            failed=sum(each.failed for each in minutes),
            modes=dict(modes),
            added_p50=_find_quantile(buckets, 0.5),
            added_p99=_find_quantile(buckets, 0.99),
        )


def _choose_bucket(ms: float) -> int:
    return int(log2(max(ms, _SMALLEST_MS) / _SMALLEST_MS) * _BUCKETS_PER_DOUBLING)


def _find_quantile(buckets: Counter[int], share: float) -> float | None:
    """Returns a quantile in milliseconds, as the middle of its bucket; None: nothing was counted.

    share: the share of the requests with at most this latency.
    """
    remaining_count = ceil(share * buckets.total())
    for bucket, count in sorted(buckets.items()):
        remaining_count -= count
        if remaining_count <= 0:
            return _SMALLEST_MS * 2 ** ((bucket + 0.5) / _BUCKETS_PER_DOUBLING)
    return None
