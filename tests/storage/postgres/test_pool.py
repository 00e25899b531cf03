"""No caller waits for a connection that is never handed on: a caller that gives up passes its turn on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from storage.errors import StoreBusy, StoreClosed, StoreFailed, StoreTimeout, StoreUnavailable
from storage.postgres.connection import PostgresTarget
from storage.postgres.pool import ConnectionPool, PoolLimits
from tests.patience import PATIENCE_S, advance_loop

TARGET = PostgresTarget("postgresql://user@127.0.0.1:1/none")


class Session:
    """A connection that does nothing."""

    def __init__(self) -> None:
        self.closed = False

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True

    async def close(self, timeout: float | None = None) -> None:
        self.closed = True

    async def execute(self, statement: str, timeout: float | None = None) -> None:
        pass


class Server:
    """A server that opens sessions."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.most = 100  # sessions at once
        self.down = False  # no session is opened
        self.asked = asyncio.Event()  # set when a session is asked for
        self.openings = 0
        self.go_on = asyncio.Event()  # sessions are opened while it is set
        self.go_on.set()

    async def connect(self, target: PostgresTarget) -> Any:
        self.asked.set()
        self.openings += 1
        await self.go_on.wait()
        await asyncio.sleep(0)
        if self.down:
            raise StoreFailed(f"{target.name}: down")
        if sum(not each.closed for each in self.sessions) >= self.most:
            raise StoreBusy(f"{target.name}: sorry, too many clients already")
        self.sessions.append(Session())
        return self.sessions[-1]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr("storage.postgres.database_server.connect", made.connect)
    return made


async def open_pool(**limits: Any) -> ConnectionPool:
    async def prepare(_: Any) -> None:
        pass

    quick = {"retry_first_s": 0.001, "retry_max_s": 0.001, **limits}
    pool = ConnectionPool(TARGET, PoolLimits(**quick), prepare, lambda fault: None, lambda: None)
    await pool.server.start()
    return pool


async def becomes(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_connection_whose_caller_gave_up_while_it_was_opened_is_there_for_the_next(
    server: Server,
) -> None:
    """Else a pool whose connections take longer to open than a read waits would never grow."""
    pool = await open_pool(size=2)
    first = await pool.acquire()
    server.go_on.clear()
    for _ in range(3):
        with pytest.raises(StoreTimeout):
            await pool.acquire(wait_s=0.001)
    server.go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        second = await pool.acquire()
    assert [first, second] == server.sessions
    assert server.openings == 2
    await pool.close(1)


async def test_a_connection_that_is_opened_is_waited_for_longer(server: Server) -> None:
    """Else the first turns after a start have no memory where opening takes long."""
    pool = await open_pool(size=2)
    await pool.acquire()
    server.go_on.clear()
    server.asked.clear()
    opening = asyncio.create_task(pool.acquire(wait_s=0.001, opening_s=PATIENCE_S))
    await server.asked.wait()
    with pytest.raises(StoreTimeout):  # the pool is full, and this caller has waited longer than that
        await pool.acquire(wait_s=0.002, opening_s=PATIENCE_S)
    server.go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        assert await opening is server.sessions[1]
    await pool.close(1)


async def test_the_wait_before_an_opening_is_part_of_its_time(server: Server) -> None:
    """Else a read that waits first takes up to twice its deadline."""
    pool = await open_pool(size=1)
    raw = await pool.acquire()
    server.go_on.clear()
    opening = asyncio.create_task(pool.acquire(wait_s=3600.0, opening_s=3600.0))
    await asyncio.sleep(0)
    advance_loop(2000.0)
    server.asked.clear()
    raw.terminate()
    pool.release(raw)  # it is lost, so that the caller opens another one
    await server.asked.wait()
    advance_loop(2000.0)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(StoreTimeout):
            await opening
    server.go_on.set()
    await pool.close(1)


async def test_no_more_connections_are_opened_than_the_pool_has_room_for(server: Server) -> None:
    """Also by callers that come at once."""
    pool = await open_pool(size=3)

    async def use() -> None:
        raw = await pool.acquire()
        await asyncio.sleep(0)
        pool.release(raw)

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(use() for _ in range(20)))
    assert server.openings == len(server.sessions) == 3
    assert not any(each.closed for each in server.sessions)
    await pool.close(1)


@pytest.mark.parametrize("passes", range(6))
async def test_a_caller_that_comes_as_a_connection_was_opened_opens_no_further_one(
    server: Server, passes: int
) -> None:
    """The caller that it was opened for takes it some passes of the loop later. passes: after how many it comes."""
    pool = await open_pool(size=1)
    server.sessions[0].terminate()  # the server has closed what was idle
    server.go_on.clear()
    server.asked.clear()
    first = asyncio.create_task(pool.acquire())
    await server.asked.wait()
    server.go_on.set()
    for _ in range(passes):
        await asyncio.sleep(0)
    second = asyncio.create_task(pool.acquire())
    async with asyncio.timeout(PATIENCE_S):
        pool.release(await first)
        pool.release(await second)
    assert len(server.sessions) == 2
    await pool.close(1)


