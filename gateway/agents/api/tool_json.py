"""The JSON of tools and of their results."""

from __future__ import annotations

from typing import Any

from gateway.agents.core.kinds import FILE_TOOLS, MULTI_AGENT_TOOLS
from gateway.agents.registry.tool_registry import ToolView
from gateway.agents.wire.shown_values import NO_AUTHORS, render_time, split_lines
from gateway.core import ids
from gateway.core.definition import ToolDefinition
from gateway.core.memory.builtin import find_tool_entry
from gateway.run.tools.toolbox import ToolAnswer
from storage.definition_records import Definition

# The types of built-in tools; a tool without an entry has the type "letta_core".
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
    """Returns the JSON of a tool."""
    if tool.definition is not None:
        return _render_defined_tool(tool.definition)
    entry = find_tool_entry(tool.name)
    schema = {"name": tool.name} if entry is None else entry["function"]
    # The uid is the same in every store.
    return _render_tool_fields(tool.uid, tool.name, schema, _TYPES.get(tool.name, "letta_core"))


def _render_defined_tool(record: Definition) -> dict[str, Any]:
    """Returns the JSON of a tool that a caller has defined."""
    tool = ToolDefinition.of(record.body)
    is_mcp = tool.source_type == "mcp"
    return {
        **_render_tool_fields(record.uid, record.name, tool.schema, "external_mcp" if is_mcp else "custom"),
        "description": tool.description or tool.schema.get("description") or None,
        "source_type": tool.source_type,
        "source_code": None if is_mcp else tool.source or None,
        "tags": list(tool.tags),
        "return_char_limit": tool.result_chars,
        "default_requires_approval": tool.needs_approval,
        "enable_parallel_execution": tool.is_parallel,
        "metadata_": tool.metadata,
        "created_at": render_time(record.created),
        "updated_at": render_time(record.updated),
    }


def _render_tool_fields(uid: str, name: str, schema: dict[str, Any], tool_type: str) -> dict[str, Any]:
    """Returns the JSON of a tool with the values that most tools have."""
    return {
        "id": ids.make_id("tool", uid),
        "name": name,
        "tool_type": tool_type,
        "description": schema.get("description") or None,
        "source_type": "python",
        "source_code": None,
        "json_schema": schema,
        "args_json_schema": schema.get("parameters"),
        "tags": [],
        "return_char_limit": 50_000,
        "pip_requirements": None,
        "npm_requirements": None,
        "default_requires_approval": False,
        "enable_parallel_execution": False,
        "metadata_": {},
        "project_id": None,
        **NO_AUTHORS,
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
