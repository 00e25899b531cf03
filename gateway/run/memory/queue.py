"""The queue of a conversation that the gateway writes: each request is answered from what the one before has left."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType

from gateway.errors import TooManySends
from gateway.run.memory.leases import Leases, lock_name

RETRY_AFTER_S = 1.0


class QueueTicket:
    """A request's ticket in the queue of its conversation; empty where nothing queues.

        with QueueTicket() as ticket: ...

    The end of the `with` leaves the queue, however the request ended. Where a write of its turn has taken the ticket
    over, the next request has to wait for that, and the write leaves.
    """

    # Defaults of the class, since nearly all tickets stay as they are made.
    _let_next_begin: Callable[[], None] | None = None
    _is_handed_on = False
    # The longest wait for the requests before; None: as long as it takes.
    most_s: float | None = None
    # The conversation's lock is held for it, so that other processes wait as well.
    is_shared = False

    def __enter__(self) -> QueueTicket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._let_next_begin is not None and not self._is_handed_on:
            self.leave()

    def take(self, let_go: Callable[[], None]) -> None:
        """Holds the ticket from now on. let_go: lets the next request begin."""
        self._let_next_begin = let_go

    def share(self, let_go: Callable[[Callable[[], None]], None]) -> None:
        """Holds it before other processes, too. let_go: ends that, and then calls what lets the next request begin."""
        inner, self.is_shared = self._let_next_begin, True
        assert inner is not None
        self._let_next_begin = partial(let_go, inner)

    def hand_on(self) -> None:
        """Leaves it to a write to leave the queue."""
        self._is_handed_on = True

    def leave(self) -> None:
        """Lets the next request begin. Idempotent."""
        let_go, self._let_next_begin = self._let_next_begin, None
        self.is_shared = False
        if let_go is not None:
            let_go()


class Reservation:
    """A ticket of a queue for a later request. The other processes see it when it is taken."""

    def __init__(
        self,
        entering: Coroutine[None, None, None],
        ticket: QueueTicket,
        hold: Callable[[QueueTicket], Coroutine[None, None, None]],
    ) -> None:
        self._ticket = ticket
        self._entering = asyncio.ensure_future(entering)
        self._hold = hold

    async def taken(self) -> QueueTicket:
        """Waits until it is this ticket's turn. Given up, it stays reserved."""
        await asyncio.shield(self._entering)
        await self._hold(self._ticket)
        return self._ticket

    def drop(self) -> None:
        """Gives the ticket up."""
        self._entering.cancel()
        self._ticket.leave()


class Queues:
    """The queues that are in use. A queue is named by its memory and the conversation's key.

    leases: what is taken in addition where several processes share the database.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._inside: Counter[tuple[str, str]] = Counter()
        self._counted: Counter[tuple[str, str]] = Counter()  # those of them that a limit holds for

    def __len__(self) -> int:
        return len(self._locks)

    async def enter_free(self, name: tuple[str, str], ticket: QueueTicket) -> bool:
        """Enters an empty queue. False: it is not empty. Raises: Unavailable."""
        if name in self._locks:
            return False
        await self._enter(name, ticket)
        if self._leases.is_needed:
            if not await self._leases.try_take(lock_name(*name)):
                ticket.leave()
                return False
            self._give_back(name, ticket)
        return True

    async def enter(self, name: tuple[str, str], ticket: QueueTicket, most: int | None = None) -> None:
        """Waits until the requests before this one have left.

        most: how many of those that have a limit may be in the queue; None: it has none.
        Raises: TooManySends, Unavailable.
        """
        await self._enter(name, ticket, most)
        await self._hold(name, ticket)

    async def _hold(self, name: tuple[str, str], ticket: QueueTicket) -> None:
        """Waits until no other process is in the queue, either."""
        if self._leases.is_needed and not ticket.is_shared:
            try:
                await self._leases.take(lock_name(*name))
            except BaseException:
                ticket.leave()
                raise
            self._give_back(name, ticket)

    def _give_back(self, name: tuple[str, str], ticket: QueueTicket) -> None:
        """Makes a ticket return the lock when it is left; the next request here begins after that."""
        lock = lock_name(*name)

        def let_go(next_: Callable[[], None]) -> None:
            giving = self._leases.give(lock)
            if giving is None:
                next_()
            else:
                giving.add_done_callback(lambda _: next_())

        ticket.share(let_go)

    async def _enter(self, name: tuple[str, str], ticket: QueueTicket, most: int | None = None) -> None:
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

        ticket.take(let_go)

    def reserve(self, name: tuple[str, str]) -> Reservation:
        """Returns a ticket after those in the queue now. No limit holds for it."""
        ticket = QueueTicket()
        return Reservation(self._enter(name, ticket), ticket, partial(self._hold, name))

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
