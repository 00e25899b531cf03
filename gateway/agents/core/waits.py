"""The graph of waiting turns: turns of agents that wait for other agents' answers, each in the queue of a conversation.

    with waits.begin(waiter, ("b", "default")) as wait:
        ...  # the other's turn has `wait` above it

A circle would wait for ever, so it is refused when the wait begins that closes it. There are two kinds. A turn may
ask an agent that waits for it, through any number of others. It may ask one with a queue held by a turn that waits
for the queue which the asker holds: neither has asked the other, but both began at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

QueueName = tuple[str, str]  # the uid of an agent's memory, the key of a stored conversation


class WaitsInCircle(Exception):
    """A wait would close a circle, so it never ended."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A turn that may wait."""

    # The uid of the agent.
    agent: str
    # The queue that the turn holds, if any.
    queue: QueueName | None = None
    # The number of messages between agents that led to the turn.
    depth: int = 0
    # The turn that waits for this one.
    above: Wait | None = None


@dataclass(eq=False, slots=True)
class Wait:
    """A turn's waiting for one that answers in a queue. is_over: with an answer, or given up."""

    by: Waiter
    queue: QueueName
    is_over: bool = False


class Waits:
    """All waits that are under way. Nothing here is awaited, so a check and its wait are one."""

    def __init__(self) -> None:
        self._open: set[Wait] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def begin(self, by: Waiter, queue: QueueName) -> Iterator[Wait]:
        """Notes a wait up to the end of the block. Raises: WaitsInCircle."""
        if self._closes(by, queue):
            raise WaitsInCircle
        wait = Wait(by, queue)
        self._open.add(wait)
        try:
            yield wait
        finally:
            wait.is_over = True
            self._open.discard(wait)

    def _closes(self, by: Waiter, queue: QueueName) -> bool:
        above: Waiter | None = by
        while above is not None:
            if above.agent == queue[0]:
                return True
            above = above.above.by if above.above is not None and not above.above.is_over else None
        # The holder of a queue waits in others: all that queue up after it wait for those as well.
        seen, due = {queue}, [queue]
        while due:
            at = due.pop()
            followers = {wait.queue for wait in self._open if wait.by.queue == at}
            if by.queue in followers:
                return True
            due += followers - seen
            seen |= followers
        return False
