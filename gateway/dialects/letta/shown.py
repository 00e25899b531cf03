"""The forms of values that many replies of the agents API share."""

from __future__ import annotations

from datetime import UTC, datetime


def time_of(at: float | None) -> str | None:
    """Returns a time in ISO 8601, in UTC with microseconds. at: seconds since the epoch."""
    if at is None:
        return None
    # A clock that was wrong once must not make a list unreadable.
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    except (OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(0, UTC).isoformat(timespec="microseconds")
