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

# Chosen: a request waits so long at most for the conversation of a gateway that was killed.
LEASE_S = 15.0
# Leases are prolonged so often that one of three may fail.
PROLONG_S = LEASE_S / 3
_log = logging.getLogger("mnemogate")


def lock_name(agent: str, conversation: str) -> str:
    """Returns the name of a conversation's lock: a hash, since clients name conversations as they like."""
    return hashlib.sha256(f"{agent}\0{conversation}".encode()).hexdigest()[:32]


class Leases:
    """The locks that requests of this process hold or wait for. One request at a time asks for a lock."""

    def __init__(self, locks: ConversationLocks) -> None:
        self._locks = locks
        self._held: set[str] = set()
        # Those that are on their way back, by the write of that; None: it has failed.
        self._leaving: dict[str, asyncio.Future[None] | None] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        self._any = asyncio.Event()
        locks.heard(self._heard)
        locks.recovered(self._give_again)

    @property
    def is_needed(self) -> bool:
        return self._locks.is_needed

    async def try_take(self, name: str) -> bool:
        """Takes a lock if it is free. Raises: Unavailable."""
        if (giving := self._leaving.get(name)) is not None:
            await asyncio.wait([giving])
        if not await self._locks.take(name, LEASE_S):
            return False
        self._leaving.pop(name, None)
        self._held.add(name)
        self._any.set()
        return True

    async def take(self, name: str) -> None:
        """Waits until the lock is held here. Raises: Unavailable."""
        freed = self._waiting[name] = asyncio.Event()
        try:
            while not await self.try_take(name):
                freed.clear()
                left = await self._locks.want(name)
                if left is not None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(left, LEASE_S) + 0.01):
                            await freed.wait()
        except BaseException:
            # It may have been handed over in this moment.
            self.give(name)
            raise
        finally:
            del self._waiting[name]

    def give(self, name: str) -> asyncio.Future[None] | None:
        """Gives a lock back. Returns the write of that; None: it cannot be written now.

        Where it fails the lock is given back as soon as the database works again, or its lease runs out.
        """
        self._held.discard(name)
        self._leaving[name] = None
        with suppress(StoreError):
            giving = self._leaving[name] = self._locks.give(name, LEASE_S)
            giving.add_done_callback(partial(self._given, name))
        return self._leaving[name]

    async def run(self) -> None:
        """Prolongs the leases that are held, until it is cancelled."""
        while True:
            await self._any.wait()
            await asyncio.sleep(PROLONG_S)
            try:
                if self._held:
                    await self._locks.prolong(self._held, LEASE_S)
                else:
                    self._any.clear()
            except StoreError as error:
                _log.warning(
                    "Locks on conversations could not be prolonged. Trying again in %g s: %s",
                    PROLONG_S, error.message,
                )  # fmt: skip

    def _given(self, name: str, giving: asyncio.Future[None]) -> None:
        if self._leaving.get(name) is giving:
            if giving.cancelled() or giving.exception() is not None:
                self._leaving[name] = None
            else:
                del self._leaving[name]

    def _give_again(self) -> None:
        for name in [name for name, giving in self._leaving.items() if giving is None]:
            self.give(name)

    def _heard(self, name: str | None) -> None:
        for each, freed in self._waiting.items():
            if name in (None, each):
                freed.set()
