"""Which endpoint is asked next, when, and which one is passed over meanwhile."""

from __future__ import annotations

import pytest

from gateway.core.upstream.policy import (
    EndpointHealth,
    Failure,
    NextAttempt,
    Policy,
    RouteMember,
    choose_backoff_s,
    choose_next,
    order_members,
)
from tests.rows import each_row

NOW = 1000.0
BUSY = Failure("429")
COMES_BACK = Failure("429", retry_after_s=1.5)
COMES_BACK_LATE = Failure("429", retry_after_s=30.0)
NOT_DIALLED = Failure("unreachable", was_sent=False)
NO_DIAL_TONE = Failure("timeout", was_sent=False, is_repeatable=False)
LOST = Failure("unreachable")
SLOW = Failure("timeout", is_repeatable=False)


@each_row(
    ("failure", "retries", "failures", "peer", "fallback", "budget", "step", "wait"),
    [
        # by default only dialling is repeated, once, and only where nobody else can be asked
        (BUSY, 0, 1, False, False, True, NextAttempt.STOP, 0.0),
        (LOST, 0, 1, False, False, True, NextAttempt.STOP, 0.0),
        (NOT_DIALLED, 0, 1, False, False, True, NextAttempt.RETRY, 0.075),
        (NOT_DIALLED, 0, 2, False, False, True, NextAttempt.STOP, 0.0),
        (NOT_DIALLED, 0, 1, False, True, True, NextAttempt.FAIL_OVER, 0.0),
        (NO_DIAL_TONE, 0, 1, False, False, True, NextAttempt.STOP, 0.0),
        # a fallback is asked at once
        (BUSY, 0, 1, False, True, True, NextAttempt.FAIL_OVER, 0.0),
        (COMES_BACK_LATE, 0, 1, False, True, True, NextAttempt.FAIL_OVER, 0.0),
        (SLOW, 3, 1, False, True, True, NextAttempt.FAIL_OVER, 0.0),
        # retries, before the fallback, as long as the wait is short
        (BUSY, 2, 1, False, True, True, NextAttempt.RETRY, 0.075),
        (BUSY, 2, 2, False, True, True, NextAttempt.RETRY, 0.15),
        (BUSY, 2, 3, False, True, True, NextAttempt.FAIL_OVER, 0.0),
        (BUSY, 2, 3, False, False, True, NextAttempt.STOP, 0.0),
        (LOST, 1, 1, False, False, True, NextAttempt.RETRY, 0.075),
        (COMES_BACK, 1, 1, False, True, True, NextAttempt.RETRY, 1.5),
        (COMES_BACK_LATE, 1, 1, False, True, True, NextAttempt.FAIL_OVER, 0.0),
        (COMES_BACK_LATE, 1, 1, False, False, True, NextAttempt.STOP, 0.0),
        # what took our patience is not asked again
        (SLOW, 3, 1, False, False, True, NextAttempt.STOP, 0.0),
        # another endpoint of the same model is better than waiting
        (BUSY, 2, 1, True, True, True, NextAttempt.FAIL_OVER, 0.0),
        (NOT_DIALLED, 2, 1, True, True, True, NextAttempt.FAIL_OVER, 0.0),
        # the budget is used up
        (BUSY, 2, 1, False, True, False, NextAttempt.FAIL_OVER, 0.0),
        (NOT_DIALLED, 0, 1, False, False, False, NextAttempt.STOP, 0.0),
    ],
)
def test_the_next_step_after_a_failed_attempt(
    failure: Failure,
    retries: int,
    failures: int,
    peer: bool,
    fallback: bool,
    budget: bool,
    step: NextAttempt,
    wait: float,
) -> None:
    next_step = choose_next(
        failure,
        Policy(retries=retries),
        failure_count=failures,
        has_peer=peer,
        has_fallback=fallback,
        may_retry=budget,
        chance=0.5,
    )
    assert next_step.attempt is step
    assert next_step.wait_s == pytest.approx(wait)


def test_backoff_doubles_up_to_its_limit_and_half_of_it_is_chance() -> None:
    assert [choose_backoff_s(n, 1.0, 2.0) for n in range(1, 7)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    )
    assert choose_backoff_s(3, 0.0, 2.0) == pytest.approx(0.2)
    assert choose_backoff_s(1, 1.0, 0.0) == 0.0


def test_retries_are_a_share_of_the_requests() -> None:
    health = EndpointHealth(retries_left=0.0)

    def attempt(times: int) -> None:
        for _ in range(times):
            with health.begin_attempt(Policy(retry_budget=0.2)):
                pass

    attempt(4)
    assert not health.may_retry
    attempt(2)
    assert health.may_retry
    health.retries_left -= 1
    assert not health.may_retry
    attempt(1_000)
    assert health.retries_left == EndpointHealth().retries_left


# --- the breaker


def failed(times: int, at: float = NOW, retry_after_s: float | None = None) -> EndpointHealth:
    health = EndpointHealth()
    for _ in range(times):
        with health.begin_attempt(Policy()):
            health.record_failure(Policy(), at, "", retry_after_s)
    return health


