"""Decides when a memory is due for a job: after enough messages, or once it is idle.

It never delays a turn: a finished turn leaves a number in memory, and a task of its own enqueues the job. What a
process that died did not enqueue, the next one finds at its start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.run.background.loop import PeriodicTask
from storage.errors import Stale
from storage.sql.jobs import Jobs

# So many memories are read when the process starts.
AT_START = 10_000
# So many jobs are enqueued in a second, so that other work gets its turn among them.
_AT_ONCE = 64
_LEAST_S = 1.0


@dataclass(slots=True)
class _Waiting:
    """A memory that may come to rest. at: of the newest turn. messages: since the last job was enqueued.

    last: messages of the newest turn, where that is spared.
    """

    at: float
    messages: int = 0
    last: int = 0


@dataclass(eq=False)
class Schedule:
    """Enqueues one kind of job for memories that are due."""

    # In the log.
    name: str
    kind: str
    jobs: Jobs
    # Runs once, before the first step.
    start: Callable[[], Awaitable[None]]
    # Messages after which a memory is due.
    every: int
    # A memory without a turn for so long is due, too.
    rest_s: float
    # Seconds since the epoch, as turns are dated.
    now: Callable[[], float]
    # The newest turn does not count yet.
    spares_last: bool = False
    # The memories by agent, in the order of their newest turns, so that the first one comes to rest first.
    _waiting: dict[int, _Waiting] = field(default_factory=dict)
    # Agents that are due now.
    _full: set[int] = field(default_factory=set)
    _task: PeriodicTask = field(init=False)

    def __post_init__(self) -> None:
        self._task = PeriodicTask(self.name, self.step, self.start)

    def add(self, agent: int, messages: int, every: int | None = None, seq: int | None = None) -> None:
        """Counts the messages of a turn, which is on disk.

        every: in place of the schedule's.
        seq: the number of the first of them. With it a memory is due whenever so many numbers were taken, by
            whichever process; without it this one's messages are counted.
        """
        # Taken out and put back: it stands last then.
        waiting = self._waiting.pop(agent, None) or _Waiting(0.0)
        self._waiting[agent] = waiting
        waiting.at = self.now()
        waiting.last = messages if self.spares_last else 0
        waiting.messages += messages
        every, spoken = every or self.every, waiting.messages - waiting.last
        if seq is not None:
            end = seq + messages - waiting.last
            is_full = end // every > max(0, end - messages) // every
        else:
            is_full = spoken >= every
        if is_full:
            self._full.add(agent)
        if self._full or self._task.is_open_ended:
            self._task.wake()

    def enqueue_now(self, agents: Iterable[int]) -> None:
        """Makes these memories due, however many messages they have."""
        self._full.update(agents)
        self._task.wake()

    def enqueue_after_rest(self, agents: Iterable[int]) -> None:
        """Makes these memories due when they have come to rest."""
        for agent in agents:
            self._waiting.setdefault(agent, _Waiting(self.now(), messages=1))
        self._task.wake()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        await self._task.run()

    async def step(self) -> float | None:
        """Enqueues what is due. Returns the seconds until more will be; None: not before the next message."""
        now, left = self.now(), _AT_ONCE
        while self._full:
            if not left:
                return _LEAST_S
            left -= 1
            agent = next(iter(self._full))
            await self._enqueue(agent)
            self._full.discard(agent)
            if agent in self._waiting:
                self._waiting[agent].messages = self._waiting[agent].last
        while self._waiting:
            agent, waiting = next(iter(self._waiting.items()))
            # Apart in either direction counts as rest: the clock may have been put back.
            if abs(now - waiting.at) < self.rest_s:
                return max(_LEAST_S, waiting.at + self.rest_s - self.now())
            if waiting.messages:
                await self._enqueue(agent)
            # A turn may have ended while the job was enqueued.
            if self._waiting.get(agent) is waiting and abs(now - waiting.at) >= self.rest_s:
                del self._waiting[agent]
        return None

    async def _enqueue(self, agent: int) -> None:
        # Stale means that the memory is gone.
        with suppress(Stale):
            await self.jobs.enqueue(self.kind, agent, self.kind)
