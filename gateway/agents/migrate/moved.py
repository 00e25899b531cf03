"""An agent of Letta's own server as an agent file that loses nothing of it, made of the server's REST responses.

That server's own export has the messages of the window alone, no passages, no conversations, and fails for some agents.
The ids in this file are the server's, and what it names keeps them: so several agents share their blocks, folders and
archive here as they did there. (Seen of 0.16.8.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct

from gateway.agents.agent_file.write import (
    AGENT_FIELDS,
    BLOCK_FIELDS,
    EXTENSION,
    FILE_FIELDS,
    SOURCE_FIELDS,
    select_fields,
)

_Json = dict[str, Any]
# Types that the gateway makes itself: summaries, approvals that the results show.
_RECREATED = frozenset({"summary_message", "event_message", "approval_response_message"})
# Defaults that the server shows for a compaction: the beginnings of its prompts, and its models.
_LETTA_PROMPTS = (
    "The following messages are being evicted", "The previous messages are being evicted",
    "Your task is to create a detailed summary of the conversation so far",
)  # fmt: skip
_LETTA_MODELS = (
    "anthropic/claude-haiku-4-5", "openai/gpt-5-mini", "google_ai/gemini-2.5-flash", "letta/auto",
)  # fmt: skip
_NAME_CHARS = 200  # characters that a name has here at most
_TOOL_FIELDS = (
    "id", "tool_type", "description", "source_type", "name", "tags", "source_code", "json_schema", "return_char_limit",
    "pip_requirements", "npm_requirements", "default_requires_approval", "enable_parallel_execution", "metadata_",
)  # fmt: skip
_IDENTITY_FIELDS = ("id", "identifier_key", "name", "identity_type", "properties")


class MovedConversation(Struct, frozen=True):
    """A conversation other than `default`, with its messages as they are listed, oldest first."""

    record: Mapping[str, Any]
    messages: Sequence[_Json]


class MovedAgent(Struct, frozen=True):
    """All that a Letta server returns about an agent."""

    # The agent as the server returns it, with its blocks, tools and sources.
    state: Mapping[str, Any]
    # The messages of the conversation `default`, oldest first.
    messages: Sequence[_Json] = ()
    conversations: Sequence[MovedConversation] = ()
    # The passages of its archives, oldest first.
    passages: Sequence[_Json] = ()
    # The files of its sources, with their content.
    files: Sequence[_Json] = ()
    # The archive that holds the passages, if other agents have it attached as well; None: it is the agent's own.
    shared: Mapping[str, Any] | None = None


def moved_file(moved: MovedAgent) -> bytes:
    """Returns the agent's file. The sleeptime agent that reads for it is not in it, and is created again."""
    state = moved.state
    # Letta's server stores empty passages as well; the gateway has none.
    passages = [_passage(each) for each in moved.passages if each["text"]]
    own: _Json = {
        "created_at": state.get("created_at"),
        "conversations": [
            {
                **select_fields(each.record, ("id", "created_at", "summary", "model", "model_settings")),
                "messages": file_messages(each.messages),
            }
            for each in moved.conversations
        ],
    }
    own["identities"] = [select_fields(each, _IDENTITY_FIELDS) for each in state.get("identities") or ()]
    if moved.shared is None:
        own["passages"] = passages
    else:
        archive = {**select_fields(moved.shared, ("id", "description")), "name": _name(moved.shared)}
        own["archives"] = [{**archive, "passages": passages}]
    agent = {
        # Both say the model; the older one has all of it.
        **select_fields(state, [name for name in AGENT_FIELDS if name != "model_settings"]),
        "name": _name(state),
        "compaction_settings": _compaction(state.get("compaction_settings")),
        "id": state["id"],
        "tool_ids": [each["id"] for each in state.get("tools") or ()],
        "block_ids": [each["id"] for each in state.get("blocks") or ()],
        "source_ids": [each["id"] for each in state.get("sources") or ()],
        "secrets": dict.fromkeys(each["key"] for each in state.get("secrets") or ()),
        "messages": file_messages(moved.messages),
    }
    extension = {"is_moved": True, "agents": {state["id"]: own}}
    return orjson.dumps(
        {
            "agents": [agent],
            "groups": [*_groups(state)],
            "blocks": [
                {**select_fields(each, BLOCK_FIELDS), "id": each["id"]} for each in state.get("blocks") or ()
            ],
            "files": [
                {**select_fields(each, FILE_FIELDS), "id": each["id"], "source_id": each["source_id"]}
                for each in moved.files
            ],
            "sources": [
                {**select_fields(each, SOURCE_FIELDS), "id": each["id"], "name": _name(each)}
                for each in state.get("sources") or ()
            ],
            "tools": [select_fields(each, _TOOL_FIELDS) for each in state.get("tools") or ()],
            "metadata": {EXTENSION: orjson.dumps(extension).decode()},
        }
    )


def newer_state(shown: Mapping[str, Any]) -> _Json:
    """Returns an agent as 0.16 shows it. In 0.11.7 its blocks lie in `memory`, and its secrets have a longer name."""
    blocks = shown.get("blocks") or (shown.get("memory") or {}).get("blocks") or []
    secrets = shown.get("secrets") or shown.get("tool_exec_environment_variables") or []
    return {**shown, "blocks": blocks, "secrets": secrets}


