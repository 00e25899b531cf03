"""Dates as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.core.dates import parse_moment


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("0001-01-01T00:00:00+14:00", 1),
        ("9999-12-31T23:59:59-14:00", 9999),
        ("9999-12-31T23:59:59.999999Z", 9999),
        ("2026-03-01", 2026),
    ],
)
def test_each_time_is_one_of_the_calendar(text: str, year: int) -> None:
    assert datetime.fromtimestamp(parse_moment(text), UTC).year == year
