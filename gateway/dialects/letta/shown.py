"""The forms of values that many replies of the agents API share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def time_of(at: float | None) -> str | None:
    """Returns a time in ISO 8601, in UTC with microseconds. at: seconds since the epoch."""
    if at is None:
        return None
    # A clock that was wrong once must not make a list unreadable.
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    except (OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(0, UTC).isoformat(timespec="microseconds")


def lasted_ns(begun: float | None, ended: float | None) -> int | None:
    """Returns how long something took; None: it has not begun, or not ended. A clock may have been put back."""
    return None if begun is None or ended is None else max(0, int((ended - begun) * 1e9))


def lines_of(output: Any) -> list[str] | None:
    """Returns the output of a tool's code line by line; None: there is none."""
    return output.splitlines() if isinstance(output, str) and output else None
