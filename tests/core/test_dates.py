"""Dates as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest

from gateway.core.dates import parse_moment, render_day


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


@pytest.mark.parametrize("text", ["0001-01-01 Mon", "0999-12-31 Tue", "1970-01-01 Thu", "9999-12-31 Fri"])
def test_a_day_that_is_shown_is_a_date_in_iso_8601(text: str) -> None:
    day, _ = text.split()
    assert render_day(parse_moment(day)) == text


@pytest.mark.parametrize(
    ("text", "zone", "end"),
    [
        ("2026-03-01", UTC, "2026-03-01T23:59:59.999999Z"),
        ("20260301", UTC, "2026-03-01T23:59:59.999999Z"),
        # An hour is left out in this night.
        ("2026-03-29", ZoneInfo("Europe/Berlin"), "2026-03-29T21:59:59.999999Z"),
        ("9999-12-31", ZoneInfo("America/New_York"), "9999-12-31T23:59:59.999999Z"),
        # What has a time means that time.
        ("2026-03-01T09:30", UTC, "2026-03-01T09:30:00Z"),
        ("2026-03-01T09:30+01:00", ZoneInfo("Asia/Tokyo"), "2026-03-01T08:30:00Z"),
    ],
)
def test_a_day_without_a_time_ends_before_the_next_one_begins(text: str, zone: tzinfo, end: str) -> None:
    """Facts have days for times: one that begins on the next day was shown as true on this one."""
    assert parse_moment(text, zone, is_end=True) == parse_moment(end)