def test_the_breaker_opens_after_failures_in_a_row_and_for_its_time() -> None:
    assert failed(4).is_available(NOW, "")
    health = failed(5)
    assert (
        health.is_available(NOW, ""),
        health.is_available(NOW + 9.9, ""),
        health.is_available(NOW + 10, ""),
    ) == (
        False,
        False,
        True,
    )


def test_a_success_between_them_restarts_the_count() -> None:
    health = failed(4)
    health.record_success("")
    health.record_failure(Policy(), NOW, "")
    assert health.is_available(NOW, "")


def test_replies_that_break_off_open_it_though_each_has_begun() -> None:
    health = EndpointHealth()
    for _ in range(5):
        assert health.is_available(NOW, "")
        with health.begin_attempt(Policy()):
            health.record_answer("")
        health.record_break(Policy(), NOW)
    assert not health.is_available(NOW, "")
    health.record_success("")
    assert health.is_available(NOW, "")


def test_a_probe_closes_the_breaker_or_opens_it_again() -> None:
    health = failed(5)
    with health.begin_attempt(Policy()):  # the probe
        assert not health.is_available(NOW + 20, "")  # nobody else meanwhile
        health.record_failure(Policy(), NOW + 20, "")
    assert (health.is_available(NOW + 29, ""), health.is_available(NOW + 30, "")) == (False, True)
    with health.begin_attempt(Policy()):
        health.record_success("")
    with health.begin_attempt(Policy()):
        assert health.is_available(NOW + 30, "")


def test_without_a_breaker_only_retry_after_makes_a_cooldown() -> None:
    policy, health = Policy(breaker_failures=0), EndpointHealth()
    for _ in range(50):
        with health.begin_attempt(policy):
            assert not health.is_probing
            health.record_failure(policy, NOW, "")
    assert health.is_available(NOW, "")
    health.record_failure(policy, NOW, "", 7.0)
    assert (health.is_available(NOW + 6.9, ""), health.is_available(NOW + 7, "")) == (False, True)


# --- the order


def test_ranks_go_one_after_the_other() -> None:
    members = [
        RouteMember("b", 1, EndpointHealth()),
        RouteMember("c", 2, EndpointHealth()),
        RouteMember("a", 0, EndpointHealth()),
    ]
    assert order_members(members, NOW, 7) == [2, 0, 1]


def test_an_open_circuit_is_the_last_resort_and_a_cooldown_is_spared() -> None:
    broken = [RouteMember("a", 0, failed(5)), RouteMember("b", 1, EndpointHealth())]
    assert order_members(broken, NOW, 7) == [1, 0]
    cooling = [RouteMember("a", 0, failed(1, retry_after_s=20.0)), RouteMember("b", 1, EndpointHealth())]
    assert order_members(cooling, NOW, 7) == [1]
    assert order_members(cooling, NOW + 20, 7) == [0, 1]
    of_another = [RouteMember("a", 0, cooling[0].health, "another model"), cooling[1]]
    assert order_members(of_another, NOW, 7) == [0, 1]


def test_the_only_one_is_never_taken_out() -> None:
    assert order_members([RouteMember("a", 0, failed(5, retry_after_s=20.0))], NOW, 7) == [0]


def test_if_none_is_available_the_first_that_will_be_is_asked() -> None:
    members = [
        RouteMember("a", 0, failed(1, retry_after_s=20.0)),
        RouteMember("b", 0, failed(5)),
        RouteMember("c", 1, failed(1, retry_after_s=5.0)),
    ]
    assert order_members(members, NOW, 7) == [2]


def test_a_conversation_keeps_its_endpoint_and_conversations_are_spread() -> None:
    members = [RouteMember(name, 0, EndpointHealth()) for name in "abc"]
    firsts = [order_members(members, NOW, key)[0] for key in range(300)]
    assert firsts == [order_members(members, NOW, key)[0] for key in range(300)]
    assert min(firsts.count(i) for i in range(3)) > 60


def test_conversations_of_an_endpoint_that_is_gone_move_and_no_others() -> None:
    members = [RouteMember(name, 0, EndpointHealth()) for name in "abc"]
    before = [order_members(members, NOW, key)[0] for key in range(100)]
    members[1] = RouteMember("b", 0, failed(5))
    after = [order_members(members, NOW, key)[0] for key in range(100)]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != 1)
    assert {new for old, new in zip(before, after, strict=True) if old == 1} == {0, 2}


def test_an_endpoint_that_is_clearly_busier_gives_some_away() -> None:
    members = [RouteMember(name, 0, EndpointHealth()) for name in "ab"]
    home = order_members(members, NOW, 7)[0]
    members[home].health.in_flight = 4
    assert order_members(members, NOW, 7)[0] == home
    members[home].health.in_flight = 5
    assert order_members(members, NOW, 7) == [1 - home, home]
