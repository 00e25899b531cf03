"""Chats of a profile with memory tools, its calls of them, and the parts of its requests that go upstream."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.memory.memory_tools import MEMORY_TOOLS
from tests.doubles.upstream import Call
from tests.gateway.sdk import Chat, World

MEMORY_TOOL_NAMES = set(MEMORY_TOOLS)
# A tool that edits a block has its label as an argument.
BLOCK_TOOL_NAMES = {
    name for name, tool in MEMORY_TOOLS.items() if "label" in tool.schema["parameters"]["properties"]
}

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def helper(world: World, **options: Any) -> Chat:
    return world.chat(model="agent/helper", user="alice", **options)


def insert(text: str, **options: Any) -> Call:
    return Call("memory_insert", {"label": "human", "new_string": text}, **options)


def results(world: World) -> list[str]:
    """Returns the results of the last hidden round's calls, as they went upstream."""
    return [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]


def system(world: World) -> str:
    """Returns the system prompt of the last request that went upstream."""
    first = world.upstream.last.messages[0]
    assert first["role"] == "system"
    return str(first["content"])
