"""Export of a memory: pages of records without database ids.

The statements of a part are found by name: `<part>_read` reads a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from storage.database import Connection
from storage.errors import NotFound
from storage.records import Agent
from storage.sql.exchange_rows import make_exchange
from storage.sql.group import StoreGroup, long_reads, reads
from storage.sql.statements import load, load_rows
from storage.sql.transfer_definitions import read_attachments
from storage.sql.transfer_fields import FIELDS, READERS, get_kind
from storage.transfer_commands import ExportedRecord, TransferPart, TransferRecord

SQL = load("transfer.sql")

# The columns of the statement `export_end`.
_EXPORT_END = (
    "seq", "conversation", "block", "version", "edit", "definition", "file", "run", *READERS,
)  # fmt: skip
# Parts with `seq`, the number in the agent's order, as the cursor of their pages. Others have the row id.
_PAGED_BY_SEQ = ("exchange", "passage", "fact", "step", "imported", "imported_fact")
# The size of a page, about; a single exchange may be larger.
PAGE_BYTES = 1 << 20
# Exchanges that are read at once: one may be a megabyte, and all rows of a result are in memory. Not measured: fewer
# cost more statements for a page of small ones.
_ROWS_AT_ONCE = 8


class ExportReader(StoreGroup):
    """Reads the records of a memory, part by part."""

    @reads
    async def find_end(self, connection: Connection, agent: Agent) -> dict[str, int]:
        """Returns the end of an export that begins now, for `load_page`: part -> its last row. Raises: NotFound.

        The part `seq` has the last number that was given out; `learner` and `rule` have how far learning with and
        without a model has come.
        """
        row = await connection.fetch_row(SQL["export_end"], (agent.id,))
        if row is None:
            raise NotFound("this memory is gone")
        return {name: last or 0 for name, last in zip(_EXPORT_END, row, strict=True)}

    @long_reads
    async def load_page(
        self,
        connection: Connection,
        agent: Agent,
        part: TransferPart,
        cursor: int,
        limit: int,
        export_end: Mapping[str, int],
    ) -> list[ExportedRecord]:
        """Returns a page of the records of one part.

        Records after `export_end` are left out: later turns would refer to records that are not exported.

        cursor: the cursor of the last record on the previous page; 0: the page is the first.
        limit: the most records of the page.
        export_end: the result of `find_end` when the export began.
        """
        if part == "attached":
            attached = await read_attachments(connection, agent.id, cursor, limit)
            return [ExportedRecord(number, TransferRecord(values)) for number, values in attached]
        if part == "learned":
            # Learning goes on from its position when the export began: the importing gateway learns later facts again.
            positions = [(reader, export_end.get(reader)) for reader in READERS]
            return [
                ExportedRecord(number, TransferRecord({"seq": seq, "reader": reader}))
                for number, (reader, seq) in enumerate(positions, 1)
                if seq and number > cursor
            ]
        if part == "exchange":
            records = await _load_exchange_page(connection, agent.id, cursor, limit)
        else:
            records = await _load_page(connection, agent.id, part, cursor, limit, export_end)
        last_cursor = export_end.get("seq" if part in _PAGED_BY_SEQ else part)
        return [record for record in records if last_cursor is None or record.cursor <= last_cursor]


async def _load_page(
    connection: Connection,
    agent_row: int,
    part: TransferPart,
    cursor: int,
    limit: int,
    export_end: Mapping[str, int],
) -> list[ExportedRecord]:
    """Reads a page of any part but exchanges.

    The first column of a row is the cursor of the next record. References to exchanges that are gone are left out.

    export_end: the records at which the export ends. A fact that was superseded later is exported as valid, an edit
        that was merged later as pending.
    """
    ends = {"ended": ("seq",), "edit": ("seq", "version")}.get(part, ())
    arguments = (agent_row, cursor, limit, *(export_end[name] for name in ends))
    rows = await connection.fetch_rows(SQL[f"{part}_read"], arguments)
    records = [_make_values(part, columns) for _, *columns in rows]
    await _number_exchanges(connection, agent_row, records)
    return [ExportedRecord(row[0], TransferRecord(values)) for row, values in zip(rows, records, strict=True)]


def _make_values(part: TransferPart, columns: Sequence[Any]) -> dict[str, Any]:
    """Returns the values of a record. columns: the columns of its row, in the order of `FIELDS`."""
    values = {}
    for name, column in zip(FIELDS[part], columns, strict=True):
        kind = get_kind(name)
        if kind.is_exported:
            values[name] = kind.from_column(column)
    return values


async def _number_exchanges(
    connection: Connection, agent_row: int, records: Sequence[dict[str, Any]]
) -> None:
    """Puts the numbers of exchanges in place of their rows. Exchanges that are gone are left out."""
    exchange_rows = {
        exchange_row
        for values in records
        for exchange_row in (values.get("exchange"), *values.get("sources", ()))
        if exchange_row is not None
    }
    seqs = {
        row[0]: row[1]
        for row in await load_rows(connection, SQL["seqs_of"], sorted(exchange_rows), agent_row)
    }
    for values in records:
        if "exchange" in values:
            values["exchange"] = seqs.get(values["exchange"])
        if "sources" in values:
            values["sources"] = [
                seqs[exchange_row] for exchange_row in values["sources"] if exchange_row in seqs
            ]


async def _load_exchange_page(
    connection: Connection, agent_row: int, cursor: int, limit: int
) -> list[ExportedRecord]:
    """Reads exchanges until they are about PAGE_BYTES or `limit`."""
    page: list[ExportedRecord] = []
    size = 0
    while size <= PAGE_BYTES and len(page) < limit:
        count = min(_ROWS_AT_ONCE, limit - len(page))
        last_seq = page[-1].cursor if page else cursor
        rows = await connection.fetch_rows(SQL["exchanges"], (agent_row, last_seq, count))
        for input_, shown_reply, full_reply, uid, parent, prior, *skeleton in rows:
            exchange = make_exchange(skeleton, input_, shown_reply, full_reply)
            values = {"conversation": uid, "parent": parent, "prior": prior}
            page.append(ExportedRecord(exchange.seq, TransferRecord(values, exchange)))
            size += exchange.content_bytes
        if len(rows) < count:
            break
    return page
