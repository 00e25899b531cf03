"""The figures of the last hour: counted by the minute, so that none is lost and none stays."""

from __future__ import annotations

import pytest

from gateway.run.request_figures import RequestFiguresRecorder

NOON = 1_760_000_400.0  # a whole minute


def test_an_hour_is_counted_by_mode_and_by_project() -> None:
    figures = RequestFiguresRecorder()
    figures.add(NOON, "default", "on", 200, 1.0)
    figures.add(NOON + 1, "default", "strict", 503, 1.0)
    figures.add(NOON + 70, "other", "none", 499, 1.0)
    whole = figures.sum_last_hour(NOON + 100)
    assert (whole.count, whole.failed, whole.modes) == (3, 1, {"on": 2, "none": 1})
    assert figures.sum_last_hour(NOON + 100, "other").modes == {"none": 1}
    assert figures.sum_last_hour(NOON + 100, "third").count == 0


def test_requests_an_hour_old_are_not_counted() -> None:
    figures = RequestFiguresRecorder()
    figures.add(NOON, "default", "on", 200, 1.0)
    assert figures.sum_last_hour(NOON + 3_599).count == 1
    assert figures.sum_last_hour(NOON + 3_600).count == 0
    assert figures.sum_last_hour(NOON - 60).count == 0  # the clock was put back
    for minute in range(1_000):
        figures.add(NOON + minute * 60, "default", "on", 200, 1.0)
    assert figures.sum_last_hour(NOON + 999 * 60).count == 60


def test_half_of_the_times_lie_below_the_median() -> None:
    figures = RequestFiguresRecorder()
    assert figures.sum_last_hour(NOON).added_p50 is None
    for n in range(1, 1_001):
        figures.add(NOON, "default", "on", 200, n / 100)
    found = figures.sum_last_hour(NOON)
    assert found.added_p50 == pytest.approx(5.0, rel=0.05)
    assert found.added_p99 == pytest.approx(9.9, rel=0.05)
    figures.add(NOON, "left", "on", 499, None)
    assert figures.sum_last_hour(NOON, "left").added_p50 is None
    figures.add(NOON, "extreme", "on", 200, 0.0)
    assert figures.sum_last_hour(NOON, "extreme").added_p50 == pytest.approx(0.01, rel=0.05)
