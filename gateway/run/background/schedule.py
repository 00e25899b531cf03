"""When a memory is due for a job beside its conversations: when enough was said in it, or nobody says any more.

Nothing of it is in the way of a turn: a finished one leaves a number in memory, and a task of its own enqueues the
job. What a process that died did not enqueue, the next one finds at its start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from gateway.run.background.loop import PeriodicTask
from storage.base import Jobs
from storage.errors import Stale

__all__ = ["AT_START", "Schedule"]

AT_START = 10_000  # memories that are looked after when the process begins
_AT_ONCE = 64  # of them in a second, so that other work takes its turn among theirs
_LEAST_S = 1.0


@dataclass(slots=True)
class _Waiting:
    """messages: since the last job was enqueued. last: of the newest turn."""

    at: float
    messages: int = 0
    last: int = 0


class Schedule:
    """name: in the log. kind: of the jobs, one for each memory. start: once, before the first round.

    every: messages after which a memory is due. rest_s: or after which time without any. spares_last: the newest turn
    does not count yet. now: seconds since the epoch, as turns are dated.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        jobs: Jobs,
        start: Callable[[], Awaitable[None]],
        *,
        every: int,
        rest_s: float,
        now: Callable[[], float],
        spares_last: bool = False,
    ) -> None:
        self.now = now
        self._kind = kind
        self._jobs = jobs
        self._every = every
        self._rest_s = rest_s
        self._spares_last = spares_last
        self._waiting: dict[int, _Waiting] = {}  # whoever spoke last stands last
        self._full: set[int] = set()
        self._rounds = PeriodicTask(name, start, self.step)

    def said(self, agent: int, messages: int) -> None:
        """A turn of a person's memory is on disk."""
        waiting = self._waiting.pop(agent, None) or _Waiting(0.0)
        self._waiting[agent] = waiting
        waiting.at = self.now()
        waiting.last = messages if self._spares_last else 0
        waiting.messages += messages
        if waiting.messages - waiting.last >= self._every:
            self._full.add(agent)
        if self._full or self._rounds.is_open_ended:
            self._rounds.wake()

    def at_once(self, agents: Iterable[int]) -> None:
        """There is something to do for these."""
        self._full.update(agents)
        self._rounds.wake()

    def later(self, agents: Iterable[int]) -> None:
        """Once they have been left alone."""
        for agent in agents:
            self._waiting.setdefault(agent, _Waiting(self.now(), messages=1))
        self._rounds.wake()

    async def run(self) -> None:
        """Until cancelled."""
        await self._rounds.run()

    async def step(self) -> float | None:
        """Enqueues what is due. Returns the seconds until there will be more; None: not before something is said."""
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
            if abs(now - waiting.at) < self._rest_s:  # on either side: the clock may have been put back
                return max(_LEAST_S, waiting.at + self._rest_s - self.now())
            if waiting.messages:
                await self._enqueue(agent)
            # Unless something was said meanwhile.
            if self._waiting.get(agent) is waiting and abs(now - waiting.at) >= self._rest_s:
                del self._waiting[agent]
        return None

    async def _enqueue(self, agent: int) -> None:
        with suppress(Stale):  # the memory is gone
            await self._jobs.enqueue(self._kind, agent, self._kind)
