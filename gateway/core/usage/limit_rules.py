"""The rules of limits: periods, the amounts that count towards a limit, reservations. Pure; the time comes in.

A request reserves the amounts that it may use, and is settled by the amounts that it has used. It is let in if its
reservation fits. Under a limit of tokens or cost it is also let in if no other amount is reserved and some is left.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import Struct, field

from gateway.core.dates import DAY_S
from storage.usage_records import EACH_USER, REFUSE, UsageLimit

_MINUTE_S: Final = 60
# A cost is counted in billionths of the currency.
BILLION: Final = 1_000_000_000
# Units in which a request may use more than it has reserved, since the used amount is known only at its end.
MEASURED_UNITS: Final = ("tokens", "cost")
# Periods with stored sums. For a minute, and for requests under way, each process knows only its own part.
STORED_PERIODS: Final = ("day", "month")


class Amounts(NamedTuple):
    """The amounts that a request uses, or may use, of each thing that limits count."""

    # The requests that were let in, which a minute counts as requests.
    let_in: int
    # The requests that were answered, which a day and a month count as requests.
    answered: int
    # The tokens of input and output.
    tokens: int
    # The cost in billionths of the currency.
    cost: int
    # The requests under way.
    concurrent: int


def estimate_amounts(tokens: int = 0, cost: int = 0) -> Amounts:
    """Returns the amounts that a request may use."""
    return Amounts(let_in=1, answered=1, tokens=tokens, cost=cost, concurrent=1)


def count_used_amounts(tokens: int = 0, cost: int = 0, *, is_answered: bool = False) -> Amounts:
    """Returns the amounts that a request has used. is_answered: True if a model has answered, or none had to."""
    return Amounts(let_in=1, answered=int(is_answered), tokens=tokens, cost=cost, concurrent=0)


class Period(NamedTuple):
    """A period of a limit. Both ends are in seconds since the epoch."""

    # The beginning of the period.
    begin: float
    # The end of the period, which is no part of it.
    end: float

    def has(self, now: float) -> bool:
        """Returns whether a time is in the period. (If the clock was ahead, a period may lie in the future.)"""
        return self.begin <= now < self.end


def choose_period(per: str | None, now: float) -> Period:
    """Returns the period in which a time is, by the calendar of UTC."""
    if per is None:
        return Period(0.0, math.inf)
    if per != "month":
        length = _MINUTE_S if per == "minute" else DAY_S
        begin = now // length * length
        return Period(begin, begin + length)
    first_day = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    day_count = calendar.monthrange(first_day.year, first_day.month)[1]
    return Period(first_day.timestamp(), first_day.timestamp() + day_count * DAY_S)


def divide_limit(limit: UsageLimit, process_count: int) -> int:
    """Returns the amount up to which each process may go. A cost is in billionths, so that sums are exact.

    process_count: the number of processes that share the limit.
    """
    share = limit.most if limit.per in STORED_PERIODS else limit.most / process_count
    return round(share * BILLION) if limit.unit == "cost" else math.ceil(share)


def convert_amount(limit: UsageLimit, amount: int) -> float:
    """Returns a counted amount in the limit's unit."""
    return amount / BILLION if limit.unit == "cost" else amount


class Bucket(Struct, eq=False):
    """The amounts that count towards one limit in one period, for one subject. A cost is in billionths."""

    # The limit for which the bucket counts.
    limit: UsageLimit
    # The amount up to which this process may go.
    bound: int
    # The user, if each user has a bucket; "": no user, or all users.
    user: str
    # The period of the limit.
    period: Period
    # The index in `Amounts` of the counted amount.
    amount_index: int
    # The amount that requests have used.
    used: int = 0
    # The amount that requests under way have reserved.
    reserved: int = 0
    # `used` includes what this and other processes have used before the bucket was made.
    is_loaded: bool = False
    # The part of `used` from days that are not read again.
    used_earlier: int = 0
    # The first day that is read again, in days since the epoch; 0: all days are read again.
    first_reread_day: int = 0
    # True: a request has asked for the bucket since the usage of other processes was last read.
    was_asked_for: bool = False

    @classmethod
    def begin(cls, limit: UsageLimit, bound: int, user: str, now: float) -> Bucket:
        """Makes the bucket of the period in which a time is."""
        is_loaded = limit.per not in STORED_PERIODS
        return cls(
            limit,
            bound,
            user,
            choose_period(limit.per, now),
            _choose_amount_index(limit),
            is_loaded=is_loaded,
        )

    def lets_in(self, wanted_amounts: Amounts) -> bool:
        """Returns whether a request that may use these amounts may begin."""
        if self.used + self.reserved + wanted_amounts[self.amount_index] <= self.bound:
            return True
        return self.limit.unit in MEASURED_UNITS and not self.reserved and self.used < self.bound

    def lets_go_on(self, own_reserved: int, own_used: int, next_amount: int) -> bool:
        """Returns whether a request may go on.

        own_reserved: the amount that is reserved for this request.
        own_used: the amount that the request has used so far.
        next_amount: the most that the request may use next.
        """
        others_reserved = self.reserved - own_reserved
        if self.used + others_reserved + own_used + next_amount <= self.bound:
            return True
        return others_reserved <= 0 and self.used + own_used < self.bound

    def count_remaining(self) -> int:
        """Returns the amount that may still be reserved, in the units of `used`."""
        return max(0, self.bound - self.used - self.reserved)


