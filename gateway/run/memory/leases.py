"""Leases on conversations: where several gateways share a database, one of them has a conversation's queue at a time.

A queue in memory orders the requests of one process; the first of them then takes the lock that all processes share.
Over a file there is one process, and nothing to take.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress
from functools import partial

from storage.errors import StoreError
from storage.sql.conversation_locks import ConversationLocks

# The longest time that a request waits for the conversation of a gateway that was killed. No measurement.
LEASE_S = 15.0
# How often leases are prolonged: one of three attempts may fail.
PROLONG_S = LEASE_S / 3
# Between two attempts to take a lock that no process may take over yet, though its lease has ended. No measurement.
_ASK_AGAIN_S = 1.0
_log = logging.getLogger("mnemogate")


def lock_name(agent: str, conversation: str) -> str:
    """Returns the name of a conversation's lock: a hash, since clients name conversations as they like."""
    return hashlib.sha256(f"{agent}\0{conversation}".encode()).hexdigest()[:32]


class Leases:
    """The locks that requests of this process hold or wait for. Of the requests for one lock only the first asks."""

    def __init__(self, locks: ConversationLocks) -> None:
        self._locks = locks
        self._held: set[str] = set()
        # The locks that are being asked for.
        self._taking: dict[str, asyncio.Future[bool]] = {}
        # The writes of locks that are being released, by the names of the locks; None: the write has failed.
        self._releasing: dict[str, asyncio.Future[None] | None] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        # Set while this process holds a lock.
        self._holds_any = asyncio.Event()
        # Set when leases are to be prolonged at once: after an outage they have ended, or end soon.
        self._are_due = asyncio.Event()
        locks.when_released(self._wake_waiting)
        locks.when_recovered(self._release_again)
        locks.when_recovered(self._are_due.set)

    @property
    def is_needed(self) -> bool:
        return self._locks.is_needed

    async def try_take(self, name: str) -> bool:
        """Takes a lock if it is free. Raises: Unavailable."""
        # From now on it is not released again: the release would come after the lock is taken.
        if (write := self._releasing.pop(name, None)) is not None:
            await asyncio.wait([write])
        taking = self._taking[name] = asyncio.ensure_future(self._locks.take(name, LEASE_S))
        taking.add_done_callback(lambda _: self._taking.pop(name))
        if not await asyncio.shield(taking):
            return False
        self._held.add(name)
        self._holds_any.set()
        return True

    async def take(self, name: str) -> None:
        """Waits until the lock is held here. Raises: Unavailable."""
        freed = self._waiting[name] = asyncio.Event()
        try:
            while not await self.try_take(name):
                freed.clear()
                remaining_s = await self._locks.request(name)
                if remaining_s is not None:
                    pause_s = min(remaining_s, LEASE_S) + 0.01 if remaining_s else _ASK_AGAIN_S
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await freed.wait()
        except BaseException:
            # It may have been granted at this moment.
            self.release(name)
            raise
        finally:
            del self._waiting[name]

    def release(self, name: str) -> asyncio.Future[None] | None:
        """Releases a lock. Returns the write of the release; None where the database cannot be written now.

        Where the write fails, the lock is released as soon as the database works again, or its lease runs out.
        """
        self._held.discard(name)
        self._releasing[name] = None
        with suppress(StoreError):
            taking = self._taking.get(name)
            write = (
                self._locks.release(name, LEASE_S) if taking is None else self._release_after(taking, name)
            )
            self._releasing[name] = write
            write.add_done_callback(partial(self._note_released, name))
        return self._releasing[name]

    def _release_after(self, taking: asyncio.Future[bool], name: str) -> asyncio.Future[None]:
        """Releases a lock for a request that was given up while it asked for it.

        Over PostgreSQL the release might else be performed first, and the lock granted to no request.
        """

        async def release() -> None:
            with suppress(StoreError):
                await taking
            await self._locks.release(name, LEASE_S)

        return asyncio.ensure_future(release())

    async def run(self) -> None:
        """Prolongs the leases of the locks that are held, until it is cancelled."""
        while True:
            await self._holds_any.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(PROLONG_S):
                    await self._are_due.wait()
            self._are_due.clear()
            try:
                if self._held:
                    await self._locks.prolong(self._held, LEASE_S)
                else:
                    self._holds_any.clear()
            except StoreError as error:
                _log.warning(
                    "Locks on conversations could not be prolonged. Trying again in %g s: %s",
                    PROLONG_S, error.message,
                )  # fmt: skip

    def _note_released(self, name: str, write: asyncio.Future[None]) -> None:
        if self._releasing.get(name) is write:
            if write.cancelled() or write.exception() is not None:
                self._releasing[name] = None
            else:
                del self._releasing[name]

    def _release_again(self) -> None:
        for name in [name for name, write in self._releasing.items() if write is None]:
            self.release(name)

    def _wake_waiting(self, name: str | None) -> None:
        for each, freed in self._waiting.items():
            if name in (None, each):
                freed.set()
