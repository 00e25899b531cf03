"""Two gateways over one database add up usage, and share limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gateway.services import Services
from gateway.settings import UsageSettings
from storage.usage_records import FORGOTTEN_USER, UsageLimit, UsageQuery
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.sdk import Clock, World, remember
from tests.patience import becomes

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def worlds(upstream: StrictUpstream, url: str) -> Iterator[list[World]]:
    upstream.script = lambda request: say("Hello.", usage=USAGE)
    clock = Clock()
    with ExitStack() as stack:
        yield [stack.enter_context(remember(upstream, url, clock=clock)) for _ in range(2)]


def write(world: World) -> None:
    """Writes what a gateway has counted, as it does each minute."""
    app = world.gateway.app
    world.settle()
    world.gateway.call(app.services.accounting.meter.write())
    world.gateway.call(app.services.accounting.limiter.refresh())


def knows_limits(world: World) -> bool:
    """Returns whether a gateway has read the limits that the other one was given, of which it is notified."""
    return bool(world.gateway.app.services.accounting.limiter.limits.by_id)


def test_each_gateway_adds_its_part(worlds: list[World]) -> None:
    for count, world in enumerate(worlds, 2):
        for _ in range(count):
            assert world.post(ASK, user="alice").status == 200
    for world in worlds:
        write(world)
    sums = "SELECT requests, input_tokens, output_tokens FROM usage WHERE \"user\" = 'alice'"
    assert worlds[0].query(sums) == [(5, 50, 25)]


def test_a_days_limit_holds_for_both_after_a_write(worlds: list[World]) -> None:
    one, other = worlds
    limit: Any = UsageLimit(0, "default", None, None, "requests", "day", 5, "refuse")
    one.gateway.call(one.store.limits.add(limit))
    assert [one.post(ASK, user="alice").status for _ in range(3)] == [200] * 3
    write(one)
    becomes(lambda: knows_limits(other))
    # What the other reads first has the three.
    assert [other.post(ASK, user="bob").status for _ in range(3)] == [200, 200, 429]
    write(other)
    write(one)
    assert one.post(ASK, user="alice").status == 429


def test_the_use_at_other_gateways_is_read_again_for_users_with_requests_since(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = worlds
    limit: Any = UsageLimit(0, "default", None, "*", "requests", "day", 2, "refuse")
    one.gateway.call(one.store.limits.add(limit))
    becomes(lambda: knows_limits(other))
    sums, read = one.store.usage.load_sums, []

    async def noted(query: UsageQuery, **given: Any) -> Any:
        read.append(dict(query.only)["user"])
        return await sums(query, **given)

    monkeypatch.setattr(one.store.usage, "load_sums", noted)
    for user in ("alice", "bob"):
        assert one.post(ASK, user=user).status == 200
    write(one)
    assert other.post(ASK, user="alice").status == 200
    write(other)
    assert one.post(ASK, user="bob").status == 200
    read.clear()
    write(one)
    write(one)
    assert read == ["bob"]
    assert [one.post(ASK, user=user).status for user in ("alice", "bob")] == [429, 429]


def test_the_last_two_days_of_a_month_are_read_again(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = worlds
    limit: Any = UsageLimit(0, "default", None, None, "requests", "month", 100, "refuse")
    one.gateway.call(one.store.limits.add(limit))
    becomes(lambda: knows_limits(other))
    sums, days = one.store.usage.load_sums, []

    async def noted(query: UsageQuery, **given: Any) -> Any:
        days.append((query.first_day, query.last_day))
        return await sums(query, **given)

    def used() -> float:
        (state,) = one.gateway.call(one.gateway.app.services.accounting.limiter.list_states("default", 0, ""))
        return state.used

    monkeypatch.setattr(one.store.usage, "load_sums", noted)
    today = int(one.clock() // 86_400)
    first, last = today - 8, today + 22  # the clock begins on the 9th
    for count, expected in enumerate(
        (
            [(first, today - 2), (today - 1, last)],
            [(today - 1, last)],
            [(today - 1, today - 1), (today, last)],
        ),
        1,
    ):
        if count == 3:
            one.clock.sleep(86_400)
        assert other.post(ASK, user="alice").status == 200
        write(other)
        days.clear()
        assert one.post(ASK, user="bob").status == 200
        write(one)
        assert days[: len(expected)] == expected
        assert used() == 2 * count


def test_the_other_gateway_does_not_count_a_forgotten_user(worlds: list[World]) -> None:
    one, other = worlds
    for world in worlds:
        assert world.post(ASK, user="alice").status == 200
        world.settle()
    write(one)
    one.gateway.call(one.store.usage.forget_user("default", "alice"))
    other.gateway.app.services.accounting.meter.writer.forget(
        "default", "alice"
    )  # as the notification has it do
    write(other)
    assert one.query('SELECT "user", sum(requests) FROM usage GROUP BY "user"') == [(FORGOTTEN_USER, 2)]


def minutes_bound(world: World) -> str | None:
    """Returns how many requests a minute's limit allows at a gateway, which has refreshed what it knows of others."""
    write(world)
    return world.post(ASK, user="alice").headers["x-ratelimit-limit-requests"]


def test_gateways_share_a_minutes_limit_with_no_worker_and_none_that_has_stopped(
    upstream: StrictUpstream, url: str
) -> None:
    upstream.script = lambda request: say("Hello.", usage=USAGE)
    with remember(upstream, url) as one:
        limit: Any = UsageLimit(0, "default", None, None, "requests", "minute", 10, "refuse")
        one.gateway.call(one.store.limits.add(limit))
        services = one.gateway.app.services
        worker = Services(services.settings, one.store, services.providers, takes_requests=False)
        one.gateway.call(worker.accounting.limiter.refresh())
        with remember(upstream, url) as other:
            write(other)
            assert minutes_bound(one) == "5"
        assert minutes_bound(one) == "10"


def test_gateways_that_write_seldom_share_a_minutes_limit(upstream: StrictUpstream, url: str) -> None:
    upstream.script = lambda request: say("Hello.", usage=USAGE)
    clock, usage = Clock(), UsageSettings(write_s=300)
    with (
        remember(upstream, url, clock=clock, usage=usage) as one,
        remember(upstream, url, clock=clock, usage=usage) as other,
    ):
        limit: Any = UsageLimit(0, "default", None, None, "requests", "minute", 10, "refuse")
        one.gateway.call(one.store.limits.add(limit))
        becomes(lambda: knows_limits(other))
        write(one)
        clock.sleep(200)  # each has written within its five minutes
        write(other)
        reply = other.post(ASK, user="alice")
        assert reply.headers["x-ratelimit-limit-requests"] == "5"
