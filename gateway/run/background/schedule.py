"""Decides when a memory is due for a job: after enough messages, or once it is idle.

No turn is delayed: a turn that has ended is counted in memory, and a background task enqueues the job. If a process
ends before it has enqueued a job, another process finds the agent in the database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.run.background.tasks import MIN_PAUSE_S, PeriodicTask
from storage.errors import StaleWrite
from storage.sql.jobs import Jobs

# The most memories that one recovery finds. The next recovery finds others. Not measured: it bounds the memory that the
# list takes.
_MAX_MEMORIES_AT_ONCE = 10_000
# The most jobs that are enqueued before a pause, so that other writes get their turn. Not measured: with `MIN_PAUSE_S`
# it is the most jobs a second.
_MAX_JOBS_AT_ONCE = 64
# A number of messages or turns that no memory reaches: it is due by its idle time alone.
NEVER = 2**62


@dataclass(slots=True)
class _Activity:
    """The turns of a memory since its last job was enqueued."""

    # The time at which the newest turn ended.
    last_turn_at: float
    # The number of messages of these turns.
    message_count: int = 0
    # The number of messages of the newest turn, if this turn does not count yet.
    uncounted_messages: int = field(default=0, init=False)


@dataclass(eq=False)
class Schedule:
    """Enqueues one kind of job for memories that are due."""

    # The name of the schedule's task in the log.
    name: str
    # The kind of the jobs.
    kind: str
    # The queue of jobs.
    jobs: Jobs
    # Returns the rows of memories in the database that need such a job. The argument is the most rows.
    find_rows: Callable[[int], Awaitable[Sequence[int]]]
    # The number of messages after which a memory is due.
    every: int
    # The time without a turn after which a memory with new messages is also due.
    idle_s: float
    # Returns the seconds since the epoch, by the clock that dates turns.
    now: Callable[[], float]
    # True: the newest turn of a memory counts only when the next one has ended, or the memory is idle.
    leaves_out_last: bool = False
    # The memories with new turns, by their rows. The memory without a turn for the longest time comes first.
    _activities: dict[int, _Activity] = field(default_factory=dict, init=False)
    # The rows of the memories that are due now.
    _due_rows: set[int] = field(default_factory=set, init=False)
    # True: `recover` has found the memories that were left when the process began.
    _has_recovered: bool = field(default=False, init=False)
    # The task that enqueues the jobs.
    task: PeriodicTask = field(init=False)

    def __post_init__(self) -> None:
        self.task = PeriodicTask(self.name, self.perform_due)

    def add(self, agent_row: int, messages: int, every: int | None = None, seq: int | None = None) -> None:
        """Counts the messages of a turn that is stored.

        every: the number of messages after which the memory is due; None: `Schedule.every`.
        seq: the number of the turn's first message. Then a memory is due each time its numbers pass a multiple of
            `every`, whichever process has stored the messages. None: the memory is due after `every` messages of this
            process.
        """
        # The entry moves to the end of the order.
        activity = self._activities.pop(agent_row, None) or _Activity(0.0)
        self._activities[agent_row] = activity
        activity.last_turn_at = self.now()
        if self._count_turn(activity, messages, every or self.every, seq):
            self._due_rows.add(agent_row)
        if self._due_rows or self.task.sleeps_until_woken:
            self.task.wake()

    def _count_turn(self, activity: _Activity, messages: int, every: int, seq: int | None) -> bool:
        """Counts the messages of a turn, or of the turn before. Returns whether the memory is due now.

        The parameters are those of `add`.
        """
        # The messages that count from now on: with `leaves_out_last`, those of the turn before. If this process has not
        # stored that turn, this turn's number is a guess.
        counted_messages = (activity.uncounted_messages or messages) if self.leaves_out_last else messages
        activity.uncounted_messages = messages if self.leaves_out_last else 0
        activity.message_count += messages
        if seq is None:
            return activity.message_count - activity.uncounted_messages >= every
        end = seq + messages - activity.uncounted_messages
        return end // every > max(0, end - counted_messages) // every

    def enqueue_now(self, agent_rows: Iterable[int]) -> None:
        """Makes these memories due, however many messages they have."""
        self._due_rows.update(agent_rows)
        self.task.wake()

    def enqueue_when_idle(self, agent_rows: Iterable[int]) -> None:
        """Makes these memories due once they are idle."""
        for agent_row in agent_rows:
            self._activities.setdefault(agent_row, _Activity(self.now(), message_count=1))
        self.task.wake()

    async def recover(self) -> None:
        """Finds the memories for which processes that have ended did not enqueue a job.

        A memory with a turn that is under way is left to the process that answers it. The first call also takes
        memories with a job that has failed for good, since its cause may be gone.
        """
        unfinished = await self.find_rows(_MAX_MEMORIES_AT_ONCE)
        if self._has_recovered:
            self.enqueue_now(await self.jobs.find_idle(self.kind, unfinished, self.now() - self.idle_s))
        else:
            self.enqueue_when_idle(unfinished)
            self._has_recovered = True

    async def perform_due(self) -> float | None:
        """Enqueues the jobs that are due. Returns the seconds until the next step; None: until it is woken."""
        self._make_idle_due()
        for _ in range(_MAX_JOBS_AT_ONCE):
            if not self._due_rows:
                break
            # The memory's count restarts before the job is enqueued: a turn that ends meanwhile may come too late for
            # this job, so it has to count for the next one.
            agent_row = self._due_rows.pop()
            if (activity := self._activities.get(agent_row)) is not None:
                activity.message_count = activity.uncounted_messages
            try:
                await self._enqueue(agent_row)
            except BaseException:
                self._due_rows.add(agent_row)
                raise
        if self._due_rows:
            return MIN_PAUSE_S
        most_idle = next(iter(self._activities.values()), None)
        return (
            None if most_idle is None else max(MIN_PAUSE_S, most_idle.last_turn_at + self.idle_s - self.now())
        )

    def _make_idle_due(self) -> None:
        """Makes the memories due that are idle and have new messages."""
        now = self.now()
        while self._activities:
            agent_row, activity = next(iter(self._activities.items()))
            # A turn that is as far in the future counts as idle, too: the clock may have been set back.
            if abs(now - activity.last_turn_at) < self.idle_s:
                break
            del self._activities[agent_row]
            if activity.message_count:
                self._due_rows.add(agent_row)

    async def _enqueue(self, agent_row: int) -> None:
        with suppress(StaleWrite):  # the memory is gone
            await self.jobs.enqueue(self.kind, agent_row, self.kind)
