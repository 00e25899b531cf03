"""Writes the memory blocks that a tool's code has changed in its copy of an agent.

If the turn is written as a whole, the changes become edits of the turn: they wait until the turn is confirmed, and are
forgotten with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gateway.core.memory.memory_tools import EditOperation
from gateway.run.tools.memory import MemoryTools
from gateway.run.tools.toolbox import ToolAnswer
from storage.batch_records import SOURCES_ROOM
from storage.errors import BlockTooLong, NotFound, StoreError, WriteConflict
from storage.records import Agent, Block
from storage.sql.store import Store

_CHANGED_MEANWHILE = "was changed by another writer meanwhile, and not by this call"


async def write_blocks(
    store: Store,
    answer: ToolAnswer,
    *,
    at: float,
    origin: str,
    exchange_row: int | None = None,
    edited_labels: Collection[str] = (),
    agent: Agent | None = None,
) -> ToolAnswer:
    """Writes the blocks that code has changed. Returns the code's answer, with an error for each block not written.

    at: the time of the write, in seconds since the epoch.
    origin: the origin that the new revisions get.
    exchange_row: the row of the exchange with the call, with which the written values are forgotten; None: the call is
        in no exchange.
    edited_labels: the labels of blocks that are not written, since the store does not have all their edits yet.
    agent: the agent that called the code, as its turn has read it; None: a person called it.
    """
    sources = [] if exchange_row is None else [exchange_row]

    async def write_block(block: Block, value: str) -> str | None:
        """Writes a block. Returns the reason why it was not written; None if it was."""
        if block.read_only:
            return "is read-only, and was not changed"
        if block.label in edited_labels:
            return "is being edited in this conversation, and was not changed by this call"
        try:
            await store.blocks.write(
                block.id, block.version, value, at=at, origin=origin, exchange_row=exchange_row,
                sources=sources, room=SOURCES_ROOM, by=agent,
            )  # fmt: skip
        except BlockTooLong:
            return f"takes {block.limit} characters at most, not {len(value)}, and was not changed"
        except (WriteConflict, NotFound):
            return _CHANGED_MEANWHILE
        except StoreError as error:
            return f"was not changed: {error.message}"
        return None

    reasons = [(block, await write_block(block, value)) for block, value in answer.changed_blocks]
    return _with_errors(answer, [_make_error(block, reason) for block, reason in reasons if reason])


def edit_blocks(memory: MemoryTools, answer: ToolAnswer, call_id: str) -> ToolAnswer:
    """Turns the changes of blocks by code into edits of the turn. Returns the code's answer, as `write_blocks` does.

    A stored answer may come back in a turn with other blocks. A changed block that the turn lacks is an error.
    """
    errors = []
    for n, (block, value) in enumerate(answer.changed_blocks):
        if block not in memory.block_edits.blocks:
            errors.append(_make_error(block, _CHANGED_MEANWHILE))
            continue
        arguments = {"label": block.label, "new_memory": value}
        edit = memory.edit(
            call_id, EditOperation.RETHINK, block.label, arguments, number=n, is_by_model=False
        )
        if edit.status == "error":
            errors.append(edit.content)
    return _with_errors(answer, errors)


def _make_error(block: Block, reason: str) -> str:
    return f"Error: the memory block {block.label!r} {reason}."


def _with_errors(answer: ToolAnswer, errors: Sequence[str]) -> ToolAnswer:
    content = "\n".join([answer.content, *errors])
    return ToolAnswer(content, "error" if errors else answer.status, answer.stdout, answer.stderr)
