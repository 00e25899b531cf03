"""Makes an agent file of an agent on a Letta server, without loss.

The server's own export has only the messages of the window, no passages and no conversations, and fails for some
agents (observed with 0.16.8). The file made here has the server's ids, which an import retains. So several agents share
blocks, folders and archives in the gateway as they do on the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.agents.agent_file import file_fields
from gateway.agents.agent_file.file_fields import select_fields
from gateway.agents.agent_file.file_structs import FileGroupConfig
from gateway.agents.api.tool_bodies import UpdateTool
from gateway.agents.migrate.letta_messages import convert_messages

# The defaults that the server shows for a compaction: the beginnings of its prompts, and its models.
_LETTA_PROMPTS = (
    "The following messages are being evicted", "The previous messages are being evicted",
    "Your task is to create a detailed summary of the conversation so far",
)  # fmt: skip
_LETTA_MODELS = (
    "anthropic/claude-haiku-4-5", "openai/gpt-5-mini", "google_ai/gemini-2.5-flash", "letta/auto",
)  # fmt: skip
# The most characters of a name in the gateway.
_MAX_NAME_CHARS = 200
_TOOL_FIELDS = ("id", "tool_type", *UpdateTool.__struct_fields__)
_IDENTITY_FIELDS = ("id", "identifier_key", "name", "identity_type", "properties")
_CONVERSATION_FIELDS = ("id", "created_at", "summary", "model", "model_settings")


class LettaConversation(Struct, frozen=True):
    """A conversation other than `default`."""

    # The server's JSON of the conversation.
    record: Mapping[str, Any]
    # The server's JSON of the messages, oldest first.
    messages: Sequence[Json]


class LettaAgent(Struct, frozen=True):
    """All parts of an agent on a Letta server, as the server's JSON."""

    # The agent, with its blocks, tools and sources.
    state: Mapping[str, Any]
    # The messages of the conversation `default`, oldest first.
    messages: Sequence[Json] = ()
    # The other conversations.
    conversations: Sequence[LettaConversation] = ()
    # The passages of the agent's archive, oldest first.
    passages: Sequence[Json] = ()
    # The files of the agent's sources, with their content.
    files: Sequence[Json] = ()
    # The archive with the passages, if it is attached to other agents as well; None: the archive is the agent's own.
    shared_archive: Mapping[str, Any] | None = None


def make_agent_file(agent: LettaAgent) -> bytes:
    """Returns the file of an agent, without its sleeptime agent, which the import creates again."""
    state = agent.state
    extension = {"is_moved": True, "agents": {state["id"]: _convert_extension(agent)}}
    return orjson.dumps(
        {
            "agents": [_convert_agent(agent)],
            "groups": _convert_groups(state),
            "blocks": [
                {**select_fields(block, file_fields.BLOCK), "id": block["id"]}
                for block in state.get("blocks") or ()
            ],
            "files": [
                {**select_fields(file, file_fields.FILE), "id": file["id"], "source_id": file["source_id"]}
                for file in agent.files
            ],
            "sources": [
                {**select_fields(source, file_fields.SOURCE), "id": source["id"], "name": _cut_name(source)}
                for source in state.get("sources") or ()
            ],
            "tools": [select_fields(tool, _TOOL_FIELDS) for tool in state.get("tools") or ()],
            "metadata": {file_fields.EXTENSION: orjson.dumps(extension).decode()},
        }
    )


def upgrade_state(shown: Mapping[str, Any]) -> Json:
    """Returns an agent in the form of 0.16. In 0.11.7 `memory` has the blocks, and the secrets have a longer name."""
    blocks = shown.get("blocks") or (shown.get("memory") or {}).get("blocks") or []
    secrets = shown.get("secrets") or shown.get("tool_exec_environment_variables") or []
    return {**shown, "blocks": blocks, "secrets": secrets}


def list_readers(state: Mapping[str, Any]) -> Sequence[str]:
    """Returns the ids of the sleeptime agents that read an agent's messages."""
    group = state.get("multi_agent_group") or {}
    return (group.get("agent_ids") or ()) if "sleeptime" in str(group.get("manager_type")) else ()


