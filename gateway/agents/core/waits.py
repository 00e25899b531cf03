"""The graph of waiting turns: turns of agents that wait for other agents' answers, each in the queue of a conversation.

    with waits.begin(waiter, QueueName("b", "default")) as wait:
        ...  # the other agent's turn has this wait as its `awaited_by`

In a cycle of this graph each turn would wait until its deadline. So the wait that would close a cycle is refused when
it begins. There are two kinds of cycles:

- An agent asks itself, or an agent that waits for it, directly or through any number of other agents.
- Two turns began at the same time: each holds its conversation's queue, and asks in the queue that the other holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.core.conversation.kind import QueueName


class Deadlock(Exception):
    """A wait would close a cycle, so that no answer could come."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A turn that may wait."""

    # The agent of the turn.
    agent_uid: str
    # The queue that the turn holds; None: it holds no queue.
    queue: QueueName | None = None
    # The number of messages between agents that led to the turn.
    depth: int = 0
    # The wait for this turn's answer; None: no agent waits for it.
    awaited_by: Wait | None = None


@dataclass(eq=False, slots=True)
class Wait:
    """The wait of a turn for an answer."""

    # The turn that waits.
    waiter: Waiter
    # The queue of the conversation in which the other agent answers.
    queue: QueueName
    # True: the answer has come, or the turn has given up.
    is_over: bool = False


class Waits:
    """The open waits of this process. `begin` does not await, so no wait begins between its check and its start."""

    def __init__(self) -> None:
        self._open: set[Wait] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def begin(self, waiter: Waiter, queue: QueueName) -> Iterator[Wait]:
        """Holds a wait open up to the end of the block.

        queue: the queue of the conversation in which the other agent answers.

        Raises: Deadlock.
        """
        if _leads_back_to(waiter, queue.agent_uid) or self._waits_for(queue, waiter.queue):
            raise Deadlock
        wait = Wait(waiter, queue)
        self._open.add(wait)
        try:
            yield wait
        finally:
            wait.is_over = True
            self._open.discard(wait)

    def _waits_for(self, queue: QueueName, target: QueueName | None) -> bool:
        """Returns whether the holder of a queue waits for another queue, directly or through further holders."""
        visited, unvisited = {queue}, [queue]
        while unvisited:
            held_queue = unvisited.pop()
            awaited_queues = {wait.queue for wait in self._open if wait.waiter.queue == held_queue}
            if target in awaited_queues:
                return True
            unvisited += awaited_queues - visited
            visited |= awaited_queues
        return False


def _leads_back_to(waiter: Waiter, agent_uid: str) -> bool:
    """Returns whether a turn belongs to an agent, or the agent waits for the turn, directly or through other agents."""
    turn: Waiter | None = waiter
    while turn is not None:
        if turn.agent_uid == agent_uid:
            return True
        wait = turn.awaited_by
        turn = None if wait is None or wait.is_over else wait.waiter
    return False