async def test_a_pool_that_closes_opens_nothing_any_more(server: Server) -> None:
    pool = await open_pool(size=2)
    await pool.acquire()
    server.go_on.clear()
    with pytest.raises(StoreTimeout):
        await pool.acquire(wait_s=0.001)
    async with asyncio.timeout(PATIENCE_S):
        await pool.close(1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_waiter_for_a_connection_whose_opening_was_given_up_opens_one(server: Server) -> None:
    pool = await open_pool(size=1)
    server.sessions[0].terminate()  # the server has closed what was idle
    server.go_on.clear()
    server.asked.clear()
    reading = asyncio.create_task(pool.acquire())
    await server.asked.wait()
    writing = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    reading.cancel()
    server.go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        pool.release(await writing)
    await pool.close(1)


async def test_a_connection_handed_to_a_caller_that_gives_up_goes_to_the_next(server: Server) -> None:
    pool = await open_pool(size=1)
    raw = await pool.acquire()
    first, second = (asyncio.create_task(pool.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    raw.terminate()
    pool.release(raw)  # it is lost, so that the first is to open another one
    first.cancel()
    async with asyncio.timeout(PATIENCE_S):
        pool.release(await second)
    await pool.close(1)


async def test_bulk_goes_on_where_other_bulk_has_given_up(server: Server) -> None:
    pool = await open_pool(size=1, bulk_connections=1)
    raw = await pool.acquire()
    first, second = (asyncio.create_task(pool.acquire(is_bulk=True)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    pool.release(raw)
    async with asyncio.timeout(PATIENCE_S):
        pool.release(await second, is_bulk=True)
    await pool.close(1)


async def test_how_long_a_turn_waits_is_known_in_every_thread(server: Server) -> None:
    """Health is asked for outside of the loop as well."""
    pool = await open_pool(size=1)
    raw = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await becomes(lambda: pool.longest_wait_s > 0)
    assert await asyncio.to_thread(lambda: pool.longest_wait_s) > 0
    pool.release(raw)
    pool.release(await waiting)
    await pool.close(0.0)


async def test_refusals_have_the_same_words_each_time_so_that_the_log_counts_them(server: Server) -> None:
    pool = await open_pool(size=1)
    raw = await pool.acquire()
    messages = set()
    for wait_s in (0.001, 0.0011):
        with pytest.raises(StoreTimeout) as refused:
            await pool.acquire(wait_s=wait_s)
        messages.add(refused.value.message)
    pool.release(raw)
    await pool.close(1)
    assert len(messages) == 1


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_no_caller_waits_for_ever_and_every_connection_is_known(
    server: Server, seed: int
) -> None:
    """Takers who leave, connections that are lost, a server that is full or down, in any order."""
    chance = random.Random(seed)
    size = chance.choice((1, 2, 4))
    server.most = chance.choice((1, 2, 8))
    pool = await open_pool(size=size, bulk_connections=min(2, size))

    async def use() -> None:
        is_bulk = chance.random() < 0.3
        try:
            raw = (None if is_bulk else pool.acquire_idle()) or await pool.acquire(is_bulk=is_bulk)
        except StoreUnavailable:
            return
        try:
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                raw.terminate()
            if chance.random() < 0.05:
                pool.server.fail(StoreFailed("a statement"))
        finally:
            # Reads alone are given up.
            if chance.random() < 0.1 and not is_bulk:
                pool.release_later(raw)
            else:
                pool.release(raw, is_bulk=is_bulk)

    users: list[asyncio.Task[None]] = []
    for _ in range(150):
        users.append(asyncio.create_task(use()))
        if chance.random() < 0.15:
            chance.choice(users).cancel()
        if chance.random() < 0.1:
            server.down = chance.random() < 0.3
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
    server.down = False
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*users, return_exceptions=True)
    await becomes(lambda: pool.server.fault is None)
    async with asyncio.timeout(PATIENCE_S):
        taken = [await pool.acquire() for _ in range(min(size, server.most))]
    assert set(taken) == {each for each in server.sessions if not each.closed}
    await pool.close(1)


async def test_a_caller_for_which_a_connection_is_opened_is_refused_by_close(server: Server) -> None:
    pool = await open_pool()
    await pool.acquire()
    server.asked.clear()
    server.go_on.clear()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.wait_for(server.asked.wait(), PATIENCE_S)
    await pool.close(1.0)
    with pytest.raises(StoreClosed):
        await asyncio.wait_for(waiting, PATIENCE_S)
