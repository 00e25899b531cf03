"""The queue of a conversation across processes: one request of all at a time, and no one waits for the dead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.run.memory import leases
from gateway.run.memory.leases import LEASE_S, Leases, make_lock_name
from gateway.run.memory.queue import Queues, QueueTicket
from storage.errors import StoreUnavailable
from storage.sql.conversation_locks import ConversationLocks
from storage.sql.store import Store
from tests.doubles.upstream import Gate
from tests.patience import PATIENCE_S
from tests.stored import open_store

NAME = ("agent", "conversation")


class Process(ConversationLocks):
    """Locks of a process that knows of others, over one database; the others hear of what it releases."""

    is_needed = True

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        super().__init__(store.database, now)
        self.others: list[Callable[[str | None], None]] = []
        self.recoveries: list[Callable[[], None]] = []
        self.is_broken = False
        # Opened when the database performs what a request asks for; a write is performed if nobody waits for it, too.
        self.grants: Gate | None = None

    async def acquire(self, name: str, lease_s: float) -> bool:
        return await asyncio.shield(asyncio.ensure_future(self._acquire(name, lease_s)))

    async def _acquire(self, name: str, lease_s: float) -> bool:
        if self.grants is not None:
            await self.grants.wait()
        return await super().acquire(name, lease_s)

    def add_recovery_listener(self, callback: Callable[[], None]) -> None:
        self.recoveries.append(callback)

    def release(self, name: str, lease_s: float) -> asyncio.Future[None]:
        if not self.is_broken:
            return super().release(name, lease_s)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(StoreUnavailable("broken"))
        failed.exception()
        return failed

    def add_release_listener(self, callback: Callable[[str | None], None]) -> None:
        self.others.append(callback)


class World:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = 1000.0
        self.locks = [Process(store, lambda: self.now) for _ in range(2)]
        self.leases = [Leases(each) for each in self.locks]
        self.one, self.other = map(Queues, self.leases)

    async def rest(self) -> None:
        """Waits until everybody has got as far as he gets by himself."""
        for _ in range(20):  # more than anybody writes or reads one after the other
            assert await self.store.drain(PATIENCE_S)
            await asyncio.sleep(0)

    def tell(self, name: str | None = None) -> None:
        for each in self.locks:
            for heard in each.others:
                heard(name)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await open_store(tmp_path / "memory.db")
    yield World(store)
    await store.close()


async def begun(world: World, queues: Queues, ticket: QueueTicket) -> asyncio.Task[None]:
    """A request that has asked for the conversation, and got as far as it could."""
    task = asyncio.create_task(queues.enter(NAME, ticket))
    await world.rest()
    return task


async def test_a_request_waits_for_those_of_other_processes(world: World) -> None:
    first, second, third = QueueTicket(), QueueTicket(), QueueTicket()
    await world.one.enter(NAME, first)
    waiting = await begun(world, world.other, second)
    behind = await begun(world, world.one, third)
    assert not waiting.done()
    first.leave()
    await world.rest()
    world.tell(make_lock_name(*NAME))
    await waiting
    await world.rest()
    assert not behind.done(), "the lock was handed over"
    second.leave()
    await world.rest()
    world.tell(make_lock_name(*NAME))
    await behind
    third.leave()


async def test_a_process_that_died_is_waited_for_as_long_as_its_lease(world: World) -> None:
    await world.one.enter(NAME, QueueTicket())  # and nothing more is heard of it
    waiting = await begun(world, world.other, QueueTicket())
    world.tell()
    await world.rest()
    assert not waiting.done()
    world.now += LEASE_S
    world.tell()
    await waiting


async def test_a_lease_for_a_request_that_gives_up_is_released(world: World) -> None:
    with QueueTicket() as ticket:
        entering = asyncio.create_task(world.one.try_enter(NAME, ticket))
        await asyncio.sleep(0)  # it has asked
        entering.cancel()
        await asyncio.wait([entering])
    await world.rest()
    assert len(world.one) == 0
    assert await world.other.try_enter(NAME, QueueTicket())


@pytest.mark.parametrize("waits", [False, True])
async def test_a_lease_that_comes_after_a_request_has_given_up_is_released(world: World, waits: bool) -> None:
    """A database that performs two writes of one process as it likes grants the lock after it was released."""
    locks = world.locks[0]
    locks.grants = Gate()
    enter = world.one.enter if waits else world.one.try_enter
    entering = asyncio.create_task(enter(NAME, QueueTicket()))
    await world.rest()
    entering.cancel()
    await world.rest()
    again = asyncio.create_task(world.one.try_enter(NAME, QueueTicket()))
    await world.rest()
    again.cancel()
    await world.rest()
    locks.grants.open()
    await world.rest()
    assert entering.cancelled()
    assert await world.other.try_enter(NAME, QueueTicket())


async def test_a_failed_release_is_repeated_when_the_database_works_again(world: World) -> None:
    locks = world.locks[0]
    first, second, third = QueueTicket(), QueueTicket(), QueueTicket()
    await world.one.enter(NAME, first)
    locks.is_broken = True
    first.leave()
    await world.rest()
    waiting = await begun(world, world.other, second)
    assert not waiting.done()
    locks.is_broken = False
    for recovered in locks.recoveries:
        recovered()
    await world.rest()
    world.tell(make_lock_name(*NAME))
    await waiting
    # Only once: what is taken again is not released while its holder needs it.
    behind = await begun(world, world.one, third)
    second.leave()
    await world.rest()
    world.tell(make_lock_name(*NAME))
    await behind
    for recovered in locks.recoveries:
        recovered()
    await world.rest()
    assert await locks.load_held([make_lock_name(*NAME)])
    third.leave()


async def test_leases_are_renewed_as_soon_as_the_database_works_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_INTERVAL_S", 3600.0)
    renewing = asyncio.create_task(world.leases[0].run())
    await world.one.enter(NAME, QueueTicket())
    await world.rest()
    world.now += LEASE_S
    for recovered in world.locks[0].recoveries:
        recovered()
    await world.rest()
    assert not await world.other.try_enter(NAME, QueueTicket())
    renewing.cancel()


async def test_a_lease_that_is_acquired_during_a_recovery_is_held(world: World) -> None:
    locks, first, second = world.locks[0], QueueTicket(), QueueTicket()
    await world.one.enter(NAME, first)
    locks.is_broken = True
    first.leave()
    locks.is_broken = False
    entering = asyncio.create_task(world.one.enter(NAME, second))
    await asyncio.sleep(0)  # it has asked
    for recovered in locks.recoveries:
        recovered()
    await entering
    await world.rest()
    assert await locks.load_held([make_lock_name(*NAME)])


async def test_a_client_that_leaves_while_it_waits_blocks_no_other(world: World) -> None:
    first, third = QueueTicket(), QueueTicket()
    await world.one.enter(NAME, first)
    waiting = await begun(world, world.other, QueueTicket())
    waiting.cancel()
    await world.rest()
    first.leave()
    await world.rest()
    await world.one.enter(NAME, third)
    third.leave()
    await world.rest()
    assert len(world.one) == len(world.other) == 0


async def test_a_request_that_enters_a_free_queue_does_not_wait(world: World) -> None:
    first, second = QueueTicket(), QueueTicket()
    await world.one.enter(NAME, first)
    assert not await world.one.try_enter(NAME, second)
    assert not await world.other.try_enter(NAME, second)
    assert len(world.other) == 0
    first.leave()
    await world.rest()
    assert await world.other.try_enter(NAME, second)
    second.leave()


async def test_a_reserved_place_is_seen_by_others_when_it_is_taken(world: World) -> None:
    reserved = world.one.reserve(NAME)
    await world.rest()
    elsewhere = QueueTicket()
    await world.other.enter(NAME, elsewhere)
    behind = await begun(world, world.one, QueueTicket())
    taking = asyncio.create_task(reserved.wait())
    await world.rest()
    assert not taking.done()
    elsewhere.leave()
    await world.rest()
    world.tell(make_lock_name(*NAME))
    await taking
    assert not behind.done()
    reserved.drop()
    await behind
