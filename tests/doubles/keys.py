"""Doubles of `storage.sql.keys.Keys`: one that fails, and one without keys."""

from __future__ import annotations

from storage.errors import Corrupt
from storage.key_record import Key
from storage.sql.keys import IssuedKey


class BrokenKeys:
    """The database is damaged: each method raises `Corrupt`."""

    async def create(self, project: str, name: str) -> IssuedKey:
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
    """No key exists, so none is demanded."""

    async def has_any(self) -> bool:
        return False
