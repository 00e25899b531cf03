"""Agent files as Letta 0.16 and 0.6 write them, made after their public schemas and examples.

(letta/schemas/agent_file.py, letta/serialize_schemas/pydantic_agent_schema.py)
"""

from __future__ import annotations

import json
from typing import Any

_NONE: dict[str, Any] = dict.fromkeys(
    (
        "folder_ids", "model", "embedding", "model_settings", "compaction_settings", "context_window_limit",
        "embedding_chunk_size", "max_tokens", "max_reasoning_tokens", "reasoning", "from_template", "project",
        "memory_variables", "project_id", "template_id", "base_template_id", "identity_ids", "response_format",
        "hidden", "parallel_tool_calls", "metadata", "initial_message_sequence",
    )
)  # fmt: skip


def _message(n: int, role: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "message", "role": role, "content": list(parts), "name": None, "otid": None, "sender_id": None,
        "batch_item_id": None, "group_id": None, "id": f"message-{n}", "model": "gpt-4o-mini", "agent_id": "agent-0",
        "tool_calls": None, "tool_call_id": None, "tool_returns": [],
        "created_at": f"2025-10-31T22:56:{n:02}.459100+00:00", "approve": None, "approval_request_id": None,
        "denial_reason": None, "approvals": [], **more,
    }  # fmt: skip


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "signature": None}


def _call(id: str, name: str, arguments: str) -> list[dict[str, Any]]:
    return [{"id": id, "function": {"arguments": arguments, "name": name}, "type": "function"}]


def _result(id: str, text: str) -> list[dict[str, Any]]:
    return [{"tool_call_id": id, "status": "success", "stdout": None, "stderr": None, "func_response": text}]


def _block(n: int, label: str, value: str) -> dict[str, Any]:
    return {
        "value": value, "limit": 20000, "project_id": None, "template_name": None, "is_template": False,
        "template_id": None, "base_template_id": None, "deployment_id": None, "entity_id": None,
        "preserve_on_migration": False, "label": label, "read_only": False, "description": f"The {label} block.",
        "metadata": {}, "hidden": None, "id": f"block-{n}",
    }  # fmt: skip


def _tool(n: int, name: str, kind: str, **more: Any) -> dict[str, Any]:
    schema = {"name": name, "description": "It does.", "parameters": {"type": "object", "properties": {}}}
    return {
        "id": f"tool-{n}", "tool_type": kind, "description": "It does.", "source_type": "python", "name": name,
        "tags": [kind], "source_code": None, "json_schema": schema, "args_json_schema": None,
        "return_char_limit": 50000, "pip_requirements": None, "npm_requirements": None,
        "default_requires_approval": None, "enable_parallel_execution": False,
        "created_by_id": "user-00000000-0000-4000-8000-000000000000",
        "last_updated_by_id": "user-00000000-0000-4000-8000-000000000000", "metadata_": {}, **more,
    }  # fmt: skip


