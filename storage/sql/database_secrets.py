"""Random keys of the database's own. Each is made once; all processes over one database have the same."""

from __future__ import annotations

import secrets
from typing import Final

from storage.database import Database
from storage.sql.group import StoreGroup
from storage.sql.statements import load

SQL = load("secrets.sql")
# The bytes of a key, all of them random.
_KEY_BYTES: Final = 32


class DatabaseSecrets(StoreGroup):
    """Makes keys and finds them again."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._database_id: bytes | None = None

    async def load_key(self, name: str) -> bytes:
        """Returns the key of a name. Raises: StoreError."""
        value = await self._database.read(lambda connection: connection.fetch_value(SQL["find"], (name,)))
        if value is None:
            made = (name, secrets.token_bytes(_KEY_BYTES))
            ((value,),) = await self._database.write_one(SQL["make"], made)
        return bytes(value)

    async def load_database_id(self) -> bytes:
        """Returns the id of the database. It is read once. Raises: StoreError."""
        if self._database_id is None:
            self._database_id = await self.load_key("database id")
        return self._database_id
