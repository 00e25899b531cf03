"""The epoch of a memory, which rises when something of it is forgotten, and when it is paused or resumed.

A write names the epoch under which its content was read. If the epoch has risen since, the content may quote forgotten
text, or the memory may not be written now. So the write is refused.
"""

from __future__ import annotations

import secrets

from storage.database import Connection
from storage.errors import StaleWrite
from storage.sql.statements import load

SQL = load("agents.sql")

# The distance of two first epochs: more than an epoch rises in the life of its memory.
_STEP = 1 << 32
# The number of first epochs. The largest is below 2**63, the end of a column's range.
_MAX_STEPS = 1 << 30


def make_first_epoch() -> int:
    """Returns a random epoch with which a memory may begin."""
    return secrets.randbelow(_MAX_STEPS) * _STEP


def has_risen(epoch: int) -> bool:
    """Returns False for the epoch with which a memory began: nothing of the memory was forgotten yet."""
    return epoch % _STEP != 0


async def find_epoch(connection: Connection, agent_row: int) -> int | None:
    """Returns the epoch of an agent's memory; None: the memory is gone."""
    return await connection.fetch_value(SQL["epoch"], (agent_row,))


async def lock_epoch(connection: Connection, agent_row: int) -> int | None:
    """Returns the epoch that an agent's memory has until the transaction ends; None: the memory is gone."""
    return await connection.fetch_value(SQL["lock_epoch"], (agent_row,))


async def lock_memory(connection: Connection, agent_row: int) -> None:
    """Locks an agent's memory until the transaction ends. Raises: StaleWrite if the memory is gone.

    Nothing would ever erase rows that are written for a memory that was forgotten before.
    """
    if await lock_epoch(connection, agent_row) is None:
        raise StaleWrite("this memory was forgotten meanwhile")
