"""The epoch of a memory, which rises when something of it is forgotten, and when it is paused or resumed.

What was read under an earlier epoch may quote what is gone, or was read of a memory that may not be written now. So a
write that rests on it is refused.
"""

from __future__ import annotations

from storage.database import Connection
from storage.errors import Stale
from storage.sql.statements import load

SQL = load("agents.sql")


async def load_epoch(connection: Connection, agent_row: int) -> int | None:
    """Returns the epoch of an agent's memory; None where it is gone."""
    epoch: int | None = await connection.value(SQL["epoch"], (agent_row,))
    return epoch


async def lock_epoch(connection: Connection, agent_row: int) -> int | None:
    """Returns the epoch that an agent's memory has until the transaction ends; None where it is gone."""
    epoch: int | None = await connection.value(SQL["lock_epoch"], (agent_row,))
    return epoch


async def lock_memory(connection: Connection, agent_row: int) -> None:
    """Locks an agent's memory until the transaction ends. Raises: Stale if the memory is gone.

    Nothing would ever erase what is written for a memory that was forgotten before.
    """
    if await lock_epoch(connection, agent_row) is None:
        raise Stale("this memory was forgotten meanwhile")
