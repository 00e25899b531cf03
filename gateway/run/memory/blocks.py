"""Memory blocks as the settings declare them, and the stored ones brought up to that when the process begins."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gateway.settings import BlockSettings, ProfileSettings
from storage.base import Store
from storage.errors import StoreError
from storage.records import Block

__all__ = ["declared", "declared_blocks", "follow_settings"]

_log = logging.getLogger("mnemogate")


def declared(b: BlockSettings, id: int = 0) -> Block:
    # Blocks that users share are read-only to models unless the operator says otherwise.
    return Block(id, b.label, b.description, b.value, b.limit, b.read_only or (b.shared and not b.writable))


def declared_blocks(profile: ProfileSettings) -> tuple[list[Block], list[Block]]:
    """Each user's own, and those that all users of the profile see."""
    return [declared(b) for b in profile.blocks if not b.shared], [
        declared(b) for b in profile.blocks if b.shared
    ]


async def follow_settings(store: Store, profiles: Iterable[ProfileSettings], now: float) -> None:
    """Settings are read once, when the process begins: who had a memory before is under them as well from then on."""
    for profile in profiles:
        own, shared = declared_blocks(profile)
        try:
            if own or shared:
                await store.blocks.follow(profile.name, own, shared, at=now)
        except StoreError as error:  # memory never keeps chat from being served
            _log.error("the memory blocks of profile %r stay as they were: %s", profile.name, error.message)
