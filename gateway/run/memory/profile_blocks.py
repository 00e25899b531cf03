"""Updates the blocks of stored memories to the settings of their profiles."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence

from gateway.core.agent import AgentSpec
from gateway.run.memory.leases import Leases, make_lock_name
from storage.errors import StoreError, StoreUnavailable
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# Held by the process that updates the blocks. No agent has the uid "", so no conversation's lock has this name.
_LOCK = make_lock_name("", "settings")


async def update_profile_blocks(
    store: Store, leases: Leases, profiles: Sequence[AgentSpec], now: float
) -> None:
    """Updates the blocks of all profiles' memories to the settings (`DefaultBlocks.follow`).

    now: seconds since the epoch.

    Missing blocks are added. Descriptions, limits, permissions and shared values that were never written to become
    those of the settings; other values stay.

    It is called once, when the process starts. Of the processes that share a database one updates at a time, and only
    if the settings are not those of the last update: otherwise processes with two versions of the settings would undo
    each other's work in turn.

    A profile with blocks that cannot be written is logged and passed over.

    Raises: StoreUnavailable: some profiles were not updated, so call it again.
    """
    if not leases.is_needed:
        await _update_blocks(store, profiles, now)
        return
    digest = hashlib.sha256(
        repr([(each.name, each.own_blocks, each.shared_blocks) for each in profiles]).encode()
    ).digest()
    if await store.default_blocks.find_followed_digest() == digest:
        return
    await leases.acquire(_LOCK)
    try:
        if await store.default_blocks.find_followed_digest() == digest:
            return
        # A profile that was passed over is tried again at the next start.
        if await _update_blocks(store, profiles, now):
            await store.default_blocks.note_followed(digest)
    finally:
        leases.release(_LOCK)


async def _update_blocks(store: Store, profiles: Iterable[AgentSpec], now: float) -> bool:
    """Gives the agents of each profile its present blocks. Returns whether no profile was passed over.

    now: seconds since the epoch.
    """
    is_complete = True
    for profile in profiles:
        try:
            if profile.blocks:
                await store.default_blocks.follow(
                    profile.name, profile.own_blocks, profile.shared_blocks, at=now
                )
        except StoreUnavailable:
            raise
        except StoreError as error:
            # Another attempt at once would fail as well. The other profiles still get their blocks.
            is_complete = False
            _log.error(
                "The memory blocks of profile %r could not be made as the settings have them: %s",
                profile.name,
                error.message,
            )
    return is_complete
