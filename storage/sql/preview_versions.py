"""The versions of blocks that a forgetting would erase or make again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from storage.database import Connection, Statement
from storage.operator_records import RebuiltBlock
from storage.records import Block
from storage.sql.block_history import collect_lost_lines, collect_mixed_sources, load_versions
from storage.sql.blocks import get_block
from storage.sql.preview_content import NO_CONVERSATION, ErasedContent
from storage.sql.rebuild import BlockPreview, load_remaining_texts, load_writable_blocks, preview_block
from storage.sql.statements import load, load_rows, lower_ascii
from storage.store_rules import Rules

SQL = load("forget_preview.sql")

# The most versions of a block, and the most characters of its text, that are rebuilt for a preview: some 10 ms.
_MAX_VERSIONS = 50
_MAX_CHARS = 5_000


class VersionCounts(NamedTuple):
    """The number of versions of blocks that change, and the blocks."""

    # The number of versions that are erased.
    erased_count: int = 0
    # The number of versions after the first erased one, which stay without its words.
    rebuilt_count: int = 0
    # The blocks that change, as far as their texts are few enough to be rebuilt while a person waits.
    changes: tuple[RebuiltBlock, ...] = ()


async def count_versions_from_exchanges(
    connection: Connection, rules: Rules, content: ErasedContent, values: Sequence[object]
) -> VersionCounts:
    """Counts the versions that came from the erased exchanges.

    values: the parameters of the statement `versions`: the erased exchanges, and the range of their rows.
    """
    selection = _Selection(SQL["versions"], [values], may_stay=True)
    return await _count_versions(connection, rules, selection, content)


async def count_versions_with_texts(
    connection: Connection, rules: Rules, content: ErasedContent
) -> VersionCounts:
    """Counts the versions that have a text of an erased fact. A version that has several counts more than once."""
    parameters = [[lower_ascii(text)] for text in content.fact_texts]
    selection = _Selection(SQL["versions_with"], parameters, may_stay=False)
    return await _count_versions(connection, rules, selection, content)


class _Selection(NamedTuple):
    """A selection of the versions that are erased."""

    # The statement that counts them in one block.
    statement: Statement
    # The statement's parameters before the block, one sequence for each run of the statement.
    parameters: Sequence[Sequence[object]]
    # True: some of the versions may stay with other words. Only the rebuilt block shows which.
    may_stay: bool


async def _count_versions(
    connection: Connection, rules: Rules, selection: _Selection, content: ErasedContent
) -> VersionCounts:
    """Counts the selected versions of all blocks."""
    total = VersionCounts()
    for block_row, _ in await load_writable_blocks(connection, content.exchanges.agent_row):
        counts = await _count_block_versions(connection, rules, block_row, selection, content)
        total = VersionCounts(
            total.erased_count + counts.erased_count,
            total.rebuilt_count + counts.rebuilt_count,
            (*total.changes, *counts.changes),
        )
    return total


async def _count_block_versions(
    connection: Connection, rules: Rules, block_row: int, selection: _Selection, content: ErasedContent
) -> VersionCounts:
    """Counts the selected versions of a block."""
    erased_count = 0
    rebuilt_count = 0
    version_count = 0
    for values in selection.parameters:
        row = await connection.fetch_row(selection.statement, (*values, block_row))
        if row is None or not row[0]:
            continue
        statement_count, first_number, version_count = row
        later_count = await connection.fetch_value(SQL["versions_from"], (block_row, first_number))
        erased_count += statement_count
        rebuilt_count += later_count - statement_count
    if not erased_count:
        return VersionCounts()
    stored_block = await get_block(connection, block_row)
    if version_count > _MAX_VERSIONS or len(stored_block.value) > _MAX_CHARS:
        return VersionCounts(erased_count, rebuilt_count)
    preview = await _preview_block(connection, rules, stored_block, content)
    if selection.may_stay:
        erased_count = preview.erased_count
        rebuilt_count = preview.rebuilt_count
    if preview.value == stored_block.value:
        return VersionCounts(erased_count, rebuilt_count)
    return VersionCounts(
        erased_count,
        rebuilt_count,
        (RebuiltBlock(stored_block.label, stored_block.value, preview.value),),
    )


async def _preview_block(
    connection: Connection, rules: Rules, block: Block, content: ErasedContent
) -> BlockPreview:
    """Returns a block as the forgetting would leave it."""
    erased, texts, seqs, named_versions = content
    versions = await load_versions(connection, block.id)
    numbers = [number for row, number in named_versions if row == block.id]
    lost_lines = collect_lost_lines(versions, numbers)
    versions = [*versions[: len(versions) - len(lost_lines.later)], *lost_lines.later_without]
    erased_rows = set(erased.exchange_rows)
    if erased.conversation_row != NO_CONVERSATION:
        source_rows = sorted({row for version in versions for row in version.source_rows})
        rows = await load_rows(
            connection, SQL["going_among"], source_rows, erased.agent_row, erased.conversation_row
        )
        erased_rows = {row[0] for row in rows}
    remaining_rows = collect_mixed_sources(versions, erased_rows)
    if not seqs:
        remaining_rows -= erased_rows
    remaining_texts = await load_remaining_texts(connection, erased.agent_row, remaining_rows, rules, seqs)
    folded_texts = tuple(text.strip().casefold() for text in texts if text.strip())
    return await preview_block(connection, block, versions, rules, erased_rows, folded_texts, remaining_texts)
