"""The form in which callers are shown limits: the error of a refused request, and the headers of a reply."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from adapters.types import Header
from gateway.core.dates import render_iso
from gateway.core.usage.limit_rules import MEASURED_UNITS, STORED_PERIODS, Bucket, Period, format_duration
from gateway.errors import LimitReached
from storage.usage_records import UsageLimit

# The units that OpenAI's `x-ratelimit-*` headers have.
_HEADER_UNITS: Final = ("requests", "tokens")


def make_refusal(bucket: Bucket, now: float, used: int = 0) -> LimitReached:
    """Returns the error of a request for which a bucket has no room. used: the amount that it has used so far."""
    limit = bucket.limit
    # When a request under way ends, the amount that it has reserved and not used is free again.
    is_reserved = limit.unit in MEASURED_UNITS and bucket.used + used < bucket.bound
    is_quota = limit.per in STORED_PERIODS and not is_reserved
    ends_with_request = limit.per is None or is_reserved
    wait_s = 1.0 if ends_with_request else max(1.0, math.ceil(bucket.period.end - now))
    headers = [("x-should-retry", "false")] if is_quota else []
    if limit.unit in _HEADER_UNITS and limit.per is not None:
        headers += _render_headers(bucket, now)
    message = _render_refusal(limit, bucket.period, is_reserved=is_reserved)
    return LimitReached(message, wait_s, headers, is_quota=is_quota)


def make_rate_headers(buckets: Iterable[Bucket], now: float) -> list[Header]:
    """Returns the headers of the limits per minute: for each unit, the headers of the limit with the least left."""
    fullest_buckets: dict[str, Bucket] = {}
    for bucket in buckets:
        unit = bucket.limit.unit
        if bucket.limit.per != "minute" or unit not in _HEADER_UNITS:
            continue
        if unit not in fullest_buckets or bucket.count_remaining() < fullest_buckets[unit].count_remaining():
            fullest_buckets[unit] = bucket
    return [header for bucket in fullest_buckets.values() for header in _render_headers(bucket, now)]


def _render_headers(bucket: Bucket, now: float) -> list[Header]:
    """Returns the headers with the state of a bucket."""
    unit = bucket.limit.unit
    return [
        (f"x-ratelimit-limit-{unit}", str(bucket.bound)),
        (f"x-ratelimit-remaining-{unit}", str(bucket.count_remaining())),
        (f"x-ratelimit-reset-{unit}", format_duration(math.ceil(bucket.period.end - now))),
    ]


def _render_refusal(limit: UsageLimit, period: Period, *, is_reserved: bool) -> str:
    """Returns the message of a refusal. is_reserved: True if requests under way have reserved the rest."""
    amount = f"{limit.most:.15g}"
    plural = "" if limit.most == 1 else "s"
    unit = {"requests": f"request{plural}", "tokens": f"token{plural}", "cost": "of cost"}.get(limit.unit)
    allowance = f"{amount} concurrent request{plural}" if unit is None else f"{amount} {unit} per {limit.per}"
    if not limit.most:
        advice = "Nothing is allowed until it is raised."
    elif limit.per is None:
        advice = "Try again when one has ended."
    elif is_reserved:
        advice = "Requests under way have reserved what is left. Try again when one has ended."
    else:
        advice = "That is used up."
    reset = "" if limit.per is None or is_reserved else f" It resets at {render_iso(period.end)}."
    return f"Limit {limit.id} allows {allowance}. {advice}{reset}"
