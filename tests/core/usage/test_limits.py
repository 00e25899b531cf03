"""The rules of limits: which hold for a caller, when a request fits, and what is settled."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.core.usage.limit_rules import (
    Bucket,
    LimitReservation,
    choose_period,
    collect_full_buckets,
    count_used_amounts,
    divide_limit,
    estimate_amounts,
    format_duration,
    have_room,
    list_limits,
)
from storage.usage_records import UsageLimit


def limit(id: int = 1, **fields: object) -> UsageLimit:
    given = {"project": "p", "key_id": None, "user": None, "unit": "tokens", "per": "day", "most": 100.0}
    return UsageLimit(id=id, **{**given, "then": "refuse", **fields})  # type: ignore[arg-type]


def bucket(used: int = 0, reserved: int = 0, **fields: object) -> Bucket:
    made = limit(**fields)
    found = Bucket.begin(made, divide_limit(made, 1), "", 0.0)
    found.used, found.reserved = used, reserved
    return found


def at(*parts: int) -> float:
    return datetime(*parts, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("per", "begin", "end"),
    [
        ("minute", at(2026, 2, 28, 23, 59), at(2026, 3, 1)),
        ("day", at(2026, 2, 28), at(2026, 3, 1)),
        ("month", at(2026, 2, 1), at(2026, 3, 1)),
    ],
)
def test_periods_are_the_calendars(per: str, begin: float, end: float) -> None:
    assert choose_period(per, at(2026, 2, 28, 23, 59, 30)) == (begin, end)


def test_a_limit_of_a_named_user_takes_the_place_of_each_users() -> None:
    each = limit(1, user="*")
    alice, other = limit(2, user="alice"), limit(3, user="alice", per="month")
    all_of_key = limit(4, key_id=7)
    limits = (each, alice, other, all_of_key)
    assert list_limits(limits, 0, "alice") == [alice, other]
    assert list_limits(limits, 7, "bob") == [each, all_of_key]
    assert list_limits(limits, 0, "") == [each]


@pytest.mark.parametrize(
    ("used", "reserved", "amount", "fits"),
    [
        (0, 0, 100, True),
        (0, 0, 101, True),  # who is alone gets in while anything is left
        (99, 0, 50, True),
        (100, 0, 1, False),
        (0, 60, 40, True),
        (0, 60, 41, False),
    ],
)
def test_tokens_fit_or_are_the_only_ones(used: int, reserved: int, amount: int, fits: bool) -> None:
    assert bucket(used, reserved).lets_in(estimate_amounts(amount)) is fits


def test_requests_are_counted_exactly() -> None:
    wanted = estimate_amounts(1000)
    assert bucket(9, 0, unit="requests", most=10.0).lets_in(wanted)
    assert not bucket(9, 1, unit="requests", most=10.0).lets_in(wanted)
    assert not bucket(0, 0, unit="requests", most=0.0).lets_in(wanted)


def test_there_is_room_in_what_is_loaded() -> None:
    minute, day = bucket(unit="requests", per="minute"), bucket()
    assert not have_room((minute, day), estimate_amounts(1))
    day.is_loaded = True
    assert have_room((minute, day), estimate_amounts(1))
    minute.used = 100
    assert not have_room((minute, day), estimate_amounts(1))


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({"per": "day"}, 100),  # known to all processes
        ({"per": "minute"}, 34),
        ({"unit": "concurrent", "per": None}, 34),
        ({"unit": "cost", "per": "minute", "most": 0.5}, 166_666_667),
    ],
)
def test_processes_share_what_each_counts_alone(fields: dict[str, object], bound: int) -> None:
    assert divide_limit(limit(**fields), 3) == bound


@pytest.mark.parametrize(
    ("unit", "per", "is_answered", "used"),
    [
        ("requests", "day", True, 1),
        ("requests", "day", False, 0),  # given back
        ("requests", "minute", False, 1),
        ("tokens", "day", True, 30),
        ("cost", "day", True, 500_000_000),
        ("concurrent", None, True, 0),
    ],
)
def test_a_reservation_is_settled_by_what_was_used(
    unit: str, per: str | None, is_answered: bool, used: int
) -> None:
    one = bucket(reserved=1000, unit=unit, per=per)
    LimitReservation({one: 1000}).settle(count_used_amounts(30, 500_000_000, is_answered=is_answered))
    assert (one.reserved, one.used) == (0, used)


def test_costs_that_are_settled_leave_nothing_reserved() -> None:
    """As fractions they would leave a rest, by which who is alone would never be alone again."""
    one = bucket(unit="cost", most=1.0)
    reservations = [LimitReservation() for _ in range(3)]
    for number, each in enumerate(reservations, 1):
        each.reserve(one, number * 100_000_000)
    for each in reservations:
        each.settle(count_used_amounts(is_answered=True))
    assert one.reserved == 0
    assert one.lets_in(estimate_amounts(0, one.bound + 1))


def test_a_refusal_counts_before_another_model() -> None:
    cheap, hard = bucket(100, then="small"), bucket(100, id=2)
    wanted = estimate_amounts(1)
    assert collect_full_buckets((cheap, hard), wanted, lambda _: True) == (hard, cheap)
    assert collect_full_buckets((cheap,), wanted, lambda _: True) == (None, cheap)
    assert collect_full_buckets((cheap,), wanted, lambda _: False) == (cheap, None)


@pytest.mark.parametrize(("seconds", "text"), [(0, "1s"), (37, "37s"), (360, "6m0s"), (39_725, "11h2m5s")])
def test_times_are_as_openais_headers_have_them(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text
