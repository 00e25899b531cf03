"""An agent as an agent file (`.af`): the form in which Letta 0.16 exports and imports agents.

    {"agents": [...], "groups": [], "blocks": [...], "files": [...], "sources": [...], "tools": [...],
     "mcp_servers": [], "metadata": {"mnemogate": "{...}"}, "created_at": "..."}

Ids are counted within the file. Letta refuses unknown fields but takes any text in `metadata`, so `metadata` has the
fields that only this gateway has, as JSON in one text. (letta/schemas/agent_file.py of letta-ai/letta 0.16)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from msgspec import Struct

from gateway.agents.agent_file import file_fields
from gateway.agents.agent_file.file_fields import select_fields
from gateway.agents.agent_file.file_messages import render_file_message
from gateway.agents.core.agent_file import PortableArchive, PortableMessage
from gateway.agents.wire.shown_values import render_time
from gateway.core.definition import Sleeptime
from gateway.core.json_object import without_none
from storage.listing import PassageDraft

# The id of the agent, the only one in a file.
_AGENT_ID = "agent-0"
# The revision of Letta's database, which the gateway does not have.
_REVISION = "0"

# The fields of an agent that are null, or false, in each file.
_NULL_FIELDS = (
    "folder_ids", "model", "embedding_chunk_size", "max_tokens", "max_reasoning_tokens", "reasoning",
    "from_template", "project", "memory_variables", "project_id", "template_id", "base_template_id", "identity_ids",
    "parallel_tool_calls", "secrets",
)  # fmt: skip
_FALSE_FIELDS = (
    "include_base_tools", "include_multi_agent_tools", "include_base_tool_rules", "include_default_source",
    "enable_reasoner", "template", "enable_sleeptime",
)  # fmt: skip


class ExportedFolder(NamedTuple):
    """A folder with its files."""

    # The API's JSON of the folder.
    folder: Mapping[str, Any]
    # The API's JSON of the files, with their texts.
    files: Sequence[Mapping[str, Any]]


class ExportedAgent(Struct, frozen=True):
    """All parts of an agent that an export contains."""

    # The API's JSON of the agent.
    state: Mapping[str, Any]
    # The rule by which sleeptime agents read the agent's messages; None: no sleeptime agent does.
    sleeptime: Sleeptime | None = None
    # The messages with which each conversation begins.
    initial_messages: Sequence[Mapping[str, Any]] = ()
    # The messages of the exported conversation.
    messages: Sequence[PortableMessage] = ()
    # The folders that are attached to the agent.
    folders: Sequence[ExportedFolder] = ()
    # The passages of the agent's own archive.
    passages: Sequence[PassageDraft] = ()
    # The archives that are attached to the agent.
    archives: Sequence[PortableArchive] = ()


def write_agent_file(exported: ExportedAgent, now: float) -> bytes:
    """Returns an agent file. now: the time of the export, in seconds since the epoch."""
    state = exported.state
    sources = [
        {**select_fields(exported_folder.folder, file_fields.SOURCE), "id": f"source-{n}"}
        for n, exported_folder in enumerate(exported.folders)
    ]
    files = [
        {"source_id": source["id"], **select_fields(file, file_fields.FILE)}
        for source, exported_folder in zip(sources, exported.folders, strict=True)
        for file in exported_folder.files
    ]
    extension = {"agents": {_AGENT_ID: _render_extension(exported)}}
    file_json = {
        "agents": [_render_agent(exported, now)],
        "groups": [],
        "blocks": [
            {**select_fields(block, file_fields.BLOCK), "id": f"block-{n}"}
            for n, block in enumerate(state["blocks"])
        ],
        "files": [{**file, "id": f"file-{n}"} for n, file in enumerate(files)],
        "sources": sources,
        "tools": [{**tool, "id": f"tool-{n}"} for n, tool in enumerate(map(_render_tool, state["tools"]))],
        "mcp_servers": [],
        "metadata": {"revision_id": _REVISION, file_fields.EXTENSION: orjson.dumps(extension).decode()},
        "created_at": render_time(now),
    }
    return orjson.dumps(file_json, option=orjson.OPT_INDENT_2)


def _render_agent(exported: ExportedAgent, now: float) -> dict[str, Any]:
    """Returns the file's JSON of the agent, with the messages of the export."""
    state = exported.state
    # Each list of Letta's begins with the system message.
    system = PortableMessage({"role": "system", "content": state["system"]}, now)
    messages = [
        render_file_message(message, f"message-{n}", _AGENT_ID)
        for n, message in enumerate([system, *exported.messages])
    ]
    # Letta's server refuses a setting that is null.
    settings = without_none(state["model_settings"])
    return {
        **select_fields(state, file_fields.AGENT),
        "model_settings": settings,
        **dict.fromkeys(_NULL_FIELDS),
        **dict.fromkeys(_FALSE_FIELDS, False),
        "memory_blocks": [],
        "tools": [],
        "tool_exec_environment_variables": {},
        "initial_message_sequence": list(map(_render_initial_message, exported.initial_messages)) or None,
        "tool_ids": [f"tool-{n}" for n in range(len(state["tools"]))],
        "block_ids": [f"block-{n}" for n in range(len(state["blocks"]))],
        "source_ids": [f"source-{n}" for n in range(len(exported.folders))],
        "id": _AGENT_ID,
        "in_context_message_ids": [message["id"] for message in messages],
        "messages": messages,
        "files_agents": [],
        "group_ids": [],
    }


def _render_extension(exported: ExportedAgent) -> dict[str, Any]:
    """Returns the fields of an agent that Letta's form lacks."""
    return {
        file_fields.EXTENSION: exported.state[file_fields.EXTENSION],
        "sleeptime": None if exported.sleeptime is None else {"frequency": exported.sleeptime.frequency},
        "message_buffer_limit": exported.state["message_buffer_limit"],
        "message_buffer_min": exported.state["message_buffer_min"],
        "passages": list(map(_render_passage, exported.passages)),
        "archives": [
            {"name": archive.name, **archive.body, "passages": list(map(_render_passage, archive.passages))}
            for archive in exported.archives
        ],
    }


def _render_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the file's JSON of a tool. tool: the API's JSON of the tool."""
    return {name: value for name, value in tool.items() if name not in ("created_at", "updated_at")}


def _render_initial_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the file's JSON of a message with which each conversation begins."""
    file_message = render_file_message(PortableMessage(dict(message), at=0.0), message_id="", agent_id="")
    # An empty reply has no parts.
    file_message["content"] = file_message["content"] or ""
    return {key: file_message[key] for key in ("role", "content", "name") if file_message[key] is not None}


def _render_passage(passage: PassageDraft) -> dict[str, Any]:
    """Returns the file's JSON of a passage."""
    return {
        "text": passage.text,
        "tags": list(passage.tags),
        "metadata": passage.metadata,
        "created_at": render_time(passage.at),
    }
