"""The memory edits of turns: pending until their turn is confirmed, then merged or dropped."""

from __future__ import annotations

from collections.abc import Iterable

from storage.database import Connection, Row
from storage.records import EditState, MemoryEdit
from storage.sql.group import StoreGroup, reads
from storage.sql.statements import load, load_column

SQL = load("turn_edits.sql")


async def add_edit(connection: Connection, agent_row: int, edit: MemoryEdit) -> bool:
    """Adds a memory edit of a turn. Returns False if the edit of this call of the turn is there already."""
    seen = edit.seen if edit.state is EditState.PENDING else None
    values = (
        agent_row, edit.exchange_row, edit.call_id, edit.state, edit.at, edit.op, edit.label, edit.arguments, seen,
    )  # fmt: skip
    return await connection.fetch_row(SQL["edit_insert"], values) is not None


async def load_edits(connection: Connection, agent_row: int, exchange_row: int) -> tuple[MemoryEdit, ...]:
    """Returns all memory edits of one turn."""
    rows = await connection.fetch_rows(SQL["edits_of_exchange"], (agent_row, exchange_row))
    return tuple(map(make_edit, rows))


def make_edit(row: Row) -> MemoryEdit:
    """Returns the record of a row of the piece `edit`."""
    edit_row, exchange_row, call_id, op, label, arguments, state, at, seen = row
    return MemoryEdit(
        edit_row, exchange_row, call_id, op, label, arguments, state=EditState(state), at=at, seen=seen
    )


async def settle_edits(
    connection: Connection, agent_row: int, edit_rows: Iterable[int], state: EditState
) -> None:
    """Marks pending edits as merged or dropped. Edits that were settled before stay as they are."""
    for edit_row in edit_rows:
        await connection.run(SQL["edit_settle"], (state, edit_row, agent_row))


async def drop_edits(connection: Connection, agent_row: int, exchange_row: int) -> None:
    """Drops the pending edits of a turn whose reply is made again. Calls of the new reply may have the same ids."""
    await connection.run(SQL["edits_drop"], (agent_row, exchange_row))


async def expire_edits(connection: Connection, agent_row: int, conversation_row: int, before: float) -> None:
    """Drops the pending edits of a conversation from before a time."""
    await connection.run(SQL["edits_expire"], (agent_row, conversation_row, before))


class TurnEdits(StoreGroup):
    """Reads of edits, for callers without a transaction of their own."""

    @reads
    async def list_pending_labels(self, connection: Connection, agent_row: int) -> tuple[str, ...]:
        """Returns the label of each pending edit, without edits of superseded turns."""
        return tuple(await load_column(connection, SQL["pending_labels"], (agent_row,)))
