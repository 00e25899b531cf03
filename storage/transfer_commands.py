"""Parameters and results of the transactions that export and import a memory, as values."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import Struct

from storage.records import Exchange


class TransferRecord(Struct, frozen=True):
    """A record of an export."""

    # The columns of the record, without ids of the database; exchanges are given by their numbers.
    values: dict[str, Any]
    # The exchange with its content; None: the record is of another part.
    exchange: Exchange | None = None


class ExportedRecord(NamedTuple):
    """A record on a page of an export."""

    # The cursor of a page that begins after the record.
    cursor: int
    record: TransferRecord


class ImportedRecord(NamedTuple):
    """A record that an import writes."""

    # The part of the memory that the record belongs to, as in `ExportReader.load_page`.
    part: str
    record: TransferRecord
