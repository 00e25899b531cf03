"""The queue of a conversation that the gateway writes: a request begins when the one before it has been written."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType

from gateway.core.conversation.kind import QueueName
from gateway.errors import TooManySends
from gateway.run.memory.leases import Leases, make_lock_name

# The Retry-After of a request for which its conversation's queue has no room. Not measured: with a longer one a client
# waits though there is room, with a shorter one it is refused more often.
_RETRY_AFTER_S = 1.0


class QueueTicket:
    """A request's ticket in the queue of its conversation; a conversation without a queue does not fill it in.

        with QueueTicket() as ticket: ...

    The end of the `with` leaves the queue, however the request ended. If the ticket was transferred to the write of the
    turn, the end of that write leaves the queue instead, and the next request waits for it.
    """

    # These are defaults of the class, since nearly all tickets stay as they are made.
    # Lets the next request begin; None: the requests before this one have not left the queue.
    _let_next_begin: Callable[[], None] | None = None
    # Releases the conversation's lock, for which other processes wait; None: the lock is not held.
    _release_lock: Callable[[], asyncio.Future[None] | None] | None = None
    # True: the write of the turn leaves the queue.
    _is_transferred = False
    # The longest wait until the requests before have left; None: no limit.
    timeout_s: float | None = None

    @property
    def holds_lock(self) -> bool:
        """True: this request holds the conversation's lock."""
        return self._release_lock is not None

    @property
    def is_first(self) -> bool:
        """True: the requests before this one have left the queue of this process."""
        return self._let_next_begin is not None

    def __enter__(self) -> QueueTicket:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._let_next_begin is not None and not self._is_transferred:
            self.leave()

    def hold(self, let_next_begin: Callable[[], None]) -> None:
        """Notes that it is this request's turn. let_next_begin: called when the queue is left."""
        self._let_next_begin = let_next_begin

    def hold_lock(self, release_lock: Callable[[], asyncio.Future[None] | None]) -> None:
        """Notes that the conversation's lock is held. release_lock: releases it, as `Leases.release`."""
        self._release_lock = release_lock

    def release_lock(self) -> None:
        """Lets other processes continue the conversation. The ticket stays first in the queue of this process."""
        release_lock, self._release_lock = self._release_lock, None
        if release_lock is not None:
            release_lock()

    def transfer(self) -> None:
        """Transfers the ticket to the write of the turn, which has to `leave` the queue."""
        self._is_transferred = True

    def leave(self) -> None:
        """Lets the next request begin, once the release of the lock is written. Idempotent."""
        let_next_begin, self._let_next_begin = self._let_next_begin, None
        release_lock, self._release_lock = self._release_lock, None
        if let_next_begin is None:
            return
        release = None if release_lock is None else release_lock()
        if release is None:
            let_next_begin()
        else:
            release.add_done_callback(lambda _: let_next_begin())


class Reservation:
    """A ticket of a queue for a later request. Other processes wait for the ticket only once it is used."""

    def __init__(
        self,
        entry: Coroutine[None, None, None],
        ticket: QueueTicket,
        acquire_lock: Callable[[QueueTicket], Coroutine[None, None, None]],
    ) -> None:
        """Begins to wait in the queue.

        entry: waits until the ticket is the first of this process.
        acquire_lock: acquires the conversation's lock for a ticket.
        """
        self._ticket = ticket
        # The wait until the ticket is the first of this process.
        self._entry = asyncio.ensure_future(entry)
        self._acquire_lock = acquire_lock

    async def wait(self) -> QueueTicket:
        """Waits until it is this ticket's turn. The ticket stays reserved if the wait is cancelled, or fails."""
        await asyncio.shield(self._entry)
        await self._acquire_lock(self._ticket)
        return self._ticket

    def release_lock(self) -> None:
        """Lets other processes continue the conversation until the next `wait`."""
        self._ticket.release_lock()

    def drop(self) -> None:
        """Gives the ticket up, and leaves the queue."""
        self._entry.cancel()
        self._ticket.leave()