_ORDER = "Order 7 is processing."
LETTA_FILE: dict[str, Any] = {
    "agents": [
        {
            **_NONE,
            "name": "clerk",
            "memory_blocks": [],
            "tools": [],
            "tool_ids": ["tool-0", "tool-1", "tool-2", "tool-3"],
            "source_ids": ["source-0"],
            "block_ids": ["block-0", "block-1"],
            "tool_rules": [
                {"tool_name": "send_message", "type": "exit_loop", "prompt_template": "<rule>{{ tool_name }}</rule>"},
                {
                    "tool_name": "look_up_order", "type": "constrain_child_tools", "children": ["send_message"],
                    "child_arg_nodes": None, "prompt_template": None,
                },
            ],
            "tags": ["shop"],
            "system": "You sell pens.",
            "agent_type": "memgpt_v2_agent",
            "include_base_tools": False,
            "include_multi_agent_tools": False,
            "include_base_tool_rules": False,
            "include_default_source": False,
            "description": "A clerk",
            "llm_config": {
                "model": "gpt-4o-mini", "display_name": None, "model_endpoint_type": "openai",
                "model_endpoint": "https://api.openai.com/v1", "provider_name": "openai", "provider_category": "base",
                "model_wrapper": None, "context_window": 32000, "put_inner_thoughts_in_kwargs": True,
                "handle": "openai/gpt-4o-mini", "temperature": 0.7, "max_tokens": None, "enable_reasoner": False,
                "reasoning_effort": None, "max_reasoning_tokens": 0, "frequency_penalty": 1.0,
                "compatibility_type": None, "verbosity": None, "tier": None, "parallel_tool_calls": False,
            },
            "embedding_config": {
                "embedding_endpoint_type": "openai", "embedding_endpoint": "https://api.openai.com/v1",
                "embedding_model": "text-embedding-3-small", "embedding_dim": 2000, "embedding_chunk_size": 300,
                "handle": "openai/text-embedding-3-small", "batch_size": 1024, "azure_endpoint": None,
                "azure_version": None, "azure_deployment": None,
            },
            "enable_reasoner": False,
            "template": False,
            "tool_exec_environment_variables": {"SHOP_KEY": ""},
            "secrets": {"SHOP_KEY": ""},
            "message_buffer_autoclear": False,
            "enable_sleeptime": False,
            "timezone": "UTC",
            "max_files_open": 5,
            "per_file_view_window_char_limit": 15000,
            "id": "agent-0",
            "in_context_message_ids": [f"message-{n}" for n in range(7)],
            "messages": [
                _message(0, "system", _text("You sell pens.\n\n<memory_blocks>…</memory_blocks>")),
                _message(1, "user", _text("Where is my order 7?"), model=None),
                _message(
                    2, "assistant",
                    {"type": "reasoning", "is_native": True, "reasoning": "I look it up.", "signature": "c2ln"},
                    tool_calls=_call("call_1", "look_up_order", '{"request_heartbeat": true}'),
                ),
                _message(
                    3, "tool", _text(_ORDER), name="look_up_order", tool_call_id="call_1",
                    tool_returns=_result("call_1", _ORDER),
                ),
                _message(
                    4, "assistant", {"type": "reasoning", "is_native": True, "reasoning": "Tell.", "signature": None},
                    tool_calls=_call("call_2", "send_message", '{"message": "It is on its way."}'),
                ),
                _message(
                    5, "tool", _text('{"status": "OK", "message": "Sent message successfully."}'), name="send_message",
                    tool_call_id="call_2", tool_returns=_result("call_2", '{"status": "OK"}'),
                ),
                _message(6, "system", _text("The shop closes at six.")),
                _message(7, "user", _text("Thanks."), _text("And a pen?")),
                _message(8, "assistant", _text("Two, please.")),
            ],
            "files_agents": [],
            "group_ids": [],
        }
    ],
    "groups": [],
    "blocks": [_block(0, "human", "Name: Chad"), _block(1, "persona", "I am Sam.")],
    "files": [
        {
            "source_id": "source-0", "file_name": "shop/prices.md", "original_file_name": "prices.md",
            "file_path": None, "file_type": "text/markdown", "file_size": 27, "file_creation_date": None,
            "file_last_modified_date": None, "processing_status": "completed", "error_message": None,
            "total_chunks": 1, "chunks_embedded": 1, "content": "# Prices\n\nA pen costs two.\n", "id": "file-0",
        }
    ],
    "sources": [
        {
            "name": "shop", "description": None, "instructions": None, "metadata": None, "embedding": None,
            "embedding_chunk_size": None, "embedding_config": None, "id": "source-0",
        }
    ],
    "tools": [
        _tool(0, "send_message", "letta_core"),
        _tool(1, "memory_insert", "letta_sleeptime_core"),
        _tool(2, "look_up_order", "custom", source_type="json"),
        _tool(3, "run_code", "letta_builtin"),
    ],
    "mcp_servers": [
        {
            "id": "mcp_server-0", "server_type": "streamable_http", "server_name": "mail",
            "server_url": "https://mcp.example.org/mcp", "stdio_config": None, "metadata_": {},
        }
    ],
    "skills": [{"name": "gifts", "files": {"SKILL.md": "Wrap it."}, "source_url": None}],
    "metadata": {"revision_id": "f6cd5a1e519d"},
    "created_at": "2025-10-31T22:56:56.879513+00:00",
}  # fmt: skip


# -- as Letta 0.6 wrote one


def _older_message(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "created_at": "2025-04-01T03:46:44.910359", "group_id": None, "model": None, "name": None, "role": role,
        "content": [{"type": "text", "text": text}], "tool_call_id": None, "tool_calls": [], "tool_returns": [],
        "updated_at": "2025-04-01T03:46:46", **more,
    }  # fmt: skip


