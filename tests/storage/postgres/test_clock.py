"""The clock that processes share moves only as far as a reading proves."""

from __future__ import annotations

import pytest

from storage.postgres.clock import SharedClock


def test_a_reading_that_took_long_moves_no_clock_that_is_right() -> None:
    clock = SharedClock()
    clock.add_reading(100.0, 3700.001, 100.002)
    clock.add_reading(200.0, 3800.0, 200.0)
    assert clock.ahead == pytest.approx(3600.0, abs=1e-6)
    clock.add_reading(300.0, 3900.0, 300.8)  # the answer waited here
    clock.add_reading(400.0, 4000.7, 400.8)  # the question waited there
    assert clock.ahead == pytest.approx(3600.0, abs=1e-6)


def test_a_reading_that_came_at_once_corrects_one_that_took_long() -> None:
    clock = SharedClock()
    clock.add_reading(100.0, 110.0, 100.8)
    clock.add_reading(200.0, 210.0, 200.001)
    assert clock.ahead == pytest.approx(10.0, abs=0.002)


def test_a_clock_that_was_put_back_is_followed() -> None:
    clock = SharedClock()
    clock.add_reading(100.0, 110.0, 100.001)
    clock.add_reading(5.0, 110.0, 5.001)
    assert clock.ahead == pytest.approx(105.0, abs=0.002)
