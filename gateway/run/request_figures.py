"""Counts of the requests of the last hour, by project: what became of memory, what failed, the time that we added."""

from __future__ import annotations

from collections import Counter, deque
from math import ceil, log2

from msgspec import Struct, field

_MINUTE_S = 60.0
_MINUTES = 60
# Times are counted in steps that rise by 9 % each, from a hundredth of a millisecond on.
_LEAST_MS, _STEPS = 0.01, 8


class RequestFigures(Struct, frozen=True):
    """The requests of an hour."""

    count: int
    # Those with a status of 500 or above.
    failed: int
    # By the mode of memory, as in `x-mnemogate-memory`; `strict` counts as `on`.
    modes: dict[str, int]
    # The time that we added, in milliseconds, to within 5 %; None: there was no request.
    added_p50: float | None
    added_p99: float | None


class _Minute(Struct):
    number: int
    count: int = 0
    failed: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    added: Counter[int] = field(default_factory=Counter)


class HourFigures:
    """Counts by the minute, so that an hour is counted whole however many requests it has."""

    def __init__(self) -> None:
        self._minutes: dict[str, deque[_Minute]] = {}

    def add(self, now: float, project: str, mode: str, status: int, added_ms: float) -> None:
        """Counts a request that has ended. now: seconds."""
        number = int(now // _MINUTE_S)
        minutes = self._minutes.get(project)
        if minutes is None:
            minutes = self._minutes[project] = deque(maxlen=_MINUTES)
        if not minutes or minutes[-1].number != number:
            minutes.append(_Minute(number))
        minute = minutes[-1]
        minute.count += 1
        minute.failed += status >= 500
        minute.modes["on" if mode == "strict" else mode] += 1
        minute.added[int(log2(max(added_ms, _LEAST_MS) / _LEAST_MS) * _STEPS)] += 1

    def of_hour(self, now: float, project: str | None = None) -> RequestFigures:
        """Returns the figures of the hour before now. project: None: of all."""
        oldest = int(now // _MINUTE_S) - _MINUTES
        projects = list(self._minutes) if project is None else [project]
        minutes = [
            each
            for name in projects
            for each in self._minutes.get(name, ())
            if oldest < each.number <= oldest + _MINUTES
        ]
        modes: Counter[str] = Counter()
        added: Counter[int] = Counter()
        for each in minutes:
            modes.update(each.modes)
            added.update(each.added)
        return RequestFigures(
            sum(each.count for each in minutes),
            sum(each.failed for each in minutes),
            dict(modes),
            _quantile(added, 0.5),
            _quantile(added, 0.99),
        )


def _quantile(steps: Counter[int], share: float) -> float | None:
    """Returns a time in milliseconds that this share of the requests did not exceed."""
    left = ceil(share * steps.total())
    for step, count in sorted(steps.items()):
        left -= count
        if left <= 0:
            return _LEAST_MS * 2 ** ((step + 0.5) / _STEPS)
    return None
