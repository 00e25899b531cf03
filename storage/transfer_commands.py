"""Parameters and results of the transactions that export and import a memory, as values."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from msgspec import Struct

from storage.records import Exchange

# A part of a memory: the kind of its records. Parts are exported in this order, so a record comes after the records
# that it refers to.
TransferPart = Literal[
    "conversation", "definition", "exchange", "block", "version", "file", "passage", "fact", "ended", "learned", "edit",
    "tag", "attached", "run", "step", "import", "imported", "imported_fact",
]  # fmt: skip


class TransferRecord(Struct, frozen=True):
    """A record of an export."""

    # The columns of the record, without ids of the database; exchanges are given by their numbers.
    values: dict[str, Any]
    # The exchange with its content; None: the record is of another part than "exchange".
    exchange: Exchange | None = None


class ExportedRecord(NamedTuple):
    """A record on a page of an export."""

    # The cursor of a page that begins after the record.
    cursor: int
    # The record itself.
    record: TransferRecord


class ImportedRecord(NamedTuple):
    """A record that an import writes."""

    # The part of the memory that the record belongs to.
    part: TransferPart
    # The record itself.
    record: TransferRecord
