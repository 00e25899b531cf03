"""The versions of blocks: the values that a block had, and the exchanges that each value came from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import dropwhile
from typing import NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import replace

from storage.batch_records import parse_call_origin
from storage.database import Connection
from storage.records import list_lost_lines
from storage.sql.blocks import FORGET_ORIGIN
from storage.sql.statements import load

SQL = load("block_history.sql")


def collect_source_rows(exchange_row: int | None, sources: bytes) -> set[int]:
    """Returns the rows of the exchanges that a value came from.

    exchange_row: the exchange in which the value was written; None: it was written in no exchange.
    sources: the other exchanges, as JSON.
    """
    return {*orjson.loads(sources), *([] if exchange_row is None else [exchange_row])}


class EditKey(NamedTuple):
    """The key of an edit."""

    # The row of the exchange that has the edit.
    exchange_row: int
    # The id of the call of the tool in the exchange.
    call_id: str


class BlockVersion(Struct, frozen=True):
    """A value that a block had."""

    # The number of the version among those of the block.
    number: int
    # The number of the version that an undo, or a forgetting, brought back; None: the value is new.
    restores: int | None
    # The time at which the value was written, in seconds since the epoch.
    at: float
    # The writer of the value: a call of a tool, or one of the origins of `storage/sql/blocks.py`.
    origin: str
    # The row of the exchange in which the value was written; None: it was written in no exchange.
    exchange_row: int | None
    # The rows of the other exchanges that the value came from, as JSON.
    sources: bytes
    # The text of the value.
    value: str

    @property
    def source_rows(self) -> set[int]:
        """The rows of all exchanges that the value came from."""
        return collect_source_rows(self.exchange_row, self.sources)

    @property
    def edit(self) -> EditKey | None:
        """The edit that wrote the version; None: no edit of an exchange did."""
        call = parse_call_origin(self.origin)
        return None if call is None or self.exchange_row is None else EditKey(self.exchange_row, call.call)

    @property
    def is_remainder(self) -> bool:
        """True if an earlier forgetting wrote the version, to show the rest of the version before."""
        return self.origin == FORGET_ORIGIN and self.restores is not None


async def load_versions(connection: Connection, block_row: int) -> list[BlockVersion]:
    """Returns the values that a block ever had, oldest first."""
    return [BlockVersion(*row) for row in await connection.fetch_rows(SQL["block_versions"], (block_row,))]


def collect_mixed_sources(versions: Iterable[BlockVersion], erased_rows: Collection[int]) -> set[int]:
    """Returns the source rows, erased or not, of the versions that came from an erased exchange, at least in part."""
    return {
        row
        for version in versions
        if not version.source_rows.isdisjoint(erased_rows)
        for row in version.source_rows
    }


def list_line_sources(versions: Iterable[BlockVersion]) -> dict[str, set[int]]:
    """Returns the exchanges that each line of a block came from. versions: the block's versions, oldest first."""
    sources: dict[str, set[int]] = {}
    lines_before = frozenset[str]()
    for version in versions:
        lines = frozenset(version.value.split("\n"))
        for line in lines - lines_before:
            sources.setdefault(line, set()).update(version.source_rows)
        lines_before = lines
    return sources


class LostLines(NamedTuple):
    """The lines of earlier versions that a block no longer has."""

    # The lines.
    lines: frozenset[str]
    # The versions from the first on that has one of the lines, oldest first.
    later: list[BlockVersion]

    @property
    def with_lines(self) -> list[BlockVersion]:
        """The versions that have one of the lines."""
        return [version for version in self.later if not self.lines.isdisjoint(version.value.split("\n"))]

    @property
    def later_without(self) -> list[BlockVersion]:
        """The later versions without the lines and without their edits: an edit that removed a line names it, too."""
        return [
            replace(
                version,
                value="\n".join(line for line in version.value.split("\n") if line not in self.lines),
                origin=version.origin if version.edit is None else "",
            )
            for version in self.later
        ]


def collect_lost_lines(versions: Sequence[BlockVersion], numbers: Collection[int]) -> LostLines:
    """Returns the lines of some versions that the newest version does not have.

    versions: the block's versions, oldest first.
    numbers: the numbers of the versions with the lines that are compared.
    """
    lines = frozenset(
        line
        for version in versions
        if version.number in numbers
        for line in list_lost_lines(version.value, versions[-1].value)
    )
    later = dropwhile(lambda version: lines.isdisjoint(version.value.split("\n")), versions)
    return LostLines(lines, list(later))
