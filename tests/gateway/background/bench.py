"""A worker over a store, with a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.run.background.job_context import Handler
from gateway.run.background.worker import Worker, WorkerLimits
from storage.records import Agent, Scope
from storage.sql.agents import find_or_create_agent
from storage.sql.jobs import Jobs
from storage.sql.store import Store
from storage.sqlite.operations import drive
from tests.patience import PATIENCE_S

LIMITS = WorkerLimits(concurrency=3, lease_s=60, heartbeat_s=20, tries=3, backoff_first_s=10)


class Time:
    """Moved by hand. sleepers: until when who sleeps."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.tick = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self.tick + seconds, future)
        self._sleepers.append(entry)
        try:
            await future
        finally:
            self._sleepers.remove(entry)

    def move(self, seconds: float, *, jump: float = 0.0) -> None:
        """jump: by how much the wall's clock moves in addition."""
        self.now += seconds + jump
        self.tick += seconds
        for until, future in self._sleepers:
            if until <= self.tick and not future.done():
                future.set_result(None)

    @property
    def asleep(self) -> list[float]:
        return [until - self.tick for until, future in self._sleepers if not future.done()]


class Bench:
    """A store, workers on it, and what they did."""

    def __init__(self, store: Store, time: Time, statements: list[str]) -> None:
        self.store = store
        self.jobs: Jobs = store.jobs
        self.time = time
        self.statements = statements
        self.outcomes: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = asyncio.Condition()

    def start(
        self,
        handlers: dict[str, Handler],
        limits: WorkerLimits = LIMITS,
        pause_s: Callable[[str], float] = lambda kind: 0.0,
    ) -> asyncio.Task[None]:
        worker = Worker(
            self.jobs,
            handlers,
            limits,
            self._count,
            pause_s=pause_s,
            sleep=self.time.sleep,
            jitter=lambda: 1.0,
        )
        task = asyncio.create_task(worker.run())
        self._tasks.append(task)
        return task

    def _count(self, kind: str, outcome: str) -> None:
        self.outcomes.append(outcome)

    async def until(self, claim: Callable[[], object]) -> None:
        """Lets others run until it is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not claim():
                await self._turn()

    async def _turn(self) -> None:
        await asyncio.sleep(0)

    async def settled(self, outcomes: int) -> None:
        """So many attempts have ended, and the workers have nothing to do."""
        await self.until(lambda: len(self.outcomes) >= outcomes)
        await self.quiet()

    async def quiet(self) -> None:
        """The writer is empty, and whatever was ready has run."""
        assert await self.store.drain(PATIENCE_S)
        for _ in range(20):
            await asyncio.sleep(0)
        assert await self.store.drain(PATIENCE_S)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def agent(self, user: str = "alice") -> Agent:
        draft = self.store.agents.get_draft(Scope("default", "default", f"user:{user}"))
        return await self.store.database.write(lambda connection: find_or_create_agent(connection, draft))

    def texts(self, agent: Agent) -> list[str]:
        return [passage.text for passage in drive(self.store.passages.list(agent.id))]
