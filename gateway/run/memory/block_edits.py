"""Stored memory blocks, brought up to what the settings declare when the process begins."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence

from gateway.core.agent import AgentSpec
from gateway.run.memory.leases import Leases, lock_name
from storage.errors import StoreError, Unavailable
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")


# The lock of those who follow their settings.
_LOCK = lock_name("", "settings")


async def follow_settings(store: Store, leases: Leases, agents: Sequence[AgentSpec], now: float) -> None:
    """Adds the blocks that the settings declare now to memories that are older than the settings.

    Settings are read once, when the process begins, so this is done once as well. Of processes that share a database
    one does it at a time, and not for settings that are followed already: those of two versions would take turns.

    Raises: StoreError: it is to be done again.
    """
    if not leases.is_needed:
        await _follow(store, agents, now)
        return
    digest = hashlib.sha256(repr([(a.name, a.own_blocks, a.shared_blocks) for a in agents]).encode()).digest()
    if await store.blocks.followed() == digest:
        return
    await leases.take(_LOCK)
    try:
        if await store.blocks.followed() != digest:
            await _follow(store, agents, now)
            await store.blocks.note_followed(digest)
    finally:
        leases.release(_LOCK)


async def _follow(store: Store, agents: Iterable[AgentSpec], now: float) -> None:
    for agent in agents:
        try:
            if agent.blocks:
                await store.blocks.follow(agent.name, agent.own_blocks, agent.shared_blocks, at=now)
        except Unavailable:
            raise
        except (
            StoreError
        ) as error:  # another attempt would do no better, and the other profiles have their blocks
            _log.error(
                "The memory blocks of profile %r could not be made as the settings have them: %s",
                agent.name,
                error.message,
            )
