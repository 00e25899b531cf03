"""The memory blocks that code of a tool has changed in its copy of an agent, as they are written.

It knows nothing of what ran the code.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gateway.run.tools.toolbox import ToolAnswer
from storage.batches import SOURCES_ROOM
from storage.errors import NotFound, OverLimit, StoreError, WriteConflict
from storage.records import Block
from storage.sql.store import Store


async def write_blocks(
    store: Store,
    answer: ToolAnswer,
    blocks: Sequence[Block],
    *,
    at: float,
    origin: str,
    exchange: int | None = None,
    edited: Collection[str] = (),
) -> ToolAnswer:
    """Writes the blocks that an answer names. Returns it; what cannot be written is said behind it, as an error.

    blocks: as the code was given them. exchange: the row of the one that it was called for: who forgets that forgets
    what came of it. edited: labels of blocks with edits that are not in the store yet.
    """
    wrong = []
    for block in blocks:
        if block.label not in answer.blocks:
            continue
        value = str(answer.blocks[block.label]).replace("\0", "")
        why = None
        if block.read_only:
            why = "is read-only, and was not changed"
        elif block.label in edited:
            why = "is being edited in this conversation, and was not changed by this call"
        else:
            try:
                await store.blocks.write(
                    block.id, block.version, value, at=at, origin=origin, exchange=exchange,
                    sources=[] if exchange is None else [exchange], room=SOURCES_ROOM,
                )  # fmt: skip
            except OverLimit:
                why = f"takes {block.limit} characters at most, not {len(value)}, and was not changed"
            except (WriteConflict, NotFound):
                why = "was changed by somebody else meanwhile, and not by this call"
            except StoreError as error:
                why = f"was not changed: {error.message}"
        if why is not None:
            wrong.append(f"Error: the memory block {block.label!r} {why}.")
    content = "\n".join([answer.content, *wrong])
    return ToolAnswer(content, "error" if wrong else answer.status, answer.stdout, answer.stderr)