class LimitReservation(Struct, eq=False):
    """The amounts that a request has reserved, until it is settled."""

    # The reserved amounts by their buckets.
    amounts: dict[Bucket, int] = field(default_factory=dict)
    # The model that answers in place of the requested model; None: the requested model answers.
    substitute: str | None = None
    # The amounts that the request has used in minutes that were over before its end, by the ids of their limits.
    counted_amounts: dict[int, int] = field(default_factory=dict)

    def reserve(self, bucket: Bucket, amount: int) -> None:
        """Reserves an amount of a bucket, in place of the amount that was reserved before."""
        bucket.reserved += amount - self.amounts.get(bucket, 0)
        self.amounts[bucket] = amount

    def pop_measured(self) -> LimitReservation:
        """Moves tokens and cost out of this reservation into a new one, which it returns."""
        measured_buckets = [bucket for bucket in self.amounts if bucket.limit.unit in MEASURED_UNITS]
        return LimitReservation({bucket: self.amounts.pop(bucket) for bucket in measured_buckets})

    def count_uncounted(self, used_amounts: Amounts, bucket: Bucket) -> int:
        """Returns the part of the used amounts that counts towards a bucket."""
        return used_amounts[bucket.amount_index] - self.counted_amounts.get(bucket.limit.id, 0)

    def count_ended_minutes(self, used_amounts: Amounts, now: float) -> None:
        """Counts the amounts used so far in a minute that is over. Later amounts count in a later minute."""
        for bucket in [*self.amounts]:
            limit = bucket.limit
            if limit.unit in MEASURED_UNITS and limit.per == "minute" and bucket.period.end <= now:
                bucket.reserved -= self.amounts.pop(bucket)
                bucket.used += self.count_uncounted(used_amounts, bucket)
                self.counted_amounts[limit.id] = used_amounts[bucket.amount_index]

    def settle(self, used_amounts: Amounts) -> None:
        """Replaces the reserved amounts by the used amounts."""
        for bucket, amount in self.amounts.items():
            bucket.reserved -= amount
            bucket.used += self.count_uncounted(used_amounts, bucket)


def list_limits(limits: Iterable[UsageLimit], key_id: int, user: str) -> list[UsageLimit]:
    """Returns the limits of a project that hold for a request, in their order.

    A limit of a named user replaces the limits of each user with the same unit, period and key.
    """
    matching_limits = [
        limit
        for limit in limits
        if limit.key_id in (None, key_id)
        and (limit.user in (None, EACH_USER) or (limit.user == user and user))
    ]
    replaced_keys = {
        _make_replacement_key(limit) for limit in matching_limits if limit.user not in (None, EACH_USER)
    }
    return [
        limit
        for limit in matching_limits
        if limit.user != EACH_USER or _make_replacement_key(limit) not in replaced_keys
    ]


def have_room(buckets: Iterable[Bucket], wanted_amounts: Amounts) -> bool:
    """Returns whether all buckets are loaded and let a request in."""
    for bucket in buckets:  # noqa: SIM110  # all() takes half as long again
        if not (bucket.is_loaded and bucket.lets_in(wanted_amounts)):
            return False
    return True


class FullBuckets(NamedTuple):
    """The full buckets that decide about a request."""

    # The first bucket that refuses the request; None: no bucket does.
    refusing: Bucket | None
    # The first bucket that sends the request to another model; None: no bucket does.
    substituting: Bucket | None


def collect_full_buckets(
    buckets: Iterable[Bucket], wanted_amounts: Amounts, may_answer: Callable[[str], bool]
) -> FullBuckets:
    """Returns the full buckets that decide about a request.

    buckets: the buckets of the request, in the order of the ids of their limits.
    wanted_amounts: the most that the request may use.
    may_answer: returns whether a model may answer this request in place of its own.
    """
    substituting: Bucket | None = None
    for bucket in buckets:
        if bucket.lets_in(wanted_amounts):
            continue
        if bucket.limit.then == REFUSE or not may_answer(bucket.limit.then):
            return FullBuckets(bucket, substituting)
        substituting = substituting or bucket
    return FullBuckets(None, substituting)


@lru_cache(maxsize=64)
def format_duration(seconds: int) -> str:
    """Returns a time in the form of OpenAI's headers: 37s, 6m0s, 11h2m5s."""
    minutes, seconds = divmod(max(1, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _make_replacement_key(limit: UsageLimit) -> tuple[object, ...]:
    """Returns the key that two limits share if the limit of a named user replaces the other limit."""
    return limit.unit, limit.per, limit.key_id


def _choose_amount_index(limit: UsageLimit) -> int:
    """Returns the index in `Amounts` of the amount that a limit counts."""
    if limit.unit == "requests":
        return Amounts._fields.index("let_in" if limit.per == "minute" else "answered")
    return Amounts._fields.index(limit.unit)
