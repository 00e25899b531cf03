"""Stores of keys that fail, and that have none."""

from __future__ import annotations

from storage.errors import Corrupt
from storage.records import Key


class BrokenKeys:
    """A key book whose file is damaged."""

    async def create(self, project: str, name: str) -> tuple[Key, str]:
        raise Corrupt("damaged")

    async def revoke(self, name_or_id: str) -> Key:
        raise Corrupt("damaged")

    async def list(self) -> tuple[Key, ...]:
        raise Corrupt("damaged")

    async def find(self, presented: str) -> Key | None:
        raise Corrupt("damaged")

    async def has_any(self) -> bool:
        raise Corrupt("damaged")

    async def has_metrics_key(self) -> bool:
        raise Corrupt("damaged")


class NoKeys(BrokenKeys):
    async def has_any(self) -> bool:
        return False
