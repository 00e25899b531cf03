"""The blocks that the memory section of a request shows."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from gateway.core.agent import AgentSpec
from gateway.core.memory import edits
from storage.commands import MemorySnapshot
from storage.records import Agent, Block, Exchange
from storage.sql.store import Store


def sort_in_prompt_order(spec: AgentSpec, blocks: Sequence[Block]) -> list[Block]:
    """Returns blocks in their order in the prompt: as the agent declares them, then blocks that were made since."""
    if len(blocks) < 2:
        return list(blocks)
    order = {block.label: n for n, block in enumerate(spec.blocks)}
    return sorted(blocks, key=lambda block: order.get(block.label, len(order)))


def read_blocks_on_path(
    spec: AgentSpec, snapshot: MemorySnapshot, path: Sequence[Exchange]
) -> tuple[Block, ...]:
    """Returns the blocks of a snapshot as a path sees them, its own pending edits included."""
    blocks = sort_in_prompt_order(spec, snapshot.blocks)
    if not snapshot.edits:
        return tuple(blocks)
    return tuple(edits.list_blocks_on_path(blocks, snapshot.edits, {exchange.id for exchange in path}))


async def list_initial_blocks(store: Store, spec: AgentSpec, agent: Agent) -> tuple[Block, ...]:
    """Returns the blocks that the memory of a draft will have at first."""
    defaults = [replace(block, id=n) for n, block in enumerate(spec.blocks)]
    if spec.shared_labels:
        stored_blocks = {block.label: block for block in await store.turns.load_shared_blocks(agent)}
        defaults = [stored_blocks.get(block.label, block) for block in defaults]
    return tuple(defaults)
