"""Locks between processes: one holds each, the first that asked is handed it, and none holds it beyond its lease."""

from __future__ import annotations

import pytest

from storage.errors import StoreTimeout
from storage.sql.conversation_locks import ConversationLocks
from storage.sql.store import Store

LEASE_S = 15.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def processes(store: Store, clock: Clock) -> list[ConversationLocks]:
    """Locks as three processes see them."""
    return [ConversationLocks(store.database, lambda: clock.now) for _ in range(3)]


async def test_only_one_process_holds_a_lock(processes: list[ConversationLocks]) -> None:
    one, other, _ = processes
    assert await one.acquire("a", LEASE_S)
    assert await one.acquire("a", LEASE_S), "its own lease is renewed"
    assert not await other.acquire("a", LEASE_S)
    assert await other.acquire("b", LEASE_S)
    assert await one.load_held(["a", "b", "c"]) == {"a", "b"}
    await one.release("a", LEASE_S)
    assert await other.load_held(["a"]) == set()
    assert await other.acquire("a", LEASE_S)


async def test_a_busy_database_does_not_end_a_wait_for_a_lock(
    store: Store, processes: list[ConversationLocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read waits for a connection a moment only, where a write waits as long as it takes."""
    one, other, _ = processes
    await one.acquire("a", LEASE_S)

    async def read(*_: object) -> None:
        raise StoreTimeout("no connection was free in time")

    monkeypatch.setattr(store.database, "read", read)
    assert not await other.acquire("a", LEASE_S)


async def test_a_lock_is_handed_to_the_first_that_asked(
    processes: list[ConversationLocks], clock: Clock
) -> None:
    one, first, second = processes
    await one.acquire("a", LEASE_S)
    clock.now += 5
    assert await first.request_handover("a") == 10.0
    assert await second.request_handover("a") == 10.0
    await one.release("a", LEASE_S)
    assert not await one.acquire("a", LEASE_S)
    assert not await second.acquire("a", LEASE_S)
    assert await first.acquire("a", LEASE_S)
    await first.release("a", LEASE_S)
    assert await second.request_handover("a") is None, "it is free"
    assert await second.acquire("a", LEASE_S)


async def test_a_process_that_withdrew_its_request_is_handed_nothing(
    processes: list[ConversationLocks],
) -> None:
    one, other, third = processes
    await one.acquire("a", LEASE_S)
    await other.request_handover("a")
    await other.release("a", LEASE_S)
    assert not await other.acquire("a", LEASE_S), "it was not given up by who has it"
    await one.release("a", LEASE_S)
    assert await third.acquire("a", LEASE_S)
    await other.request_handover("a")
    await third.release("a", LEASE_S)
    await other.release("a", LEASE_S)
    assert await one.acquire("a", LEASE_S), "what was handed over is given back"


async def test_a_lease_runs_out_unless_it_is_renewed(
    processes: list[ConversationLocks], clock: Clock
) -> None:
    one, other, _ = processes
    for name in ("a", "b"):
        await one.acquire(name, LEASE_S)
    clock.now += LEASE_S - 1
    assert await one.renew(["a", "c"], LEASE_S) == {"a"}
    clock.now += 1
    assert not await other.acquire("a", LEASE_S)
    assert await other.acquire("b", LEASE_S)
    assert await one.renew(["b"], 100 * LEASE_S) == set()
    await one.release("b", LEASE_S)
    assert await other.load_held(["b"]) == {"b"}, "who has lost it gives nothing back"
    clock.now += LEASE_S
    assert await one.acquire("b", LEASE_S), "nor renews it"
    clock.now += 3600 + LEASE_S + 1
    await one.delete_expired()
    assert await one.request_handover("a") is None
