"""Chats of a profile with memory tools, its calls of them, and the parts of its requests that go upstream."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.sdk import Chat, World

BLOCK_TOOL_NAMES = {"memory_insert", "memory_replace", "memory_rethink"}
# Models and stored conversations know the tools by these names.
MEMORY_TOOL_NAMES = {
    *BLOCK_TOOL_NAMES,
    "archival_memory_insert",
    "archival_memory_search",
    "conversation_search",
}

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def helper(world: World, **options: Any) -> Chat:
    return world.chat(model="agent/helper", user="alice", **options)


def results(world: World) -> list[str]:
    """Returns the results of the last hidden round's calls, as they went upstream."""
    return [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]


def system(world: World) -> str:
    """Returns the system prompt of the last request that went upstream."""
    first = world.upstream.last.messages[0]
    assert first["role"] == "system"
    return str(first["content"])
