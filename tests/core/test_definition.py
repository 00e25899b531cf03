"""Definitions as they are stored: what goes in comes out, and a later version's field is left alone."""

from __future__ import annotations

import orjson

from gateway.core.definition import AgentDefinition, ToolDefinition


def test_a_definition_goes_through_json() -> None:
    made = AgentDefinition(
        "letta_v1_agent",
        system="You are kind.",
        rules=({"type": "exit_loop", "tool_name": "send_message"},),
        initial_messages=({"role": "user", "content": "Hello"},),
        sampling={"temperature": 0.5},
        retained={"embedding": "openai/text-embedding-3-small"},
    )
    assert AgentDefinition.of(orjson.loads(orjson.dumps(made.dump()))) == made
    assert AgentDefinition.of({"kind": "react_agent", "of_a_later_version": 1}) == AgentDefinition(
        "react_agent"
    )


def test_a_tools_definition_goes_through_json() -> None:
    made = ToolDefinition(
        {"name": "add", "parameters": {}}, "webhook", "https://example.org", tags=("a", "b")
    )
    assert ToolDefinition.of(orjson.loads(orjson.dumps(made.dump()))) == made
