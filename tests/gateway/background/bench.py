"""Workers over a store, with a clock that a test moves.

bench.start({"kind": handler})
await bench.wait_for_outcomes(1)
bench.time.move(60)
"""

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


class ManualClock:
    """A clock that a test moves, with a `sleep` of its own."""

    def __init__(self) -> None:
        # The wall clock, in seconds since the epoch.
        self.now = 1_000_000.0
        # The monotonic clock, in seconds.
        self.tick = 0.0
        # The end of each sleep by the monotonic clock, with the future that ends it.
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
        """Moves both clocks, and wakes the sleepers that are due. jump: further seconds of the wall clock alone."""
        self.now += seconds + jump
        self.tick += seconds
        for until, future in self._sleepers:
            if until <= self.tick and not future.done():
                future.set_result(None)

    @property
    def sleeps(self) -> list[float]:
        """The seconds that each sleeper has left."""
        return [until - self.tick for until, future in self._sleepers if not future.done()]


class Bench:
    """A store, its workers and the outcomes of their jobs."""

    def __init__(self, store: Store, time: ManualClock, statements: list[str]) -> None:
        self.store = store
        self.jobs: Jobs = store.jobs
        self.time = time
        # The statements that the store runs.
        self.statements = statements
        # The outcome of each attempt at a job.
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
            self._add_outcome,
            pause_s=pause_s,
            sleep=self.time.sleep,
            jitter=lambda: 1.0,
        )
        task = asyncio.create_task(worker.run())
        self._tasks.append(task)
        return task

    def _add_outcome(self, kind: str, outcome: str) -> None:
        self.outcomes.append(outcome)

    async def wait_until(self, condition: Callable[[], object]) -> None:
        """Lets other tasks run until a condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self._run_other_tasks()

    async def _run_other_tasks(self) -> None:
        await asyncio.sleep(0)

    async def wait_for_outcomes(self, count: int) -> None:
        """Waits until so many attempts have ended, and the workers are idle."""
        await self.wait_until(lambda: len(self.outcomes) >= count)
        await self.wait_until_idle()

    async def wait_until_idle(self) -> None:
        """Waits until the writer's queue is empty, and the tasks that were ready have run."""
        assert await self.store.drain(PATIENCE_S)
        for _ in range(20):
            await self._run_other_tasks()
        assert await self.store.drain(PATIENCE_S)

    async def stop(self) -> None:
        """Cancels all workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def create_agent(self, user: str = "alice") -> Agent:
        draft = self.store.agents.get_draft(Scope("default", "default", f"user:{user}"))
        return await self.store.database.write(lambda connection: find_or_create_agent(connection, draft))

    def list_texts(self, agent: Agent) -> list[str]:
        """Returns the texts of an agent's passages, which the handlers of tests write."""
        return [passage.text for passage in drive(self.store.passages.list_texts(agent.id))]
