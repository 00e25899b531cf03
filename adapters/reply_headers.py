"""The headers of a reply on which the gateway acts: the content type, and when to try again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import Final

from adapters.types import Header

# The headers with the time to wait: in milliseconds, and in seconds or as a date.
WAIT_HEADERS: Final = ("retry-after-ms", "retry-after")


def is_event_stream(status: int, headers: Iterable[Header]) -> bool:
    """Returns whether a reply, by its status and its content type, is a stream of server-sent events."""
    if 200 <= status < 300:
        for name, value in headers:
            if name == "content-type" and value.lower().lstrip().startswith("text/event-stream"):
                return True
    return False


def replace_content_type(headers: Iterable[Header], content_type: str) -> tuple[Header, ...]:
    """Returns a copy of a reply's headers with another content type, for a body that was translated."""
    return (*(header for header in headers if header[0] != "content-type"), ("content-type", content_type))


def read_retry_after(headers: Iterable[Header], now_s: float) -> float | None:
    """Returns the seconds to wait by `retry-after-ms` (OpenAI's own) or `retry-after` (RFC 9110 10.2.3); None: neither.

    now_s: the present time in seconds since the epoch, for a date in the header.
    """
    values = dict(headers)
    for name, unit in zip(WAIT_HEADERS, (1000.0, 1.0), strict=True):
        try:
            seconds = float(values.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(values.get("retry-after", "")).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None
