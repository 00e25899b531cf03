"""Brings the blocks of memories that were stored before up to the settings of today."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence

from gateway.core.agent import AgentSpec
from gateway.run.memory.leases import Leases, lock_name
from storage.errors import StoreError, Unavailable
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The lock of the process that brings them up to the settings.
_LOCK = lock_name("", "settings")


async def update_profile_blocks(
    store: Store, leases: Leases, agents: Sequence[AgentSpec], now: float
) -> None:
    """Brings the blocks of all profiles' memories up to the settings (`Blocks.follow`).

    Missing blocks are added. Descriptions, limits, permissions and shared values that were never written to become
    those of the settings; other values stay.

    It is called once, when the process begins. Of processes that share a database one does it at a time, and not if it
    was done for the same settings: processes with two versions of them would undo each other's work in turn.

    Raises: StoreError: some blocks are not written, so call it again.
    """
    if not leases.is_needed:
        await _update_blocks(store, agents, now)
        return
    digest = hashlib.sha256(repr([(a.name, a.own_blocks, a.shared_blocks) for a in agents]).encode()).digest()
    if await store.blocks.load_followed_digest() == digest:
        return
    await leases.take(_LOCK)
    try:
        if await store.blocks.load_followed_digest() != digest:
            await _update_blocks(store, agents, now)
            await store.blocks.note_followed(digest)
    finally:
        leases.release(_LOCK)


async def _update_blocks(store: Store, agents: Iterable[AgentSpec], now: float) -> None:
    for agent in agents:
        try:
            if agent.blocks:
                await store.blocks.follow(agent.name, agent.own_blocks, agent.shared_blocks, at=now)
        except Unavailable:
            raise
        except StoreError as error:
            # Another attempt would fail as well, and the other profiles get their blocks.
            _log.error(
                "The memory blocks of profile %r could not be made as the settings have them: %s",
                agent.name,
                error.message,
            )
