"""Opens the database that the settings name. Other modules know the store's types; none knows what lies below it.

The one exception is gateway/cli.py, which asks the database's lock who serves it, and has to start fast.
"""

from __future__ import annotations

from gateway.core.memory.rules import RULES
from gateway.settings import Settings
from storage.open import open_store
from storage.search.rank import preload as preload
from storage.sql.keys import was_keyed as was_keyed
from storage.sql.store import Store


async def open_database(settings: Settings, address: str | None = None) -> Store:
    """Opens the store. address: of this process, if it serves; it is named to another one that wants the database.

    Raises: StoreError: why it cannot be opened.
    """
    database = settings.database
    return await open_store(database.path, RULES, address=address, synchronous=database.synchronous)
