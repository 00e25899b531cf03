"""Doubles of `storage.sql.keys.Keys`: one that fails, and two without keys."""

from __future__ import annotations

from storage.errors import StoreCorrupt
from storage.key_record import Key
from storage.sql.keys import IssuedKey
from tests.doubles.upstream import Gate


class BrokenKeys:
    """The database is damaged: each method raises `StoreCorrupt`."""

    async def create(self, project: str, name: str) -> IssuedKey:
        raise StoreCorrupt("damaged")

    async def revoke(self, name_or_id: str) -> Key:
        raise StoreCorrupt("damaged")

    async def list(self) -> tuple[Key, ...]:
        raise StoreCorrupt("damaged")

    async def find(self, presented: str) -> Key | None:
        raise StoreCorrupt("damaged")

    async def has_any(self) -> bool:
        raise StoreCorrupt("damaged")

    async def has_metrics_key(self) -> bool:
        raise StoreCorrupt("damaged")


class NoKeys(BrokenKeys):
    """No key exists, so none is demanded."""

    async def has_any(self) -> bool:
        return False


class HeldKeys(NoKeys):
    """No key exists, and the database is slow to say so."""

    def __init__(self) -> None:
        # Open once the first request waits for the database.
        self.has_request = Gate()
        # The database answers once this is open.
        self.answer = Gate()

    async def has_any(self) -> bool:
        self.has_request.open()
        await self.answer.wait()
        return await super().has_any()
