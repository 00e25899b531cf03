"""The edits that turns make to memory. A path sees its own edits at once; a confirmed turn's enter the blocks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from gateway.core.memory.block_edit import EditResult, apply_edit
from gateway.core.memory.fact_words import fact_key
from gateway.core.memory.file_text import passages_in
from gateway.core.memory.memory_tools import STORED_SOURCES, EditOperation
from gateway.core.memory.orders import as_statement
from storage.commands import BlockMerge, LearnedFact
from storage.records import Block, BlockOp


def digest_value(value: str) -> int:
    """Returns the digest of a block's value by which `BlockOp.seen` is compared: a signed integer of 64 bits."""
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "big", signed=True)


class AppliedOperation(NamedTuple):
    """The outcome of one operation on blocks."""

    # The blocks after it, unchanged if it failed.
    blocks: list[Block]
    # The edit, with the result that the model reads.
    edit: EditResult


def apply_operation(blocks: Sequence[Block], op: BlockOp) -> AppliedOperation:
    """Applies an operation to copies of the blocks."""
    block = next((each for each in blocks if each.label == op.label), None)
    if block is not None and op.seen not in (None, digest_value(block.value)):
        # The model would overwrite a change that it has not seen.
        failure = EditResult(None, "Error: the block was changed meanwhile.", has_failed=True)
        return AppliedOperation(list(blocks), failure)
    edit = apply_edit(op.op, orjson.loads(op.arguments), block)
    if edit.value is None:
        return AppliedOperation(list(blocks), edit)
    changed = [replace(each, value=edit.value) if each is block else each for each in blocks]
    return AppliedOperation(changed, edit)


def blocks_on_path(blocks: Sequence[Block], ops: Sequence[BlockOp], path: Collection[int]) -> list[Block]:
    """Returns the blocks as a path sees them, with the pending edits of its own exchanges.

    blocks: with the edits of confirmed turns.
    ops: the pending edits of all paths.
    path: the ids of the path's exchanges.
    """
    edited_blocks = list(blocks)
    for op in ops:
        if op.exchange_row in path and op.op not in STORED_SOURCES:
            edited_blocks = apply_operation(edited_blocks, op).blocks
    return edited_blocks


def merge_operations(blocks: Sequence[Block], ops: Sequence[BlockOp]) -> BlockMerge:
    """Returns the changes that pending operations make to the blocks as they are now.

    An operation that has become impossible is dropped, such as replacing words that are gone, or overwriting a value
    that its model has not seen.
    """
    current = list(blocks)
    writes = []
    passages = []
    facts = []
    dropped = []
    for op in ops:
        if op.op in STORED_SOURCES:
            text = str(orjson.loads(op.arguments).get("content", ""))
            match op.op:
                case EditOperation.REMEMBER_FACT:
                    facts.append((_fact(text, op), op))
                case EditOperation.ARCHIVAL_INSERT:
                    passages += [(part, op) for part in passages_in(text)]
                case _:
                    raise NotImplementedError(f"{op.op} is in STORED_SOURCES and has no case here")
            continue
        current, edit = apply_operation(current, op)
        if edit.value is None:
            dropped.append(op)
        else:
            writes.append((next(b.id for b in current if b.label == op.label), edit.value, op))
    return BlockMerge(writes, passages, facts, dropped)


def _fact(text: str, op: BlockOp) -> LearnedFact:
    return LearnedFact(
        as_statement(text),
        about="",
        key=fact_key(text),
        valid_from=op.at,
        exchange_row=op.exchange_row,
        sources=(op.exchange_row,),
    )
