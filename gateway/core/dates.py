"""Dates as models and people read them, in UTC."""

from __future__ import annotations

import math
from datetime import UTC, datetime, time, tzinfo
from functools import lru_cache

DAY_S = 86_400
# The characters of a day. A longer text has a time as well.
_DAY_CHARS = len("2026-03-01")
# The years 1 and 10000, in seconds since the epoch. No later number is a date: most are dates in milliseconds.
BEGIN_OF_DATES_S = -62_135_596_800.0
END_OF_DATES_S = 253_402_300_800.0


def render_day(at: float) -> str:
    """Returns the date and the day of the week. at: the time in seconds since the epoch."""
    return render_day_number(int(at // DAY_S)) if math.isfinite(at) else "undated"


# A note has a date in each line, and most lines of a memory fall on few days.
@lru_cache(maxsize=512)
def render_day_number(day: int) -> str:
    """Returns the date and the day of the week. day: the day in days since the epoch."""
    try:
        moment = datetime.fromtimestamp(day * DAY_S, UTC)
    except (OverflowError, OSError, ValueError):
        return "undated"
    return f"{moment.date().isoformat()} {moment:%a}"  # `%Y` writes the year 999 with three digits


def render_iso(at: float) -> str:
    """Returns a time in ISO 8601, UTC, to the second. at: the time in seconds since the epoch."""
    return datetime.fromtimestamp(int(at), UTC).isoformat().replace("+00:00", "Z")


def parse_moment(text: str, zone: tzinfo = UTC, *, is_end: bool = False) -> float:
    """Returns a date or time in ISO 8601 as seconds since the epoch.

    zone: the zone of a text that names no zone.
    is_end: True if a day without a time means its last microsecond; otherwise its first.

    Raises: ValueError.
    """
    moment = datetime.fromisoformat(text)
    if is_end and len(text) <= _DAY_CHARS:
        moment = datetime.combine(moment, time.max)
    at = (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).timestamp()
    # A time that its zone or rounding moves out of the years 1 to 9999 becomes the nearest time in them.
    return min(max(at, BEGIN_OF_DATES_S), math.nextafter(END_OF_DATES_S, 0.0))


def render_minute(at: float) -> str:
    """Returns the date and the time of day, to the minute. at: the time in seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
