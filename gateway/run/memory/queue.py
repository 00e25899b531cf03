"""The queue of a conversation that the gateway writes: each request is answered from what the one before has left."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
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


class Reservation:
    """A place in a queue for somebody who comes later."""

    def __init__(self, entering: Coroutine[None, None, None], place: QueuePlace) -> None:
        self._place = place
        self._entering = asyncio.ensure_future(entering)

    async def taken(self) -> QueuePlace:
        """Waits until it is this place's turn. Given up, it stays reserved."""
        await asyncio.shield(self._entering)
        return self._place

    def drop(self) -> None:
        """Gives the place up."""
        self._entering.cancel()
        self._place.leave()


class Queues:
    """The queues in which somebody is. A queue is named by its memory and the conversation's key."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._inside: Counter[tuple[str, str]] = Counter()
        self._counted: Counter[tuple[str, str]] = Counter()  # those of them that a limit holds for

    def __len__(self) -> int:
        return len(self._locks)

    def is_free(self, name: tuple[str, str]) -> bool:
        """Returns whether nobody is in a queue, so that entering it now takes no time."""
        return name not in self._locks

    async def enter(self, name: tuple[str, str], place: QueuePlace, most: int | None = None) -> None:
        """Waits until the requests before this one have left.

        most: how many of those that have a limit may be in the queue; None: it has none. Raises: TooManySends.
        """
        if most is not None:
            if self._counted[name] >= most:
                raise TooManySends(
                    f"{most} sends wait for this conversation already.", retry_after_s=RETRY_AFTER_S
                )
            self._counted[name] += 1
        self._inside[name] += 1
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            await lock.acquire()
        except BaseException:
            self._left(name, most)
            raise

        def let_go() -> None:
            lock.release()
            self._left(name, most)

        place.take(let_go)

    def reserve(self, name: tuple[str, str]) -> Reservation:
        """Returns a place behind those who are in the queue now. No limit holds for it."""
        place = QueuePlace()
        return Reservation(self.enter(name, place), place)

    def _left(self, name: tuple[str, str], most: int | None) -> None:
        self._inside[name] -= 1
        if most is not None:
            self._counted[name] -= 1
            if not self._counted[name]:
                del self._counted[name]
        # The last request removes the queue, so that the table does not grow with every conversation.
        if not self._inside[name]:
            del self._inside[name]
            self._locks.pop(name, None)