def readers_of(state: Mapping[str, Any]) -> Sequence[str]:
    """Returns the ids of the sleeptime agents that read an agent's messages."""
    group = state.get("multi_agent_group") or {}
    return (group.get("agent_ids") or ()) if "sleeptime" in str(group.get("manager_type")) else ()


def mcp_servers_of(state: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns {name of a tool in a file: name of its MCP server} of an agent's tools that are an MCP server's."""
    return {
        f"tools.{tool['name']}": str((((tool.get("metadata_") or {}).get("mcp")) or {}).get("server_name"))
        for tool in state.get("tools") or ()
        if tool.get("tool_type") == "external_mcp"
    }


def _groups(state: Mapping[str, Any]) -> Iterator[_Json]:
    group = state.get("multi_agent_group")
    if group is not None:
        manager = {"manager_agent_id": group.get("manager_agent_id") or state["id"]}
        record = select_fields(group, ("manager_type", "sleeptime_agent_frequency"))
        yield {"agent_ids": group.get("agent_ids") or [], "manager_config": {**record, **manager}}


def _compaction(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    is_default = {
        "prompt": str(settings.get("prompt")).startswith(_LETTA_PROMPTS),
        "model": settings.get("model") in _LETTA_MODELS,
    }
    return {name: value for name, value in settings.items() if not is_default.get(name)}


def _name(part: Mapping[str, Any]) -> str:
    name: str = part.get("name") or part["id"]
    return name[:_NAME_CHARS]


# -- messages


def file_messages(listed: Iterable[_Json]) -> list[_Json]:
    """Returns messages in a file's form, without those that the gateway makes itself.

    The first one is the compiled prompt, as in the server's own files. Later ones of the system were sent by clients.
    """
    return [*_joined(listed)]


def count_messages(listed: Iterable[_Json]) -> int:
    """Returns the number of messages without the compiled prompt."""
    messages = file_messages(listed)
    return len(messages) - (bool(messages) and messages[0]["role"] == "system")


def _joined(listed: Iterable[_Json]) -> Iterator[_Json]:
    """Yields messages, each as one: of a message several are listed, with one id (thought, text, calls)."""
    made: _Json | None = None
    for each in listed:
        if each["message_type"] in _RECREATED or _is_summary(each):
            continue
        if made is not None and made["id"] != each["id"]:
            yield made
            made = None
        part = _part(each)
        if made is None:
            made = {"id": each["id"], "created_at": each.get("date"), "content": [], **part}
        else:
            made["content"] += part.pop("content", [])
            made.update(part)
    if made is not None:
        yield made


def _is_summary(each: _Json) -> bool:
    """Returns whether a message is a summary that Letta's server put into the window in the user's name."""
    content = each.get("content")
    if each["message_type"] != "user_message" or not isinstance(content, str) or not content.startswith("{"):
        return False
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return isinstance(record, dict) and record.get("type") == "system_alert"


def _part(each: _Json) -> _Json:
    """Returns what a listed message adds to the message that it is of."""
    content = _content(each.get("content"))
    match each["message_type"]:
        case "user_message" | "system_message" as kind:
            names = ("name", "otid", "sender_id")
            role = "user" if kind == "user_message" else "system"
            return {"role": role, "content": content, **{name: each.get(name) for name in names}}
        case "assistant_message":
            return {"role": "assistant", "content": content}
        case "reasoning_message":
            thought = {"type": "reasoning", "reasoning": each.get("reasoning") or ""}
            return {"role": "assistant", "content": [{**thought, "signature": each.get("signature")}]}
        case "hidden_reasoning_message":
            data = each.get("hidden_reasoning")
            return {
                "role": "assistant",
                "content": [{"type": "redacted_reasoning", "data": data}] if data else [],
            }
        case "tool_call_message" | "approval_request_message" as kind:
            calls = each.get("tool_calls") or [each["tool_call"]]
            role = "assistant" if kind == "tool_call_message" else "approval"
            return {"role": role, "tool_calls": [_call(call) for call in calls]}
        case "tool_return_message":
            returns = each.get("tool_returns") or [each]
            return {
                "role": "tool",
                "name": each.get("name"),
                "tool_returns": [_return(one) for one in returns],
            }
        case other:
            raise ValueError(f"a message of the type {other!r} is not known")


def _content(content: Any) -> list[_Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content or ())


def _call(call: _Json) -> _Json:
    return {
        "id": call.get("tool_call_id") or "",
        "function": {"name": call.get("name") or "", "arguments": call.get("arguments") or ""},
    }


def _return(record: _Json) -> _Json:
    result = record.get("tool_return")
    return {
        "tool_call_id": record.get("tool_call_id"),
        "status": record.get("status"),
        "stdout": record.get("stdout"),
        "stderr": record.get("stderr"),
        "func_response": result if isinstance(result, str) else orjson.dumps(result).decode(),
    }


def _passage(passage: _Json) -> _Json:
    return {
        "text": passage["text"],
        "tags": passage.get("tags") or [],
        "metadata": passage.get("metadata") or {},
        "created_at": passage.get("created_at"),
    }
