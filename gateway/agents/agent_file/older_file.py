"""Translates an agent file from before Letta 0.16 into the present form.

    {"agent_type": …, "core_memory": [block, …], "tools": [...], "messages": [...], "tags": [{"tag": "shop"}], …,
     "version": "0.6.47"}

Such a file has one agent and no ids. (letta/serialize_schemas/pydantic_agent_schema.py of letta-ai/letta)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.agents.agent_file.file_messages import is_packed
from gateway.agents.wire.struct_fields import convert
from gateway.validation import Path

_Records = list[dict[str, Any]]


class _Tag(msgspec.Struct):
    """A tag of the agent."""

    # The text of the tag.
    tag: str


class _Variable(msgspec.Struct):
    """A variable of the sandbox."""

    # The name of the variable.
    key: str
    # The value of the variable, which an export wipes.
    value: str | None = None


class _OlderFile(msgspec.Struct):
    """The fields of an older file that the present form has under another name or in another shape."""

    # The blocks.
    core_memory: _Records
    # The tools.
    tools: _Records = []
    # The messages, oldest first.
    messages: _Records = []
    # The agent's tags, an object each.
    tags: list[_Tag] = []
    # The variables of the agent's sandbox. An export wipes their values.
    tool_exec_environment_variables: list[_Variable] = []
    # The agent's metadata.
    metadata_: dict[str, Any] | None = None
    # The agent's group; None: it has none.
    multi_agent_group: dict[str, Any] | None = None


def is_older(json: Mapping[str, Any]) -> bool:
    """Returns whether a file is from before Letta 0.16."""
    return "agents" not in json and "core_memory" in json


def translate_older(json: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns an older file in the present form. path: the path of the file in the request. Raises: Unprocessable."""
    file = convert(json, _OlderFile, path)
    blocks = _with_ids("block", file.core_memory)
    tools = _with_ids("tool", file.tools)
    agent = {
        **json,
        "id": "agent-0",
        "metadata": file.metadata_,
        "tags": [tag.tag for tag in file.tags],
        "block_ids": [block["id"] for block in blocks],
        "tool_ids": [tool["id"] for tool in tools],
        "messages": _translate_messages(file.messages),
        "tool_exec_environment_variables": {
            variable.key: variable.value for variable in file.tool_exec_environment_variables
        },
    }
    return {
        "agents": [agent],
        "blocks": [{**block, "metadata": block.get("metadata_")} for block in blocks],
        "tools": tools,
        # A group without members cannot be read, so it is reported as left out.
        "groups": [] if file.multi_agent_group is None else [{}],
    }


def _with_ids(kind: str, records: Sequence[Mapping[str, Any]]) -> _Records:
    return [{**record, "id": f"{kind}-{n}"} for n, record in enumerate(records)]


def _translate_messages(messages: Sequence[Mapping[str, Any]]) -> _Records:
    """Returns copies of messages with ids.

    Compiled system prompts get a role that no message has, so that the import skips them.
    """
    return [
        {**fields, "role": "prompt"}
        if fields.get("role") == "system" and not is_packed(fields.get("content"))
        else fields
        for fields in _with_ids("message", messages)
    ]
