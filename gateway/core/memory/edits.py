"""The edits of turns to memory. A path sees its own edits at once; the edits of a confirmed turn enter the blocks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from gateway.core.memory.block_edit import EditResult, apply_edit
from gateway.core.memory.fact_words import make_fact_key
from gateway.core.memory.file_text import split_passages
from gateway.core.memory.memory_tools import STORED_SOURCES, EditOperation
from gateway.core.memory.orders import as_statement
from storage.commands import BlockMerge, EditedValue, LearnedFact, SavedPassage
from storage.records import Block, MemoryEdit


def digest_seen_value(value: str) -> int:
    """Returns the digest of a block's value by which `MemoryEdit.seen` is compared: a signed integer of 64 bits."""
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "big", signed=True)


class EditedBlocks(NamedTuple):
    """The blocks after one edit, and its outcome."""

    # The blocks, unchanged if the edit failed.
    blocks: list[Block]
    # The outcome, with the text for the model.
    result: EditResult


def apply_to_blocks(blocks: Sequence[Block], edit: MemoryEdit) -> EditedBlocks:
    """Applies an edit to copies of the blocks."""
    block = next((each for each in blocks if each.label == edit.label), None)
    if block is not None and edit.seen not in (None, digest_seen_value(block.value)):
        # The model would overwrite a change that it has not seen.
        failure = EditResult(None, "Error: the block was changed meanwhile.", has_failed=True)
        return EditedBlocks(list(blocks), failure)
    result = apply_edit(edit.op, orjson.loads(edit.arguments), block)
    if result.value is None:
        return EditedBlocks(list(blocks), result)
    changed_blocks = [replace(each, value=result.value) if each is block else each for each in blocks]
    return EditedBlocks(changed_blocks, result)


def list_blocks_on_path(
    blocks: Sequence[Block], edits: Sequence[MemoryEdit], path_ids: Collection[int]
) -> list[Block]:
    """Returns the blocks as a path sees them, with the pending edits of its own exchanges.

    blocks: the blocks with the edits of confirmed turns.
    edits: the pending edits of all paths.
    path_ids: the ids of the path's exchanges.
    """
    edited_blocks = list(blocks)
    for edit in edits:
        if edit.exchange_row in path_ids and edit.op not in STORED_SOURCES:
            edited_blocks = apply_to_blocks(edited_blocks, edit).blocks
    return edited_blocks


def make_block_merge(blocks: Sequence[Block], edits: Sequence[MemoryEdit]) -> BlockMerge:
    """Returns the changes that pending edits make to the blocks as they are now.

    An edit that has become impossible is dropped, such as replacing words that are gone, or overwriting a value
    that its model has not seen.
    """
    edited_blocks = list(blocks)
    writes: list[EditedValue] = []
    passages: list[SavedPassage] = []
    facts: list[LearnedFact] = []
    dropped_edits: list[MemoryEdit] = []
    for edit in edits:
        match edit.op:
            case EditOperation.REMEMBER_FACT:
                facts.append(_make_fact(_read_content(edit), edit))
            case EditOperation.ARCHIVAL_INSERT:
                passages += [SavedPassage(part, edit) for part in split_passages(_read_content(edit))]
            case op if op in STORED_SOURCES:
                raise NotImplementedError(f"{op} is in STORED_SOURCES and has no case here")
            case _:
                edited_blocks, result = apply_to_blocks(edited_blocks, edit)
                if result.value is None:
                    dropped_edits.append(edit)
                    continue
                block_row = next(block.id for block in edited_blocks if block.label == edit.label)
                writes.append(EditedValue(block_row, result.value, edit))
    return BlockMerge(writes, passages, facts, dropped_edits)


def _read_content(edit: MemoryEdit) -> str:
    """Returns the text that an edit stores."""
    return str(orjson.loads(edit.arguments).get("content", ""))


def _make_fact(text: str, edit: MemoryEdit) -> LearnedFact:
    """Returns the fact that an edit adds."""
    return LearnedFact(
        as_statement(text),
        about="",
        key=make_fact_key(text),
        valid_from=edit.at,
        exchange_row=edit.exchange_row,
        sources=(edit.exchange_row,),
    )
