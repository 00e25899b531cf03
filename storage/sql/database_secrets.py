"""Random keys that belong to the database: each is made once, and all processes over the database use the same."""

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
    """Loads the keys of a database, and makes those that are missing."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._database_id: bytes | None = None

    async def load_key(self, name: str) -> bytes:
        """Returns the key of a name, and makes it if the database has none. Raises: StoreError."""
        value = await self._database.read(lambda connection: connection.fetch_value(SQL["find"], (name,)))
        if value is None:
            values = (name, secrets.token_bytes(_KEY_BYTES))
            # If another process has made the key meanwhile, the statement returns that key.
            ((value,),) = await self._database.write_one(SQL["make"], values)
        return bytes(value)

    async def load_database_id(self) -> bytes:
        """Returns the id of the database. It is read once. Raises: StoreError."""
        if self._database_id is None:
            self._database_id = await self.load_key("database id")
        return self._database_id
