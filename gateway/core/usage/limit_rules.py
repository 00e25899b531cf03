"""The rules of limits: periods, what counts towards which limit, reservations. Pure; the time comes in.

A request reserves what it may use, and is settled by what it has used. It is let in if its reservation fits. Under a
limit of tokens or cost it is also let in if nothing else is reserved and anything is left.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from msgspec import Struct, field

from storage.usage_records import EACH_USER, REFUSE, UsageLimit

_MINUTE_S: Final = 60
_DAY_S: Final = 86_400
_BILLION: Final = 1_000_000_000
# Units of which a request may use more than it has reserved: its use is known at its end.
MEASURED: Final = ("tokens", "cost")
# Periods of which sums are stored. Each process knows its own part of a minute, and of what is under way.
STORED_PERIODS: Final = ("day", "month")


class Amounts(NamedTuple):
    """How much a request uses, or may use."""

    tokens: int = 0
    # In billionths of the currency.
    cost: int = 0

    def of(self, unit: str) -> int:
        """Returns how much of a limit's unit the request counts as: 1, where the unit is requests."""
        if unit == "tokens":
            return self.tokens
        return self.cost if unit == "cost" else 1


class Period(NamedTuple):
    """One period of a limit; both ends in seconds since the epoch."""

    begin: float
    end: float

    def has(self, now: float) -> bool:
        """Returns whether a time is in it. A clock that was ahead and is put right leaves periods of the future."""
        return self.begin <= now < self.end


def period_of(per: str | None, now: float) -> Period:
    """Returns the period in which a time is, by the calendar of UTC."""
    if per is None:
        return Period(0.0, math.inf)
    if per != "month":
        length = _MINUTE_S if per == "minute" else _DAY_S
        begin = now // length * length
        return Period(begin, begin + length)
    first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    days = calendar.monthrange(first.year, first.month)[1]
    return Period(first.timestamp(), first.timestamp() + days * _DAY_S)


def counted_amount(limit: UsageLimit, amount: float) -> int:
    """Returns an amount in a limit's unit as it is counted: of cost in billionths, so that sums are exact."""
    return round(amount * _BILLION) if limit.unit == "cost" else math.ceil(amount)


def displayed_amount(limit: UsageLimit, amount: int) -> float:
    """Returns a counted amount in the limit's unit."""
    return amount / _BILLION if limit.unit == "cost" else amount


class Bucket(Struct, eq=False):
    """The amounts that count towards one limit in one period, for one subject; of cost in billionths.

    The methods take a bound: the amount up to which this process may go.
    """

    limit: UsageLimit
    # The user, where each user has a bucket; "": no user, or all users.
    user: str
    period: Period
    used: int = 0
    reserved: int = 0
    # `used` has what was used before, by this and other processes.
    is_loaded: bool = False
    # The part of `used` from days that are not read again, and the first day that is; 0: all are read.
    earlier: int = 0
    read_from: int = 0
    # A request has asked for it since what others have used was last read.
    was_asked_for: bool = False

    def lets_in(self, amount: int, bound: int) -> bool:
        """Returns whether a request that reserves this amount may begin."""
        if self.used + self.reserved + amount <= bound:
            return True
        return self.limit.unit in MEASURED and not self.reserved and self.used < bound

    def lets_go_on(self, reserved: int, used: int, wanted: int, bound: int) -> bool:
        """Returns whether a request may go on.

        reserved: for this request.
        used: by this request so far.
        wanted: for what follows.
        """
        others = self.reserved - reserved
        if self.used + others + used + wanted <= bound:
            return True
        return others <= 0 and self.used + used < bound

    def left(self, bound: int) -> int:
        """Returns how much is left."""
        return max(0, bound - self.used - self.reserved)


class LimitReservation(Struct, eq=False):
    """The amounts that a request has reserved, until it is settled."""

    amounts: dict[Bucket, int] = field(default_factory=dict)
    # The model that answers in place of the one that was asked; None: that one answers.
    substitute: str | None = None
    # How much it has used in minutes that were over before it ended, by the ids of their limits.
    counted: dict[int, int] = field(default_factory=dict)

    def reserve(self, bucket: Bucket, amount: int) -> None:
        """Reserves an amount of a bucket, in place of what was reserved of it before."""
        bucket.reserved += amount - self.amounts.get(bucket, 0)
        self.amounts[bucket] = amount

    def take_measured(self) -> LimitReservation:
        """Takes tokens and cost out of this reservation. Returns them as one of their own."""
        measured = [bucket for bucket in self.amounts if bucket.limit.unit in MEASURED]
        return LimitReservation({bucket: self.amounts.pop(bucket) for bucket in measured})

    def uncounted(self, used: Amounts, bucket: Bucket) -> int:
        """Returns what counts towards a bucket of what the request has used."""
        return used.of(bucket.limit.unit) - self.counted.get(bucket.limit.id, 0)

    def count_ended_minutes(self, used: Amounts, now: float) -> None:
        """Counts what the request has used so far in a minute that is over; what follows is for another one."""
        for bucket in [*self.amounts]:
            limit = bucket.limit
            if limit.unit in MEASURED and limit.per == "minute" and bucket.period.end <= now:
                bucket.reserved -= self.amounts.pop(bucket)
                bucket.used += self.uncounted(used, bucket)
                self.counted[limit.id] = used.of(limit.unit)

    def settle(self, used: Amounts, *, is_answered: bool) -> None:
        """Replaces what was reserved by what was used. is_answered: a model has answered."""
        for bucket, amount in self.amounts.items():
            bucket.reserved -= amount
            unit, per = bucket.limit.unit, bucket.limit.per
            if unit == "requests" and (is_answered or per == "minute"):
                bucket.used += 1
            elif unit in MEASURED:
                bucket.used += self.uncounted(used, bucket)


def limits_for(limits: Iterable[UsageLimit], key: int, user: str) -> list[UsageLimit]:
    """Returns those of a project's limits that hold for a request, in the same order.

    A limit of a named user replaces those of each user with the same unit, period and key.
    """
    found = [
        each
        for each in limits
        if each.key in (None, key) and (each.user in (None, EACH_USER) or (each.user == user and user))
    ]
    named = {(each.unit, each.per, each.key) for each in found if each.user not in (None, EACH_USER)}
    return [each for each in found if each.user != EACH_USER or (each.unit, each.per, each.key) not in named]


def find_full_buckets(
    entries: Iterable[tuple[Bucket, int]],
    bound_of: Callable[[UsageLimit], int],
    may_answer: Callable[[str], bool],
) -> tuple[Bucket | None, Bucket | None]:
    """Returns the first full bucket that refuses a request, and the first that has another model answer it.

    entries: each bucket with what the request may use of it, by the ids of their limits.
    bound_of: returns the amount up to which this process may go.
    may_answer: returns whether a model may answer this request in place of its own.
    """
    substituting: Bucket | None = None
    for bucket, amount in entries:
        if bucket.lets_in(amount, bound_of(bucket.limit)):
            continue
        if bucket.limit.then == REFUSE or not may_answer(bucket.limit.then):
            return bucket, substituting
        substituting = substituting or bucket
    return None, substituting


def format_duration(seconds: float) -> str:
    """Returns a time as OpenAI's headers have it: 37s, 6m0s, 11h2m5s."""
    whole = max(1, math.ceil(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
