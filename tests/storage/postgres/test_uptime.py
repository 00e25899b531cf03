"""What counts as a break in the database's answers, after which other processes get time to renew their leases."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from storage.errors import StoreUnavailable
from storage.postgres.uptime import Uptime
from tests.gateway.two.proxy import Proxy
from tests.patience import comes
from tests.storage.conftest import OpenStore
from tests.storage.postgres.test_faults import QUICK


class Clock:
    now = 1000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uptime(clock: Clock) -> Uptime:
    made = Uptime(10.0, lambda: clock.now)
    assert made.seconds == 0.0, "it does not answer yet"
    made.note_recovery()
    made.watch()
    for _ in range(4):
        clock.now += 5
        made.note_answer()
    assert made.seconds == 20.0
    return made


@pytest.mark.parametrize("seconds", [11.0, -3600.0], ids=["a pause", "a clock that was put back"])
def test_a_time_without_answers_is_a_break(uptime: Uptime, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    assert uptime.seconds == 0.0
    uptime.note_answer()
    clock.now += 4
    assert uptime.seconds == 4.0


def test_a_break_lasts_from_a_failure_to_the_recovery(uptime: Uptime, clock: Clock) -> None:
    uptime.note_failure()
    clock.now += 1
    uptime.note_answer()  # of a connection that was open before
    assert uptime.seconds == 0.0
    uptime.note_recovery()
    clock.now += 4
    assert uptime.seconds == 4.0


def test_without_checks_of_health_only_failures_are_breaks(clock: Clock) -> None:
    uptime = Uptime(10.0, lambda: clock.now)
    uptime.note_recovery()
    clock.now += 100
    assert uptime.seconds == 100.0


async def test_a_database_is_settled_some_time_after_it_has_come_back(
    open_store: OpenStore, proxy: Proxy
) -> None:
    database = (await open_store(path=proxy.url, limits=replace(QUICK, settle_s=0.2))).database
    await comes(lambda: database.is_settled)
    proxy.refuse()
    with pytest.raises(StoreUnavailable):
        await database.read(lambda connection: connection.fetch_value("SELECT 1"))
    assert not database.is_settled
    proxy.allow()
    await comes(lambda: database.is_settled)
