"""An agent with memory tools, and what its upstream gets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doubles.upstream import Call
from tests.gateway.sdk import Chat, World

BLOCK_EDITS = {"memory_insert", "memory_replace", "memory_rethink"}
MEMORY = {
    *BLOCK_EDITS,
    "archival_memory_insert",
    "archival_memory_search",
    "conversation_search",
}

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def helper(world: World, **options: Any) -> Chat:
    return world.chat(model="agent/helper", user="alice", **options)


def insert(text: str, **options: Any) -> Call:
    return Call("memory_insert", {"label": "human", "new_string": text}, **options)


def results(world: World) -> list[str]:
    """What the tools of the last hidden round said."""
    return [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]


def system(world: World) -> str:
    first = world.upstream.last.messages[0]
    assert first["role"] == "system"
    return str(first["content"])
