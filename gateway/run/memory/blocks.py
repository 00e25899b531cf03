"""Stored memory blocks, brought up to what the settings declare when the process begins."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gateway.core.agent import AgentSpec
from storage.errors import StoreError
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")


async def follow_settings(store: Store, agents: Iterable[AgentSpec], now: float) -> None:
    """Gives users whose memory is older than the settings the blocks that the settings declare now.

    Settings are read once, when the process begins, so this is done once as well.
    """
    for agent in agents:
        try:
            if agent.blocks:
                await store.blocks.follow(agent.name, agent.own_blocks, agent.shared_blocks, at=now)
        except StoreError as error:  # memory never keeps chat from being served
            _log.error("the memory blocks of profile %r stay as they were: %s", agent.name, error.message)
