"""The queue of a conversation that the gateway writes: each request is answered from what the one before has left."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from gateway.errors import TooManySends

RETRY_AFTER_S = 1.0


class QueuePlace:
    """A request's place in the queue of its conversation; empty where nothing queues.

        with QueuePlace() as place: ...

    The end of the `with` leaves the queue, however the request ended. Where a write of its turn has taken the place
    over, the next request has to wait for that, and the write leaves.
    """

    def __init__(self) -> None:
        self._let_go: Callable[[], None] | None = None
        self._is_handed_on = False

    def __enter__(self) -> QueuePlace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_handed_on:
            self.leave()

    def take(self, let_go: Callable[[], None]) -> None:
        """Holds the place from now on. let_go: lets the next request begin."""
        self._let_go = let_go

    def hand_on(self) -> None:
        """Leaves it to a write to leave the queue."""
        self._is_handed_on = True

    def leave(self) -> None:
        """Lets the next request begin. Idempotent."""
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()


class Queues:
    """The queues in which somebody is. A queue is named by its memory and the conversation's key."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._inside: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return len(self._locks)

    def is_free(self, name: tuple[str, str]) -> bool:
        """Returns whether nobody is in a queue, so that entering it now takes no time."""
        return name not in self._locks

    async def enter(self, name: tuple[str, str], place: QueuePlace, most: int | None = None) -> None:
        """Waits until the requests before this one have left. most: how many may be in the queue; None: any number.

        Raises: TooManySends.
        """
        if most is not None and self._inside[name] >= most:
            raise TooManySends(
                f"{most} sends wait for this conversation already.", retry_after_s=RETRY_AFTER_S
            )
        self._inside[name] += 1
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            await lock.acquire()
        except BaseException:
            self._left(name)
            raise

        def let_go() -> None:
            lock.release()
            self._left(name)

        place.take(let_go)

    def _left(self, name: tuple[str, str]) -> None:
        self._inside[name] -= 1
        # The last request removes the queue, so that the table does not grow with every conversation.
        if not self._inside[name]:
            del self._inside[name]
            self._locks.pop(name, None)
