"""Leases on conversations: if several gateways share a database, one at a time has the queue of a conversation.

A queue in memory orders the requests of one process. The first of these requests acquires the lock that all processes
share. Over SQLite there is one process, and no lock.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress
from functools import partial

from storage.errors import StoreError
from storage.sql.conversation_locks import ConversationLocks

# The longest time that a request waits for the conversation of a gateway that was killed. Not measured: a shorter lease
# ends sooner while its gateway is only slow.
LEASE_S = 15.0
# The seconds between two renewals of a lease. Three attempts fit into a lease, so that one may fail.
RENEW_INTERVAL_S = LEASE_S / 3
# The pause between two attempts to acquire a lock with an ended lease, which no process may take over yet. Chosen, not
# measured.
_RETRY_S = 1.0
# The seconds after the computed end of a lease until the next attempt, so that the lease has ended by then.
_END_MARGIN_S = 0.01
_log = logging.getLogger("mnemogate")


def make_lock_name(agent: str, conversation: str) -> str:
    """Returns the name of a conversation's lock: a hash, since clients name conversations as they like."""
    return hashlib.sha256(f"{agent}\0{conversation}".encode()).hexdigest()[:32]


class Leases:
    """The locks that requests of this process hold or wait for. One request at a time acquires the same lock."""

    def __init__(self, locks: ConversationLocks) -> None:
        self._locks = locks
        # The names of the locks that are held.
        self._held_names: set[str] = set()
        # The attempts to acquire a lock that are under way, by the names of the locks.
        self._attempts: dict[str, asyncio.Future[bool]] = {}
        # The writes of locks that are being released, by the names of the locks; None: the write has failed.
        self._releasing: dict[str, asyncio.Future[None] | None] = {}
        # The events of requests that wait for a lock. An event is set when the lock may be free.
        self._release_events: dict[str, asyncio.Event] = {}
        # Is set while this process holds a lock.
        self._holds_any = asyncio.Event()
        # Is set when leases are to be renewed at once: after an outage they have ended, or end soon.
        self._renew_now = asyncio.Event()
        locks.add_release_listener(self._wake_waiting)
        locks.add_recovery_listener(self._retry_releases)
        locks.add_recovery_listener(self._renew_now.set)

    @property
    def is_needed(self) -> bool:
        return self._locks.is_needed

    async def try_acquire(self, name: str) -> bool:
        """Acquires a lock if it is free. Returns whether it is held now. Raises: StoreUnavailable."""
        # A release that has failed is not retried from now on, since it would release the lock that is acquired here. A
        # release that is being written is awaited.
        if (write := self._releasing.pop(name, None)) is not None:
            await asyncio.wait([write])
        attempt = self._attempts[name] = asyncio.ensure_future(self._locks.acquire(name, LEASE_S))
        attempt.add_done_callback(lambda _: self._attempts.pop(name))
        if not await asyncio.shield(attempt):
            return False
        self._held_names.add(name)
        self._holds_any.set()
        return True

    async def acquire(self, name: str) -> None:
        """Waits until the lock is held here. Raises: StoreUnavailable."""
        may_be_free = self._release_events[name] = asyncio.Event()
        try:
            while not await self.try_acquire(name):
                may_be_free.clear()
                remaining_s = await self._locks.request_handover(name)
                # None: the lock is free. 0: the lease has ended, but the lock may not be taken over yet.
                if remaining_s is not None:
                    pause_s = min(remaining_s, LEASE_S) + _END_MARGIN_S if remaining_s else _RETRY_S
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await may_be_free.wait()
        except BaseException:
            # The lock may have been granted at this moment.
            self.release(name)
            raise
        finally:
            del self._release_events[name]

    def release(self, name: str) -> asyncio.Future[None] | None:
        """Releases a lock. Returns the write of the release; None: the database cannot be written now.

        If the write fails, the lock is released when the database works again, or its lease runs out.
        """
        self._held_names.discard(name)
        self._releasing[name] = None
        attempt = self._attempts.get(name)
        try:
            write = (
                self._locks.release(name, LEASE_S) if attempt is None else self._release_after(attempt, name)
            )
        except StoreError:
            return None
        self._releasing[name] = write
        write.add_done_callback(partial(self._note_released, name))
        return write

    def _release_after(self, attempt: asyncio.Future[bool], name: str) -> asyncio.Future[None]:
        """Releases a lock once an attempt to acquire it has ended, for a request that was cancelled meanwhile.

        Over PostgreSQL the release might otherwise be performed first, and the lock granted to no request.
        """

        async def release() -> None:
            with suppress(StoreError):
                await attempt
            await self._locks.release(name, LEASE_S)

        return asyncio.ensure_future(release())

    async def run(self) -> None:
        """Renews the leases of the locks that are held, until it is cancelled."""
        while True:
            await self._holds_any.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_INTERVAL_S):
                    await self._renew_now.wait()
            self._renew_now.clear()
            try:
                if self._held_names:
                    # The request that holds a lock keeps on if another process has taken the lock over: correctness
                    # does not depend on a lease (`ConversationLocks`).
                    await self._locks.renew(self._held_names, LEASE_S)
                else:
                    self._holds_any.clear()
            except StoreError as error:
                _log.warning(
                    "Locks on conversations could not be renewed. Trying again in %g s: %s",
                    RENEW_INTERVAL_S, error.message,
                )  # fmt: skip

    def _note_released(self, name: str, write: asyncio.Future[None]) -> None:
        """Notes that the write which releases a lock has ended. If it has failed, the lock is released again later."""
        if self._releasing.get(name) is write:
            if write.cancelled() or write.exception() is not None:
                self._releasing[name] = None
            else:
                del self._releasing[name]

    def _retry_releases(self) -> None:
        for name in [name for name, write in self._releasing.items() if write is None]:
            self.release(name)

    def _wake_waiting(self, name: str | None) -> None:
        for each, may_be_free in self._release_events.items():
            if name in (None, each):
                may_be_free.set()
