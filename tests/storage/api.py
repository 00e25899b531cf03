"""Agents of the agents API, for tests of the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.listing import AgentDraft, AgentEntry, BlockDraft
from storage.records import Block, Scope
from storage.sql.store import Store
from tests.inflated import with_inflated

PROJECT = "default"


def api_scope(uid: str, project: str = PROJECT) -> Scope:
    return Scope(project, "@", f"agent:{uid}")


async def make_agent(
    store: Store,
    name: str,
    *,
    project: str = PROJECT,
    own: Sequence[Block] = (),
    blocks: Sequence[str] = (),
    tools: Sequence[int] = (),
    tags: Sequence[str] = (),
    identities: Sequence[int] = (),
    at: float = 1.0,
    **body: Any,
) -> AgentEntry:
    draft = store.agents.get_draft(api_scope(name, project))
    made = AgentDraft(
        agent=draft, name=name, body=body, own_blocks=[BlockDraft(block, {}) for block in own], blocks=blocks,
        tools=tools, tags=tags, identities=identities,
    )  # fmt: skip
    return await store.defined_agents.create(made, at=at)


def bytes_in(folder: Path) -> bytes:
    """All bytes of a database, its log and its index of the log."""
    files = sorted(folder.glob("memory.db*"))
    return with_inflated(b"".join(file.read_bytes() for file in files if file.suffix != ".lock"))
