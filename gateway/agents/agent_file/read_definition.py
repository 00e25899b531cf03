"""Reads the definition of an agent of an agent file: its settings, without its blocks, tools and messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from gateway.agents.agent_file.file_structs import AgentExtension, FileGroupConfig
from gateway.agents.agent_file.import_form import ImportForm
from gateway.agents.api.agent_bodies import CreateAgent, define_agent
from gateway.agents.core.kinds import VOICE_KIND
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.struct_fields import convert
from gateway.core.definition import AgentDefinition
from gateway.core.json_object import without_none
from gateway.validation import Path

# The fields of an agent in a file that have the same meaning in a request that creates an agent.
_FIELDS = (
    "agent_type", "description", "metadata", "hidden", "system", "llm_config", "model_settings", "context_window_limit",
    "max_tokens", "response_format", "parallel_tool_calls", "tool_rules", "message_buffer_autoclear", "timezone",
    "compaction_settings", "initial_message_sequence", "embedding", "embedding_config", "embedding_chunk_size",
    "reasoning", "enable_reasoner", "max_reasoning_tokens", "max_files_open", "per_file_view_window_char_limit",
    "model",
)  # fmt: skip


def read_definition(
    raw: Mapping[str, Any],
    extension: AgentExtension | None,
    group: FileGroupConfig | None,
    form: ImportForm,
    path: Path,
) -> AgentDefinition:
    """Returns the definition of an agent.

    raw: the JSON of the agent in the file.
    extension: the fields of the file that Letta's form lacks; None: Mnemogate did not write the file.
    group: the group of sleeptime agents that read the agent; None: the file has no such group.
    form: the fields that were sent with the file.
    path: the path of the agent in the request, for errors.

    Raises: Unprocessable.
    """
    fields = _read_letta_fields(raw)
    if group is not None and raw.get("agent_type") == VOICE_KIND:
        fields |= group.window
    if extension is not None:
        fields |= _read_extension_fields(extension)
        config = fields.get("llm_config")
        # Without `context_window_limit` the number in `llm_config` is the model's own size, which sets nothing.
        if isinstance(config, dict) and "context_window_limit" not in fields:
            fields["llm_config"] = {name: value for name, value in config.items() if name != "context_window"}
    overrides = {"model": form.model, "embedding": form.embedding}
    fields |= {name: value for name, value in overrides.items() if isinstance(value, str)}
    create = convert(fields, CreateAgent, path)
    try:
        return define_agent(create)
    except Unprocessable as error:
        # The first key of its path is "body", where a request that creates an agent has the fields.
        raise Unprocessable(replace(error.fault, path=(*path, *error.fault.path[1:]))) from error


def _read_letta_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of Letta's form as a request to create an agent has them."""
    fields = {name: raw[name] for name in _FIELDS if raw.get(name) is not None}
    if isinstance(rules := fields.get("tool_rules"), list):
        fields["tool_rules"] = list(map(_read_rule, rules))
    if "compaction_settings" in fields:
        fields["compaction_settings"] = _read_compaction(fields["compaction_settings"])
    for name, limit in (("llm_config", "max_tokens"), ("model_settings", "max_output_tokens")):
        settings = fields.get(name)
        # Letta's server takes 0 for no bound.
        if isinstance(settings, dict) and settings.get(limit) == 0:
            fields[name] = {**settings, limit: None}
    return fields


def _read_extension_fields(extension: AgentExtension) -> dict[str, Any]:
    """Returns the fields of Mnemogate's own files as a request to create an agent has them."""
    limits = {
        "message_buffer_limit": extension.message_buffer_limit,
        "message_buffer_min": extension.message_buffer_min,
    }
    # A copy of a user's memory belongs to no user, so nothing is learned from it.
    own_fields = {name: value for name, value in extension.mnemogate.items() if name != "learn"}
    return {**without_none(limits), "mnemogate": without_none(own_fields)}


def _read_rule(rule: Any) -> Any:
    """Returns a copy of a tool rule without its prompt template, and without null fields."""
    if not isinstance(rule, dict):
        return rule
    return {name: value for name, value in rule.items() if value is not None and name != "prompt_template"}


def _read_compaction(settings: Any) -> Any:
    """Returns the settings of compaction that the gateway knows. A mode that the gateway lacks is left out."""
    if not isinstance(settings, dict):
        return settings
    names = ("mode", "model", "prompt", "sliding_window_percentage", "clip_chars")
    retained = {name: settings[name] for name in names if settings.get(name) is not None}
    if retained.get("mode") not in ("all", "sliding_window"):
        retained.pop("mode", None)
    return retained