def find_mcp_servers(state: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns the names of the MCP servers of an agent's tools, by the names of the tools in a file."""
    return {
        f"tools.{tool['name']}": str((((tool.get("metadata_") or {}).get("mcp")) or {}).get("server_name"))
        for tool in state.get("tools") or ()
        if tool.get("tool_type") == "external_mcp"
    }


def list_models(agent: LettaAgent) -> set[str]:
    """Returns the models that an agent and its conversations name."""
    config = agent.state.get("llm_config") or {}
    model = agent.state.get("model") or config.get("handle") or config.get("model") or "none"
    records = [conversation.record for conversation in agent.conversations]
    return {str(model), *(record["model"] for record in records if record.get("model"))}


def _convert_agent(agent: LettaAgent) -> Json:
    """Returns the file's JSON of an agent."""
    state = agent.state
    return {
        # `llm_config` and `model_settings` both describe the model, and the older `llm_config` is complete.
        **select_fields(state, [name for name in file_fields.AGENT if name != "model_settings"]),
        "name": _cut_name(state),
        "compaction_settings": _drop_default_compaction(state.get("compaction_settings")),
        "id": state["id"],
        "tool_ids": [tool["id"] for tool in state.get("tools") or ()],
        "block_ids": [block["id"] for block in state.get("blocks") or ()],
        "source_ids": [source["id"] for source in state.get("sources") or ()],
        "secrets": dict.fromkeys(secret["key"] for secret in state.get("secrets") or ()),
        "messages": convert_messages(agent.messages),
    }


def _convert_extension(agent: LettaAgent) -> Json:
    """Returns the fields of an agent in the file that Letta's form lacks."""
    # Letta's server stores empty passages as well, which the gateway does not.
    passages = [_convert_passage(passage) for passage in agent.passages if passage["text"]]
    extension: Json = {
        "created_at": agent.state.get("created_at"),
        "conversations": [
            {
                **select_fields(conversation.record, _CONVERSATION_FIELDS),
                "messages": convert_messages(conversation.messages),
            }
            for conversation in agent.conversations
        ],
        "identities": [
            select_fields(identity, _IDENTITY_FIELDS) for identity in agent.state.get("identities") or ()
        ],
    }
    archive = agent.shared_archive
    if archive is None:
        return {**extension, "passages": passages}
    description = select_fields(archive, ("id", "description"))
    return {**extension, "archives": [{**description, "name": _cut_name(archive), "passages": passages}]}


def _convert_passage(passage: Json) -> Json:
    """Returns the file's JSON of a passage."""
    return {
        "text": passage["text"],
        "tags": passage.get("tags") or [],
        "metadata": passage.get("metadata") or {},
        "created_at": passage.get("created_at"),
    }


def _convert_groups(state: Mapping[str, Any]) -> list[Json]:
    """Returns a list with the file's JSON of an agent's group; an empty list if the agent has no group."""
    group = state.get("multi_agent_group")
    if group is None:
        return []
    manager = {"manager_agent_id": group.get("manager_agent_id") or state["id"]}
    config = {**select_fields(group, FileGroupConfig.__struct_fields__), **manager}
    return [{"agent_ids": group.get("agent_ids") or [], "manager_config": config}]


def _drop_default_compaction(settings: Any) -> Any:
    """Returns the settings of a compaction without defaults of the server, which it shows like a user's settings."""
    if not isinstance(settings, dict):
        return settings
    is_default = {
        "prompt": str(settings.get("prompt")).startswith(_LETTA_PROMPTS),
        "model": settings.get("model") in _LETTA_MODELS,
    }
    return {name: value for name, value in settings.items() if not is_default.get(name)}


def _cut_name(record: Mapping[str, Any]) -> str:
    """Returns the name of a record, which is not empty, and cut to the length that the gateway takes."""
    name: str = record.get("name") or record["id"]
    return name[:_MAX_NAME_CHARS]