def _older_packed(**fields: Any) -> str:
    return json.dumps({**fields, "time": "2025-03-31 08:46:44 PM PDT-0700"}, indent=2)


def _older_tool(name: str, kind: str) -> dict[str, Any]:
    properties = {
        "order": {"type": "string"},
        "request_heartbeat": {"type": "boolean", "description": "Go on?"},
    }
    return {
        "args_json_schema": None, "created_at": "2025-04-01T03:46:30", "description": "It does.", "name": name,
        "json_schema": {
            "name": name, "description": "It does.", "type": None, "required": [],
            "parameters": {"type": "object", "properties": properties, "required": [*properties]},
        },
        "return_char_limit": 6000, "source_code": None, "source_type": "json", "tags": [], "tool_type": kind,
        "updated_at": "2025-04-01T03:46:30", "metadata_": {},
    }  # fmt: skip


OLDER_FILE: dict[str, Any] = {
    "agent_type": "memgpt_agent",
    "core_memory": [
        {
            "created_at": "2025-04-01T03:46:31", "description": None, "is_template": False, "label": "human",
            "limit": 5000, "metadata_": {"from": "the shop"}, "template_name": None,
            "updated_at": "2025-04-01T03:46:31", "value": "Name: Sarah",
        }
    ],
    "created_at": "2025-04-01T03:46:31",
    "description": "A clerk",
    "embedding_config": {"embedding_endpoint_type": "openai", "embedding_model": "text-embedding-ada-002"},
    "llm_config": {
        "model": "gpt-4o-mini", "model_endpoint_type": "openai", "model_wrapper": None, "context_window": 32000,
        "put_inner_thoughts_in_kwargs": True, "handle": "openai/gpt-4o-mini", "temperature": 0.7, "max_tokens": 4096,
        "enable_reasoner": False, "max_reasoning_tokens": 0,
    },
    "message_buffer_autoclear": False,
    "in_context_message_indices": [4, 1, 2, 3, 5, 6, 7],
    "messages": [
        _older_message("system", "You sell pens.\n### Memory [last modified: …]"),
        _older_message("user", _older_packed(type="user_message", message="Where is my order 7?")),
        _older_message(
            "assistant", "She asks for her order.", name="old clerk",
            tool_calls=_call("call_1", "look_up_order", '{"order": "7", "request_heartbeat": true}'),
        ),
        # The prompt once more, compiled in front of the result.
        _older_message("system", "You sell pens.\n### Memory [last modified: …]\nName: Sarah"),
        _older_message(
            "tool", _older_packed(status="OK", message=_ORDER), name="old clerk", tool_call_id="call_1",
            tool_returns=[{"status": "success", "stdout": ["Looking.\n"], "stderr": []}],
        ),
        _older_message("user", _older_packed(type="heartbeat", reason="Function called, returning control")),
        _older_message(
            "assistant", "I tell her.", name="old clerk",
            tool_calls=_call("call_2", "send_message", '{"message": "It is on its way."}'),
        ),
        _older_message(
            "tool", _older_packed(status="OK", message="None"), name="old clerk", tool_call_id="call_2"
        ),
        _older_message("system", _older_packed(type="system_alert", message="The shop closes at six.")),
    ],
    "metadata_": {"shop": 1},
    "multi_agent_group": None,
    "name": "old clerk",
    "system": "You sell pens.",
    "tags": [{"tag": "shop"}],
    "tool_exec_environment_variables": [
        {"created_at": "2025-04-01T03:46:30", "description": None, "key": "SHOP_KEY", "updated_at": "", "value": ""}
    ],
    "tool_rules": [
        {"tool_name": "send_message", "type": "exit_loop"},
        {"tool_name": "look_up_order", "type": "constrain_child_tools", "children": ["send_message"]},
    ],
    "tools": [
        _older_tool("send_message", "letta_core"),
        _older_tool("core_memory_append", "letta_memory_core"),
        _older_tool("look_up_order", "custom"),
        _older_tool("star_repository", "external_composio"),
    ],
    "updated_at": "2025-04-01T03:46:49.043727",
    "version": "0.6.47",
}  # fmt: skip
