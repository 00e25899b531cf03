"""Parameters and results of the transactions that export and import a memory, as values."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import Struct

from storage.records import Exchange


class TransferRecord(Struct, frozen=True):
    """A record of an export."""

    # The columns of the record without database ids; exchanges are named by their numbers.
    values: dict[str, Any]
    # The exchange with its content, where the record is of one.
    exchange: Exchange | None = None


class ExportedRecord(NamedTuple):
    """A record on a page of an export."""

    # A page with this cursor begins after the record.
    cursor: int
    record: TransferRecord


class ImportedRecord(NamedTuple):
    """A record to be written by an import."""

    # The part of the memory: one of those of `ExportReader.load_page`.
    part: str
    record: TransferRecord
