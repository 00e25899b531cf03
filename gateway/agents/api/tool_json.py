"""The JSON of tools and of their results."""

from __future__ import annotations

from typing import Any

from gateway.agents.core.kinds import FILE_TOOLS, MULTI_AGENT_TOOLS
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.wire.shown_values import NO_AUTHORS, render_time, split_lines
from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.core.memory.builtin import BUILT_IN_TOOLS
from gateway.run.tools.toolbox import ToolAnswer

# The types of built-in tools by name. A built-in tool without an entry has the type "letta_core".
_TYPES = {
    **dict.fromkeys(("core_memory_append", "core_memory_replace", "memory"), "letta_memory_core"),
    **dict.fromkeys(
        ("memory_insert", "memory_replace", "memory_rethink", "memory_apply_patch", "memory_finish_edits"),
        "letta_sleeptime_core",
    ),
    **dict.fromkeys(MULTI_AGENT_TOOLS, "letta_multi_agent_core"),
    **dict.fromkeys(FILE_TOOLS, "letta_files_core"),
}


def render_tool(tool: ToolView) -> dict[str, Any]:
    """Returns the JSON of a tool. The JSON of a built-in tool has no times."""
    record = tool.definition
    if record is None:
        definition = ToolDefinition({"name": tool.name, **BUILT_IN_TOOLS[tool.name].schema})
        tool_type, times = _TYPES.get(tool.name, "letta_core"), {}
    else:
        definition = ToolDefinition.of(record.body)
        tool_type = "external_mcp" if definition.source_type == "mcp" else "custom"
        times = {"created_at": render_time(record.created), "updated_at": render_time(record.updated)}
    return {
        "id": ids.make_id("tool", tool.uid),
        "name": tool.name,
        "tool_type": tool_type,
        "description": definition.description or definition.schema.get("description") or None,
        "source_type": definition.source_type,
        "source_code": None if definition.source_type == "mcp" else definition.source or None,
        "json_schema": definition.schema,
        "args_json_schema": definition.schema.get("parameters"),
        "tags": list(definition.tags),
        "return_char_limit": definition.result_chars,
        "pip_requirements": None,
        "npm_requirements": None,
        "default_requires_approval": definition.needs_approval,
        "enable_parallel_execution": definition.is_parallel,
        "metadata_": definition.metadata,
        "project_id": None,
        **NO_AUTHORS,
        **times,
    }


def render_source_result(name: str, answer: ToolAnswer, *, at: float) -> dict[str, Any]:
    """Returns the result of a run of source code. As on Letta's server, its message and its call have the id "null"."""
    result = {
        "tool_return": answer.content,
        "status": answer.status,
        "tool_call_id": "null",
        "stdout": split_lines(answer.stdout),
        "stderr": split_lines(answer.stderr),
    }
    return {
        "id": "null",
        "message_type": "tool_return_message",
        "date": render_time(at),
        "name": name,
        **result,
        "tool_returns": [{"type": "tool", **result}],
    }


def render_call_result(answer: ToolAnswer) -> dict[str, Any]:
    """Returns the result of a call that a client made."""
    return {
        "status": answer.status,
        "func_return": answer.content,
        "stdout": split_lines(answer.stdout),
        "stderr": split_lines(answer.stderr),
        "agent_state": None,
        "sandbox_config_fingerprint": None,
    }