class Queues:
    """The queues that are in use."""

    def __init__(self, leases: Leases) -> None:
        """Begins without queues.

        leases: the locks of conversations, which are acquired as well where several processes share the database.
        """
        self._leases = leases
        # The lock that orders the requests of this process, by queue.
        self._locks: dict[QueueName, asyncio.Lock] = {}
        # The number of requests in each queue.
        self._counts: Counter[QueueName] = Counter()
        # The number of the requests that have a limit, in each queue.
        self._limited_counts: Counter[QueueName] = Counter()

    def __len__(self) -> int:
        return len(self._locks)

    def is_in_use(self, name: QueueName) -> bool:
        """Returns whether a request of this process is in a queue, or waits to enter it."""
        return name in self._locks

    async def try_enter(self, name: QueueName, ticket: QueueTicket) -> bool:
        """Enters a queue if it is empty. Returns whether it was. Raises: StoreUnavailable."""
        if self.is_in_use(name):
            return False
        await self.enter_here(name, ticket)
        if self._leases.is_needed:
            lock = make_lock_name(*name)
            try:
                is_acquired = await self._leases.try_acquire(lock)
            except BaseException:
                self._leases.release(lock)  # it may have been granted at this moment
                raise
            if not is_acquired:
                ticket.leave()
                return False
            ticket.hold_lock(partial(self._leases.release, lock))
        return True

    async def enter(
        self,
        name: QueueName,
        ticket: QueueTicket,
        max_waiting: int | None = None,
        arrival: QueueTicket | None = None,
    ) -> None:
        """Waits until the requests before this one have left.

        max_waiting: the most requests with a limit that may be in the queue; None: this request has no limit.
        arrival: the ticket of another queue, which the request leaves once it is in this one; None: there is none.

        Raises: TooManySends, StoreUnavailable.
        """
        if arrival is not None:
            # The next request of that queue begins in a later pass of the loop, when this one waits here.
            arrival.leave()
        await self.enter_here(name, ticket, max_waiting)
        try:
            await self.acquire_lock(name, ticket)
        except BaseException:
            ticket.leave()
            raise

    async def acquire_lock(self, name: QueueName, ticket: QueueTicket) -> None:
        """Waits until no other process answers a request of the conversation. Raises: StoreUnavailable."""
        if self._leases.is_needed and not ticket.holds_lock:
            lock = make_lock_name(*name)
            await self._leases.acquire(lock)
            ticket.hold_lock(partial(self._leases.release, lock))

    async def enter_here(self, name: QueueName, ticket: QueueTicket, max_waiting: int | None = None) -> None:
        """Waits until the requests of this process have left, whatever other processes do.

        max_waiting: the most requests with a limit that may be in the queue; None: this request has no limit.

        Raises: TooManySends.
        """
        if max_waiting is not None:
            if self._limited_counts[name] >= max_waiting:
                raise TooManySends(
                    f"{max_waiting} sends wait for this conversation already.", retry_after_s=_RETRY_AFTER_S
                )
            self._limited_counts[name] += 1
        self._counts[name] += 1
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            await lock.acquire()
        except BaseException:
            self._remove_from_counts(name, max_waiting)
            raise

        def let_next_begin() -> None:
            lock.release()
            self._remove_from_counts(name, max_waiting)

        ticket.hold(let_next_begin)

    def reserve(self, name: QueueName) -> Reservation:
        """Reserves the next ticket. No limit holds for it."""
        ticket = QueueTicket()
        return Reservation(self.enter_here(name, ticket), ticket, partial(self.acquire_lock, name))

    def _remove_from_counts(self, name: QueueName, max_waiting: int | None) -> None:
        """Counts a request that has left the queue."""
        self._counts[name] -= 1
        if max_waiting is not None:
            self._limited_counts[name] -= 1
            if not self._limited_counts[name]:
                del self._limited_counts[name]
        # The last request removes the queue, so that the table does not grow with every conversation.
        if not self._counts[name]:
            del self._counts[name]
            self._locks.pop(name, None)
